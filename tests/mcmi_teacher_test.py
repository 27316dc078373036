import functools

import cases
import cmi_twins as twins
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.mcmi import cmi_report

BATCH = 8


def _new(teacher=None, **kwargs):
    return mikd.MCMITeacher(teacher or cases.teacher(), **{"weight": 0.5, **kwargs})


def _compiled(mcmi, *, run_eagerly=True, **kwargs):
    """Compiled to run eagerly, since the trace of a step costs more than the few that it takes."""
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    mcmi.compile(optimizer, run_eagerly=run_eagerly, **kwargs)
    return mcmi


def _fit(mcmi, epochs=1, examples=16, **kwargs):
    x, y = _data(examples)
    options = {"batch_size": BATCH, "epochs": epochs, "shuffle": False, "verbose": 0, **kwargs}
    return mcmi.fit(x, y, **options).history


def _data(examples=16):
    x, y = cases.data(examples)
    y[: cases.NUM_CLASSES] = np.arange(cases.NUM_CLASSES)
    return x, y


def _weights(mcmi):
    return [v.numpy() for v in mcmi.variables]


def _assert_same(first, second, atol):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# The released algorithm and what this library adds


def _linear_step(w, velocity, x, y, q, lam, rate):
    """One step of `CE - lam KL` for logits `x @ w`, by hand, in float64."""
    p = twins.softmax(x @ w)
    ratio = np.log(p) - np.log(q[y])
    divergence = (p * ratio).sum(1, keepdims=True)
    d_logits = p - np.eye(p.shape[1])[y] - lam * p * (ratio - divergence)
    # Weight decay of 5e-4, as PyTorch couples it to the gradient.
    gradient = x.T @ d_logits / len(x) + 5e-4 * w
    velocity = 0.9 * velocity - rate * gradient
    return w + velocity, velocity


def test_three_steps_of_the_released_algorithm_equal_numpy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5)), np.arange(24) % 3
    inputs = keras.Input((5,))
    layer = keras.layers.Dense(3, use_bias=False, kernel_regularizer=keras.regularizers.L2(2.5e-4))
    teacher = keras.Model(inputs, layer(inputs))
    w = 2 * rng.normal(size=(5, 3))
    teacher.set_weights([w])
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 3)
    mcmi = mikd.MCMITeacher(teacher, weight=0.25, centroids="frozen", log_likelihood_budget=None)
    mcmi.compile(keras.optimizers.SGD(schedule, momentum=0.9))
    mcmi.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    q, velocity = twins.centroids(twins.softmax(x @ w), y), np.zeros_like(w)
    for i in range(3):
        rate = 0.05 * (1 + np.cos(np.pi * i / 3)) / 2
        batch = slice(8 * i, 8 * i + 8)
        w, velocity = _linear_step(w, velocity, x[batch], y[batch], q, 0.25, rate)
    np.testing.assert_allclose(mcmi.teacher.get_weights()[0], w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mcmi.regularizer.centroids, q, rtol=0, atol=1e-6)
    assert np.abs(teacher.get_weights()[0] - w).max() > 1e-2


@pytest.fixture(scope="module")
def trained_on_digits():
    """A trained classifier of real digits, the digits, and the report of both."""
    keras.utils.set_random_seed(0)
    digits = mikd.datasets.load_digits(batch_size=64)
    model = mikd.models.digits_cnn(digits.num_classes, digits.image_shape)
    model.compile(keras.optimizers.Adam(1e-2), cases.cross_entropy())
    model.fit(digits.train, epochs=12, shuffle=False, verbose=0)
    return model, digits, mikd.measure_cmi(model, digits.train, verbose=0)


@pytest.fixture(scope="module")
def tuned(trained_on_digits):
    """A function of a weight and other arguments: the report after tuning, made once."""
    model, digits, _ = trained_on_digits

    @functools.cache
    def report(weight, epochs=4, **kwargs):
        mcmi = mikd.MCMITeacher(model, weight=weight, **kwargs)
        mcmi.compile(keras.optimizers.SGD(0.01, momentum=0.9))
        mcmi.fit(digits.train, epochs=epochs, shuffle=False, verbose=0)
        return mikd.measure_cmi(mcmi.teacher, digits.train, verbose=0)

    return report


