import keras
import numpy as np
import pytest
import tensorflow as tf
from readouts import watched

from keras_mikd.losses.gaussian_vid_head import GaussianVIDHead

VARIANTS = ("official", "repdistiller", "wgan")
MAPS = (3, 4, 4, 5), (3, 4, 4, 2)
VECTORS = (3, 5), (3, 2)
UNFOLDED = (3, 8, 8, 5), (3, 2)
EPSILON = {"official": 0.0, "repdistiller": 1e-5, "wgan": 1e-5}


def _tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def _head(shapes=MAPS, **kwargs):
    head = GaussianVIDHead(**kwargs)
    head.build(*shapes)
    return head


def _randomize(head):
    rng = np.random.default_rng(1)
    head.set_weights([w + rng.uniform(0.0, 0.5, size=w.shape) for w in head.get_weights()])
    return [w.numpy().astype("float64") for w in head.trainable_weights]


def _norm_relu(x, gamma, beta):
    axes = tuple(range(x.ndim - 1))
    x = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
    return np.maximum(gamma * x + beta, 0.0)


def _twin_mean(variant, student, weights):
    if variant == "official":
        first, second = weights
        return student @ first @ second
    if variant == "repdistiller":
        first, second, third = weights
        hidden = np.maximum(student @ first, 0.0)
        return np.maximum(hidden @ second, 0.0) @ third
    gamma1, beta1, first, gamma2, beta2, second = weights
    return _norm_relu(_norm_relu(student, gamma1, beta1) @ first, gamma2, beta2) @ second


def _twin_unfolded(student, kernels, between):
    """Transposed convolutions by their definition: every element spreads its kernel."""
    first, *others = kernels
    x = np.einsum("bc,hwdc->bhwd", student.astype("float64"), first)
    for kernel in others:
        x = between(x)
        batch, height, width, _ = x.shape
        spread = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
        for i in range(height):
            for j in range(width):
                window = spread[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
                window += np.einsum("bc,hwdc->bhwd", x[:, i, j], kernel)
        x = spread[:, 1:-1, 1:-1]
    return x


def _twin_loss(teacher, mean, alpha, epsilon, variant, reduction):
    variance = np.log1p(np.exp(alpha)) + epsilon
    terms = 0.5 * ((mean - teacher) ** 2 / variance + np.log(variance))
    terms += 0.5 * np.log(2 * np.pi) * (variant == "wgan")
    return getattr(terms.reshape(len(teacher), -1), reduction)(axis=1)


def _gradients(head, teacher, student):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = head(tf.constant(teacher), student, training=True)
    return loss, tape.gradient(loss, [*head.trainable_weights, student])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_on_maps_equals_numpy(variant, reduction):
    head = _head(variant=variant, reduction=reduction)
    alpha, *weights = _randomize(head)
    teacher, student = _tensors(MAPS)
    mean = _twin_mean(variant, student.astype("float64"), weights)
    expected = _twin_loss(teacher, mean, alpha, EPSILON[variant], variant, reduction)
    loss = head(teacher, student, training=True)
    assert loss.shape == (3,)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_on_vectors_equals_numpy(variant, reduction):
    head = _head(VECTORS, variant=variant, reduction=reduction)
    alpha, kernel, bias = _randomize(head)
    teacher, student = _tensors(VECTORS)
    epsilon = 1e-6 if variant == "wgan" else EPSILON[variant]
    mean = student @ kernel + bias
    expected = _twin_loss(teacher, mean, alpha, epsilon, variant, reduction)
    np.testing.assert_allclose(head(teacher, student), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "between"),
    [("official", lambda x: x), ("repdistiller", lambda x: np.maximum(x, 0.0))],
)
@pytest.mark.parametrize(
    ("map_size", "kernels"),
    [
        ((8, 8), [(4, 4), (4, 4)]),
        ((6, 12), [(3, 6), (4, 4)]),
        ((5, 7), [(5, 7)]),
        ((2, 2), [(2, 2)]),
    ],
)
def test_loss_of_a_vector_that_is_unfolded_to_a_map_equals_numpy(
    variant, between, map_size, kernels
):
    shapes = (3, *map_size, 5), (3, 2)
    head = _head(shapes, variant=variant, hidden_channels=4, reduction="sum")
    alpha, *weights = _randomize(head)
    assert [kernel.shape[:2] for kernel in weights] == kernels
    teacher, student = _tensors(shapes)
    mean = _twin_unfolded(student, weights, between)
    assert mean.shape == teacher.shape
    expected = _twin_loss(teacher, mean, alpha, EPSILON[variant], variant, "sum")
    np.testing.assert_allclose(head(teacher, student), expected, rtol=1e-4)


