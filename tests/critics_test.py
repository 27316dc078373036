import critic_twins
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.critics.critic import ConcatCritic, Critic, SeparableCritic
from keras_mikd.critics.negatives import Negatives

KINDS = [ConcatCritic, SeparableCritic]
LOCATIONS = [(1, 1), (1, 6), (6, 1), (6, 6)]


def _scores(critic, teacher, student, negatives):
    pairs = Negatives(negatives, "batch", gather=False)
    return pairs.scores(critic, teacher, pairs.pool(student))


def _features(batch, locations, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (batch, locations[0], 4), (batch, locations[1], 3)
    return tuple(rng.normal(size=shape).astype("float32") for shape in shapes)


def _randomized(kind, locations=(1, 1), width=5):
    critic = kind(width=width)
    critic.build((None, locations[0], 4), (None, locations[1], 3))
    critic_twins.set_random_weights(critic)
    return critic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negatives", [1, 3, "all"])
def test_a_batch_of_one_has_no_negatives(kind, negatives):
    critic = _randomized(kind, (1, 6))
    joint, product = _scores(critic, *_features(1, (1, 6)), negatives)
    assert joint.shape == (1, 6)
    assert product.shape == (1, 0, 6)


@pytest.mark.parametrize("locations", LOCATIONS)
@pytest.mark.parametrize("negatives", [2, "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_numpy(kind, negatives, locations):
    critic = _randomized(kind, locations)
    teacher, student = _features(4, locations)
    joint, product = _scores(critic, teacher, student, negatives)
    partners = critic_twins.partners(4, negatives) if negatives != "all" else None
    partners = partners or {i: [j for j in range(4) if j != i] for i in range(4)}
    expected = [critic_twins.score(critic, teacher[i], student[i]) for i in range(4)]
    np.testing.assert_allclose(joint, expected, rtol=1e-4, atol=1e-4)
    expected = [
        [critic_twins.score(critic, teacher[i], student[j]) for j in partners[i]] for i in range(4)
    ]
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negatives", [3, "all"])
def test_each_side_is_embedded_once_however_many_pairs_are_scored(kind, negatives, monkeypatch):
    critic = _randomized(kind)
    seen = []
    for name in ("embed_teacher", "embed_student"):
        embed = getattr(critic, name)
        monkeypatch.setattr(
            critic, name, lambda x, e=embed, n=name: seen.append((n, len(x))) or e(x)
        )
    _scores(critic, *_features(4, (1, 1)), negatives)
    assert seen == [("embed_teacher", 4), ("embed_student", 4)]


def test_the_first_layers_of_the_concat_critic_see_each_example_once(monkeypatch):
    critic = _randomized(ConcatCritic)
    rows = {}
    for name in ("teacher_layer", "student_layer", "hidden_layer"):
        layer = getattr(critic, name)

        def call(x, name=name, original=layer.call):
            rows[name] = rows.get(name, 0) + int(tf.size(x[..., 0]))
            return original(x)

        monkeypatch.setattr(layer, "call", call)
    _scores(critic, *_features(8, (1, 1)), 3)
    assert rows == {"teacher_layer": 8, "student_layer": 8, "hidden_layer": 8 * (1 + 3)}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("negatives", [2, "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_with_unknown_batch_equals_eager(kind, negatives, jit_compile):
    critic = _randomized(kind, (1, 6))
    compiled = tf.function(
        lambda t, s: _scores(critic, t, s, negatives),
        input_signature=[tf.TensorSpec([None, 1, 4]), tf.TensorSpec([None, 6, 3])],
        jit_compile=jit_compile,
    )
    for batch in (1, 2, 5):
        features = _features(batch, (1, 6))
        eager = _scores(critic, *features, negatives)
        for one, other in zip(compiled(*map(tf.constant, features)), eager, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_have_float32_precision_under_mixed_precision(kind):
    keras.config.set_dtype_policy("mixed_float16")
    critic = _randomized(kind)
    teacher, student = _features(3, (1, 1))
    joint, product = _scores(critic, teacher, student, 1)
    expected = [critic_twins.score(critic, teacher[i], student[i]) for i in range(3)]
    np.testing.assert_allclose(joint, expected, rtol=1e-4, atol=1e-4)
    assert all(x.dtype == "float32" for x in (joint, product, *critic.weights))


@pytest.mark.parametrize("kind", KINDS)
def test_config_round_trip(kind):
    critic = kind(width=7, name="score")
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(critic))
    assert type(twin) is kind
    assert twin.get_config() == critic.get_config()
    assert (twin.width, twin.name) == (7, "score")


@pytest.mark.parametrize("width", [0, -3, 2.5, "8", None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_width_is_refused(kind, width):
    with pytest.raises(
        ValueError, match=f"`width` to be an int of at least 1. Received: width={width!r}"
    ):
        kind(width=width)


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("inf"), float("nan"), "0.1", None])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="a finite number of at least 1e-12"):
        SeparableCritic(temperature=temperature)


def test_separable_scores_stay_within_the_inverse_temperature_of_the_bias():
    critic = SeparableCritic(width=5, temperature=0.25)
    critic.build((None, 1, 4), (None, 1, 4))
    critic.student_layer.kernel.assign(critic.teacher_layer.kernel)
    critic.bias.assign(3.0)
    same, _ = _features(3, (1, 1))
    joint, product = _scores(critic, 1e3 * same, 1e-3 * same, "all")
    np.testing.assert_allclose(joint, np.full((3, 1), 3.0 + 4.0), rtol=1e-5)
    assert np.all(np.abs(product - 3.0) < 4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_zeros_have_finite_scores_and_gradients(kind):
    critic = _randomized(kind)
    zeros = tf.zeros((3, 1, 4)), tf.zeros((3, 1, 3))
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        joint, product = _scores(critic, *zeros, 2)
    for x in (
        joint,
        product,
        *tape.gradient([joint, product], [*zeros, *critic.trainable_weights]),
    ):
        assert np.isfinite(x).all()


def test_the_gradient_of_a_direction_has_a_bound_that_float16_can_hold():
    critic = SeparableCritic(width=4, temperature=0.1)
    critic.build((None, 1, 4), (None, 1, 4))
    for layer in (critic.teacher_layer, critic.student_layer):
        layer.kernel.assign(np.eye(4))
    teacher = tf.constant(np.random.default_rng(0).normal(size=(1, 1, 4)), "float32")

    def gradient(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            score = critic(teacher, student)
        return float(tf.norm(tape.gradient(score, student)))

    direction = tf.constant([[[1.0, -2.0, 0.5, 0.0]]])
    assert gradient(0.0 * direction) == 0.0
    for length in (1e-12, 1e-6, 1e-3, 1e-2):
        assert 0.0 < gradient(length * direction) <= 100.0 / 0.1
    # Of an ordinary vector it is what it is.
    with tf.GradientTape() as tape:
        tape.watch(direction)
        cosine = -10.0 * keras.losses.cosine_similarity(teacher, direction)
    exact = float(tf.norm(tape.gradient(cosine, direction)))
    assert gradient(direction) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 100.0, 1000.0, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_the_scale_of_features(kind, scale):
    features = _features(16, (1, 6))
    critic, scaled = _randomized(kind), _randomized(kind)
    critic.observe(*features)
    scaled.observe(*(scale * x for x in features))
    expected = critic(*features)
    np.testing.assert_allclose(
        scaled(*(scale * x for x in features)), expected, rtol=1e-3, atol=1e-3
    )


def test_concat_scores_do_not_depend_on_where_channels_lie():
    features = _features(64, (1, 1))
    moved = [x * [0.1, 1.0, 50.0, 1.0][: x.shape[-1]] + 10.0 for x in features]
    critic, other = _randomized(ConcatCritic), _randomized(ConcatCritic)
    critic.observe(*features)
    other.observe(*(x.astype("float32") for x in moved))
    ours, theirs = np.ravel(critic(*features)), np.ravel(other(*moved))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9
    assert np.std(theirs) == pytest.approx(np.std(ours), rel=0.3)


def test_an_outlier_is_not_scored_out_of_proportion():
    teacher, student = _features(64, (1, 1))
    critic = _randomized(ConcatCritic)
    critic.observe(teacher, student)
    usual = np.abs(critic(teacher, student)).max()
    assert np.abs(critic(1e6 * teacher, 1e6 * student)).max() < 60 * usual


def test_scores_after_the_first_batch_equal_numpy():
    critic, (teacher, student) = _randomized(ConcatCritic), _features(8, (1, 6))
    critic.observe(teacher, student)
    critic.observe(100 * teacher, 100 * student)  # The first batch has decided.
    for i in range(8):
        expected = critic_twins.score(critic, teacher[i], student[i])
        np.testing.assert_allclose(critic(teacher, student)[i], expected, rtol=1e-3, atol=1e-3)
    for x, moments in ((teacher, critic.teacher_moments), (student, critic.student_moments)):
        root = np.sign(x) * np.sqrt(np.abs(x))
        expected = [root.mean((0, 1)), np.abs(x).mean((0, 1))]
        np.testing.assert_allclose(moments, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_whose_examples_are_all_alike_measures_nothing():
    critic, (teacher, student) = _randomized(ConcatCritic), _features(8, (1, 1))
    for constant in (0.0, 1.0, 0.1):
        critic.observe(np.full_like(teacher, constant), np.full_like(student, constant))
    critic.observe(teacher, student)
    fresh = _randomized(ConcatCritic)
    fresh.observe(teacher, student)
    np.testing.assert_array_equal(critic.teacher_moments, fresh.teacher_moments)


def test_a_channel_without_variance_is_harmless():
    critic, (teacher, student) = _randomized(ConcatCritic), _features(8, (1, 1))
    teacher[..., 1], student[..., 0] = 3.0, 0.0
    critic.observe(teacher, student)
    teacher[..., 1], student[..., 0] = 4.0, 1.0  # Later they vary.
    assert np.isfinite(critic(teacher, student)).all()
    assert np.abs(critic(teacher, student)).max() < 1000


@pytest.mark.parametrize("kind", KINDS)
def test_called_by_itself_a_critic_scores_the_true_pairs(kind):
    critic = _randomized(kind, (1, 6))
    features = _features(4, (1, 6))
    joint, _ = _scores(critic, *features, 1)
    np.testing.assert_allclose(critic(*features), joint, rtol=1e-5, atol=1e-5)


def test_a_subclass_has_three_methods_to_write():
    critic, x = Critic(), tf.zeros((2, 1, 3))
    for missing in (critic.embed_teacher, critic.embed_student, lambda x: critic.score(x, x)):
        with pytest.raises(NotImplementedError):
            missing(x)