def test_a_positive_weight_raises_the_true_cmi_and_a_negative_one_lowers_it(
    trained_on_digits, tuned
):
    """By how much differs between CPUs: 4.5 times on one, more than 5 times on another."""
    before = trained_on_digits[-1]
    assert tuned(1.0).cmi > 2 * before.cmi and tuned(-1.0).cmi < before.cmi


def test_it_is_the_term_that_does_it(trained_on_digits):
    """One step on all the data: its gradient is that of the true CMI, the centroids being exact."""
    model, digits, _ = trained_on_digits
    x, y = next(iter(digits.train))
    after = []
    for weight in (-1.0, 0.0, 1.0):
        mcmi = mikd.MCMITeacher(model, weight=weight, log_likelihood_budget=None)
        mcmi.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
        mcmi.fit(x, y, batch_size=len(x), verbose=0)
        after.append(mikd.measure_cmi(mcmi.teacher, (x, y), verbose=0).cmi)
    assert after == sorted(after) and after[0] < 0.999 * after[1] < 0.998 * after[2]


def test_the_separation_weight_raises_the_separation(tuned):
    assert tuned(-1.0, separation_weight=0.02).separation > tuned(-1.0).separation


def test_the_budget_keeps_a_teacher_that_its_weight_alone_destroys(trained_on_digits, tuned):
    before = trained_on_digits[-1]
    destroyed, kept = tuned(4.0, epochs=8, log_likelihood_budget=None), tuned(4.0, epochs=8)
    assert destroyed.accuracy < 0.5
    assert kept.accuracy > before.accuracy - 0.1
    assert kept.log_likelihood > -1.0


def test_an_example_whose_budget_is_spent_is_one_of_cross_entropy():
    x, y = _data()
    teacher = cases.teacher()
    log_likelihood = np.log(twins.softmax(teacher.predict(x, verbose=0))[np.arange(len(y)), y])
    budget = -float(np.median(log_likelihood))
    mcmi = _compiled(_new(teacher, weight=5.0, log_likelihood_budget=budget))
    history = _fit(mcmi, validation_data=(x, y), batch_size=16)
    left = np.clip(1 + log_likelihood / budget, 0, 1)
    assert 0 < np.mean(left == 0) < 1
    assert history["effective_weight"][0] == pytest.approx(5 * left.mean(), rel=1e-4)
    plain = _compiled(_new(weight=0.0, log_likelihood_budget=None))
    spent = _compiled(_new(weight=5.0, log_likelihood_budget=float(-log_likelihood.max())))
    for each in (plain, spent):
        _fit(each, batch_size=16)
    _assert_same(plain.teacher.get_weights(), spent.teacher.get_weights(), 0)


def test_the_budget_says_nothing_to_a_negative_weight():
    history = _fit(_compiled(_new(weight=-0.5, log_likelihood_budget=1e-3)))
    assert history["effective_weight"] == [-0.5]


# Centroids


def test_frozen_centroids_are_those_of_the_teacher_before():
    mcmi = _compiled(_new())
    _fit(mcmi, epochs=2)
    x, y = _data()
    p = twins.softmax(cases.teacher().predict(x, verbose=0))
    np.testing.assert_allclose(mcmi.regularizer.centroids, twins.centroids(p, y), atol=1e-6)


def test_epoch_centroids_are_those_at_the_beginning_of_the_last_epoch():
    mcmi = _compiled(_new(centroids="epoch"))
    seen = []

    def look(epoch, logs):
        del epoch, logs
        seen.append(mcmi.regularizer.centroids)
        seen.append(mikd.measure_cmi(mcmi.teacher, _data(), verbose=0).centroids)

    _fit(mcmi, epochs=3, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=look)])
    for stored, measured in zip(seen[::2], seen[1::2], strict=True):
        np.testing.assert_allclose(stored, measured, atol=1e-6)
    assert np.abs(seen[0] - seen[-1]).max() > 1e-4


def test_running_centroids_follow_every_batch():
    mcmi = _compiled(_new(centroids="running", momentum=0.0))
    mcmi.optimizer.learning_rate = 0.0
    _fit(mcmi, examples=8)
    x, y = _data(8)
    p = twins.softmax(cases.teacher().predict(x, verbose=0))
    np.testing.assert_allclose(mcmi.regularizer.centroids, twins.centroids(p, y), atol=1e-5)


