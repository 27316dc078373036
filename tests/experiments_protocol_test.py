"""What the experiments train, experiments/protocol.py."""

import dataclasses
import types

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
    steps = (0, 14_999, 15_000, 17_999, 18_000, 20_999, 21_000)
    rates = [float(optimizer._learning_rate(step)) for step in steps]
    np.testing.assert_allclose(rates, [5e-2, 5e-2, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5], rtol=1e-5)
    # PyTorch's weight decay of 5e-4, with what momentum makes of it.
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-3)


def test_the_losses_of_cifar_are_those_of_the_benchmark(protocol):
    networks = [mikd.models.wrn_16_1(4, (16, 16, 3)) for _ in range(2)]

    def losses(method):
        weight = protocol.CIFAR100.weights[method][-1]
        return protocol.with_teacher(
            protocol.CIFAR100, method, *networks, weight
        ).distillation_losses

    raw = [f"stage{i}_output" for i in (1, 2, 3)]
    for method, weight in (("vid", 1.0), ("at", 1000.0)):
        assert [loss.teacher_layer for loss in losses(method)] == raw
        assert {loss.weight for loss in losses(method)} == {weight}
    vid, (hint,) = losses("vid"), losses("hint")
    assert {(loss.variant, loss.initial_variance) for loss in vid} == {("repdistiller", None)}
    assert (hint.teacher_layer, hint.kind, hint.weight) == ("stage2_output", "repdistiller", 100)


def test_without_a_validation_split_nothing_is_chosen(protocol, monkeypatch):
    asked, test = {}, object()
    splits = mikd.datasets.Splits(None, None, test, 10, (8, 8, 1), 50_000, 0, 7)

    def load(**arguments):
        asked.update(arguments)
        return splits

    monkeypatch.setattr(mikd.datasets, "load_cifar100", load)
    data = protocol.load_data(protocol.CIFAR100, seed=0)
    assert (asked["validation_fraction"], asked["drop_remainder"]) == (0.0, False)
    assert (data.validation, data.num_validation) == (test, 7)
    protocol.check_choice(protocol.CIFAR100, "weights", 1)
    with pytest.raises(SystemExit, match="--validation_fraction=0.1, say, .* 3 of --weights"):
        protocol.check_choice(protocol.CIFAR100, "weights", 3)
    given = types.SimpleNamespace(validation_fraction=0.2)
    held_out = protocol.with_validation(protocol.CIFAR100, given)
    protocol.check_choice(held_out, "weights", 3)
    assert held_out.data == {"validation_fraction": 0.2, "drop_remainder": False}
    with pytest.raises(SystemExit, match="for CIFAR: the digits have"):
        protocol.with_validation(protocol.DIGITS, given)


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
