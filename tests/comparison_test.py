"""One call that compares methods, on networks of a few weights."""

import inspect
import json
import re
import statistics
import time

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.comparison.cells import Progress
from keras_mikd.comparison.methods import METHODS
from keras_mikd.comparison.report import Comparison, half_interval, summarized
from keras_mikd.comparison.score import Score, checked_score
from keras_mikd.comparison.step_time import StepTime


def _methods():
    return {"kd": None, "own": lambda t, s, weight: [mikd.Hint(weight=weight)]}


def _student():
    return cases.network((2, 3))


def _compare(teacher=None, train=None, **kwargs):
    options = {
        **{"methods": ["kd"], "weights": [0.5, 2.0], "seeds": 2, "epochs": 1, "batch_size": 16},
        **{"verbose": False, **kwargs},
    }
    validation, test = cases.data(16, seed=1), cases.data(16, seed=2)
    options.setdefault("test", test)
    train = train or cases.data(16)
    return mikd.compare(teacher or cases.teacher(), _student, train, validation, **options)


def _row(result, method):
    (row,) = (row for row in result.rows if row["method"] == method)
    return row


def test_what_balance_measures_is_no_extra_weight():
    result = _compare(balance="gradient", weights=[1.0], seeds=1)
    assert _row(result, "kd")["training_only_weights"] == 0