def test_centroids_of_other_data_are_kept():
    mcmi = _compiled(_new())
    x, y = _data(64)
    report = mcmi.fit_centroids(x, y, verbose=0)
    _fit(mcmi)
    np.testing.assert_allclose(mcmi.regularizer.centroids, report.centroids, atol=1e-6)


def test_centroids_set_by_hand_are_kept():
    mcmi = _compiled(_new())
    mcmi.regularizer.set_centroids(np.full((4, 4), 0.25))
    assert np.all(np.isfinite(_fit(mcmi)["loss"]))
    np.testing.assert_allclose(mcmi.regularizer.centroids, 0.25)


def test_centroids_in_training_mode_move_batch_normalization():
    """As in the released code, where they are asked for; `fit` measures them like that too."""
    x, y = _data(16)
    teacher = cases.teacher(normalize=True)
    p = twins.softmax(teacher(x, training=True))  # Also moves the statistics of this one.
    expected = twins.centroids(p, y)
    for measure in ("fit_centroids", "training", "fit"):
        mcmi = _new(cases.teacher(normalize=True), centroids_training=measure != "training")
        before = _weights(mcmi.teacher)
        if measure == "fit":
            mcmi.compile(keras.optimizers.SGD(0.0))
            mcmi.fit(x, y, batch_size=16, verbose=0)
        else:
            options = {"training": True} if measure == "training" else {}
            mcmi.fit_centroids(x, y, batch_size=16, verbose=0, **options)
        np.testing.assert_allclose(mcmi.regularizer.centroids, expected, atol=1e-5)
        moved = [np.any(a != b) for a, b in zip(before, _weights(mcmi.teacher), strict=True)]
        assert any(moved)
    assert mcmi.get_config()["centroids_training"] is True


# BatchNormalization


def _normalized(dropout=0.0):
    """A classifier whose only statistics are those of its inputs."""
    inputs = keras.Input((3,))
    x = keras.layers.BatchNormalization(name="bn", momentum=0.99)(inputs)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="dense")(x))


def _of_unlike_batches(examples=20):
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, size=(examples, 3)) + np.arange(examples)[:, None]
    return x.astype("float32"), np.arange(examples) % 2


def _mean_statistics(x, sizes):
    parts = np.split(np.float64(x), np.cumsum(sizes)[:-1])
    mean = np.average([p.mean(0) for p in parts], axis=0, weights=sizes)
    return mean, np.average([p.var(0) for p in parts], axis=0, weights=sizes)


