"""What the experiments train, experiments/protocol.py."""

import dataclasses

import numpy as np
import pytest

import keras_mikd as mikd
from tests import cases, script_runs


@pytest.fixture(scope="module")
def protocol():
    with script_runs.module("experiments", "protocol") as script:
        yield script


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("kd", [mikd.SoftTargets]),
        ("at", [mikd.AttentionTransfer] * 2),
        ("hint", [mikd.Hint]),
        ("vid", [mikd.GaussianVIDHead] * 2),
        ("mimkd", [mikd.JSDCritic] * 4),
    ],
)
def test_every_method_has_its_losses_at_the_given_weight(protocol, method, kinds):
    distiller = protocol.with_teacher(
        protocol.DIGITS, method, cases.teacher(), cases.student(), 0.7
    )
    assert [type(loss) for loss in distiller.distillation_losses] == kinds
    assert {loss.weight for loss in distiller.distillation_losses} == {0.7}
    assert distiller.task_loss_weight == 1.0


def test_soft_targets_of_the_protocol_stand_beside_muse(protocol):
    networks = cases.teacher(), cases.student()
    distiller = protocol.with_teacher(protocol.CIFAR100, "kd_muse", *networks, 0.7)
    soft_targets, muse = distiller.distillation_losses
    assert (soft_targets.weight, muse.weight, distiller.task_loss_weight) == (0.9, 0.7, 0.1)
    assert (muse.teacher_layer, muse.student_layer) == ("pooled", ["stage1", "stage2"])


def test_a_student_alone_needs_a_distiller_only_under_a_strategy(protocol, two_replicas):
    student = cases.student()
    assert protocol.with_teacher(protocol.DIGITS, "student", None, student, 0.0) is student
    with two_replicas.scope():
        assert isinstance(protocol.alone(cases.student()), mikd.SelfDistiller)


def test_the_rate_of_cifar_falls_after_150_180_and_210_of_240_epochs(protocol):
    optimizer = protocol.sgd_with_steps(0.05, steps=24_000)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 14_999, 15_001, 18_001, 21_001)]
    np.testing.assert_allclose(rates, [0.05, 0.05, 5e-3, 5e-4, 5e-5], rtol=1e-5)
    assert optimizer.momentum == 0.9


@pytest.mark.parametrize(("dataset", "penalty"), [("digits", 0), ("cifar100", 2.5e-4)])
def test_only_a_protocol_with_a_penalty_has_one(protocol, dataset, penalty):
    data = mikd.datasets.Splits(None, None, None, 10, (8, 8, 1), 0, 0, 0)
    student = protocol.new_student(protocol.PROTOCOLS[dataset], data, "resnet8")
    kernel = next(w for w in student.trainable_weights if w.name == "kernel")
    found = float(student.losses[0]) if student.losses else 0
    np.testing.assert_allclose(found, penalty * np.sum(np.square(kernel)), rtol=1e-4)


def test_rows_are_methods_with_their_weights_or_the_given_ones(protocol):
    known = ["plain", "vid", "kd"]

    def pairs(given):
        rows = protocol.cells(["plain", "vid"], {"vid": [1.0, 3.0], "kd": [2.0]}, known, given)
        return [(row["method"], row["weight"]) for row in rows]

    assert pairs(None) == [("plain", 0.0), ("vid", 1.0), ("vid", 3.0)]
    assert pairs(["7"]) == [("plain", 0.0), ("vid", 7.0)]


@pytest.mark.parametrize(
    ("methods", "weights", "message"),
    [
        (
            ["plain", "crd"],
            None,
            "some of plain, vid. Received: --methods=plain,crd",
        ),
        ([], None, "Expected --methods to be some of"),
        (["vid"], ["0"], "Expected --weights to be numbers above 0. Received: --weights=0"),
        (["vid"], ["1", "many"], "Received: --weights=1,many"),
    ],
)
def test_rows_that_there_are_not_are_refused(protocol, methods, weights, message):
    with pytest.raises(SystemExit, match=message):
        protocol.cells(methods, {"vid": [1.0]}, ["plain", "vid"], weights)


def test_data_that_cannot_be_had_ends_in_one_line(protocol, tmp_path):
    missing = dataclasses.replace(protocol.CIFAR100, data_dir=str(tmp_path))
    with pytest.raises(SystemExit, match="^cifar100: "):
        protocol.load_data(missing, seed=0)


def test_a_file_that_holds_no_network_is_refused(protocol, tmp_path):
    (tmp_path / "teacher.keras").write_text("no network")
    for name in ("teacher.keras", "missing.keras"):
        with pytest.raises(SystemExit, match="a network that examples/train_teacher.py saved"):
            protocol.load_network(tmp_path / name)


def test_tuned_teachers_are_called_by_their_files(protocol):
    files = protocol.teacher_files("a/teacher.keras", ["b/weight1.keras", "b/weight3.keras"])
    assert list(files) == ["MLL", "weight1", "weight3"]
    with pytest.raises(SystemExit, match="Expected files of different names"):
        protocol.teacher_files("a/teacher.keras", ["b/weight1.keras", "c/weight1.keras"])


if __name__ == "__main__":
    pytest.main([__file__])
