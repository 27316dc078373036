import doctest
import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_mikd import bounds

LOG_2 = np.log(2.0)


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _over_locations(x):
    return x.reshape(len(x), -1).mean(axis=1)


def _numpy_info_nce(joint, product):
    own, others = np.exp(joint), np.exp(product).sum(axis=1)
    return np.log((product.shape[1] + 1) * own / (own + others))


TWINS = {
    "jsd": (bounds.jsd, lambda j, p: np.log(_sigmoid(j)) + np.log(_sigmoid(-p)).mean(axis=1)),
    "nwj": (bounds.nwj, lambda j, p: j - np.exp(p).mean(axis=1) / np.e),
    "donsker_varadhan": (
        bounds.donsker_varadhan,
        lambda j, p: j - np.log(np.exp(p).mean(axis=(0, 1))),
    ),
    "smile": (
        lambda j, p: bounds.smile(j, p, clip=1.5),
        lambda j, p: j - np.log(np.clip(np.exp(p), np.exp(-1.5), np.exp(1.5)).mean(axis=(0, 1))),
    ),
    "info_nce": (bounds.info_nce, _numpy_info_nce),
}
BOUNDS = {name: bound for name, (bound, _) in TWINS.items()}


def _value_and_gradients(function, *arguments):
    arguments = [tf.convert_to_tensor(x, tf.float32) for x in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = function(*arguments)
    return value, tape.gradient(value, arguments)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize(("locations", "negatives"), [((), 1), ((), 7), ((2, 3), 1), ((4,), 3)])
def test_equals_numpy(name, locations, negatives):
    bound, twin = TWINS[name]
    rng = np.random.default_rng(negatives)
    joint = rng.normal(1.0, 2.0, size=(5, *locations))
    product = rng.normal(-1.0, 2.0, size=(5, negatives, *locations))
    expected = _over_locations(twin(joint, product))
    np.testing.assert_allclose(bound(joint, product), expected, rtol=1e-5, atol=1e-5)


def test_jsd_shifted_and_nwj_log_ratio_equal_their_formulas():
    rng = np.random.default_rng(0)
    joint, product = rng.normal(size=5), rng.normal(size=(5, 3))
    shifted = bounds.jsd(joint, product, shifted=True)
    np.testing.assert_allclose(shifted, bounds.jsd(joint, product) + 2 * LOG_2, rtol=1e-6)
    readout = bounds.nwj(joint, product, log_ratio=True)
    np.testing.assert_allclose(readout, joint + 1 - np.exp(product).mean(axis=1), rtol=1e-5)


@pytest.fixture
def table():
    """A discrete joint distribution as 20 pairs whose frequencies are exact: no sampling noise."""
    counts = np.array([[6, 1, 1], [2, 4, 6]])
    x, y = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    joint = counts / counts.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    return x, y, joint, independent


def _score_table(bound, critic, x, y):
    joint = tf.gather_nd(critic, np.stack([x, y], axis=-1))
    every_pair = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
    return tf.reduce_mean(bound(joint, tf.gather_nd(critic, every_pair)))


def test_discrete_closed_forms(table):
    x, y, joint, independent = table
    log_ratio = np.log(joint / independent)
    mutual_information = np.sum(joint * log_ratio)
    middle = (joint + independent) / 2
    divergence = 0.5 * np.sum(joint * np.log(joint / middle))
    divergence += 0.5 * np.sum(independent * np.log(independent / middle))

    def score(bound, critic):
        return float(_score_table(bound, tf.constant(critic, tf.float32), x, y))

    def readout(joint, product):
        return bounds.nwj(joint, product, log_ratio=True)

    assert score(bounds.nwj, 1 + log_ratio) == pytest.approx(mutual_information, abs=1e-5)
    assert score(readout, log_ratio) == pytest.approx(mutual_information, abs=1e-5)
    assert score(bounds.donsker_varadhan, log_ratio + 3) == pytest.approx(
        mutual_information, abs=1e-5
    )
    assert score(bounds.smile, log_ratio) == pytest.approx(mutual_information, abs=1e-5)
    assert score(bounds.jsd, log_ratio) == pytest.approx(2 * divergence - 2 * LOG_2, abs=1e-5)


@pytest.mark.parametrize(
    ("bound", "offset", "is_optimal"),
    [
        (bounds.jsd, 0.0, True),
        (bounds.jsd, 1.0, False),
        (bounds.nwj, 1.0, True),
        (bounds.nwj, 0.0, False),
        (bounds.donsker_varadhan, 0.0, True),
        (bounds.donsker_varadhan, -2.0, True),
    ],
)
def test_gradient_vanishes_at_the_documented_optimal_critic_only(table, bound, offset, is_optimal):
    x, y, joint, independent = table
    critic = np.log(joint / independent) + offset
    _, (gradient,) = _value_and_gradients(lambda c: _score_table(bound, c, x, y), critic)
    assert (np.abs(gradient).max() < 1e-6) == is_optimal


def _gaussian_scores(mutual_information, dimension, size, negatives=1, seed=0):
    """Exact log density ratios of correlated Gaussians, for joint and product pairs."""
    rho = bounds.gaussian_correlation(mutual_information, dimension)
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, size, dimension))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    partners = rng.normal(size=(size, negatives, dimension))

    def log_ratio(x, y):
        quadratic = (rho**2 * (x**2 + y**2) - 2 * rho * x * y) / (1 - rho**2)
        return mutual_information - 0.5 * quadratic.sum(axis=-1)

    return log_ratio(x, y), log_ratio(x[:, None], partners), rho