def _statistics(model):
    layer = model.get_layer("bn")
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def test_statistics_are_those_of_the_batches_before_the_validation():
    mcmi = _compiled(mikd.MCMITeacher(_normalized(dropout=0.5)))
    x, y = _of_unlike_batches()
    history = _fit_on(mcmi, x, y, validation_data=(x, y))
    for found, expected in zip(
        _statistics(mcmi.teacher), _mean_statistics(x, [8, 8, 4]), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    report = mikd.measure_cmi(mcmi.teacher, (x, y), verbose=0)
    assert history["val_log_likelihood"][-1] == pytest.approx(report.log_likelihood, rel=1e-5)
    assert mcmi.teacher.get_layer("bn").momentum == 0.99


def test_statistics_of_two_replicas_are_those_of_the_first_as_in_training(two_replicas):
    """Keras keeps what BatchNormalization sees in the first replica; `synchronized` pools it."""
    x, y = _of_unlike_batches(16)
    with two_replicas.scope():
        mcmi = _compiled(mikd.MCMITeacher(_normalized()), run_eagerly=False)
    _fit_on(mcmi, x, y)
    expected = _mean_statistics(np.concatenate([x[:4], x[8:12]]), [4, 4])
    for found, each in zip(_statistics(mcmi.teacher), expected, strict=True):
        np.testing.assert_allclose(found, each, rtol=1e-5)


def _fit_on(mcmi, x, y, **kwargs):
    return mcmi.fit(x, y, batch_size=8, shuffle=False, verbose=0, **kwargs).history


def test_running_statistics_are_the_published_ones_and_those_of_older_files():
    x, y = _of_unlike_batches()
    running = _compiled(mikd.MCMITeacher(_normalized(), batch_norm="running"))
    _fit_on(running, x, y)
    expected = np.zeros(3)
    for part in (x[:8], x[8:16], x[16:]):
        expected = 0.99 * expected + 0.01 * part.mean(0)
    np.testing.assert_allclose(_statistics(running.teacher)[0], expected, rtol=1e-4)
    new = mikd.MCMITeacher(_normalized())
    assert mikd.MCMITeacher.from_config(new.get_config()).batch_norm == "measured"
    config = {k: v for k, v in new.get_config().items() if k != "batch_norm"}
    assert mikd.MCMITeacher.from_config(config).batch_norm == "running"


def test_frozen_normalization_stays_as_it_is():
    teacher = cases.teacher(normalize=True)
    mcmi = _compiled(_new(teacher, batch_norm="frozen"))
    _fit(mcmi)
    moved = {
        before.path.split("/")[0]
        for before, after in zip(teacher.weights, mcmi.teacher.weights, strict=True)
        if np.any(before.numpy() != after.numpy())
    }
    assert moved == {"conv1", "conv2", "logits"}
    assert teacher.get_layer("bn1").trainable
    only = _normalized()
    only.get_layer("dense").trainable = False
    with pytest.raises(ValueError, match='beside those of BatchNormalization.*"measured"'):
        mikd.MCMITeacher(only, batch_norm="frozen")


@pytest.mark.slow
def test_a_teacher_outlives_an_epoch_on_few_images():
    """With the moving averages, whose statistics lag behind, accuracy falls by a fifth or more."""
    keras.utils.set_random_seed(0)
    digits = mikd.datasets.load_digits(batch_size=480)
    x, y = next(iter(digits.train))
    validation = next(iter(digits.validation))
    inputs = h = keras.Input(digits.image_shape)
    for width in (16, 32):
        h = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(h)
        h = keras.layers.ReLU()(keras.layers.BatchNormalization()(h))
    h = keras.layers.GlobalAveragePooling2D()(h)
    teacher = keras.Model(inputs, keras.layers.Dense(digits.num_classes)(h))
    teacher.compile(keras.optimizers.Adam(1e-2), cases.cross_entropy())
    teacher.fit(x, y, batch_size=32, epochs=20, verbose=0)
    accuracy = {None: mikd.measure_cmi(teacher, validation, verbose=0).accuracy}
    for batch_norm in ("running", "measured"):
        mcmi = mikd.MCMITeacher(teacher, batch_norm=batch_norm)
        mcmi.compile(keras.optimizers.SGD(0.0125, momentum=0.9))
        history = mcmi.fit(
            x, y, batch_size=32, shuffle=False, validation_data=validation, verbose=0
        ).history
        accuracy[batch_norm] = history["val_accuracy"][0]
    assert accuracy["measured"] > accuracy[None] - 0.05
    assert accuracy["running"] < accuracy["measured"] - 0.1


# What is logged


KEYS = "loss log_likelihood cmi stale_cmi accuracy effective_weight separation".split()


def test_logs_are_those_of_the_outputs():
    mcmi = _compiled(_new(separation_weight=0.01, log_likelihood_budget=None))
    mcmi.optimizer.learning_rate = 0.0
    history = _fit(mcmi, validation_data=_data(24))
    for prefix, examples in (("", 16), ("val_", 24)):
        x, y = _data(examples)
        p = twins.softmax(cases.teacher().predict(x, verbose=0))
        q = mcmi.regularizer.centroids
        log = {name: history[prefix + name][0] for name in KEYS}
        close = {"rel": 1e-4, "abs": 1e-5}
        stale = twins.divergence(p, q[y]).mean()
        log_likelihood = np.log(p[np.arange(examples), y]).mean()
        assert log["cmi"] == pytest.approx(twins.cmi(p, y), **close)
        assert log["stale_cmi"] == pytest.approx(stale, **close)
        assert log["log_likelihood"] == pytest.approx(log_likelihood, **close)
        assert log["accuracy"] == pytest.approx((p.argmax(1) == y).mean())
        expected = -log_likelihood - 0.5 * stale - 0.01 * log["separation"]
        assert log["loss"] == pytest.approx(expected, **close)


def test_sample_weights_weigh_both_terms():
    x, y = _data()
    weights = np.repeat([2.0, 0.0], 8)
    weighted = _compiled(_new(log_likelihood_budget=None))
    weighted.fit_centroids(x, y, verbose=0)
    weighted.fit(x, y, batch_size=16, sample_weight=weights, shuffle=False, verbose=0)
    half = _compiled(_new(log_likelihood_budget=None))
    half.fit_centroids(x, y, verbose=0)
    half.fit(x[:8], y[:8], batch_size=8, shuffle=False, verbose=0)
    _assert_same(weighted.teacher.get_weights(), half.teacher.get_weights(), 1e-6)


# What holds for every distiller is in conformance_test.py, with running centroids


def test_the_callers_teacher_stays_as_it_is():
    teacher = cases.teacher(normalize=True)
    teacher.compile("adam", cases.cross_entropy(), metrics=["accuracy"], run_eagerly=True)
    x, y = _data()
    teacher.fit(x, y, verbose=0)
    before = _weights(teacher), teacher.get_metrics_result(), teacher.get_compile_config()
    mcmi = _compiled(_new(teacher))
    _assert_same(_weights(teacher), _weights(mcmi.teacher), 0)
    _fit(mcmi, epochs=2)
    _assert_same(before[0], _weights(teacher), 0)
    assert teacher.get_metrics_result() == before[1]
    assert teacher.get_compile_config() == before[2]
    assert np.any(mcmi.teacher.get_weights()[0] != teacher.get_weights()[0])
    assert not mcmi.teacher.compiled
    np.testing.assert_array_equal(mcmi.predict(x, verbose=0), mcmi.teacher.predict(x, verbose=0))


def test_a_teacher_whose_backbone_shares_its_input_is_copied():
    inputs = keras.Input((3,))
    backbone = keras.Model(inputs, keras.layers.Dense(4, name="inner")(inputs))
    backbone.trainable = False
    teacher = keras.Model(inputs, keras.layers.Dense(2, name="head")(backbone(inputs)))
    copy = mikd.MCMITeacher(teacher).teacher
    np.testing.assert_array_equal(copy(np.ones((1, 3))), teacher(np.ones((1, 3))))
    assert [v.path for v in copy.trainable_variables] == ["head/kernel", "head/bias"]


def test_two_replicas_measure_the_centroids_of_one(two_replicas):
    def trained(scope, run_eagerly):
        with scope:
            mcmi = _new(centroids="epoch", separation_weight=0.01, log_likelihood_budget=0.2)
            _compiled(mcmi, run_eagerly=run_eagerly)
        history = _fit(mcmi, epochs=2, validation_data=_data(24))
        return _weights(mcmi), history

    one, one_history = trained(tf.distribute.get_strategy().scope(), run_eagerly=True)
    two, two_history = trained(two_replicas.scope(), run_eagerly=False)
    _assert_same(one, two, atol=1e-5)
    for name, values in one_history.items():
        np.testing.assert_allclose(two_history[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


def test_centroids_keep_their_precision():
    keras.config.set_dtype_policy("mixed_float16")
    assert _new().regularizer.log_centroids.dtype == "float32"


@pytest.mark.parametrize("centroids", [pytest.param("frozen", marks=pytest.mark.slow), "epoch"])
def test_save_load_and_go_on_equals_never_having_stopped(centroids, tmp_path, deterministic_ops):
    def new():
        return _compiled(_new(cases.teacher(normalize=True), centroids=centroids))

    straight, stopped = new(), new()
    _fit(straight, epochs=4)
    _fit(stopped, epochs=2)
    stopped.save(tmp_path / "mcmi.keras")
    resumed = keras.saving.load_model(tmp_path / "mcmi.keras")
    assert resumed.get_config() == stopped.get_config()
    _fit(resumed, epochs=2)
    for a, b in zip(straight.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_a_second_epoch_does_not_retrace(monkeypatch):
    mcmi = _compiled(_new(centroids="epoch"), run_eagerly=False)
    traces, passes = [], []
    measured = cmi_report._Meter.test_step
    monkeypatch.setattr(
        cmi_report._Meter, "test_step", lambda *args: passes.append(1) or measured(*args)
    )
    step = mcmi.train_step
    mcmi.train_step = lambda data: traces.append(1) or step(data)
    _fit(mcmi, epochs=3)
    assert len(traces) <= 2  # Keras itself traces the first batch twice.
    assert 1 <= len(passes) <= 2


def test_a_subclassed_teacher_and_a_sequential_one(tmp_path):
    x, y = _data()
    sequential = keras.Sequential(
        [keras.Input(cases.IMAGE_SHAPE), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    subclassed = Subclassed()
    subclassed(x)
    for teacher in (sequential, subclassed):
        mcmi = _compiled(_new(teacher))
        before = teacher.get_weights()
        history = mcmi.fit(x, y, verbose=0).history
        assert np.isfinite(history["cmi"][0])
        _assert_same(before, teacher.get_weights(), 0)


@keras.saving.register_keras_serializable("mcmi_teacher_test")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(cases.NUM_CLASSES)

    def call(self, x):
        return self.dense(self.flatten(x))


# Bad input


def _softmax_model():
    model = cases.teacher()
    return keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))


def _frozen_model():
    model = cases.teacher()
    model.trainable = False
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: "teacher", "Expected `teacher` to be a keras.Model"),
        (_softmax_model, "puts out logits.* softmax or sigmoid"),
        (_frozen_model, "weights to train.* set `trainable = True`"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), "to have its weights"),
        (lambda: keras.Model(i := keras.Input((8, 8, 2)), i * 2), "one output of shape"),
    ],
)
def test_wrong_teachers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        mikd.MCMITeacher(make())


