import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd import bounds
from keras_mikd.metrics import mutual_information
from keras_mikd.metrics.mutual_information import MutualInformation


def _scores(batch, negatives, locations=(), seed=0):
    rng = np.random.default_rng(seed)
    joint = rng.normal(2.0, 1.5, size=(batch, *locations))
    return joint, rng.normal(-1.0, 1.5, size=(batch, negatives, *locations))


def _numpy(joint, product):
    return np.mean(joint) - np.log(np.mean(np.exp(product)))


def _read(*batches):
    metric = MutualInformation()
    for batch in batches:
        metric.update_state(*batch)
    return float(metric.result())


@pytest.mark.parametrize(("negatives", "locations"), [(1, ()), (7, ()), (3, (5,)), (2, (2, 3))])
def test_value_equals_numpy_and_the_bound_on_one_batch(negatives, locations):
    joint, product = _scores(8, negatives, locations)
    assert _read((joint, product)) == pytest.approx(_numpy(joint, product), rel=1e-5)
    if not locations:
        bound = np.mean(bounds.donsker_varadhan(joint, product))
        assert _read((joint, product)) == pytest.approx(bound, rel=1e-5)


def test_batches_of_any_size_give_the_value_over_all_pairs():
    joint, product = _scores(20, 4)
    product[:3] += 3.0  # Batches that differ, or a mean of their logarithms would do.
    parts = [slice(0, 3), slice(3, 4), slice(4, 20)]
    streamed = _read(*((joint[part], product[part]) for part in parts))
    assert streamed == pytest.approx(_numpy(joint, product), rel=1e-5)
    batchwise = np.mean([_numpy(joint[part], product[part]) for part in parts])
    assert abs(streamed - batchwise) > 0.1


def test_many_small_batches_lose_no_precision():
    metric = MutualInformation()
    joint, product = (tf.constant(x, "float32") for x in _scores(4, 3))

    @tf.function
    def update():
        for _ in tf.range(20_000):
            metric.update_state(joint, product)

    update()
    assert float(metric.result()) == pytest.approx(_read((joint, product)), rel=1e-3)


def test_it_is_never_below_nwj_with_the_same_scores():
    for seed in range(10):
        joint, product = _scores(6, 3, seed=seed)
        nwj = np.mean(bounds.nwj(joint, product, log_ratio=True))
        assert _read((joint, product)) >= nwj - 1e-5


def test_nothing_seen_and_a_batch_of_one_read_zero():
    lonely = np.full((1,), 9.0), np.zeros((1, 0))
    assert _read() == 0.0
    assert _read(lonely) == 0.0
    assert _read((np.zeros(0), np.zeros((0, 3)))) == 0.0
    pairs = _scores(5, 2)
    assert _read(lonely, pairs, lonely) == _read(pairs)


@pytest.mark.parametrize("joint", [-1e30, 1e30])
@pytest.mark.parametrize("product", [-1e30, -100.0, 100.0, 1e30])
def test_huge_scores_stay_finite(joint, product):
    assert np.isfinite(_read(*[(np.full(64, joint), np.full((64, 63), product))] * 3))


def test_product_scores_above_70_count_as_70():
    assert _read(([0.0], [[1000.0]])) == pytest.approx(-70.0)
    assert _read(([0.0], [[69.0]])) == pytest.approx(-69.0)
    assert _read(([1000.0], [[0.0]])) == pytest.approx(1000.0)


def test_reset_forgets_everything():
    metric = MutualInformation()
    metric.update_state(*_scores(5, 2))
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_the_states_of_replicas_add_up():
    joint, product = _scores(10, 3)
    one, other = MutualInformation(), MutualInformation()
    one.update_state(joint[:7], product[:7])
    other.update_state(joint[7:], product[7:])
    for variable, more in zip(one.variables, other.variables, strict=True):
        assert variable.aggregation == "sum"
        variable.assign_add(more)
    assert float(one.result()) == pytest.approx(_numpy(joint, product), rel=1e-5)


def test_compiled_with_unknown_sizes_equals_eager():
    metric = MutualInformation()
    spec = tf.TensorSpec([None]), tf.TensorSpec([None, None])
    update = tf.function(metric.update_state, input_signature=spec, jit_compile=True)
    batches = [_scores(4, 3), _scores(1, 0), _scores(2, 1, seed=1)]
    for batch in batches:
        update(*(tf.constant(scores, "float32") for scores in batch))
    assert float(metric.result()) == pytest.approx(_read(*batches), rel=1e-5)


def test_half_precision_scores_are_added_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    metric = MutualInformation()
    metric.update_state(tf.fill([4], tf.constant(20.0, "float16")), tf.zeros([4, 9], "float16"))
    metric.update_state(tf.zeros([4], "float16"), tf.fill([4, 9], tf.constant(20.0, "float16")))
    expected = 10.0 - np.log((1.0 + np.exp(20.0)) / 2)
    assert metric.result().dtype == "float32"
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def test_config_round_trip():
    metric = MutualInformation(name="critic_mi_nats", dtype="float64")
    twin = MutualInformation.from_config(metric.get_config())
    assert (twin.name, twin.dtype) == ("critic_mi_nats", "float64")
    assert keras.saving.get_registered_object("keras_mikd>MutualInformation") is MutualInformation


def test_docstring_examples():
    import keras_mikd

    result = doctest.testmod(mutual_information, extraglobs={"keras_mikd": keras_mikd})
    assert result.attempted >= 3 and result.failed == 0
