import cmi_twins as twins
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


def _regularizer(centroids, **kwargs):
    layer = mikd.CMIRegularizer(len(centroids), **kwargs)
    layer.set_centroids(centroids)
    return layer


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_equals_the_definition(temperature):
    logits, labels = twins.outputs()
    p = twins.softmax(logits, temperature)
    q = twins.centroids(twins.softmax(twins.outputs(seed=5)[0], temperature), labels)
    layer = _regularizer(q, temperature=temperature)
    values = layer(np.float32(logits), labels)
    assert values.dtype == "float32" and values.shape == (60,)
    np.testing.assert_allclose(values, twins.divergence(p, q[labels]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(layer.centroids, q, rtol=1e-6)


def test_its_mean_is_the_cmi_with_exact_centroids_and_drift_besides_with_stale_ones():
    logits, labels = twins.outputs()
    p = twins.softmax(logits)
    exact = twins.centroids(p, labels)
    fresh = _regularizer(exact)(np.float32(logits), labels)
    np.testing.assert_allclose(np.mean(fresh), twins.cmi(p, labels), atol=1e-6)
    stale = np.roll(exact, 1, axis=1)
    drift = np.bincount(labels) @ twins.divergence(exact, stale) / len(labels)
    value = np.mean(_regularizer(stale)(np.float32(logits), labels))
    np.testing.assert_allclose(value, twins.cmi(p, labels) + drift, atol=1e-6)


def test_exact_zeros_stay_finite_and_so_do_gradients():
    layer = _regularizer(np.eye(3))
    logits = tf.constant([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0], [0.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = layer(logits, np.zeros(3, int))
    smallest = -np.log(np.finfo("float64").tiny)
    expected = [0, smallest, 2 / 3 * smallest - np.log(3)]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert np.all(np.isfinite(tape.gradient(values, logits)))


def test_the_gradient_is_that_of_p_alone():
    """d KL(P || q) / d z = P (r - KL) with r = log P - log q."""
    logits, labels = twins.outputs(8)
    p, q = twins.softmax(logits), twins.centroids(twins.softmax(logits), labels)
    z = tf.constant(logits, "float32")
    with tf.GradientTape() as tape:
        tape.watch(z)
        values = _regularizer(q)(z, labels)
    ratio = np.log(p) - np.log(q[labels])
    expected = p * (ratio - (p * ratio).sum(1, keepdims=True))
    np.testing.assert_allclose(tape.gradient(values, z), expected, atol=1e-5)


def test_it_trains_nothing_and_without_centroids_everything_is_nan():
    layer = mikd.CMIRegularizer(3)
    assert layer.trainable_variables == [] and not layer.has_centroids
    assert np.all(np.isnan(layer(np.zeros((2, 3), "float32"), np.arange(2))))


def test_running_centroids_move_only_those_of_the_batch():
    logits, labels = twins.outputs(20)
    q = np.full((4, 4), 0.25)
    layer = _regularizer(q)
    some = labels != 3
    layer.update_centroids(np.float32(logits[some]), labels[some], momentum=0.75)
    p = twins.softmax(logits)
    expected = 0.75 * q + 0.25 * np.stack(
        [p[labels == y].mean(0) if y != 3 else q[3] for y in range(4)]
    )
    np.testing.assert_allclose(layer.centroids, expected, atol=1e-6)


def test_separation_is_the_mean_over_pairs_of_different_labels():
    logits, labels = twins.outputs(12)
    layer = mikd.CMIRegularizer(4)
    expected = twins.separation(twins.softmax(logits), labels)
    np.testing.assert_allclose(layer.separation(np.float32(logits), labels), expected, rtol=1e-5)
    assert float(layer.separation(np.float32(logits), np.zeros(12))) == 0


def test_separation_of_two_replicas_adds_up(two_replicas):
    logits, labels = twins.outputs(12)
    layer = mikd.CMIRegularizer(4)

    @tf.function
    def step(batch):
        return layer.separation(*batch)

    halves = [(np.float32(logits[i::2]), labels[i::2]) for i in range(2)]
    batch = two_replicas.experimental_distribute_values_from_function(
        lambda context: tuple(map(tf.constant, halves[context.replica_id_in_sync_group]))
    )
    shares = two_replicas.experimental_local_results(two_replicas.run(step, (batch,)))
    expected = twins.separation(twins.softmax(logits), labels)
    np.testing.assert_allclose(sum(float(s) for s in shares), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "centroids, message",
    [
        (np.eye(4), r"centroids of shape \(3, 3\).* Received: centroids of shape \(4, 4\)"),
        (np.ones((3, 3)), "Expected every row .* Received: row 0"),
        ([[1, 0, 0], [1.5, -0.5, 0], [0, 0, 1]], "Received: row 1"),
        ([[1, 0, 0], [np.nan] * 3, [0, 0, 1]], r"Received: none for \[1\]"),
    ],
)
def test_wrong_centroids_are_refused(centroids, message):
    with pytest.raises(ValueError, match=message):
        mikd.CMIRegularizer(3).set_centroids(centroids)


def test_wrong_inputs_are_refused():
    layer = _regularizer(np.eye(3))
    with pytest.raises(ValueError, match=r"Received: labels of shape \(2, 3\)"):
        layer(np.zeros((2, 3), "float32"), np.eye(3)[:2])
    with pytest.raises(ValueError, match="Received: outputs of shape"):
        layer(np.zeros((2, 4), "float32"), np.arange(2))
    with pytest.raises(ValueError, match="Received: num_classes=0"):
        mikd.CMIRegularizer(0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=r"'float32' or 'float64'. Received: dtype='b?float16'"):
        mikd.CMIRegularizer(4, dtype=dtype)
    with pytest.raises(ValueError, match=r"'float32' or 'float64'. Received: dtype='b?float16'"):
        mikd.ConditionalMutualInformation(4, dtype=dtype)


def test_config_and_centroids_survive_saving(tmp_path):
    logits, labels = keras.Input((3,)), keras.Input((), dtype="int32")
    layer = _regularizer([[0.5, 0.5, 0], [0, 1, 0], [0.2, 0.3, 0.5]], temperature=2.0)
    keras.Model([logits, labels], layer(logits, labels)).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    assert loaded.get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded.centroids, layer.centroids)
