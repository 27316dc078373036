import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.bounds import gaussian_mutual_information
from keras_mikd.metrics.gaussian_information import GaussianInformation


def _estimate(target, mean, variance):
    target, mean = (np.reshape(x, (-1, x.shape[-1])).astype("float64") for x in (target, mean))

    def log_normal(mean, variance):
        return -0.5 * ((target - mean) ** 2 / variance + np.log(2 * np.pi * variance))

    log_g = log_normal(target.mean(0), target.var(0))
    return np.mean(log_normal(mean, np.asarray(variance, "float64")) - log_g)


def _batch(shape, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.normal(2.0, 3.0, size=shape).astype("float32")
    mean = (target + rng.normal(size=shape)).astype("float32")
    return target, mean, rng.uniform(0.5, 2.0, size=shape[-1]).astype("float32")


@pytest.mark.parametrize("shape", [(6, 3), (4, 2, 3, 5)])
def test_value_equals_numpy(shape):
    metric = GaussianInformation(shape[-1])
    metric.update_state(*_batch(shape))
    np.testing.assert_allclose(metric.result(), _estimate(*_batch(shape)), rtol=1e-5)
    assert metric.result().dtype == "float32"


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.999])
def test_ideal_head_on_gaussians_gives_their_mutual_information(correlation):
    rng = np.random.default_rng(0)
    source, noise = rng.normal(size=(2, 20_000, 2))
    target = correlation * source + np.sqrt(1 - correlation**2) * noise
    metric = GaussianInformation(2)
    metric.update_state(target, correlation * source, np.full(2, 1 - correlation**2))
    expected = gaussian_mutual_information(correlation, dimension=1)
    np.testing.assert_allclose(metric.result(), expected, atol=0.02)


def test_a_head_worse_than_a_constant_is_negative():
    target, _, variance = _batch((50, 2))
    metric = GaussianInformation(2)
    metric.update_state(target, target + 10.0, variance)
    assert metric.result() < -10.0


def test_batches_and_replicas_add_up():
    target, mean, variance = _batch((10, 3))
    whole, halves, replica = (GaussianInformation(3) for _ in range(3))
    whole.update_state(target, mean, variance)
    halves.update_state(target[:4], mean[:4], variance)
    replica.update_state(target[4:], mean[4:], variance)
    for state, other in zip(halves.variables, replica.variables, strict=True):
        assert state.aggregation == "sum"
        state.assign_add(other)
    np.testing.assert_allclose(halves.result(), whole.result(), rtol=1e-6)


def test_every_batch_counts_with_its_own_variance():
    target, mean, _ = _batch((8, 1))
    metric = GaussianInformation(1)
    metric.update_state(target[:4], mean[:4], [0.5])
    metric.update_state(target[4:], mean[4:], [2.0])
    expected = _estimate(target, mean, np.repeat([[0.5], [2.0]], 4, axis=0))
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-5)


def test_a_large_offset_does_not_cancel():
    rng = np.random.default_rng(0)
    target = (3000.0 + rng.normal(size=(500, 2))).astype("float32")
    mean = (target + 0.1 * rng.normal(size=(500, 2))).astype("float32")
    metric = GaussianInformation(2)
    for part in np.split(np.arange(500), 10):
        metric.update_state(target[part], mean[part], np.full(2, 0.01, "float32"))
    np.testing.assert_allclose(metric.result(), _estimate(target, mean, [0.01] * 2), atol=1e-3)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3e5])
def test_constant_channels_count_as_nothing(constant):
    target, mean, variance = _batch((20, 2))
    alone, metric = GaussianInformation(2), GaussianInformation(3)
    dead = np.full((20, 1), constant, "float32")
    for part in (slice(7), slice(7, 20)):
        alone.update_state(target[part], mean[part], variance)
        metric.update_state(
            np.concatenate([target, dead], -1)[part],
            np.concatenate([mean, dead], -1)[part],
            np.append(variance, 1e-12).astype("float32"),
        )
    np.testing.assert_allclose(metric.result(), alone.result() * 2 / 3, rtol=1e-5)


def test_no_example_and_one_example_give_zero():
    metric = GaussianInformation(2)
    assert metric.result() == 0.0
    metric.update_state(np.ones((1, 2), "float32"), np.zeros((1, 2), "float32"), np.ones(2))
    assert metric.result() == 0.0


def test_graphs_xla_reset_and_config():
    metric = GaussianInformation(3, name="vid_gaussian_nats")
    twin = GaussianInformation.from_config(metric.get_config())
    assert (twin.name, twin.num_channels, twin.dtype) == ("vid_gaussian_nats", 3, "float64")
    batch = _batch((6, 3))
    tf.function(metric.update_state, jit_compile=True)(*batch)
    tf.function(twin.update_state)(*batch)
    np.testing.assert_allclose(metric.result(), twin.result(), rtol=1e-6)
    metric.reset_state()
    assert metric.result() == 0.0
    assert keras.saving.get_registered_object("keras_mikd>GaussianInformation")
