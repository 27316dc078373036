"""What Keras' private names do. If one of these fails after an upgrade, see keras_internals.py."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd import keras_internals


def _nested():
    """A model inside a model."""
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="deep")], name="inner")
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(inner(inputs)), name="outer")


def test_layers_are_found_inside_layers_outer_ones_first():
    names = [layer.name for layer in keras_internals.layers_of(_nested())]
    assert names[0] == "outer"
    assert names.index("inner") < names.index("deep") and "last" in names
    assert "outer" not in [
        layer.name for layer in keras_internals.layers_of(_nested(), include_self=False)
    ]


def test_a_model_remembers_the_strategy_it_was_made_under(two_replicas):
    outside = _nested()
    with two_replicas.scope():
        inside = _nested()
        assert keras_internals.strategy_made_under(outside) is None
    assert keras_internals.strategy_made_under(inside) is two_replicas


def test_a_symbolic_tensor_knows_its_operation():
    model = _nested()
    assert keras_internals.operation_of(model.output) is model.get_layer("last")


def test_nodes_lead_from_the_inputs_to_the_outputs_of_this_model_alone():
    model = _nested()
    model(keras.Input((3,)))  # Another call of the same layers.
    operations = [node.operation for node in keras_internals.nodes_behind(model.outputs)]
    assert operations == [model.layers[0], model.get_layer("inner"), model.get_layer("last")]


class _OwnCall(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(("model", "known"), [(_nested, True), (_OwnCall, False)])
def test_calls_that_are_keras_own_are_told_from_others(model, known):
    assert keras_internals.has_keras_call(model()) is known
    assert keras_internals.has_keras_call(keras.Sequential())


def test_the_compiled_loss_and_its_metrics():
    model = cases.student()
    model.compile("sgd", cases.cross_entropy())
    x, y = cases.data()
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    loss = keras_internals.compiled_loss(model)(y, model(x), None)
    assert float(loss) == pytest.approx(logs["loss"], rel=1e-5)
    two_heads = keras.Model(model.input, {"a": model.output, "b": model.output})
    two_heads.compile("sgd", {"a": cases.cross_entropy(), "b": "mse"})
    two_heads.evaluate(x, {"a": y, "b": model(x)}, verbose=0)
    assert keras_internals.loss_metrics(two_heads) == {"a_loss", "b_loss"}


def test_without_a_loss_there_is_none():
    model = cases.student()
    model.compile("sgd")
    assert keras_internals.compiled_loss(model) is None


def test_a_penalty_is_shared_out_among_the_replicas(two_replicas):
    model = cases.student()
    assert float(keras_internals.scaled_penalty(model, tf.constant(3.0))) == 3.0
    with two_replicas.scope():
        model = cases.student()
        assert float(keras_internals.scaled_penalty(model, tf.constant(3.0))) == 1.5


def test_the_logged_loss_is_the_mean_over_examples():
    model = cases.student()
    model.compile("sgd", cases.cross_entropy())
    keras_internals.show_loss(model, 1.0, 3)
    keras_internals.show_loss(model, 5.0, 1)
    assert float(model.get_metrics_result()["loss"]) == 2.0


def test_fit_says_that_it_evaluates():
    seen = []

    class Watching(keras.Model):
        def evaluate(self, *args, **kwargs):
            seen.append(keras_internals.is_validation_in_fit(kwargs))
            return super().evaluate(*args, **kwargs)

    student = cases.student()
    model = Watching(student.inputs, student.outputs)
    model.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    model.fit(*cases.data(), validation_data=cases.data(), verbose=0)
    model.evaluate(*cases.data(), verbose=0)
    assert seen == [True, False]


def test_restore_starts_from_a_backup_and_leaves_it(tmp_path):
    def fit(callback, epochs):
        model = cases.student()
        model.compile("sgd", cases.cross_entropy(), run_eagerly=True)
        history = model.fit(*cases.data(), epochs=epochs, callbacks=[callback], verbose=0)
        return history.epoch, model.get_weights()

    first = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    fit(first, epochs=2)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    epochs, weights = fit(keras_internals.Restore(tmp_path), epochs=3)
    assert epochs == [2]
    _, straight = fit(keras.callbacks.Callback(), epochs=3)
    for one, other in zip(weights, straight, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_under_a_strategy_a_model_is_built_without_reading_a_batch(two_replicas):
    read = []
    batches = tf.data.Dataset.from_tensor_slices(cases.data()).batch(8)
    watched = batches.map(
        lambda x, y: (tf.py_function(lambda x: read.append(1) or x, [x], x.dtype), y)
    )
    watched = watched.map(lambda x, y: (tf.ensure_shape(x, (None, *cases.IMAGE_SHAPE)), y))

    class Model(keras_internals.ModelBuiltFromSpecs):
        def __init__(self, network):
            # Not Model(inputs, outputs): Keras would make the base class a functional one for good.
            super().__init__()
            self.network = network
            self.built = True

        def call(self, inputs, training=None):
            return self.network(inputs, training=training)

        def batch_to_build_from(self, specs):
            read.append("specs")
            return super().batch_to_build_from(specs)

    with two_replicas.scope():
        model = Model(cases.student())
        model.compile("sgd", cases.cross_entropy())
    model.fit(watched, shuffle=False, verbose=0)
    assert read[0] == "specs"
    assert read.count(1) == 2