@pytest.mark.parametrize(
    "name, value",
    [
        ("weight", float("nan")),
        ("weight", "0.25"),
        ("centroids", "refreshed"),
        ("momentum", 1.0),
        ("batch_norm", "moving"),
        ("temperature", 0.0),
        ("separation_weight", -0.1),
        ("log_likelihood_budget", 0.0),
        ("log_likelihood_budget", float("inf")),
    ],
)
def test_wrong_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*Received: "):
        mikd.MCMITeacher(cases.teacher(), **{name: value})


def _with_label(y, label):
    y = y.copy()
    y[5] = label
    return y


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x, _with_label(y, 4)), "integers from 0 to 3"),
        (lambda x, y: (x, _with_label(y, -1)), "integers from 0 to 3"),
        (lambda x, y: (x, np.eye(4)[y]), r"integer labels of shape \(batch,\)"),
        (lambda x, y: (x, y % 2), r"Received: none of \[2, 3\]"),
        (lambda x, y: (np.uint8(x), y), "holds integer images"),
        (lambda x, y: (x[:0], y[:0]), "is empty"),
    ],
)
def test_wrong_data_is_refused_before_a_step(change, message):
    mcmi = _compiled(_new())
    before = _weights(mcmi.teacher)
    x, y = change(*_data())
    with pytest.raises(ValueError, match=message):
        mcmi.fit(x, y, batch_size=BATCH, verbose=0)
    _assert_same(before, _weights(mcmi.teacher), 0)


