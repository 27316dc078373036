"""The experiments about MCMI: tuned teachers, few images, unseen classes, temperatures."""

import json
import statistics

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from tests import script_runs
from tests.example_runs import tensorboard_tags

TINY = ["--student=digits_cnn", "--epochs=1"]


@pytest.fixture
def zero_shot():
    with script_runs.module("experiments", "zero_shot") as script:
        yield script


def test_classes_are_dropped_inside_the_batch(zero_shot):
    labels = np.array([0, 1, 2, 0, 1, 2, 1, 1, 1, 0, 2, 2], "int32")
    images = np.arange(12, dtype="float32")
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    batches = list(zero_shot.without(dataset, [1]).as_numpy_iterator())
    # The third batch has class 1 only; the first one comes again, so that an epoch keeps its steps.
    assert [each.tolist() for each, _ in batches] == [[0, 2], [3, 5], [9, 10, 11], [0, 2]]
    assert [each.tolist() for _, each in batches] == [[0, 2], [0, 2], [0, 2, 2], [0, 2]]
    assert len(zero_shot.without(dataset, [0, 1])) == 4


def test_classes_are_dropped_from_the_batches_of_a_cache(zero_shot):
    teacher = mikd.models.digits_cnn(3, (8, 8, 1))
    images = np.random.default_rng(0).random((12, 8, 8, 1), "float32")
    labels = np.arange(12) % 3
    cache = mikd.TeacherCache(teacher, images, labels).build(verbose=0)
    batches = zero_shot.without(cache.batches(6, shuffle=False), [1])
    assert len(batches) == 2
    logits = teacher.predict(images, verbose=0)
    for number, batch in enumerate(batches):
        rows = np.arange(6 * number, 6 * number + 6)
        rows = rows[labels[rows] != 1]
        np.testing.assert_array_equal(batch.x, images[rows])
        np.testing.assert_array_equal(batch.y, labels[rows])
        ((kept,),) = (each.values() for each in batch.teacher_features.values())
        np.testing.assert_allclose(kept, logits[rows], rtol=1e-4, atol=1e-5)
    distiller = mikd.Distiller(
        teacher, mikd.models.digits_cnn(3, (8, 8, 1)), [mikd.SoftTargets(weight=0.9)]
    )
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(batches, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_dropped_classes_are_counted_apart(zero_shot):
    labels = np.array([0, 0, 1, 2, 2, 2, 2])
    predicted = np.array([0, 1, 1, 2, 2, 2, 0])
    assert zero_shot.accuracies(np.eye(3)[predicted], labels, [2, 1]) == {
        "dropped_accuracy": 80.0,
        "each_accuracy": {"2": 75.0, "1": 100.0},
        "kept_accuracy": 50.0,
    }


def test_soft_targets_have_the_weights_and_the_temperature_of_the_paper(zero_shot):
    networks = (mikd.models.digits_cnn(10, (8, 8, 1)) for _ in range(2))
    distiller = zero_shot.taught(*networks, label_weight=0.1, kd_weight=0.9, temperature=4.0)
    (loss,) = distiller.distillation_losses
    assert (distiller.task_loss_weight, loss.weight, loss.temperature) == (0.1, 0.9, 4.0)


@pytest.mark.parametrize("dropped", ["10", "9+9", "9+x", "0+1+2+3+4+5+6+7+8+9"])
def test_sets_that_there_are_not_are_refused(zero_shot, dropped):
    zero_shot.check_sets(["9+7", "0"], 10)
    with pytest.raises(SystemExit, match="Expected different classes from 0 to 9"):
        zero_shot.check_sets(["0", dropped], 10)


def _row(teacher, *runs, method="kd"):
    numbers = [{"seed": i, "validation": v, "test": t} for i, (v, t) in enumerate(runs)]
    return {"images": "5 per class", "method": method, "teacher": teacher, "runs": numbers}


def test_the_mcmi_teacher_of_a_method_is_chosen_on_the_validation_split():
    mll = _row("MLL", (90, 80.0), (90, 82.0))
    better = _row("weight3", (85, 81.0), (87, 85.0))
    rows = [mll, _row("weight1", (84, 99.0), (84, 99.0)), better, _row("", (50, 70.0))]
    with script_runs.module("experiments", "few_shot") as few_shot:
        assert few_shot.compared(rows, "5 per class", "kd") == (mll, better)
        assert few_shot.gains(mll, better) == [1.0, 3.0]
        assert few_shot.image_sets([5], None) == {"5 per class": {"labels_per_class": 5}}
        assert few_shot.image_sets([5], [0.1]) == {"10 %": {"train_fraction": 0.1}}


def _tuned(weight, cmi, accuracy):
    return {"weight": weight, "after": {"validation": {"cmi": cmi, "accuracy": accuracy}}}


def test_chosen_is_the_most_information_that_keeps_the_accuracy(capsys):
    runs = [_tuned(1, 0.1, 98.0), _tuned(2, 0.3, 97.0), _tuned(4, 0.9, 96.9)]
    before = {"validation": {"accuracy": 99.0}}
    with script_runs.module("experiments", "tune_teachers") as script:
        assert script.choose(runs, before, 2.0) == runs[1]
        assert script.choose(runs, before, 0.5) == runs[0]
    assert "Every weight costs more than 0.5 points" in capsys.readouterr().out


@pytest.mark.parametrize(("stopped", "best", "kept"), [(None, None, 3), (2, 1, 2), (1, None, 0)])
def test_the_curve_ends_where_the_teacher_was_taken(stopped, best, kept):
    guard = mikd.LogLikelihoodGuard(-1.0)
    guard.stopped_epoch, guard.best_epoch = stopped, best
    history = {"val_cmi": [0.1, 0.2, 0.3], "val_log_likelihood": [-0.1, -0.2, -0.3]}
    before = {"validation": {"cmi": 0.0, "log_likelihood": -0.05}}
    with script_runs.module("experiments", "tune_teachers") as script:
        curve = script.curve(history, before, guard)
    assert curve["cmi"] == [0.0, *history["val_cmi"][:kept]]
    assert curve["log_likelihood"] == [-0.05, *history["val_log_likelihood"][:kept]]


def _runs(folder):
    return json.loads((folder / "results.json").read_text())["runs"]


def _is_png(path):
    content = path.read_bytes()
    return content.startswith(b"\x89PNG\r\n") and len(content) > 5_000


def _run(folder, name, script, *arguments):
    """Runs an experiment that writes to `<folder>/<name>`; returns what it printed."""
    files = {"teacher": "teacher.keras", "data_dir": "data", "output_dir": name}
    common = [f"--{flag}={folder / file}" for flag, file in files.items()]
    return script_runs.succeed(f"experiments/{script}.py", *common, *arguments)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with a teacher and tuned ones, and what was printed."""
    folder = tmp_path_factory.mktemp("mcmi")
    data = mikd.datasets.load_digits(batch_size=50, data_dir=str(folder / "data"))
    teacher = mikd.models.resnet8(10, data.image_shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    teacher.fit(data.train, epochs=3, shuffle=False, verbose=0)
    teacher.save(folder / "teacher.keras")
    tiny = ["--epochs=2", "--batch_size=50", "--learning_rate=1e-3"]
    return folder, _run(folder, "tune", "tune_teachers", "--weights=0.1,0.3", *tiny)


@pytest.mark.slow
def test_a_tuned_teacher_is_the_one_in_the_table(tuned):
    folder, printed = tuned
    data = mikd.datasets.load_digits(data_dir=str(folder / "data"))
    runs = _runs(folder / "tune")
    assert [run["weight"] for run in runs] == [0.1, 0.3]
    for run in runs:
        path = folder / "tune" / f"weight{run['weight']:g}.keras"
        report = mikd.measure_cmi(keras.saving.load_model(path), data.test, verbose=0)
        numbers = run["after"]["test"]
        assert numbers["cmi"] == pytest.approx(report.cmi, rel=1e-4)
        assert numbers["log_likelihood"] == pytest.approx(report.log_likelihood, rel=1e-4)
        assert numbers["accuracy"] == pytest.approx(100 * report.accuracy, abs=0.01)
        (line,) = (each for each in printed.splitlines() if each.startswith(f"{run['weight']:g} "))
        assert f"{report.cmi:.4f}" in line
        assert run["curve"]["cmi"][-1] == pytest.approx(run["after"]["validation"]["cmi"], rel=1e-3)
    assert _is_png(folder / "tune" / "trajectory.png")
    assert _is_png(folder / "tune" / "eigen_cam.png")
    tags = tensorboard_tags(folder / "tune" / "weight0.3" / "validation")
    assert {"epoch_cmi", "epoch_log_likelihood", "epoch_accuracy"} <= set(tags)


@pytest.mark.slow
def test_few_images(tuned):
    folder, _ = tuned
    files = f"--mcmi_teacher={folder}/tune/weight0.1.keras,{folder}/tune/weight0.3.keras"
    few = ["--labels_per_class=2", "--batch_size=10", "--methods=kd", "--seeds=2"]
    printed = _run(folder, "few", "few_shot", files, *few, *TINY)
    tests = {}
    for run in _runs(folder / "few"):
        tests.setdefault((run["method"], run["teacher"]), []).append(run["test"])
    assert list(tests) == [("student", ""), *(("kd", t) for t in ("MLL", "weight0.1", "weight0.3"))]
    (line,) = (line for line in printed.splitlines() if line.startswith("2 per class    kd"))
    plain, informed = (statistics.mean(tests["kd", name]) for name in ("MLL", line.split()[-1]))
    for value in (plain, informed, informed - plain):
        assert f" {value:.2f} ± " in line
    assert _is_png(folder / "few" / "few_shot.png")


@pytest.mark.slow
def test_unseen_classes(tuned):
    folder, _ = tuned
    file = f"--mcmi_teacher={folder}/tune/weight0.1.keras"
    arguments = [file, "--dropped=9+7", "--batch_size=50", *TINY]
    printed = _run(folder, "zero", "zero_shot", *arguments)
    runs = _runs(folder / "zero")
    assert [run["teacher"] for run in runs] == ["labels only", "MLL", "weight0.1"]
    (line,) = (line for line in printed.splitlines() if line.startswith("9+7 "))
    for run in runs:
        low, high = sorted(run["each_accuracy"].values())
        assert low <= run["dropped_accuracy"] <= high
        assert f"{run['dropped_accuracy']:.2f} | {run['kept_accuracy']:.2f}" in line
    # Figures come out of a second start too, from what the first one left.
    for name in ("confusion_9+7", "tsne_9+7"):
        assert _is_png(folder / "zero" / f"{name}.png")
        (folder / "zero" / f"{name}.png").unlink()
    assert (
        _run(folder, "zero", "zero_shot", *arguments).splitlines()[-5:] == printed.splitlines()[-5:]
    )
    assert _is_png(folder / "zero" / "confusion_9+7.png")


@pytest.mark.slow
def test_information_is_that_of_the_softened_outputs(tuned):
    folder, _ = tuned
    few = ["--labels_per_class=2", "--batch_size=10", "--seeds=1"]
    printed = _run(folder, "temperature", "cmi_temperature", "--temperature=8,1", *few, *TINY)
    teacher = keras.saving.load_model(folder / "teacher.keras")
    data = mikd.datasets.load_digits(data_dir=str(folder / "data"))
    rows = json.loads((folder / "temperature" / "temperatures.json").read_text())
    assert [row["temperature"] for row in rows] == [1, 8]
    for row in rows:
        report = mikd.measure_cmi(
            teacher, data.validation, temperature=row["temperature"], verbose=0
        )
        numbers = [f"{report.cmi:.4f}", "0.9", f"{row['trials']['0.9']:.2f}", f"{row['mean']:.2f}"]
        assert [f"{row['temperature']:g}", *numbers] in [x.split() for x in printed.splitlines()]
    assert _is_png(folder / "temperature" / "cmi_temperature.png")


if __name__ == "__main__":
    pytest.main([__file__])


def test_gains_of_students_are_taken_seed_by_seed():
    with script_runs.module("experiments", "mcmi_students") as script:
        rows = [
            [{"method": "kd", "values": [70.0, 72.0]}],
            [{"method": "student", "values": [0.0, 0.0]}, {"method": "kd", "values": [71.0, 75.0]}],
        ]
        mean, half = script.gain(rows, "kd")
        assert mean == 2.0
        assert half == pytest.approx(12.706, rel=1e-4)  # t of one degree of freedom, deviation √2.
        assert script.gain([[{"method": "kd", "values": [70.0]}]] * 2, "kd") == (0.0, None)


@pytest.mark.slow
def test_students_of_tuned_teachers_have_one_table(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    teacher = tmp_path / "teacher.keras"
    mikd.models.digits_cnn(10, (8, 8, 1)).save(teacher)
    flags = [f"--output_dir={tmp_path / 'run'}", f"--data_dir={tmp_path / 'data'}"]
    flags += [f"--teacher={teacher}", "--student=digits_cnn", "--labels_per_class=2", "--seeds=2"]
    flags += ["--epochs=1", "--batch_size=10", "--views=2", "--tuning_images=5"]
    flags += ["--tuning_epochs=1", "--mcmi_weights=1", "--methods=kd,at"]
    with script_runs.module("experiments", "mcmi_students") as script:
        script_runs.call(script, *flags)
        first = capsys.readouterr().out
        script_runs.call(script, *flags)
        again = capsys.readouterr().out
    assert again.count("from its file") == 3 * 10
    assert first.split("students\n")[1] == again.split("students\n")[1]
    # All students alone are the same, whoever would have taught them.
    folders = [tmp_path / "run" / f"students-{n}" for n in ("as_it_was", "weight0", "weight1")]
    alone = {json.loads((f / "student-seed1.json").read_text())["test"] for f in folders}
    assert len(alone) == 1
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [run["weight"] for run in found["runs"]] == [0.0, 1.0]
    with (
        script_runs.module("experiments", "mcmi_students") as script,
        pytest.raises(SystemExit, match="runs of the same settings"),
    ):
        script_runs.call(script, *flags, "--tuning_epochs=2")
    tuned = keras.saving.load_model(tmp_path / "run" / "weight1.keras")
    digits = mikd.datasets.load_digits(data_dir=tmp_path / "data")
    report = mikd.measure_cmi(tuned, digits.test, verbose=0)
    assert found["runs"][1]["test"]["cmi"] == pytest.approx(report.cmi, rel=1e-4)
    assert (tmp_path / "run" / "eigen_cam.png").exists()