@pytest.mark.parametrize("dimension", [1, 5, 20])
@pytest.mark.parametrize("mutual_information", [0.5, 2.0])
def test_gaussian_mutual_information_is_recovered(mutual_information, dimension):
    size = 100_000
    joint, product, rho = _gaussian_scores(mutual_information, dimension, size)
    # Var[log ratio] under the joint and Var[ratio] under the product, both in closed form.
    variance = dimension * rho**2 + np.exp(2 * mutual_information) - 1
    tolerance = 3 * np.sqrt(variance / size)
    for bound in (bounds.donsker_varadhan, lambda j, p: bounds.nwj(j, p, log_ratio=True)):
        estimate = np.mean(bound(joint, product))
        assert estimate == pytest.approx(mutual_information, abs=tolerance)


@pytest.mark.parametrize("dimension", [1, 5, 20])
@pytest.mark.parametrize("mutual_information", [0.5, 2.0])
def test_jsd_is_greatest_at_the_log_ratio_and_is_not_the_mi(mutual_information, dimension):
    joint, product, _ = _gaussian_scores(mutual_information, dimension, 20_000)

    def objective(scale, offset):
        scores = scale * joint + offset, scale * product + offset
        return np.mean(bounds.jsd(*scores, shifted=True))

    best = objective(1.0, 0.0)
    assert 0 < best < min(2 * LOG_2, mutual_information)
    for other in [(1.0, 1.0), (1.0, -1.0), (2.0, 0.0), (0.5, 0.0), (-1.0, 0.0)]:
        assert objective(*other) < best


@pytest.mark.parametrize("negatives", [1, 15])
def test_info_nce_is_below_the_mi_and_below_its_cap(negatives):
    joint, product, _ = _gaussian_scores(2.0, 5, 20_000, negatives)
    values = bounds.info_nce(joint, product).numpy()
    cap = np.log(negatives + 1)
    assert values.max() <= cap + 1e-6
    assert 0.5 * min(cap, 2.0) < values.mean() < min(cap, 2.0)


