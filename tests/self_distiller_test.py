"""One network whose layers learn from one another."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd

WITHIN = {"teacher_layer": "stage2", "student_layer": "stage1"}


def _compiled(distiller, **kwargs):
    """Compiled to run eagerly, since the trace of a step costs more than the few that it takes."""
    distiller.compile(keras.optimizers.SGD(0.1), cases.cross_entropy(), run_eagerly=True, **kwargs)
    return distiller


def _hint(**kwargs):
    return mikd.Hint(name="hint", **{**WITHIN, **kwargs})


def _fit(distiller, **kwargs):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, **kwargs}
    return distiller.fit(*cases.data(), **options).history


def _values(model):
    return [v.numpy() for v in model.trainable_variables]


def test_the_update_is_the_gradient_of_the_total_with_a_fixed_target():
    distiller = _compiled(mikd.SelfDistiller(cases.student(), [_hint(weight=0.5)]))
    (hint,) = distiller.distillation_losses
    x, y = cases.data()
    model = distiller.student
    reader = keras.Model(
        model.input, [model.output, *(model.get_layer(n).output for n in ("relu1", "relu2"))]
    )
    target = reader(x)[2].numpy()
    variables = distiller.trainable_variables
    with tf.GradientTape() as tape:
        logits, first, _ = reader(x, training=True)
        task = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        total = tf.reduce_mean(task + 0.5 * hint(target, first))
    gradients = tape.gradient(total, variables)
    expected = [v.numpy() - 0.1 * g.numpy() for v, g in zip(variables, gradients, strict=True)]
    history = _fit(distiller)
    assert history["loss"] == [pytest.approx(float(total), rel=1e-5)]
    for value, wanted in zip(_values(distiller), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_target_moves_only_if_asked(stop_gradient):
    model = cases.student()
    distiller = mikd.SelfDistiller(
        model, [_hint()], task_loss_weight=0.0, stop_gradient=stop_gradient
    )
    before = model.get_layer("conv2").kernel.numpy()
    _fit(_compiled(distiller))
    assert np.any(model.get_layer("conv2").kernel.numpy() != before) is not stop_gradient


@pytest.mark.parametrize(
    "loss",
    [
        lambda: mikd.Hint(**WITHIN),
        lambda: mikd.AttentionTransfer(**WITHIN),
        lambda: mikd.GaussianVIDHead(**WITHIN),
        lambda: mikd.JSDCritic(**WITHIN, critic=mikd.SeparableCritic(width=8)),
        lambda: mikd.MUSE(teacher_layer="pooled", student_layer=["stage1", "stage2"], width=8),
    ],
    ids=["hint", "attention_transfer", "vid", "jsd", "muse"],
)
def test_any_discrepancy_can_stand_between_two_layers(loss):
    distiller = mikd.SelfDistiller(cases.student(), [loss()], task_loss_weight=0.0)
    history = _fit(_compiled(distiller), epochs=5)
    assert history["loss"][-1] < history["loss"][0]


def test_an_auxiliary_classifier_learns_from_the_last_one():
    model = cases.student()
    aux = keras.layers.Dense(cases.NUM_CLASSES, name="aux")
    pool = keras.layers.GlobalAveragePooling2D()
    outputs = {"last": model.output, "aux": aux(pool(model.get_layer("relu1").output))}
    model = keras.Model(model.input, outputs)
    soft = mikd.SoftTargets(teacher_layer="output/last", student_layer="output/aux", name="soft")
    distiller = mikd.SelfDistiller(model, [soft], task_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.5), {"last": cases.cross_entropy(), "aux": None})
    x, y = cases.data()
    history = distiller.fit(x, {"last": y, "aux": y}, epochs=20, verbose=0).history
    assert history["soft"][-1] < history["soft"][0]


def test_without_losses_it_trains_as_the_network_alone_does(deterministic_ops):
    alone, wrapped = cases.student(normalize=True), cases.student(normalize=True)
    history = _fit(_compiled(alone))
    assert _fit(_compiled(mikd.SelfDistiller(wrapped, [])))["loss"] == history["loss"]
    for one, other in zip(alone.variables, wrapped.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_runs_the_network_once():
    model = cases.student(normalize=True)
    norm = model.get_layer("bn1")
    x, _ = cases.data()
    seen = keras.Model(model.input, norm.input).predict(x, verbose=0).mean((0, 1, 2))
    _fit(_compiled(mikd.SelfDistiller(model, [_hint(), mikd.AttentionTransfer(**WITHIN)])))
    np.testing.assert_allclose(norm.moving_mean, 0.01 * seen, rtol=1e-3, atol=1e-6)


def test_evaluating_changes_nothing():
    distiller = _compiled(mikd.SelfDistiller(cases.student(normalize=True), [_hint()]))
    before = [v.numpy() for v in distiller.student.variables]
    values = distiller.evaluate(*cases.data(), verbose=0, return_dict=True)
    assert set(values) == {"hint", "loss", "task_loss"}
    assert values["loss"] == pytest.approx(values["task_loss"] + values["hint"])
    for old, variable in zip(before, distiller.student.variables, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_called_predicted_and_exported_it_is_its_network(tmp_path):
    distiller = _compiled(mikd.SelfDistiller(cases.student(), [_hint()]), metrics=["accuracy"])
    _fit(distiller)
    x, _ = cases.data()
    logits = distiller.student(x)
    np.testing.assert_array_equal(distiller(x), logits)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), logits, rtol=1e-5, atol=1e-6)
    distiller.export(tmp_path / "model", verbose=False)
    exported = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(exported.serve(x), logits, rtol=1e-5, atol=1e-6)
    assert len(exported.variables) == len(distiller.student.variables)


@keras.saving.register_keras_serializable("self_distiller_test")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(4, 3, activation="relu")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(cases.NUM_CLASSES)

    def features(self, x):
        first = self.conv(x)
        return {"first": self.pool(first), "output": self.dense(self.pool(first))}

    def call(self, x):
        return self.features(x)["output"]


@keras.saving.register_keras_serializable("self_distiller_test")
def features(model, x, training):
    return model.features(x)


def test_a_subclassed_network_hands_over_its_features(tmp_path):
    model = Subclassed()
    model(cases.data()[0])
    hint = _hint(teacher_layer="output", student_layer="first")
    distiller = _compiled(mikd.SelfDistiller(model, [hint], features=features))
    _fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.features is features
    x, y = cases.data()
    assert loaded.evaluate(x, y, verbose=0) == distiller.evaluate(x, y, verbose=0)


def test_a_loss_of_one_tensor_with_itself_is_refused():
    message = r"'kd' would compare 'output' with itself.*Received: teacher_layer='output'"
    with pytest.raises(ValueError, match=message):
        mikd.SelfDistiller(cases.student(), [mikd.SoftTargets(name="kd")])


@pytest.mark.parametrize(("first", "second"), [("output", "logits"), ("stage2", "relu2")])
def test_a_tensor_under_two_names_is_refused_too(first, second):
    for teacher_layer, student_layer in ((first, second), (second, first)):
        loss = mikd.SoftTargets(teacher_layer=teacher_layer, student_layer=student_layer)
        if "stage2" in (first, second):
            loss = mikd.Hint(teacher_layer=teacher_layer, student_layer=student_layer)
        with pytest.raises(ValueError, match=f"would compare '{teacher_layer}' with itself"):
            mikd.SelfDistiller(cases.student(), [loss])


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="`model` to be a keras.Model. Received: model=None"):
        mikd.SelfDistiller(None, [_hint()])


def test_a_network_without_stages_is_refused():
    inputs = keras.Input((6,))
    dense = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    with pytest.raises(ValueError, match="Expected a place of .*Received: 'stage"):
        mikd.SelfDistiller(dense, [_hint()])


def test_labels_out_of_range_are_refused():
    distiller = _compiled(mikd.SelfDistiller(cases.student(), [_hint()]))
    x, y = cases.data()
    with pytest.raises(ValueError, match="labels in `y` to be integers from 0 to 3"):
        distiller.fit(x, y + 1, verbose=0)