@pytest.mark.parametrize("shapes", [((1, 2, 2, 64), (1, 2, 2, 64)), ((1, 64), (1, 64))])
def test_means_start_as_pytorch_s_layers(shapes):
    """Of U(-1, 1) / sqrt(number of terms)."""
    kernels = [w for w in _head(shapes).trainable_weights if w.path.endswith("kernel")]
    for kernel in kernels:
        limit = kernel.shape[0] ** -0.5
        assert 0.9 * limit < np.abs(kernel).max() <= limit


def test_unfolding_starts_with_the_spread_of_pytorch_s_convolutions():
    """Of U(-1, 1) / sqrt(number of terms), whose sum with unit inputs has a variance of 1/3."""
    keras.utils.set_random_seed(0)
    head = _head(((1, 16, 16, 32), (1, 64)), variant="official")
    student = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    # The borders of a transposed convolution have fewer terms.
    inside = np.asarray(head.predict_mean(student))[:, 4:-4, 4:-4]
    np.testing.assert_allclose(np.var(inside), 1 / 27, rtol=0.15)


@pytest.mark.parametrize(
    ("variant", "hidden", "variance"),
    [
        ("official", [5], np.log1p(np.exp(np.log1p(np.exp(5.0))))),
        ("repdistiller", [5, 5], 5.0),
        ("wgan", [14], np.log(2.0) + 1e-5),
    ],
)
def test_variants_have_their_authors_widths_and_initial_variance(variant, hidden, variance):
    head = _head(variant=variant)
    kernels = [w for w in head.trainable_weights if "kernel" in w.path]
    assert [k.shape for k in kernels] == list(zip([2, *hidden], [*hidden, 5], strict=True))
    np.testing.assert_allclose(head.variance(), np.full(5, variance), rtol=1e-6)


def test_width_and_initial_variance_can_be_set():
    head = _head(variant="wgan", hidden_channels=3, initial_variance=0.01)
    assert (2, 3) in [w.shape for w in head.trainable_weights]
    np.testing.assert_allclose(head.variance(), np.full(5, 0.01), rtol=1e-4)


@pytest.mark.parametrize("shapes", [((2, 6, 4, 5), (2, 3, 2, 3)), ((2, 3, 2, 5), (2, 6, 4, 3))])
def test_the_larger_map_is_averaged_to_the_smaller_grid(shapes):
    head = _head(shapes)
    teacher, student = _tensors(shapes)

    def pooled(x):
        return x if x.shape[1] == 3 else x.reshape(2, 3, 2, 2, 2, x.shape[-1]).mean((2, 4))

    same_size = head(pooled(teacher), pooled(student))
    np.testing.assert_allclose(head(teacher, student), same_size, rtol=1e-5)


@pytest.mark.parametrize("shapes", [MAPS, VECTORS, UNFOLDED])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_the_variance_too_gets_a_gradient(variant, shapes):
    head = _head(shapes, variant=variant)
    assert any(weight is head.alpha for weight in head.trainable_weights)
    _, gradients = _gradients(head, *_tensors(shapes))
    assert all(np.any(np.asarray(g) != 0) for g in gradients)


