"""Weights as shares of the gradient, against gradients taken one by one."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


def _balanced(every=2, student=None, **kwargs):
    losses = [
        mikd.SoftTargets(weight=0.5, name="kd"),
        mikd.GaussianVIDHead(teacher_layer="stage2", student_layer="stage2", name="vid", weight=2),
    ]
    options = {"balance": "gradient", "balance_every": every, "xla_critics": False, **kwargs}
    return mikd.Distiller(cases.teacher(), student or cases.student(), losses, **options)


def _compiled(distiller, loss="default", optimizer=None, **kwargs):
    loss = cases.cross_entropy() if loss == "default" else loss
    distiller.compile(optimizer or keras.optimizers.SGD(0.05), loss, **kwargs)
    return distiller


def _fit(distiller, examples=8, **kwargs):
    x, y = cases.data(examples)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    return distiller.fit(x, y, **options).history


def _shares(history, epoch=-1):
    return {k.removesuffix("_share"): v[epoch] for k, v in history.items() if k.endswith("_share")}


def _weights(history, epoch=-1):
    names = _shares(history)
    return {name: history[f"{name}_weight"][epoch] for name in names}


def _gradients(distiller):
    """Gradients of each unweighted term on the student, in plain eager code."""
    x, y = map(tf.convert_to_tensor, cases.data(8))
    kd, vid = distiller.distillation_losses
    teacher, student = (distiller._networks.taps[name] for name in ("teacher", "student"))
    with tf.GradientTape(persistent=True) as tape:
        t, s = teacher(x, training=False), student(x, training=True)
        terms = {
            "task_loss": cases.cross_entropy()(y, s["output"]),
            "kd": tf.reduce_mean(kd(t["output"], s["output"])),
            "vid": tf.reduce_mean(vid(t["stage2"], s["stage2"])),
        }
    variables = distiller.student.trainable_variables
    zeros = [np.zeros(v.shape, "float32") for v in variables]
    return {
        name: [
            z if g is None else g for g, z in zip(tape.gradient(v, variables), zeros, strict=True)
        ]
        for name, v in terms.items()
    }


def _norm(gradients):
    return np.sqrt(sum(np.sum(np.square(g)) for g in gradients))


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}])
def test_the_first_step_has_the_shares_that_the_weights_ask_for(options):
    distiller = _compiled(_balanced(), **options)
    before = [v.numpy() for v in distiller.student.trainable_variables]
    gradients = _gradients(distiller)
    norms = {name: _norm(g) for name, g in gradients.items()}
    history = _fit(distiller)
    asked = {"task_loss": 1.0, "kd": 0.5, "vid": 2.0}
    shares, weights = _shares(history), _weights(history)
    for name, weight in asked.items():
        assert shares[name] == pytest.approx(weight / 3.5, rel=1e-4)
        assert weights[name] == pytest.approx(weight * norms["task_loss"] / norms[name], rel=1e-4)
    # And the step that was taken is the one of these weights.
    for number, old in enumerate(before):
        step = sum(weights[name] * gradients[name][number] for name in asked)
        new = distiller.student.trainable_variables[number]
        np.testing.assert_allclose(old - 0.05 * step, new, atol=1e-6)


def test_norms_are_measured_every_so_many_steps_and_averaged():
    distiller = _compiled(_balanced(every=2), run_eagerly=True)
    norms, weights = [], []
    for _ in range(4):  # An epoch of one step each.
        norms.append({name: _norm(g) for name, g in _gradients(distiller).items()})
        weights.append(_weights(_fit(distiller)))
    assert weights[0] == weights[1] != weights[2] == weights[3]
    seen = norms[0], norms[2]
    mean = {name: np.mean([each[name] for each in seen]) for name in norms[0]}
    expected = 2.0 * mean["task_loss"] / mean["vid"]
    assert weights[2]["vid"] == pytest.approx(expected, rel=1e-4)


def test_several_steps_in_one_execution_measure_as_often():
    distiller = _compiled(_balanced(every=2), steps_per_execution=3)
    calls = []
    measure = distiller.gradient_balance.gradients
    distiller.gradient_balance.gradients = lambda *a, **k: calls.append(1) or measure(*a, **k)
    distiller.run_eagerly = True  # So that every step is called in Python.
    _fit(distiller, examples=96)  # Executions of 3, 3, 3, 3 steps: the first and third measure.
    assert len(calls) == 6


def test_without_a_task_loss_the_first_loss_is_the_reference():
    history = _fit(_compiled(_balanced(), loss=None))
    shares, weights = _shares(history), _weights(history)
    assert shares == pytest.approx({"task_loss": 0.0, "kd": 0.2, "vid": 0.8}, rel=1e-4)
    assert weights["kd"] == pytest.approx(0.5)


def test_penalties_alone_are_no_reference():
    inputs = keras.Input(cases.IMAGE_SHAPE)
    x = keras.layers.Conv2D(3, 3, strides=2, kernel_regularizer="l2")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    student = keras.Model(inputs, keras.layers.Dense(cases.NUM_CLASSES)(x))
    losses = [mikd.SoftTargets(weight=0.5, name="kd")]
    distiller = mikd.Distiller(cases.teacher(), student, losses, balance="gradient")
    history = _fit(_compiled(distiller, loss=None))
    assert _weights(history)["kd"] == pytest.approx(0.5)


def test_a_term_whose_weight_becomes_nought_leaves_the_others_alone():
    stops = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.0])
    losses = [mikd.SoftTargets(weight=stops, name="kd"), mikd.SoftTargets(name="other")]
    distiller = mikd.Distiller(
        cases.teacher(), cases.student(), losses, balance="gradient", balance_every=1
    )
    history = _fit(_compiled(distiller), examples=16, epochs=2)
    assert history["kd_share"] == [0.0, 0.0]
    assert history["kd_weight"] == [0.0, 0.0]
    shares = _shares(history)
    assert shares["other"] + shares["task_loss"] == pytest.approx(1.0)
    assert np.all(np.isfinite(history["loss"]))


def test_embeddings_are_measured_and_trained():
    """A token that occurs several times has several rows in the gradient, which add up."""

    def network(width):
        inputs = keras.Input((6,), dtype="int32")
        x = keras.layers.Embedding(9, width)(inputs)
        x = keras.layers.GlobalAveragePooling1D()(x)
        return keras.Model(inputs, keras.layers.Dense(cases.NUM_CLASSES)(x))

    x, y = np.arange(48).reshape(8, 6) % 9, np.arange(8) % cases.NUM_CLASSES
    teacher, student, loss = network(8), network(4), mikd.SoftTargets(name="kd")
    distiller = _compiled(mikd.Distiller(teacher, student, [loss], balance="gradient"))
    with tf.GradientTape(persistent=True) as tape:
        logits = student(x)
        terms = {
            "task_loss": cases.cross_entropy()(y, logits),
            "kd": tf.reduce_mean(loss(teacher(x), logits)),
        }
    embeddings = student.trainable_variables[0]
    before = embeddings.numpy()
    gradients = {n: tf.convert_to_tensor(tape.gradient(v, embeddings)) for n, v in terms.items()}
    history = distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    assert _shares(history) == pytest.approx({"task_loss": 0.5, "kd": 0.5}, rel=1e-4)
    step = sum(weight * gradients[name] for name, weight in _weights(history).items())
    np.testing.assert_allclose(embeddings, before - 0.05 * step, atol=1e-6)


def test_loss_scaling_does_not_change_what_is_measured():
    keras.config.set_dtype_policy("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), 1024.0)
    history = _fit(_compiled(_balanced(), optimizer=optimizer))
    asked = {"task_loss": 1 / 3.5, "kd": 0.5 / 3.5, "vid": 2 / 3.5}
    assert _shares(history) == pytest.approx(asked, rel=1e-3)


def test_norms_are_measured_without_the_scale_of_the_loss():
    def sums(scale):
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), scale)
        distiller = _compiled(_balanced(), optimizer=optimizer)
        _fit(distiller)
        return distiller.gradient_balance.sums.numpy()

    assert np.all(sums(1.0) > 0)
    np.testing.assert_allclose(sums(1024.0), sums(1.0), rtol=1e-3)


def test_evaluation_measures_nothing_and_uses_the_weights():
    distiller = _compiled(_balanced(every=1))
    history = _fit(distiller)
    state = [v.numpy() for v in distiller.gradient_balance.variables]
    x, y = cases.data(8)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    for old, new in zip(state, distiller.gradient_balance.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    weights = _weights(history)
    terms = sum(weights[name] * logs[name] for name in weights)
    assert logs["loss"] == pytest.approx(terms, rel=1e-4)
    assert not any(name.endswith("_share") for name in logs)


class _StopAfter(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_stopped_within_an_epoch_measures_where_it_would_have(
    tmp_path, deterministic_ops, at_once
):
    def run(folder, *callbacks):
        keras.utils.set_random_seed(0)
        distiller = _compiled(_balanced(every=3), steps_per_execution=at_once)
        resume = mikd.ExactResume(tmp_path / folder, save_freq=at_once)
        batches = tf.data.Dataset.from_tensor_slices(cases.data(40)).batch(8)
        distiller.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=[resume, *callbacks])
        return distiller

    with pytest.raises(KeyboardInterrupt):
        run("killed", _StopAfter(4))
    resumed, whole = run("killed"), run("whole")
    for a, b in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_on_several_steps_alone_the_host_counts_as_well():
    distiller = _compiled(_balanced(every=2), run_eagerly=True)
    x, y = cases.data(8)
    counts = []
    for _ in range(5):
        distiller.train_on_batch(x, y)
        counts.append(float(distiller.gradient_balance.counts[0]))
    assert counts == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"balance": "loss"}, "Expected `balance` to be None or 'gradient'"),
        ({"every": 0}, "Expected `balance_every` to be an int of at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        _balanced(**arguments)


@pytest.mark.parametrize("name", ["balance", "balance_every"])
def test_a_later_assignment_is_refused(name):
    with pytest.raises(AttributeError, match=f"Expected `{name}` of .* to stay as it is"):
        setattr(_balanced(), name, None)


def test_without_balance_nothing_is_added():
    distiller = _balanced(balance=None)
    assert distiller.gradient_balance is None
    history = _fit(_compiled(distiller))
    assert not any(name.endswith(("_share", "_weight")) for name in history)


def test_published_weights_are_no_ratios():
    losses = [mikd.SoftTargets(weight=30000.0, name="kd")]
    with pytest.warns(UserWarning, match="task_loss would have less than 1% of them"):
        mikd.Distiller(cases.teacher(), cases.student(), losses, balance="gradient")


def test_a_step_of_which_a_term_overflows_counts_for_none():
    distiller = _compiled(_balanced(every=1), run_eagerly=True)
    balance = distiller.gradient_balance
    (weight, *_), names = distiller.student.trainable_variables, balance.names
    with tf.GradientTape(persistent=True) as tape:
        parts = {name: tf.reduce_sum(weight) for name in names}
        parts["kd"] = parts["kd"] * np.inf
    balance.gradients(
        tape, parts, dict.fromkeys(names, 1.0), [[weight]], scale=1.0, of={id(weight)}
    )
    np.testing.assert_array_equal(balance.counts, [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(balance.shares, [0.0, 0.0, 0.0])


def test_a_term_that_is_switched_on_waits_until_it_was_measured():
    def weights(begins):
        switched = keras.optimizers.schedules.PiecewiseConstantDecay([begins], [0.0, 1.0])
        head = {"teacher_layer": "stage2", "student_layer": "stage2", "initial_variance": 1e-4}
        losses = [mikd.GaussianVIDHead(**head, name="vid", weight=switched)]
        options = {"balance": "gradient", "balance_every": 4, "xla_critics": False}
        student = cases.student()
        distiller = _compiled(mikd.Distiller(cases.teacher(), student, losses, **options))
        found = []
        for _ in range(6):
            _fit(distiller)
            found.append(student.get_layer("conv1").kernel.numpy())
        return found

    never, later = weights(100), weights(1)
    # Steps 2, 3 and 4 have its weight and no measurement; step 5 measures, and balances.
    for step in range(4):
        np.testing.assert_allclose(later[step], never[step], rtol=0, atol=1e-6)
    moves = [np.linalg.norm(found[4] - found[3]) for found in (never, later)]
    assert 1e-2 < moves[1] / moves[0] < 3.0 and not np.allclose(later[4], never[4], atol=1e-6)
