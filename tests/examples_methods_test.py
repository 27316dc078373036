"""The scripts about one network, several networks, MCMI and detectors, on very little data."""

import json
import math
import shutil

import keras
import numpy as np
import pytest

import keras_mikd as mikd
from tests.example_runs import run_example, tensorboard_tags

pytestmark = pytest.mark.slow
FEW = ["--epochs=2", "--labels_per_class=2", "--batch_size=10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


def _run(folder, script, *arguments, name=None):
    """Returns what the script printed, and its results."""
    output = folder / (name or script)
    folders = [f"--output_dir={output}", f"--data_dir={folder / 'data'}"]
    run = run_example(script, *folders, *arguments)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr and "Warning" not in run.stderr, run.stderr
    return run.stdout, json.loads((output / "results.json").read_text())


def _lines(printed):
    return [line.split() for line in printed.splitlines()]


@pytest.fixture(scope="module")
def by_itself(folder):
    return _run(folder, "self_distill", "--student=digits_cnn", *FEW)


def test_every_method_of_self_distillation_has_a_row(by_itself, folder):
    printed, rows = by_itself
    methods = ["plain", "byot", "hint", "at", "vid", "jsd", "muse"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        gain = row["test"] - rows[0]["test"]
        assert [row["method"], f"{row['test']:.2f}", f"{gain:+.2f}"] in _lines(printed)
    best = max(rows, key=lambda row: row["validation"])
    assert f"split: {best['method']}, saved as" in printed
    assert keras.saving.load_model(folder / "self_distill" / "student.keras").count_params() == 5122


def test_muse_is_read_out_against_its_ceiling(by_itself, folder):
    printed, rows = by_itself
    nats = rows[-1]["nats"]
    assert f"muse_stage1_self_nats {nats['muse_stage1_self_nats']:.2f}" in printed
    assert nats.pop("muse_ceiling_nats") == pytest.approx(2 * math.log(2))
    terms = {f"muse_stage{i}_{term}_nats" for i in (1, 2, 3) for term in ("mutual", "self")}
    assert set(nats) == terms and max(nats.values()) <= 2 * math.log(2)
    tags = tensorboard_tags(folder / "self_distill" / "logs" / "muse" / "train")
    assert {"epoch_loss", "epoch_task_loss", "epoch_terms/muse"} <= set(tags)


def test_peers_are_reported_one_by_one_and_by_their_mean(folder):
    printed, rows = _run(folder, "online_distill", "--peers=digits_cnn,resnet8", *FEW)
    assert [row["method"] for row in rows] == ["alone", "dml", "dml_muse"]
    for row in rows:
        first, second = row["test"]
        numbers = [f"{each:.2f}" for each in (first, second, (first + second) / 2)]
        assert [row["method"], *numbers] == next(
            line for line in _lines(printed) if line[:1] == [row["method"]]
        )[:4]
    assert "muse_peer1_to_peer2_stage3_mutual_nats" in rows[-1]["nats"]
    assert keras.saving.load_model(folder / "online_distill" / "student.keras")


def test_a_chain_of_assistants_is_compared_and_goes_on_where_it_was(folder):
    keras.utils.set_random_seed(0)
    mikd.models.resnet8(10, (8, 8, 1)).save(folder / "untrained.keras")
    arguments = [f"--teacher={folder / 'untrained.keras'}", "--chain=digits_cnn,digits_cnn", *FEW]
    printed, rows = _run(folder, "assistants", *arguments)
    assert {row["name"]: row["taught_by"] for row in rows} == {
        "assistant1": ["teacher"],
        "alone": [],
        "direct": ["teacher"],
        "chain": ["assistant1"],
        "all": ["teacher", "assistant1"],
    }
    for row in rows:
        numbers = [f"{row['validation']:.2f}", f"{row['test']:.2f}"]
        assert [row["name"], "digits_cnn", *numbers] in _lines(printed)
    weights = keras.saving.load_model(folder / "assistants" / "student.keras").get_weights()
    # What is trained before a kill is not trained again.
    for name in ("results.json", "student.keras"):
        (folder / "assistants" / name).unlink()
    shutil.rmtree(folder / "assistants" / "resume" / "all")
    assert _run(folder, "assistants", *arguments)[1] == rows
    again = keras.saving.load_model(folder / "assistants" / "student.keras").get_weights()
    for a, b in zip(weights, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def tuned(folder):
    data = mikd.datasets.load_digits(batch_size=50, data_dir=str(folder / "data"))
    keras.utils.set_random_seed(0)
    teacher = mikd.models.resnet8(10, data.image_shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(3e-3), loss)
    teacher.fit(data.train, epochs=3, shuffle=False, verbose=0)
    teacher.save(folder / "teacher.keras")
    content = (folder / "teacher.keras").read_bytes()
    arguments = ["--epochs=2", "--learning_rate=1e-3", f"--teacher={folder / 'teacher.keras'}"]
    printed, results = _run(folder, "tune_teacher", *arguments)
    assert (folder / "teacher.keras").read_bytes() == content
    return printed, results, data


def test_a_tuned_teacher_is_the_one_in_the_table(tuned, folder):
    printed, results, data = tuned
    files = {"before": "teacher.keras", "after": "tune_teacher/weight0.25.keras"}
    for name, file in files.items():
        teacher = keras.saving.load_model(folder / file)
        for split in ("validation", "test"):
            report = mikd.measure_cmi(teacher, getattr(data, split), verbose=0)
            for key, value in results[name][split].items():
                assert getattr(report, key) == pytest.approx(value, rel=1e-4)
            cells = [f"{report.cmi:.4f}", f"{report.log_likelihood:.4f}", f"{report.accuracy:.2%}"]
            assert [name, split, *cells] in _lines(printed)
    assert results["after"] != results["before"]


def test_the_trajectory_ends_at_the_tuned_teacher(tuned, folder):
    _, results, _ = tuned
    for key, curve in results["curve"].items():
        assert len(curve) == 2
        assert curve[-1] == pytest.approx(results["after"]["validation"][key], rel=1e-3)
    logs = folder / "tune_teacher" / "logs"
    assert set(tensorboard_tags(logs / "figures")) == {"trajectory", "eigen_cam"}
    assert "epoch_cmi" in tensorboard_tags(logs / "weight0.25" / "validation")
    for name in ("trajectory", "eigen_cam"):
        assert (folder / "tune_teacher" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.fixture(scope="module")
def detectors(folder):
    pytest.importorskip("keras_cv", exc_type=ImportError)
    return _run(folder, "distill_detector", "--epochs=1", name="own")


def test_a_detector_alone_and_with_muse_has_cocos_metrics(detectors, folder):
    printed, rows = detectors
    assert [row["method"] for row in rows] == ["plain", "muse"]
    for row in rows:
        numbers = [f"{row['test'][name]:.2%}" for name in ("AP", "AP50", "AP75")]
        assert [row["method"], *numbers] in _lines(printed)
        assert 0 <= row["validation"]["AP"] <= 1
    tags = tensorboard_tags(folder / "own" / "logs" / "muse" / "train")
    assert {"epoch_loss", "epoch_terms/backbone", "epoch_terms/pyramid", "epoch_box_loss"} <= set(
        tags
    )


def test_a_saved_detector_can_teach(detectors, folder):
    teacher = folder / "own" / "student.keras"
    content = teacher.read_bytes()
    arguments = ["--epochs=1", f"--teacher={teacher}"]
    _, rows = _run(folder, "distill_detector", *arguments, name="taught")
    assert [row["method"] for row in rows] == ["plain", "muse"]
    # By itself a detector has no pair of P5 with P5.
    tags = tensorboard_tags(folder / "taught" / "logs" / "muse" / "train")
    assert "epoch_readouts/backbone_P5_mutual_nats" in tags
    assert teacher.read_bytes() == content


if __name__ == "__main__":
    pytest.main([__file__])
