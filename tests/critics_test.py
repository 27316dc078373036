import critic_twins
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.critics.critic import ConcatCritic, Critic, SeparableCritic

KINDS = [ConcatCritic, SeparableCritic]
LOCATIONS = [(1, 1), (1, 6), (6, 1), (6, 6)]


class NamesThePair(Critic):
    """Scores a pair by the first channels of its two sides: teacher 3 with student 5 is 305."""

    def build(self, teacher_shape, student_shape):
        pass

    def embed_teacher(self, teacher):
        return teacher

    def embed_student(self, student):
        return student

    def score(self, teacher, student):
        return 100 * teacher[..., 0] + student[..., 0]


def _numbered(count, start=0):
    return tf.reshape(tf.range(start, start + count, dtype="float32"), (count, 1, 1))


def _pairs(batch, negatives, pool=None, first=0):
    """The student of the true pair of every example, and those of its negatives."""
    joint, product = NamesThePair()(
        _numbered(batch, first), _numbered(pool or batch), first=first, negatives=negatives
    )
    joint, product = (np.asarray(x)[..., 0].astype(int) for x in (joint, product))
    teachers = first + np.arange(batch)
    np.testing.assert_array_equal(joint // 100, teachers)
    np.testing.assert_array_equal(product // 100, np.broadcast_to(teachers[:, None], product.shape))
    return joint % 100, product % 100


def _features(batch, locations, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (batch, locations[0], 4), (batch, locations[1], 3)
    return tuple(rng.normal(size=shape).astype("float32") for shape in shapes)


def _randomized(kind, locations=(1, 1), width=5):
    critic = kind(width=width)
    critic.build((None, locations[0], 4), (None, locations[1], 3))
    rng = np.random.default_rng(1)
    critic.set_weights([rng.normal(size=w.shape) for w in critic.get_weights()])
    return critic


@pytest.mark.parametrize("negatives", [1, 2, 4])
def test_negatives_are_the_students_of_the_next_examples(negatives):
    joint, product = _pairs(5, negatives)
    np.testing.assert_array_equal(joint, np.arange(5))
    expected = [[(i + k) % 5 for k in range(1, negatives + 1)] for i in range(5)]
    np.testing.assert_array_equal(product, expected)


def test_all_negatives_are_every_other_example_once():
    joint, product = _pairs(5, None)
    np.testing.assert_array_equal(joint, np.arange(5))
    np.testing.assert_array_equal(product, [[j for j in range(5) if j != i] for i in range(5)])


@pytest.mark.parametrize("negatives", [4, 5, 30])
def test_more_negatives_than_there_are_never_contain_the_true_pair(negatives):
    _, product = _pairs(5, negatives)
    assert product.shape == (5, 4)
    for i, others in enumerate(product):
        assert sorted(others) == [j for j in range(5) if j != i]


@pytest.mark.parametrize("first", [0, 2, 4])
def test_a_replica_pairs_its_part_with_the_global_batch(first):
    joint, product = _pairs(2, 3, pool=6, first=first)
    np.testing.assert_array_equal(joint, [first, first + 1])
    expected = [[(first + i + k) % 6 for k in (1, 2, 3)] for i in range(2)]
    np.testing.assert_array_equal(product, expected)
    _, every = _pairs(2, None, pool=6, first=first)
    for i, others in enumerate(every):
        assert sorted(others) == [j for j in range(6) if j != first + i]


@pytest.mark.parametrize("available", [1, 2, 3])
def test_a_replica_pairs_its_part_with_the_examples_that_follow(available):
    joint, product = NamesThePair()(
        _numbered(2),
        _numbered(2),
        first=None,
        negatives=3,
        following=_numbered(available, start=50),
    )
    np.testing.assert_array_equal(np.ravel(joint), [0, 101])
    expected = np.array([[1, 50, 51], [150, 151, 152]])[:, :available]
    np.testing.assert_array_equal(np.asarray(product)[..., 0], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negatives", [1, 3, None])
def test_a_batch_of_one_has_no_negatives(kind, negatives):
    critic = _randomized(kind, (1, 6))
    joint, product = critic(*_features(1, (1, 6)), first=0, negatives=negatives)
    assert joint.shape == (1, 6)
    assert product.shape == (1, 0, 6)


@pytest.mark.parametrize("locations", LOCATIONS)
@pytest.mark.parametrize("negatives", [2, None])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_numpy(kind, negatives, locations):
    critic = _randomized(kind, locations)
    teacher, student = _features(4, locations)
    joint, product = critic(teacher, student, first=0, negatives=negatives)
    partners = [
        [j for j in range(4) if j != i] if negatives is None else [(i + 1) % 4, (i + 2) % 4]
        for i in range(4)
    ]
    expected = [critic_twins.score(critic, teacher[i], student[i]) for i in range(4)]
    np.testing.assert_allclose(joint, expected, rtol=1e-4, atol=1e-4)
    expected = [
        [critic_twins.score(critic, teacher[i], student[j]) for j in partners[i]] for i in range(4)
    ]
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("negatives", [3, None])
def test_each_side_is_embedded_once_however_many_pairs_are_scored(kind, negatives, monkeypatch):
    critic = _randomized(kind)
    seen = []
    for name in ("embed_teacher", "embed_student"):
        embed = getattr(critic, name)
        monkeypatch.setattr(
            critic, name, lambda x, e=embed, n=name: seen.append((n, len(x))) or e(x)
        )
    critic(*_features(4, (1, 1)), first=0, negatives=negatives)
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
    critic(*_features(8, (1, 1)), first=0, negatives=3)
    assert rows == {"teacher_layer": 8, "student_layer": 8, "hidden_layer": 8 * (1 + 3)}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("negatives", [2, None])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_with_unknown_batch_equals_eager(kind, negatives, jit_compile):
    critic = _randomized(kind, (1, 6))
    compiled = tf.function(
        lambda t, s: critic(t, s, first=0, negatives=negatives),
        input_signature=[tf.TensorSpec([None, 1, 4]), tf.TensorSpec([None, 6, 3])],
        jit_compile=jit_compile,
    )
    for batch in (1, 2, 5):
        features = _features(batch, (1, 6))
        eager = critic(*features, first=0, negatives=negatives)
        for one, other in zip(compiled(*map(tf.constant, features)), eager, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_have_float32_precision_under_mixed_precision(kind):
    keras.config.set_dtype_policy("mixed_float16")
    critic = _randomized(kind)
    teacher, student = _features(3, (1, 1))
    joint, product = critic(teacher, student, first=0, negatives=1)
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
        ValueError, match=f"`width` to be a positive int. Received: width={width!r}"
    ):
        kind(width=width)


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("inf"), float("nan"), "0.1", None])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="finite number above 0. Received: temperature="):
        SeparableCritic(temperature=temperature)


def test_separable_scores_stay_within_the_inverse_temperature_of_the_bias():
    critic = SeparableCritic(width=5, temperature=0.25)
    critic.build((None, 1, 4), (None, 1, 4))
    critic.student_layer.kernel.assign(critic.teacher_layer.kernel)
    critic.bias.assign(3.0)
    same, _ = _features(3, (1, 1))
    joint, product = critic(1e3 * same, 1e-3 * same, first=0, negatives=None)
    np.testing.assert_allclose(joint, np.full((3, 1), 3.0 + 4.0), rtol=1e-5)
    assert np.all(np.abs(product - 3.0) < 4.0)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_zeros_have_finite_scores_and_gradients(kind):
    critic = _randomized(kind)
    zeros = tf.zeros((3, 1, 4)), tf.zeros((3, 1, 3))
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        joint, product = critic(*zeros, first=0, negatives=2)
    for x in (
        joint,
        product,
        *tape.gradient([joint, product], [*zeros, *critic.trainable_weights]),
    ):
        assert np.isfinite(x).all()


def test_a_subclass_has_three_methods_to_write():
    critic, x = Critic(), tf.zeros((2, 1, 3))
    for missing in (critic.embed_teacher, critic.embed_student, lambda x: critic.score(x, x)):
        with pytest.raises(NotImplementedError):
            missing(x)
