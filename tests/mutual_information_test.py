import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd import bounds
from keras_mikd.metrics import mutual_information
from keras_mikd.metrics.mutual_information import BoundInformation, MutualInformation


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


@pytest.mark.parametrize("constant", [0.0, 100.0, -250.0, 5_000.0, -30_000.0])
def test_a_constant_critic_reads_nothing_whatever_the_constant(constant):
    batch = np.full((8, 3), constant), np.full((8, 5, 3), constant)
    assert _read(batch, batch) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("score", [69.0, 71.0, 1000.0, -1000.0])
def test_large_scores_count_as_they_are(score):
    assert _read(([0.0], [[score]])) == pytest.approx(-score)
    assert _read(([score], [[0.0]])) == pytest.approx(score)


def test_batches_that_are_hundreds_of_nats_apart_add_up():
    joint, product = _scores(12, 3)
    product += np.repeat([0.0, -900.0, 700.0, 650.0], 3)[:, None]
    streamed = _read(*((joint[i : i + 3], product[i : i + 3]) for i in range(0, 12, 3)))
    expected = np.mean(joint) - 700.0 - np.log(np.mean(np.exp(product - 700.0)))
    assert streamed == pytest.approx(expected, rel=1e-5)


def _drawn(rng, examples=64, negatives=3):
    """Scores of the exact critic of two Gaussians of correlation 0.6, for shuffled partners."""
    teacher = rng.normal(size=examples)
    student = 0.6 * teacher + 0.8 * rng.normal(size=examples)

    def score(s):
        return -np.log(0.8) - (0.36 * (teacher**2 + s**2) - 1.2 * teacher * s) / (2 * 0.64)

    others = [score(np.roll(student, k)) for k in range(1, negatives + 1)]
    return score(student), np.stack(others, axis=1)


def test_the_standard_error_is_how_far_estimates_scatter():
    rng, seen = np.random.default_rng(0), []
    for _ in range(40):
        metric = MutualInformation()
        for _ in range(2):
            metric.update_state(*_drawn(rng))
        seen.append((float(metric.result()), float(metric.standard_error())))
    estimates, errors = np.transpose(seen)
    assert np.std(estimates) == pytest.approx(np.mean(errors), rel=0.3)
    assert abs(np.mean(estimates) + np.log(0.8)) < 3 * np.std(estimates) / np.sqrt(40)


def test_the_standard_error_equals_numpy_over_batches_far_apart():
    joint, product = _scores(20, 4)
    product[:10] += 300.0
    joint[:10] += 300.0
    metric = MutualInformation()
    for part in (slice(0, 10), slice(10, 20)):
        metric.update_state(joint[part], product[part])
    terms = np.exp(product - 300.0).sum(axis=1)
    influence = joint - np.mean(joint) - terms / terms.mean() + 1.0
    expected = np.sqrt(np.mean(influence**2) / 19)
    assert float(metric.standard_error()) == pytest.approx(expected, rel=1e-5)


def test_the_limit_is_the_logarithm_of_the_pairs():
    metric = MutualInformation()
    assert float(metric.limit()) == float(metric.standard_error()) == 0.0
    metric.update_state(np.zeros((4, 2)), np.zeros((4, 3, 2)))
    assert float(metric.limit()) == pytest.approx(np.log(4 * 3 * 2))


def test_companions_follow_their_read_out():
    metric = MutualInformation(name="critic_mi_nats")
    error, limit = metric.companions()
    assert (error.name, limit.name) == ("critic_mi_nats_se", "critic_mi_nats_limit")
    metric.update_state(*_scores(5, 2))
    assert float(error.result()) == float(metric.standard_error()) > 0.0
    assert float(limit.result()) == pytest.approx(np.log(10))
    assert not error.variables and not limit.variables


def test_a_bound_is_read_out_as_its_mean_over_examples():
    values, metric = np.random.default_rng(0).normal(size=9), BoundInformation()
    metric.update_state(values[:5], np.log(5.0))
    metric.update_state(values[5:], np.log(4.0))
    metric.update_state(np.zeros(1), 0.0)  # An example without negatives says nothing.
    assert float(metric.result()) == pytest.approx(values.mean(), rel=1e-5)
    expected = np.std(values, ddof=1) / 3
    assert float(metric.standard_error()) == pytest.approx(expected, rel=1e-5)
    assert float(metric.limit()) == pytest.approx((5 * np.log(5) + 4 * np.log(4)) / 9)


def test_two_replicas_read_what_one_does_although_their_scores_are_far_apart(two_replicas):
    joint, product = _scores(8, 3)
    product[4:] += 900.0
    joint[4:] += 900.0
    with two_replicas.scope():
        metric = MutualInformation()

    def parts(x):
        def of(context):
            i = context.replica_id_in_sync_group
            return tf.constant(x[4 * i : 4 * i + 4], "float32")

        return two_replicas.experimental_distribute_values_from_function(of)

    tf.function(two_replicas.run)(metric.update_state, args=(parts(joint), parts(product)))
    alone = MutualInformation()
    alone.update_state(joint, product)
    for ours, theirs in zip(
        (metric.result(), metric.standard_error(), metric.limit()),
        (alone.result(), alone.standard_error(), alone.limit()),
        strict=True,
    ):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_a_score_that_is_not_a_number_shows():
    assert np.isnan(_read(([1.0, np.nan], [[0.0], [0.0]])))
    assert np.isnan(_read(([1.0, 1.0], [[0.0], [np.nan]])))


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


def test_sums_of_less_than_float64_are_refused():
    with pytest.raises(ValueError, match="`dtype` to be 'float64'.*Received: dtype='float32'"):
        MutualInformation(dtype="float32")


def test_docstring_examples():
    import keras_mikd

    result = doctest.testmod(mutual_information, extraglobs={"keras_mikd": keras_mikd})
    assert result.attempted >= 3 and result.failed == 0