def test_every_method_has_its_row_its_weight_and_its_gains(tmp_path, capsys):
    teacher = cases.teacher()
    teacher.compile("adam", "mse")
    before = teacher.get_weights(), teacher.optimizer
    result = _compare(teacher, methods=_methods(), folder=tmp_path / "runs", verbose=True)
    assert [row["method"] for row in result.rows] == ["student", "kd", "own"]
    for row in result.rows[1:]:
        assert row["weight"] == max(row["trials"], key=row["trials"].get)
        assert set(row["trials"]) == {0.5, 2.0}
        assert len(row["values"]) == 2
        gain, half = row["gains"]["student"]
        alone = _row(result, "student")["values"]
        differences = np.subtract(row["values"], alone)
        assert gain == pytest.approx(differences.mean())
        assert half == pytest.approx(half_interval(list(differences)))
    assert _row(result, "student")["step"] == 1.0
    assert _row(result, "student")["training_only_weights"] == 0
    assert _row(result, "own")["training_only_weights"] > 0
    # A student of every run, that loads and has the accuracy of its file.
    run = json.loads((tmp_path / "runs" / "own-weight0.5-seed0.json").read_text())
    student = keras.saving.load_model(tmp_path / "runs" / "own-weight0.5-seed0.keras")
    x, y = cases.data(16, seed=2)
    right = np.mean(np.argmax(student.predict(x, verbose=0), axis=1) == y)
    assert run["test"] == pytest.approx(100 * right)
    kept = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    assert kept == json.loads(json.dumps(result.as_dict()))
    for old, new in zip(before[0], teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert teacher.optimizer is before[1]
    printed = capsys.readouterr().out
    assert printed.index("teacher:") < printed.index("student-seed0") < printed.index("kd-weight")
    assert "[8/8]" in printed and "left" in printed
    assert str(result) in printed


def test_a_method_without_losses_changes_the_student_alone(tmp_path):
    trained = cases.network((2, 3), seed=5)

    def warm(teacher, student, weight):
        student.set_weights(trained.get_weights())
        return []

    methods = {"warm": warm, "untouched": lambda t, s, weight: []}
    options = {"methods": methods, "weights": [1.0], "seeds": 1, "make_optimizer": _still}
    result = _compare(folder=tmp_path / "runs", **options)
    warmed = keras.saving.load_model(tmp_path / "runs" / "warm-weight1-seed0.keras")
    for old, new in zip(trained.get_weights(), warmed.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert _row(result, "untouched")["values"] == _row(result, "student")["values"]
    assert _row(result, "warm")["training_only_weights"] == 0


def test_weights_are_chosen_on_validation_data(monkeypatch):
    def run(self, method, weight, seed):
        found = {0.5: (90.0, 10.0), 2.0: (10.0, 90.0)}.get(weight, (50.0, 50.0))
        times = {"seconds": 1.0, "milliseconds": 1.0, "training_only_weights": 0}
        return None, {"validation": found[0], "test": found[1], **times}

    monkeypatch.setattr("keras_mikd.comparison.runner.Runner.run", run)
    row = _row(_compare(), "kd")
    assert row["weight"] == 0.5 and row["mean"] == 10.0
    assert row["trials"] == {0.5: 90.0, 2.0: 10.0}


def test_every_run_has_its_seed_and_a_schedule_of_all_its_steps(monkeypatch):
    steps, seeds, batches = set(), set(), mikd.TeacherCache.batches

    def make_optimizer(count):
        steps.add(count)
        return keras.optimizers.SGD(0.0)

    def noted(self, *args, seed, **kwargs):
        seeds.add(seed)
        return batches(self, *args, seed=seed, **kwargs)

    monkeypatch.setattr(mikd.TeacherCache, "batches", noted)
    train = cases.data(32)
    _compare(epochs=3, weights=[1.0], train=train, make_optimizer=make_optimizer)
    assert steps == {6} and seeds == {0, 1}


@pytest.mark.parametrize("cut", ["other classes", "no classifier"])
def test_a_teacher_of_other_classes_has_no_accuracy(cut, tmp_path, capsys):
    teacher = cases.teacher()
    if cut == "no classifier":
        teacher = keras.Model(teacher.inputs, teacher.get_layer("relu2").output)
    else:
        teacher = keras.Model(teacher.inputs, keras.layers.Dense(7)(teacher.output))
    methods = {
        "own": lambda t, s, weight: [
            mikd.Hint(teacher_layer="relu1", student_layer="relu1", weight=weight)
        ]
    }
    result = _compare(teacher, methods=methods, folder=tmp_path / "runs", verbose=True)
    assert result.teacher is None
    assert "teacher" not in capsys.readouterr().out.replace("running the teacher", "")
    assert json.loads((tmp_path / "runs" / "comparison.json").read_text())["teacher"] is None
    legend = result.figure().axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["student alone"]


def _of_the_teacher(teacher, student, weight):
    losses = [mikd.SoftTargets(weight=weight)]
    return mikd.Distiller(teacher, student, losses, task_loss_weight=0.1)


def _among_peers(teacher, student, weight):
    peers = [cases.network((2, 3), seed=7), student]
    return mikd.MutualDistiller(peers, [mikd.SoftTargets(weight=weight, name="dml")])


def _to_its_last_map(teacher, student, weight):
    hint = mikd.Hint(teacher_layer="relu2", student_layer="relu1", weight=weight)
    return mikd.SelfDistiller(student, [hint])


def test_a_method_may_be_a_distiller_of_the_student(tmp_path):
    methods = {"own": _of_the_teacher, "peers": _among_peers, "self": _to_its_last_map}
    options = {"methods": methods, "weights": [1.0], "seeds": 1, "folder": tmp_path / "runs"}
    result = _compare(**options)
    # The same distiller, fitted by hand on the same batches.
    keras.utils.set_random_seed(0)
    student = _student()
    distiller = _of_the_teacher(cases.teacher(), student, 1.0)
    cache = mikd.TeacherCache(cases.teacher(), *cases.data(16), ["output"])
    batches = cache.batches(16, seed=0, with_teacher=False)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    distiller.fit(batches, shuffle=False, verbose=0)
    kept = keras.saving.load_model(tmp_path / "runs" / "own-weight1-seed0.keras")
    for by_hand, own in zip(student.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_allclose(by_hand, own, atol=1e-6)
    peer = cases.network((2, 3)).count_params()
    assert _row(result, "peers")["training_only_weights"] == peer
    assert _row(result, "self")["training_only_weights"] > 0
    assert _compare(**options).as_dict() == result.as_dict()


def test_a_distiller_of_another_network_is_refused():
    other = {"self": lambda t, s, weight: mikd.SelfDistiller(cases.network((2, 3)), [])}
    with pytest.raises(ValueError, match="distiller of the student that the function"):
        _compare(methods=other)
    with pytest.raises(ValueError, match="Received: a MCMITeacher of another network"):
        _compare(methods={"mcmi": lambda t, s, weight: mikd.MCMITeacher(s)})
    with pytest.raises(ValueError, match="no `balance` beside a method that makes its own"):
        _compare(methods={"self": _to_its_last_map}, balance="gradient")


def _still(steps):
    return keras.optimizers.SGD(0.0)


def test_a_folder_goes_on_and_takes_more(tmp_path, monkeypatch, capsys):
    fits = []
    fit = mikd.Distiller.fit
    alone = mikd.SelfDistiller.fit

    def counted(original):
        def fit(self, *args, **kwargs):
            if len(fits) == stop:
                raise KeyboardInterrupt
            fits.append(self)
            return original(self, *args, **kwargs)

        return fit

    monkeypatch.setattr(mikd.Distiller, "fit", counted(fit))
    monkeypatch.setattr(mikd.SelfDistiller, "fit", counted(alone))
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        _compare(folder=tmp_path / "runs", seeds=1)
    stop = None
    resumed = _compare(folder=tmp_path / "runs", seeds=1)
    assert len(fits) == 3  # The student alone, and two trials.
    whole = _compare(seeds=1)
    assert [r["values"] for r in resumed.rows] == [r["values"] for r in whole.rows]
    fits.clear()
    more = _compare(folder=tmp_path / "runs", methods=["kd", "hint"], seeds=1, verbose=True)
    assert len(fits) == 2
    assert _row(more, "kd")["values"] == _row(whole, "kd")["values"]
    assert "from its file" in capsys.readouterr().out
    # What is there needs no teacher any more.
    monkeypatch.setattr(mikd.TeacherCache, "build", None)
    monkeypatch.setattr(mikd.SelfDistiller, "evaluate", None)
    again = _compare(folder=tmp_path / "runs", methods=["kd", "hint"], seeds=1)
    assert again.as_dict() == more.as_dict()


def test_other_settings_are_refused(tmp_path, monkeypatch):
    data = cases.data
    _compare(folder=tmp_path / "runs", seeds=1)
    with pytest.raises(ValueError, match="runs with the same epochs"):
        _compare(folder=tmp_path / "runs", seeds=1, epochs=2)
    with pytest.raises(ValueError, match="runs with the same teacher"):
        _compare(cases.teacher(normalize=True), folder=tmp_path / "runs", seeds=1)
    with pytest.raises(ValueError, match="runs with the same data"):
        _compare(folder=tmp_path / "runs", seeds=1, train=cases.data(24))
    with pytest.raises(ValueError, match="runs with the same test"):
        _compare(folder=tmp_path / "runs", seeds=1, test=cases.data(8))
    monkeypatch.setattr(cases, "data", lambda *args, seed=0: data(*args, seed=seed + (seed == 1)))
    with pytest.raises(ValueError, match="runs with the same validation"):
        _compare(folder=tmp_path / "runs", seeds=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="runs with the same augment"):
        _compare(folder=tmp_path / "runs", seeds=1, augment=lambda image, seed: image)
    with pytest.raises(ValueError, match="Expected the losses of 'kd' as they were"):
        other = {"kd": lambda t, s, weight: [mikd.Hint(weight=weight)]}
        _compare(folder=tmp_path / "runs", seeds=1, methods=other)
    with pytest.raises(ValueError, match="Expected `test` as two arrays"):
        _compare(test=({"x": cases.data(8)[0]}, cases.data(8)[1]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="Expected an empty folder"):
        _compare(folder=tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_cache_changes_nothing_but_the_time(capsys):
    options = {"seeds": 1, "weights": [1.0]}
    cached = _compare(**options)
    running = _compare(**options, max_cache_bytes=1, verbose=True)
    assert [r["values"] for r in cached.rows] == [r["values"] for r in running.rows]
    assert "the teacher runs in every step" in capsys.readouterr().out


@pytest.mark.slow
def test_a_data_set_is_read_as_it_is():
    train = tf.data.Dataset.from_tensor_slices(cases.data(20)).batch(8)
    unknown = train.filter(lambda x, y: True)
    options = {"seeds": 1, "weights": [1.0], "test": None}
    results = [_compare(train=each, **options) for each in (train, unknown)]
    assert [r["values"] for r in results[0].rows] == [r["values"] for r in results[1].rows]
    assert results[0].split == "validation"
    assert "chosen on the same data" in str(results[0])
    with pytest.raises(ValueError, match="Expected arrays"):
        _compare(train=train, views=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["kld"]}, "Expected `methods` to be some of"),
        ({"methods": []}, "Expected at least one method"),
        ({"methods": "kd"}, r"Expected `methods` to be a list, such as \['kd'\]"),
        ({"train": "pictures"}, r"Expected `train` as two arrays \(images, labels\)"),
        ({"test": (np.zeros((4, 8, 8, 2)),)}, "Expected `test` as two arrays"),
        *(
            ({part: tf.data.Dataset.from_tensors(np.zeros(2)).repeat()}, f"`{part}` to end")
            for part in ("train", "test")
        ),
        ({"methods": {"student": lambda t, s, w: []}}, "Expected at least one method, and none"),
        ({"methods": {"own": lambda t, s, w: []}, "weights": None}, "Expected weights to try"),
        ({"methods": ["kd", "vid"], "weights": {"kd": [1.0]}}, "Expected as many weights"),
        ({"weights": {"KD": [5.0]}}, r"keys of `weights` to be among .*\['KD'\]"),
        ({"weights": 1.0}, "Expected weights to try for 'kd'.*Received: weights=1.0"),
        ({"weights": "0.3"}, "Expected weights to try for 'kd'"),
        ({"weights": [1.0, -1.0]}, "`weights of kd` to be a finite number of at least 0"),
        (
            {"methods": {"own": lambda t, s, w: []}, "weights": [1.0, float("nan")]},
            "`weights of own` to be a finite number. Received",
        ),
        ({"weights": [1.0, 1.0]}, r"\('kd', 1.0\) and \('kd', 1.0\), both 'kd-weight1'"),
        ({"weights": [1.0000001, 1.0000004]}, "names of their runs tell apart"),
        (
            {"methods": dict.fromkeys(("T 1", "T=1"), lambda t, s, w: []), "weights": [1.0]},
            r"\('T 1', 1.0\) and \('T=1', 1.0\)",
        ),
        ({"trial_seeds": 3}, "Expected `trial_seeds`"),
        ({"epochs": 0}, "Expected `epochs`"),
        ({"methods": {"own": lambda t, s, w: [mikd.Hint(teacher_layer="no")]}}, "place"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, message, monkeypatch):
    monkeypatch.setattr(mikd.SelfDistiller, "fit", None)
    with pytest.raises(ValueError, match=message):
        _compare(**arguments)


def test_labels_by_name_and_lists_are_refused_in_a_few_words():
    x, y = cases.data(16)
    named = np.array(["cat", "dog"])[y % 2]
    for data, message in (
        ((x, named), "numbers as the labels in `train`.*<U3"),
        ((list(x), list(y)), "`train` as two arrays.*Received: a tuple of list$"),
    ):
        with pytest.raises(ValueError, match=message):
            mikd.compare(cases.teacher(), cases.student, data, data, methods=["kd"])


def _of_images(images):
    return cases.student()


@pytest.mark.parametrize("make_student", [cases.student(), _of_images, "student.keras"])
def test_a_student_is_made_by_a_function_of_no_arguments(make_student):
    data = cases.data(16)
    with pytest.raises(ValueError, match="`make_student` to be a function of no arguments"):
        mikd.compare(cases.teacher(), make_student, data, data, methods=["kd"])


def test_students_that_share_weights_are_refused():
    data, student = cases.data(16), cases.student()
    backbone = keras.Sequential([keras.layers.Conv2D(2, 3, name="shared"), keras.layers.Flatten()])

    def on_one_backbone():
        images = keras.Input(cases.IMAGE_SHAPE)
        return keras.Model(images, keras.layers.Dense(4)(backbone(images)))

    for make, name in ((lambda: student, "conv1/kernel"), (on_one_backbone, "shared/kernel")):
        with pytest.raises(ValueError, match=f"new student in every call.*{name}"):
            mikd.compare(cases.teacher(), make, data, data, methods=["kd"])
    backbone.trainable = False  # No run changes it then.
    options = {"methods": ["kd"], "weights": [1.0], "seeds": 1, "epochs": 1, "verbose": False}
    mikd.compare(cases.teacher(), on_one_backbone, data, data, batch_size=8, **options)


def _of_one_logit(slope):
    images = keras.Input((2,))
    network = keras.Model(images, keras.layers.Dense(1, name="logit")(images))
    network.layers[-1].set_weights([np.array([[slope], [0.0]]), np.zeros(1)])
    return network


def test_the_accuracy_of_one_logit_parts_the_classes_at_zero():
    x = np.random.default_rng(0).choice([-1.0, 1.0], (64, 2)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    result = mikd.compare(
        *(_of_one_logit(0.3), lambda: _of_one_logit(0.1), (x, y), (x, y)),
        methods={
            "hint": lambda *networks: [mikd.Hint(teacher_layer="logit", student_layer="logit")],
            "kd": None,  # Of one logit.
        },
        weights=[1.0],
        seeds=1,
        epochs=1,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        verbose=False,
    )
    assert result.teacher == 100.0
    assert [row["values"] for row in result.rows] == [[100.0]] * 3


def test_tasks_without_an_accuracy_are_refused(monkeypatch):
    monkeypatch.setattr(mikd.SelfDistiller, "fit", None)
    x, y = np.zeros((8, 2), "float32"), np.linspace(0, 3, 8, dtype="float32")
    squares, binary = keras.losses.MeanSquaredError(), keras.losses.BinaryCrossentropy(True)
    networks = _of_one_logit(1.0), lambda: _of_one_logit(1.0)
    with pytest.raises(ValueError, match="a student of one output and loss=.*mean_squared_error"):
        mikd.compare(*networks, (x, y), (x, y), loss=squares)
    images, _ = cases.data(8)
    several, numbers = np.eye(4)[np.arange(8) % 4], np.linspace(0, 9, 32).reshape(8, 4)
    several[:, 0] = 1.0
    for labels, loss in ((several, binary), (numbers, squares)):
        data = images, labels.astype("float32")
        batches = tf.data.Dataset.from_tensor_slices(data).batch(4)
        for given in (data, batches):
            with pytest.raises(ValueError, match="goes by accuracy"):
                mikd.compare(cases.teacher(), cases.student, given, given, loss=loss)


def _regress(**options):
    """A teacher that is right and a student that is far off, compared by their error."""
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    return mikd.compare(
        *(_of_one_logit(1.0), lambda: _of_one_logit(0.2), (x, x[:, :1]), (x, x[:, :1])),
        **{
            "methods": {"mse": _follow_output, "none": lambda *networks: []},
            **{"weights": [1.0], "seeds": 2, "epochs": 2, "verbose": False, **options},
        },
        loss=keras.losses.MeanSquaredError(),
    )


def _follow_output(teacher, student, weight):
    error = keras.distillation.FeatureDistillation("mse", "logit", "logit")
    return [mikd.KerasLossAdapter(error, weight=5.0 * weight)]


def _sgd(steps):
    return keras.optimizers.SGD(0.01)


def _absolute_error():
    return keras.metrics.MeanMetricWrapper(keras.losses.mean_absolute_error, "error")


def test_other_tasks_are_compared_by_their_metric(tmp_path, capsys):
    options = {"metric": keras.metrics.MeanSquaredError, "mode": "min", "make_optimizer": _sgd}
    options["folder"] = tmp_path / "own"
    result = _regress(**options, verbose=True)
    assert (result.metric, result.mode, result.teacher) == ("mean_squared_error", "min", 0.0)
    by_name = {row["method"]: row for row in result.rows}
    assert by_name["mse"]["mean"] < by_name["student"]["mean"] == by_name["none"]["mean"]
    assert result.best == "mse"
    printed = capsys.readouterr().out
    assert "teacher: 0 mean_squared_error on the validation data" in printed
    assert re.search(r"mse gains most over the student alone, -0\.\d+", printed)
    assert "validation mean_squared_error" in printed and "%" not in printed.replace("95 %", "")
    (axes,) = result.figure().axes
    assert axes.get_xlabel().startswith("mean_squared_error on the validation data;")
    with pytest.raises(ValueError, match="runs with the same metric"):
        _regress(**options | {"metric": keras.metrics.RootMeanSquaredError})
    assert _regress(**options).rows == result.rows
    # Of a metric that is not Keras' own, `compare` cannot know which is better.
    options |= {"metric": _absolute_error, "folder": tmp_path / "absolute"}
    _regress(**options)
    with pytest.raises(ValueError, match="runs with the same metric"):
        _regress(**options | {"mode": "max"})


def test_several_labels_are_compared_by_their_metric():
    images, _ = cases.data(32)
    labels = (images.mean(axis=(1, 2))[:, :1] > [[-0.1, 0.0, 0.1, 0.2]]).astype("float32")
    labels[:, 0] = 1.0
    result = mikd.compare(
        *(cases.teacher(), cases.student, (images, labels), (images, labels)),
        **{"methods": ["hint"], "weights": [1.0], "seeds": 1, "epochs": 1, "verbose": False},
        batch_size=16,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metric=lambda: keras.metrics.BinaryAccuracy(threshold=0.0, name="right"),
    )
    logits = cases.teacher()(images).numpy()
    expected = np.mean((logits > 0) == (labels > 0.5))
    assert result.teacher == pytest.approx(expected) and result.metric == "right"


def test_a_metric_without_a_name_is_called_as_keras_does_without_the_number():
    """As in docs/howto/choose.md; Keras counts the metrics of a class that have no name."""
    images, _ = cases.data(32)
    labels = (images.mean(axis=(1, 2))[:, :1] > [[-0.1, 0.0, 0.1, 0.2]]).astype("float32")
    result = mikd.compare(
        *(cases.teacher(), cases.student, (images, labels), (images, labels), (images, labels)),
        **{"methods": ["hint"], "weights": [1.0], "seeds": 1, "epochs": 1, "verbose": False},
        batch_size=16,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metric=lambda: keras.metrics.AUC(multi_label=True, num_labels=4, from_logits=True),
    )
    assert result.metric == "auc" and 0 < result.teacher < 1
    assert all(0 < row["mean"] < 1 for row in result.rows)


def test_a_metric_named_accuracy_is_in_per_cent():
    """As the table says of it."""
    score = checked_score(lambda: keras.metrics.BinaryAccuracy(name="accuracy"), "max")
    assert score.of({"loss": 1.0, "accuracy": 0.25}) == 25.0
    score = checked_score(lambda: keras.metrics.BinaryAccuracy(name="right"), "max")
    assert score.of({"loss": 1.0, "right": 0.25}) == 0.25


def test_what_is_printed_of_a_metric_named_accuracy_is_in_per_cent(capsys):
    x = np.random.default_rng(0).choice([-1.0, 1.0], (64, 2)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    result = mikd.compare(
        *(_of_one_logit(0.3), lambda: _of_one_logit(0.1), (x, y), (x, y)),
        **{"methods": ["kd"], "weights": [1.0], "seeds": 1, "epochs": 1},
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metric=lambda: keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy"),
    )
    assert result.teacher == 100.0
    assert capsys.readouterr().out.count("100.00 % of the validation data") == 1


def test_segmenters_are_compared_by_their_metric():
    def segmenter():
        images = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(images)
        return keras.Model(images, keras.layers.Conv2D(3, 1)(x))

    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    y = np.argmax(x, axis=-1)
    hint = mikd.Hint(teacher_layer="conv", student_layer="conv")
    result = mikd.compare(
        *(segmenter(), segmenter, (x, y), (x, y)),
        methods={"kd": None, "hint": lambda *networks: [hint.from_config(hint.get_config())]},
        **{"weights": [1.0], "seeds": 1, "epochs": 1, "batch_size": 8, "verbose": False},
        metric=lambda: keras.metrics.MeanIoU(3, sparse_y_pred=False, name="iou"),
    )
    assert 0 < result.teacher < 1 and len(result.rows) == 3
    assert "validation iou" in str(result)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_weight_is_that_of_the_best_metric(mode, monkeypatch):
    """A value that is not a number is the worst."""
    values = iter([1.0, 3.0, 2.0, float("nan"), 2.5, 3.0])  # The teacher, the student, 4 weights.
    monkeypatch.setattr(Score, "of", lambda self, logs: next(values))
    result = _regress(
        methods={"mse": _follow_output},
        **{"weights": [1.0, 2.0, 3.0, 4.0], "seeds": 1, "mode": mode},
        metric=_absolute_error,
    )
    assert result.rows[1]["weight"] == {"max": 4.0, "min": 1.0}[mode]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "auc"}, "metric='auc'. Pass, for example, `lambda"),
        ({"metric": keras.metrics.AUC()}, "to be a function of no arguments that makes"),
        ({"metric": lambda: "auc"}, "makes a Keras metric"),
        ({"mode": "min"}, 'mode="max" for accuracy'),
        ({"metric": keras.metrics.AUC, "mode": "least"}, "mode='least'"),
        ({"metric": keras.metrics.MeanAbsoluteError}, 'mode="min" with the metric MeanAbsoluteE'),
    ],
)
def test_what_is_no_metric_is_refused(options, message, monkeypatch):
    monkeypatch.setattr(mikd.SelfDistiller, "fit", None)
    with pytest.raises(ValueError, match=message):
        _compare(**options)


def test_a_teacher_of_another_strategy_is_refused(two_replicas):
    teacher, data = cases.teacher(), cases.data(16)
    with two_replicas.scope():
        with pytest.raises(ValueError, match="the teacher made under no strategy, the students un"):
            mikd.compare(teacher, cases.student, data, data, methods=["kd"], weights=[1.0])


def test_a_teacher_with_nan_in_its_weights_is_refused(monkeypatch):
    monkeypatch.setattr(mikd.SelfDistiller, "fit", None)
    teacher = cases.teacher()
    teacher.get_layer("conv1").bias.assign([float("nan")] * 6)  # The ReLU behind it hides it.
    with pytest.raises(ValueError, match="`teacher` to have numbers.*'conv1/bias' has NaN"):
        _compare(teacher)


def test_a_step_is_measured_in_milliseconds():
    steps = StepTime()
    for _ in range(3):
        steps.on_train_batch_begin(0)
        time.sleep(0.02)
        steps.on_train_batch_end(0)
    assert 20 <= steps.median() < 2000


def test_a_run_that_stops_in_its_first_step_has_a_time():
    def stops(labels, outputs):
        raise ValueError("not finite")

    model, steps = cases.student(), StepTime()
    model.compile("sgd", stops, run_eagerly=True)
    with pytest.raises(ValueError, match="not finite"):
        model.fit(*cases.data(), callbacks=[steps], verbose=0)
    assert steps.times == [] and steps.median() > 0


def test_the_time_left_is_that_of_the_runs_so_far(capsys):
    progress, key = Progress(4, True), {"method": "kd", "weight": 3.0, "seed": 0}
    progress.ran(key, {"validation": 50.0, "seconds": 9000.0}, False)
    progress.ran(key, {"validation": 51.0, "seconds": 40.0}, True)
    progress.ran(key, {"validation": 10.0, "seconds": 7320.0, "stopped": "NaN"}, True)
    progress.ran(key, {"validation": 52.0, "seconds": 1.0}, True)
    said = "kd-weight3-seed0: "
    assert capsys.readouterr().out.splitlines() == [
        f"[1/4] {said}50.00 on validation, from its file",
        f"[2/4] {said}51.00 on validation, at most 1 min 20 s left",
        f"[3/4] {said}10.00 on validation (stopped: its loss was not finite), "
        "at most 1 h 1 min left",
        f"[4/4] {said}52.00 on validation",
    ]
    Progress(1, False).ran(key, {"validation": 50.0, "seconds": 1.0}, True)
    assert capsys.readouterr().out == ""


def test_the_first_step_counts_for_no_time():
    """It compiles."""
    steps = StepTime()
    steps.times = [900.0, 1.0, 2.0, 4.0]
    assert steps.median() == 2.0


def test_intervals_are_those_of_student_s_t():
    # Two-sided 95 % points of published tables.
    for values, quantile in (
        ([1.0, 2.0], 12.706),
        ([1.0, 2.0, 4.0], 4.3027),
        ([0.0] * 4 + [1.0], 2.7764),
    ):
        expected = quantile * statistics.stdev(values) / len(values) ** 0.5
        assert half_interval(values) == pytest.approx(expected, rel=1e-4)
    assert half_interval([1.0]) is None


def test_the_docstring_names_every_method():
    methods = inspect.getdoc(mikd.compare).split("methods: ")[1].split("or a dict")[0]
    assert re.findall(r'`"(\w+)"`', methods) == list(METHODS)


@pytest.mark.parametrize(
    ("gains", "teacher", "best", "said"),
    [
        ({"kd": (1.0, 2.0), "vid": (3.0, 2.0)}, 90.0, "vid", "vid gains most.*\\+3.00 ± 2.00\\.$"),
        (
            {"kd": (1.0, 2.0)},
            90.0,
            "student",
            "above the student alone by more than its interval.$",
        ),
        ({"kd": (2.0, 2.0)}, 90.0, "student", "^No method is above"),
        ({"kd": (-1.0, None)}, 60.0, "student", "teacher is not above it either"),
        ({"kd": (-1.0, None)}, 50.0, "student", "teacher is not above it either, so there is no"),
        ({"kd": (-1.0, None)}, None, "student", "^1 seed: no intervals.\nNo .* its interval.$"),
        ({"kd": (2.0, None)}, 90.0, "kd", r"\+2.00, from one seed: take three to be sure"),
    ],
)
def test_the_table_ends_with_what_it_says(gains, teacher, best, said):
    common = {"weight": 1.0, "step": 1.0, "training_only_weights": 0, "interval": None}
    seeds = 1 if any(half is None for _, half in gains.values()) else 2
    rows = [{"method": "student", "mean": 60.0, "values": [60.0] * seeds, "gains": {}, **common}]
    rows += [
        {"method": m, "mean": 60.0 + g, "values": [60.0 + g] * seeds, **common}
        | {"gains": {"student": (g, half)}}
        for m, (g, half) in gains.items()
    ]
    result = Comparison("test", teacher, rows)
    assert result.best == best
    assert re.search(said, str(result), re.MULTILINE)


def test_the_table_and_the_figure_show_what_the_rows_say():
    def runs(*values):
        return [{"test": v, "milliseconds": 2.0, "training_only_weights": 1234} for v in values]

    references = {"student": [50.0, 52.0], "kd": [55.0, 53.0]}
    options = {"references": references, "split": "test", "step": 1.0}
    rows = [
        summarized("student", None, runs(50.0, 52.0), {}, **options),
        summarized("kd", 3.0, runs(55.0, 53.0), {3.0: 50.0}, **options),
        summarized("vid", 1.0, runs(60.0, 66.0), {1.0: 50.0}, **options),
    ]
    result = Comparison("test", 90.0, rows)
    lines = str(result).splitlines()
    assert lines[0].split() == (
        [
            "method",
            "weight",
            "test",
            "%",
            "over",
            "student",
            "over",
            "kd",
            "step",
            "extra",
            "weights",
        ]
    )
    assert lines[3].split()[:4] == ["vid", "1", "63.00", "±"]
    assert "+12.00 ± 25.41" in lines[3] and "+9.00 ± 50.82" in lines[3]
    assert "2.00" in lines[3] and "1,234" in lines[3]
    chosen = "The weights were chosen on the same data."
    assert chosen in str(Comparison("validation", 90.0, rows)) and chosen not in str(result)
    figure = result.figure()
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["vid", "kd", "student"]
    assert "test" in axes.get_xlabel()
    means = [tuple(each.lines[0].get_xydata()[0]) for each in axes.containers]
    assert means == [(63.0, 0), (54.0, 1), (51.0, 2)]
    bars = [each.lines[2][0].get_segments()[0][:, 0] for each in axes.containers]
    halves = [half_interval(row["values"]) for row in reversed(rows)]
    np.testing.assert_allclose([np.ptp(bar) / 2 for bar in bars], halves)
    marks = [line.get_xdata() for line in axes.lines if line.get_marker() == "|"]
    assert [list(each) for each in marks if len(each) == 2] == [[60, 66], [55, 53], [50, 52]]
    across = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    assert (across["student alone"], across["teacher"]) == (51.0, 90.0)
    with_one = Comparison(
        "test", 90.0, [summarized("student", None, runs(50.0), {}, **{**options, "references": {}})]
    )
    assert "no intervals" in str(with_one)
    with_one.figure()


def test_a_row_is_of_all_seeds():
    times = (1.0, 2.0, 9.0)
    runs = [
        {"test": v, "milliseconds": t, "training_only_weights": 0}
        for v, t in zip((50.0, 53.0, 56.0), times, strict=True)
    ]
    references = {"student": [50.0, 51.0, 52.0], "kd": [50.0, 53.0, 56.0]}
    row = summarized("kd", 1.0, runs, {}, references=references, split="test", step=4.0)
    assert row["deviation"] == pytest.approx(3.0)
    assert row["step"] == 0.5
    assert set(row["gains"]) == {"student"}
    assert row["gains"]["student"] == (2.0, half_interval([0.0, 2.0, 4.0]))


def test_a_weight_that_diverges_is_a_result_and_no_end(tmp_path, capsys):
    weights = [1.0, 1e30]
    _compare(weights=weights, seeds=1, epochs=3, folder=tmp_path / "runs", verbose=True)
    assert "kd-weight1e+30-seed0: " in capsys.readouterr().out
    stopped = json.loads((tmp_path / "runs" / "kd-weight1e+30-seed0.json").read_text())
    assert "NaN or infinity" in stopped["stopped"]