def test_labels_of_a_data_set_are_checked_too():
    x, y = _data()
    data = tf.data.Dataset.from_tensor_slices((x, _with_label(y, 7))).batch(BATCH)
    with pytest.raises(ValueError, match="integers from 0 to 3"):
        _compiled(_new()).fit(data, verbose=0, shuffle=False)


def test_what_cannot_be_read_twice_or_measured_is_refused():
    mcmi = _compiled(_new())
    x, y = _data()
    with pytest.raises(ValueError, match="read more than once"):
        mcmi.fit(((x, y) for _ in range(3)), verbose=0)
    with pytest.raises(ValueError, match="Expected `validation_data`.*validation_split=0.5"):
        mcmi.fit(x, y, validation_split=0.5)
    with pytest.raises(ValueError, match="Expected centroids.*measure_cmi"):
        mcmi.evaluate(x, y, verbose=0)


@pytest.mark.parametrize("loss", ["mse", cases.cross_entropy, "sparse_categorical_crossentropy"])
def test_another_loss_is_refused(loss):
    if loss is cases.cross_entropy:
        _new().compile("sgd", cases.cross_entropy())
    else:
        with pytest.raises(ValueError, match="left out, or SparseCategoricalCrossentropy"):
            _new().compile("sgd", loss)


def test_a_loss_that_is_not_finite_stops_and_the_teacher_is_intact():
    teacher = cases.teacher()
    before = _weights(teacher)
    mcmi = mikd.MCMITeacher(teacher, weight=1e30, log_likelihood_budget=None)
    mcmi.compile(keras.optimizers.SGD(1e10), run_eagerly=True)
    with pytest.raises(ValueError, match="finite losses. Received: NaN or infinity in `cmi`"):
        _fit(mcmi, epochs=3)
    _assert_same(before, _weights(teacher), 0)
    assert all(np.all(np.isfinite(w)) for w in _weights(mcmi.teacher))