def test_donsker_varadhan_of_tiny_batches_is_biased_upwards_and_nwj_is_not():
    repeats = 20_000
    joint, product, _ = _gaussian_scores(0.5, 1, 2 * repeats)
    joint, product = joint.reshape(2, repeats), product.reshape(2, 1, repeats)
    assert np.mean(bounds.donsker_varadhan(joint, product)) > 0.6
    unbiased = np.mean(bounds.nwj(joint, product, log_ratio=True))
    assert unbiased == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("locations", [(), (2, 3)])
def test_split_scores_equals_explicit_loops(locations):
    scores = np.random.default_rng(0).normal(size=(4, 4, *locations)).astype("float32")
    joint, product = bounds.split_scores(scores)
    np.testing.assert_array_equal(joint, [scores[i, i] for i in range(4)])
    others = [[scores[i, j] for j in range(4) if j != i] for i in range(4)]
    np.testing.assert_array_equal(product, others)
    assert product.shape == (4, 3, *locations)


def test_split_scores_passes_each_gradient_to_its_own_entry():
    weights = tf.reshape(tf.range(16.0), (4, 4))
    joint_weights, product_weights = bounds.split_scores(weights)

    def weighted(scores):
        joint, product = bounds.split_scores(scores)
        return tf.reduce_sum(joint * joint_weights) + tf.reduce_sum(product * product_weights)

    _, (gradient,) = _value_and_gradients(weighted, tf.zeros((4, 4)))
    np.testing.assert_array_equal(gradient, weights)


@pytest.mark.parametrize("name", BOUNDS)
def test_extreme_scores_have_finite_values_and_gradients(name):
    for joint, product in itertools.product([-100.0, 100.0], repeat=2):
        scores = tf.fill([3], joint), tf.fill([3, 2], product)
        value, (joint_gradient, product_gradient) = _value_and_gradients(BOUNDS[name], *scores)
        assert np.isfinite(np.sum(value))
        assert np.isfinite(np.sum(joint_gradient)) and np.min(joint_gradient) >= 0
        assert np.isfinite(np.sum(product_gradient)) and np.max(product_gradient) <= 0


def test_jsd_gradient_does_not_fade_on_confident_mistakes():
    _, (joint, product) = _value_and_gradients(bounds.jsd, [-100.0], [[100.0, 100.0]])
    np.testing.assert_allclose(joint, [1.0])
    np.testing.assert_allclose(product, [[-0.5, -0.5]])


def test_nwj_follows_exp_up_to_60_and_its_tangent_beyond():
    product = np.array([[41.0], [60.9], [61.0], [63.0], [100.0]])
    value, (_, gradient) = _value_and_gradients(bounds.nwj, np.zeros(5), product)
    limit = np.exp(60.0)
    np.testing.assert_allclose(
        value, [-np.exp(40.0), -np.exp(59.9), -limit, -3 * limit, -40 * limit], rtol=2e-5
    )
    slopes = [np.exp(40.0), np.exp(59.9), limit, limit, limit]
    np.testing.assert_allclose(-gradient[:, 0], slopes, rtol=2e-5)


def test_smile_clips_product_scores_only():
    value, (joint, product) = _value_and_gradients(
        lambda j, p: bounds.smile(j, p, clip=2.0), [9.0], [[7.0, -7.0, 0.0]]
    )
    partition = (np.exp(2) + np.exp(-2) + 1) / 3
    np.testing.assert_allclose(value, [9 - np.log(partition)], rtol=1e-6)
    np.testing.assert_allclose(joint, [1.0])
    np.testing.assert_allclose(product, [[0.0, 0.0, -1 / (3 * partition)]], rtol=1e-5)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_batch_of_one_has_a_harmless_value_and_no_gradient(name):
    def bound(scores):
        return BOUNDS[name](*bounds.split_scores(scores))

    value, (gradient,) = _value_and_gradients(bound, [[3.0]])
    np.testing.assert_allclose(value, [-2 * LOG_2 if name == "jsd" else 0.0], rtol=1e-6)
    np.testing.assert_array_equal(gradient, [[0.0]])


