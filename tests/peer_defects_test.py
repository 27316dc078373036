"""The silent bugs of other distillation libraries, each one a test that we do not have it."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


def _compiled(distiller, loss=None, optimizer=None, **kwargs):
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.1), loss or cases.cross_entropy(), **kwargs
    )
    return distiller


def _step(distiller, **kwargs):
    x, y = cases.data()
    return distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0, **kwargs).history


def _values(model):
    return [v.numpy() for v in model.variables]


def _unchanged(before, model):
    return all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.variables, strict=True))


class CountCalls(keras.layers.Layer):
    """Counts its executions, also inside a graph."""

    def __init__(self):
        super().__init__(name="count")
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


def test_1_default_soft_targets_are_hinton_kd():
    teacher = np.array([[3.0, 1.0, -2.0]])
    student = np.array([[0.5, 0.2, 1.5]])

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    log_t, log_s = log_softmax(teacher / 4.0), log_softmax(student / 4.0)
    expected = 16.0 * (np.exp(log_t) * (log_t - log_s)).sum(-1)
    np.testing.assert_allclose(mikd.SoftTargets()(teacher, student), expected, rtol=1e-5)


def test_2_gradients_do_not_grow_with_the_replicas(two_replicas):
    def update(scope):
        with scope:
            hint = mikd.Hint(teacher_layer="stage2", student_layer="stage2", name="hint")
            distiller = _compiled(cases.distiller_with(hint))
        before = _values(distiller.student)
        history = _step(distiller)
        moved = [v.numpy() - b for v, b in zip(distiller.student.variables, before, strict=True)]
        return np.linalg.norm(np.concatenate([m.ravel() for m in moved])), history

    one, one_history = update(tf.distribute.get_strategy().scope())
    two, two_history = update(two_replicas.scope())
    assert two == pytest.approx(one, rel=1e-4)
    assert two_history["hint"] == pytest.approx(one_history["hint"], rel=1e-4)
    assert two_history["task_loss"] == pytest.approx(one_history["task_loss"], rel=1e-4)
    assert two_history["loss"] == pytest.approx(one_history["loss"], rel=1e-4)


def test_3_one_forward_of_each_network_per_step():
    counters = []
    for model in (cases.teacher(), cases.student()):
        inputs = keras.Input(cases.IMAGE_SHAPE)
        counter = CountCalls()
        x = counter(inputs)
        for layer in model.layers[1:]:
            x = layer(x)
        counters.append((keras.Model(inputs, x), counter))
    (teacher, teacher_count), (student, student_count) = counters
    losses = [
        mikd.SoftTargets(),
        mikd.Hint(teacher_layer="stage1", student_layer="stage1", name="hint1"),
        mikd.Hint(teacher_layer="conv2", student_layer="conv2", name="hint2"),
    ]
    distiller = _compiled(mikd.Distiller(teacher, student, losses))
    with pytest.warns(UserWarning, match="inference does not change"):  # Of the counter.
        _step(distiller, epochs=3)
    assert float(teacher_count.calls) == 3.0
    assert float(student_count.calls) == 3.0


def test_4_evaluate_changes_no_variable_of_either_network():
    teacher, student = cases.teacher(normalize=True), cases.student(normalize=True, dropout=0.5)
    loss = mikd.JSDCritic(critic=mikd.ConcatCritic(width=8), name="jsd")
    distiller = cases.distiller_with(loss, teacher_model=teacher, student_model=student)
    _compiled(distiller, run_eagerly=True)
    before = _values(teacher), _values(student)
    x, y = cases.data()
    first = distiller.evaluate(x, y, verbose=0, return_dict=True)
    second = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert _unchanged(before[0], teacher)
    assert all(
        np.array_equal(b, v.numpy())
        for b, v in zip(before[1], student.variables, strict=True)
        if "seed" not in v.path
    )
    assert first == second
    assert first["jsd"] != 0.0


def test_5_regularizers_sample_weight_and_class_weight_count():
    def distiller(student):
        loss = mikd.SoftTargets(name="kd")
        stands_still = keras.optimizers.SGD(0.0)
        distiller = cases.distiller_with(loss, student_model=student)
        return _compiled(distiller, optimizer=stands_still, run_eagerly=True)

    plain = distiller(cases.student())
    whole = _step(plain)
    half = _step(plain, sample_weight=np.repeat([1.0, 0.0], 8))
    assert 0.0 < half["kd"][0] < whole["kd"][0]
    assert _step(plain, sample_weight=np.zeros(16))["loss"] == [0.0]
    assert _step(plain, class_weight=dict.fromkeys(range(4), 0.0))["loss"] == [0.0]
    regularized = cases.student()
    kernel = regularized.get_layer("conv1").kernel
    kernel.regularizer = keras.regularizers.L2(10.0)
    expected = whole["loss"][0] + 10.0 * np.sum(kernel.numpy() ** 2)
    assert _step(distiller(regularized))["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_5_add_loss_counts():
    def penalized(rate):
        inputs = keras.Input(cases.IMAGE_SHAPE)
        x = keras.layers.ActivityRegularization(l2=rate)(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(4, kernel_initializer="ones")(x))

    def loss(rate):
        distiller = cases.distiller_with(mikd.SoftTargets(), student_model=penalized(rate))
        return _step(_compiled(distiller, run_eagerly=True))["loss"][0]

    x, _ = cases.data()
    assert loss(0.1) == pytest.approx(loss(0.0) + 0.1 * np.sum(x**2) / 16, rel=1e-4)


@pytest.mark.parametrize("kind", [dict, list])
def test_6_several_outputs_with_a_loss_each(kind):
    def two_heads():
        inputs = keras.Input(cases.IMAGE_SHAPE)
        x = keras.layers.GlobalAveragePooling2D()(inputs)
        a, b = keras.layers.Dense(4, name="a")(x), keras.layers.Dense(4, name="b")(x)
        return keras.Model(inputs, {"a": a, "b": b} if kind is dict else [a, b])

    keys = ("a", "b") if kind is dict else (0, 1)
    loss = mikd.SoftTargets(teacher_layer=f"output/{keys[0]}", student_layer=f"output/{keys[1]}")
    x, y = cases.data()

    def each(value):
        return {"a": value, "b": value} if kind is dict else [value, value]

    distiller = mikd.Distiller(two_heads(), two_heads(), [loss])
    distiller.compile("sgd", loss=each(cases.cross_entropy()), run_eagerly=True)
    history = distiller.fit(x, each(y), verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert history["task_loss"][0] > 2.0


def test_7_a_loaded_distiller_keeps_compile_arguments_and_optimizer_slots(tmp_path):
    distiller = cases.distiller_with(mikd.SoftTargets())
    _compiled(distiller, optimizer="adam", metrics=["accuracy"], run_eagerly=True)
    _step(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    for a, b in zip(distiller.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert "accuracy" in _step(loaded)


def test_8_float16_student_and_float32_teacher():
    teacher = cases.teacher()
    keras.config.set_dtype_policy("mixed_float16")
    distiller = _compiled(
        cases.distiller_with(
            mikd.SoftTargets(), teacher_model=teacher, student_model=cases.student()
        )
    )
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(_step(distiller)["soft_targets"][0])


def test_9_critics_train_are_saved_and_can_have_their_own_optimizer(tmp_path):
    def new(**kwargs):
        loss = mikd.JSDCritic(critic=mikd.ConcatCritic(width=8))
        return _compiled(cases.distiller_with(loss), **kwargs)

    moving = new(critic_optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    _step(moving)  # Measures the scale of the features.
    before = _values(moving.distillation_losses[0])
    moving.critic_optimizer.learning_rate = 0.0
    _step(moving)
    assert _unchanged(before, moving.distillation_losses[0])
    moving.critic_optimizer.learning_rate = 0.1
    _step(moving)
    assert not _unchanged(before, moving.distillation_losses[0])
    moving.save_weights(tmp_path / "all.weights.h5")
    other = new(critic_optimizer=keras.optimizers.SGD(0.1))
    other.load_weights(tmp_path / "all.weights.h5")
    assert _unchanged(_values(moving.distillation_losses[0]), other.distillation_losses[0])


def test_10_a_place_in_one_network_only_is_not_ignored():
    with pytest.raises(ValueError, match="teacher"):
        cases.distiller_with(
            keras.distillation.FeatureDistillation(loss="mse", student_layer_name="relu2")
        )


def test_10_different_widths_are_refused_with_the_layers_named_or_adapted():
    with pytest.raises(ValueError, match=r"soft_targets.*teacher_layer='gap'.*same classes"):
        cases.distiller_with(mikd.SoftTargets(teacher_layer="gap", student_layer="gap"))
    cases.distiller_with(mikd.Hint(teacher_layer="gap", student_layer="gap"))


def test_11_probabilities_are_refused_where_logits_are_expected():
    student = cases.student()
    softmax = keras.Model(student.inputs, keras.layers.Softmax()(student.outputs[0]))
    with pytest.raises(ValueError, match=r"compares logits.*student.*probabilities"):
        cases.distiller_with(mikd.SoftTargets(), student_model=softmax)
    with pytest.raises(ValueError, match=r"compares logits.*teacher.*probabilities"):
        cases.distiller_with(mikd.SoftTargets(), teacher_model=softmax)
    distiller = cases.distiller_with(mikd.JSDCritic(), student_model=softmax)
    with pytest.raises(ValueError, match="from_logits=False"):
        distiller.compile("sgd", cases.cross_entropy())
    with pytest.raises(ValueError, match=r"SparseCategoricalCrossentropy\(from_logits=True\)"):
        cases.distiller_with(mikd.JSDCritic()).compile("sgd", "sparse_categorical_crossentropy")


def test_the_teacher_is_left_exactly_as_it_was():
    teacher = cases.teacher(normalize=True, dropout=0.5)
    before, trainable = _values(teacher), [layer.trainable for layer in teacher.layers]
    config = teacher.get_config()
    losses = [mikd.SoftTargets(), cases.LOSSES["vid_official"]()]
    distiller = _compiled(mikd.Distiller(teacher, cases.student(normalize=True), losses))
    _step(distiller, validation_data=cases.data())
    assert _unchanged(before, teacher)
    assert teacher.trainable
    assert [layer.trainable for layer in teacher.layers] == trainable
    assert teacher.get_config() == config
    assert not {id(v) for v in teacher.variables} & {id(v) for v in distiller.variables}


def test_weight_files_leave_the_teacher_out(tmp_path):
    distiller = _compiled(cases.distiller_with(mikd.SoftTargets()))
    distiller.save_weights(tmp_path / "w.weights.h5")
    other = _compiled(cases.distiller_with(mikd.SoftTargets(), teacher_model=cases.network((9, 9))))
    before = _values(other.teacher)
    other.load_weights(tmp_path / "w.weights.h5")
    assert _unchanged(before, other.teacher)
    assert _unchanged(_values(distiller.student), other.student)