def test_a_compiled_step_that_is_not_finite_names_the_term():
    mcmi = mikd.MCMITeacher(cases.teacher(), weight=1e38, log_likelihood_budget=None)
    mcmi.compile(keras.optimizers.SGD(1e10))
    with pytest.raises(ValueError, match="finite losses. Received: NaN or infinity in `cmi`"):
        _fit(mcmi, epochs=3)


def test_a_single_batch_needs_centroids_first():
    mcmi = mikd.MCMITeacher(cases.teacher())
    mcmi.compile("sgd", run_eagerly=True)
    x, y = cases.data(32)
    for step in (mcmi.train_on_batch, mcmi.test_on_batch):
        with pytest.raises(ValueError, match="Expected centroids"):
            step(x, y)
    mcmi.fit_centroids(x, y, verbose=0)
    before = mcmi.teacher.get_weights()
    assert np.isfinite(mcmi.train_on_batch(x, y)[0])
    assert any(np.any(a != b) for a, b in zip(before, mcmi.teacher.get_weights(), strict=True))


@pytest.mark.parametrize("metrics", ["accuracy", {"logits": "accuracy"}])
def test_metrics_that_are_no_list_are_refused(metrics):
    with pytest.raises(ValueError, match="`metrics` to be a list. Received: metrics="):
        mikd.MCMITeacher(cases.teacher()).compile("sgd", metrics=metrics)


def test_a_layer_that_cannot_be_copied_is_told():
    inputs = keras.Input((8, 8, 2))
    own = {"kernel_regularizer": lambda kernel: 1e-3 * keras.ops.sum(kernel**2)}
    x = keras.layers.Conv2D(4, 3, **own)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)), name="own")
    with (
        pytest.warns(UserWarning, match="includes a `lambda`"),
        pytest.raises(ValueError, match="rebuild, to copy. Received: 'own'.*register_keras"),
    ):
        mikd.MCMITeacher(model)


def _text_teacher():
    inputs = keras.Input((1,), dtype="string")
    words = keras.layers.TextVectorization(vocabulary=["a", "b", "c"], output_sequence_length=4)
    x = keras.layers.Embedding(6, 4)(words(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


def test_the_copy_has_statistics_and_vocabularies():
    """`set_weights` leaves them out."""
    x, _ = cases.data()
    inputs = keras.Input(cases.IMAGE_SHAPE)
    normalization = keras.layers.Normalization()
    normalization.adapt(3.0 * x + 10.0)
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(normalization(inputs)))
    for teacher, given in (
        (keras.Model(inputs, outputs), x),
        (_text_teacher(), tf.constant([["a c"], ["b"]])),
    ):
        copy = mikd.MCMITeacher(teacher).teacher
        np.testing.assert_array_equal(copy(given), teacher(given))


@keras.saving.register_keras_serializable("mcmi_teacher_test")
class _Scaled(keras.layers.Layer):
    """Forgets its factor when it is made anew."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return super().get_config()


def test_a_copy_that_computes_something_else_is_refused():
    inputs = keras.Input((4,))
    teacher = keras.Model(inputs, keras.layers.Dense(3)(_Scaled(5.0)(inputs)))
    with pytest.raises(ValueError, match="to copy.*the copy puts out something else"):
        mikd.MCMITeacher(teacher)


def test_evaluation_moves_no_centroids():
    x, y = cases.data(16)
    mcmi = _compiled(_new(centroids="running"))
    mcmi.fit_centroids(x, y, verbose=0)
    before = mcmi.regularizer.centroids
    mcmi.evaluate(x[:8], y[:8], verbose=0)
    np.testing.assert_array_equal(mcmi.regularizer.centroids, before)