def test_the_ceiling_of_a_shifted_bound_is_shifted():
    """A critic that is sure of every pair reaches it."""
    certain = np.full((4,), 30.0), np.full((4, 3), -30.0)
    shifted = functools.partial(bounds.jsd, shifted=True)
    for bound in (bounds.jsd, shifted):
        assert float(bounds.ceiling(bound, 3)) == pytest.approx(float(bound(*certain)[0]), abs=1e-6)


def test_without_negatives_shifted_jsd_is_zero():
    np.testing.assert_allclose(bounds.jsd([3.0], np.zeros((1, 0)), shifted=True), [0.0], atol=1e-6)


@pytest.mark.parametrize("name", BOUNDS)
def test_compiled_with_unknown_batch_equals_eager(name):
    def value_and_gradient(scores):
        value, (gradient,) = _value_and_gradients(
            lambda s: BOUNDS[name](*bounds.split_scores(s)), scores
        )
        return value, gradient

    unknown = tf.TensorSpec([None, None, 2])
    compiled = tf.function(value_and_gradient, input_signature=[unknown], jit_compile=True)
    for batch in (4, 1, 0):
        scores = tf.random.normal((batch, batch, 2))
        for one, other in zip(compiled(scores), value_and_gradient(scores), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_results_are_float32(dtype):
    scores = bounds.split_scores(tf.ones((3, 3), dtype))
    raw = tf.ones(3, dtype), tf.ones((3, 2), dtype)
    likelihood = bounds.barber_agakov(raw[1], raw[1], raw[1])
    for result in (*scores, likelihood, *(bound(*raw) for bound in BOUNDS.values())):
        assert result.dtype == "float32"


@pytest.mark.parametrize(
    ("joint", "product"),
    [((), (3,)), ((3,), (3,)), ((3,), (3, 2, 4)), ((3,), (4, 2)), ((3, 4), (3, 2, 5))],
)
def test_scores_that_do_not_fit_are_refused(joint, product):
    for bound in BOUNDS.values():
        with pytest.raises(ValueError, match=r"of shape \(batch, \.\.\.\).*Received: joint"):
            bound(np.zeros(joint), np.zeros(product))


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (3, 4, 3)])
def test_scores_that_are_not_square_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch, batch, \.\.\.\).*Received: scores\.shape"):
        bounds.split_scores(np.zeros(shape))


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_smile_refuses_a_clip_that_is_not_positive(clip):
    with pytest.raises(ValueError, match="`clip` to be a finite number above 0. Received: clip="):
        bounds.smile([1.0], [[1.0]], clip=clip)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 2, 3)])