def test_gradient_of_the_variance_equals_its_closed_form():
    head = _head(VECTORS, variant="repdistiller", initial_variance=2.0)
    teacher, student = _tensors(VECTORS)
    _, (gradient, *_) = _gradients(head, teacher, student)
    error = teacher - np.asarray(head.predict_mean(student))
    slope = 1.0 - np.exp(-(2.0 - 1e-5))  # of the softplus
    expected = np.sum(0.5 * (1 / 2.0 - error**2 / 4.0), 0) / 5 * slope
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize("shapes", [MAPS, VECTORS])
@pytest.mark.parametrize("alpha", [-100.0, 100.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_variances_stay_finite(variant, alpha, shapes):
    head = _head(shapes, variant=variant, reduction="sum")
    head.alpha.assign(np.full(5, alpha))
    loss, gradients = _gradients(head, *_tensors(shapes))
    assert np.all(np.isfinite(loss))
    assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("variant", VARIANTS)
def test_constant_features_and_a_batch_of_one_stay_finite(variant):
    head = _head(variant=variant)
    teacher, student = np.zeros((1, 4, 4, 5), "float32"), np.zeros((1, 4, 4, 2), "float32")
    loss, gradients = _gradients(head, teacher, student)
    assert loss.shape == (1,)
    assert np.all(np.isfinite(loss))
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_training_learns_mean_and_variance_of_a_linear_gaussian():
    rng = np.random.default_rng(0)
    student = rng.normal(size=(512, 2)).astype("float32")
    teacher = student @ np.array([[1.0], [-2.0]]) + 0.5 * rng.normal(size=(512, 1)) + 3.0
    head = _head(((512, 1), (512, 2)), initial_variance=1.0)
    optimizer = keras.optimizers.Adam(0.1)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(head(tf.constant(teacher, "float32"), tf.constant(student)))
        optimizer.apply(tape.gradient(loss, head.trainable_weights), head.trainable_weights)

    for _ in range(200):
        step()
    np.testing.assert_allclose(head.mean_layers[0].kernel, [[1.0], [-2.0]], atol=0.1)
    np.testing.assert_allclose(head.variance(), [0.25], rtol=0.15)
    head.gaussian_nats.reset_state()
    head(teacher, student)
    explained = 1.0 - 0.25 / np.var(teacher)
    np.testing.assert_allclose(head.gaussian_nats.result(), -0.5 * np.log(1 - explained), atol=0.05)


@pytest.mark.parametrize(
    ("shapes", "grid"), [(((2, 4, 4, 5), (2, 2, 2, 3)), (2, 2)), (VECTORS, ()), (UNFOLDED, (8, 8))]
)
def test_readout_is_in_nats_on_the_common_grid(shapes, grid):
    head = _head(shapes, name="vid")
    assert [metric.name for metric in head.metrics] == ["vid_gaussian_nats"]
    seen = watched(head)
    head(*_tensors(shapes))
    target, mean, variance = seen["gaussian_nats"]
    assert target.shape == mean.shape == (shapes[0][0], *grid, 5)
    assert variance.shape == (5,)


def test_batch_normalization_learns_in_training_only():
    head = _head(variant="wgan")
    teacher, student = _tensors(MAPS)
    before = head.get_weights()
    head(teacher, student, training=False)
    for old, new in zip(before, head.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    head(teacher, student, training=True)
    assert np.any(head.non_trainable_weights[0].numpy() != 0)


@pytest.mark.parametrize("shapes", [MAPS, UNFOLDED])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_head_is_the_same_head(variant, shapes, tmp_path):
    inputs = [keras.Input(shape[1:]) for shape in shapes]
    options = {
        "variant": variant,
        "hidden_channels": 4,
        "initial_variance": 0.5,
        "reduction": "sum",
        "teacher_layer": "stage2",
        "weight": 0.1,
    }
    head = GaussianVIDHead(**options)
    model = keras.Model(inputs, head(*inputs))
    _randomize(head)
    model.save(tmp_path / "head.keras")
    loaded = keras.saving.load_model(tmp_path / "head.keras")
    config = loaded.layers[-1].get_config()
    assert config == head.get_config()
    assert options.items() <= config.items()
    tensors = _tensors(shapes)
    np.testing.assert_array_equal(loaded(tensors), model(tensors))


def test_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    head = _head(variant="wgan")
    teacher, student = _tensors(MAPS)
    loss = head(teacher.astype("float16"), student.astype("float16"))
    assert loss.dtype == "float32"
    assert {w.dtype for w in head.weights} == {"float32"}
    assert {layer.compute_dtype for layer in head.mean_layers} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "vid"}, "'official', 'repdistiller' or 'wgan'. Received: variant='vid'"),
        ({"reduction": None}, "`reduction` to be 'mean' or 'sum'"),
        ({"hidden_channels": 0}, "hidden_channels=0"),
        ({"hidden_channels": 2.5}, "hidden_channels=2.5"),
        ({"initial_variance": 0.0}, "initial_variance=0.0"),
        ({"initial_variance": "5"}, "initial_variance='5'"),
        ({"initial_variance": float("inf")}, "initial_variance=inf"),
        ({"initial_variance": float("nan")}, "initial_variance=nan"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianVIDHead(**options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 5), (2, 4, 4, 3)), "two vectors .* or two feature maps"),
        (((2, 6, 5), (2, 3)), "two vectors .* or two feature maps"),
        (((2, None, 4, 5), (2, 3)), "Build the teacher with a fixed input size"),
    ],
)
def test_a_vector_against_what_it_does_not_unfold_to_is_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        _head(shapes)