@pytest.mark.parametrize(("reduction", "normalized"), [("sum", True), ("mean", False)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_barber_agakov_equals_numpy(shape, reduction, normalized, per_channel):
    rng = np.random.default_rng(0)
    target, mean = rng.normal(size=(2, *shape))
    variance = rng.uniform(0.1, 2.0, size=shape[1:][-1:] if per_channel else shape)
    density = np.exp(-((target - mean) ** 2) / (2 * variance)) / np.sqrt(variance)
    density = density / np.sqrt(2 * np.pi) if normalized else density
    expected = getattr(np, reduction)(np.log(density).reshape(4, -1), axis=1)
    value = bounds.barber_agakov(target, mean, variance, reduction=reduction, normalized=normalized)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mutual_information", [0.5, 2.0])
def test_barber_agakov_and_the_entropy_give_the_gaussian_mi(mutual_information):
    size, dimension = 50_000, 5
    rho = bounds.gaussian_correlation(mutual_information, dimension)
    source, noise = np.random.default_rng(0).normal(size=(2, size, dimension))
    target = rho * source + np.sqrt(1 - rho**2) * noise
    entropy = 0.5 * dimension * np.log(2 * np.pi * np.e)
    tolerance = 3 * np.sqrt(0.5 * dimension / size)

    def bound(mean, variance):
        return np.mean(bounds.barber_agakov(target, mean, [variance])) + entropy

    best = bound(rho * source, 1 - rho**2)
    assert best == pytest.approx(mutual_information, abs=tolerance)
    assert bound(rho * source, 1.2 * (1 - rho**2)) < best - tolerance
    assert bound(0.7 * rho * source, 1 - rho**2) < best - tolerance


def test_barber_agakov_gradient_of_the_variance_vanishes_at_the_mean_square_residual():
    residual = np.array([[1.0], [-2.0], [0.5]])
    _, (_, _, gradient) = _value_and_gradients(
        bounds.barber_agakov, residual, np.zeros((3, 1)), [np.mean(residual**2)]
    )
    np.testing.assert_allclose(gradient, [0.0], atol=1e-6)


def test_barber_agakov_is_finite_at_a_small_variance():
    value, gradients = _value_and_gradients(bounds.barber_agakov, [[100.0]], [[-100.0]], [1e-5])
    assert all(np.isfinite(x).all() for x in (value, *gradients))


def test_barber_agakov_with_unknown_batch():
    spec = tf.TensorSpec([None, 3])
    compiled = tf.function(
        bounds.barber_agakov, input_signature=[spec, spec, tf.TensorSpec([3])], jit_compile=True
    )
    target, mean, variance = tf.random.normal((4, 3)), tf.zeros((4, 3)), tf.constant([1.0, 2, 3])
    expected = bounds.barber_agakov(target, mean, variance)
    np.testing.assert_allclose(compiled(target, mean, variance), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("target", "mean", "variance"),
    [((), (), ()), ((4, 3), (4,), ()), ((4, 3), (3, 3), ()), ((4, 3), (4, 3), (4,)),
     ((4, 3), (4, 3), (2, 4, 3)), ((4, 1), (4, 1), (3,))],
)  # fmt: skip
def test_barber_agakov_refuses_shapes_that_do_not_fit(target, mean, variance):
    with pytest.raises(ValueError, match="broadcasts to it. Received: target.shape="):
        bounds.barber_agakov(np.zeros(target), np.zeros(mean), np.ones(variance))


def test_barber_agakov_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match="'sum' or 'mean'. Received: reduction='none'"):
        bounds.barber_agakov([[1.0]], [[1.0]], [1.0], reduction="none")


@pytest.mark.parametrize("dimension", [1, 20])
@pytest.mark.parametrize("mutual_information", [0.0, 1e-9, 0.5, 2.0, 10.0])
def test_gaussian_closed_form_equals_the_determinant_and_inverts(mutual_information, dimension):
    rho = bounds.gaussian_correlation(mutual_information, dimension)
    back = bounds.gaussian_mutual_information(-rho, dimension)
    assert back == pytest.approx(mutual_information, rel=1e-6)
    covariance = np.kron([[1.0, rho], [rho, 1.0]], np.eye(dimension))
    _, log_determinant = np.linalg.slogdet(covariance)
    assert back == pytest.approx(-0.5 * log_determinant, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("function", "argument", "dimension"),
    [
        (bounds.gaussian_mutual_information, 1.0, 1),
        (bounds.gaussian_mutual_information, -1.5, 1),
        (bounds.gaussian_mutual_information, 0.5, 0),
        (bounds.gaussian_correlation, -0.1, 1),
        (bounds.gaussian_correlation, float("inf"), 1),
        (bounds.gaussian_correlation, 0.5, 0),
    ],
)
def test_gaussian_closed_forms_refuse_impossible_values(function, argument, dimension):
    with pytest.raises(ValueError, match=r"Expected .*`dimension`.* Received: .*dimension="):
        function(argument, dimension)


def test_docstring_examples():
    result = doctest.testmod(bounds)
    assert result.attempted >= 8 and result.failed == 0
