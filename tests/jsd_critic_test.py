import functools

import critic_twins
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from readouts import watched

from keras_mikd import bounds
from keras_mikd.critics.critic import ConcatCritic, Critic, SeparableCritic
from keras_mikd.losses.jsd_critic import JSDCritic
from keras_mikd.metrics.mutual_information import MutualInformation

LOG_2 = np.log(2.0)
BATCH, WIDTH = 4, 5
CRITICS = [ConcatCritic, SeparableCritic]
VECTORS = (BATCH, 6), (BATCH, 3)
LEVELS = {  # name: (teacher's shape, student's shape, grid)
    "global": (*VECTORS, None),
    "local": ((BATCH, 6), (BATCH, 4, 2, 3), None),
    "local_reverse": ((BATCH, 4, 2, 6), (BATCH, 3), None),
    "local_on_a_grid": ((BATCH, 6), (BATCH, 4, 4, 3), 2),
    "feature": ((BATCH, 4, 4, 6), (BATCH, 4, 4, 3), None),
    "feature_teacher_larger": ((BATCH, 8, 4, 6), (BATCH, 4, 2, 3), None),
    "feature_student_larger": ((BATCH, 2, 2, 6), (BATCH, 4, 4, 3), None),
    "feature_on_a_grid": ((BATCH, 4, 4, 6), (BATCH, 8, 8, 3), 2),
}
GRIDS = {
    "local": (4, 2),
    "local_reverse": (4, 2),
    "feature": (4, 4),
    "feature_teacher_larger": (4, 2),
}


@keras.saving.register_keras_serializable("jsd_critic_test")
def hinge(joint, product):
    """A user's own bound."""
    return ops.mean(ops.minimum(joint, 1.0), axis=-1) - ops.mean(ops.relu(product), axis=(1, 2))


class OfTheTeacher(Critic):
    """Scores the teacher's example, whatever the student's is."""

    def build(self, teacher_shape, student_shape):
        pass

    def embed_teacher(self, teacher):
        return 5.0 * teacher

    def embed_student(self, student):
        return student

    def score(self, teacher, student):
        return teacher[..., 0] + 0.0 * student[..., 0]


class TeacherOrdersStudent(Critic):
    """Scores 0 where the student's number is the teacher's, and -1000 where it is another one."""

    def build(self, teacher_shape, student_shape):
        pass

    def embed_teacher(self, teacher):
        return teacher

    def embed_student(self, student):
        return student

    def score(self, teacher, student):
        return -1000.0 * ops.cast(teacher[..., 0] != student[..., 0], "float32")


def _features(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype("float32") for shape in shapes)


def _loss(shapes=VECTORS, *, critic=ConcatCritic, **kwargs):
    """A loss with weights of ordinary size, biases too."""
    loss = JSDCritic(critic=critic(width=WIDTH), **kwargs)
    loss.build(*shapes)
    critic_twins.set_random_weights(loss)
    return loss


def _cells(feature, grid):
    """`(batch, cells, channels)`: means over the cells of a grid that divides the map evenly."""
    if feature.ndim == 2:
        return feature[:, None].astype("float64")
    batch, height, width, channels = feature.shape
    rows, columns = grid
    cells = [
        feature[:, r : r + height // rows, c : c + width // columns].astype("float64").mean((1, 2))
        for r in range(0, height, height // rows)
        for c in range(0, width, width // columns)
    ]
    return np.stack(cells, axis=1)


def _softplus(x):
    return np.logaddexp(0.0, x)


def _twin(loss, teacher, student, grid, negatives):
    teacher, student = _cells(teacher, grid), _cells(student, grid)
    values = []
    for i in range(BATCH):
        others = critic_twins.partners(BATCH, BATCH - 1 if negatives == "all" else negatives)[i]
        value = _softplus(-critic_twins.score(loss.critic, teacher[i], student[i])).mean()
        scores = [critic_twins.score(loss.critic, teacher[i], student[j]) for j in others]
        values.append(value + _softplus(np.array(scores)).mean())
    return values


def _gradients(loss, teacher, student):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student)
    return value, tape.gradient(value, [*loss.trainable_weights, student])


@pytest.mark.parametrize("negatives", [1, 2, "all"])
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("level", LEVELS)
def test_loss_equals_numpy(level, critic, negatives):
    *shapes, grid = LEVELS[level]
    loss = _loss(shapes, critic=critic, negatives=negatives, grid=grid)
    features = _features(shapes)
    value = loss(*features)
    expected = _twin(loss, *features, GRIDS.get(level, (2, 2)), negatives)
    assert value.dtype == "float32"
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negatives", [1, 2, 3, 50, "all"])
def test_an_example_is_never_its_own_negative(negatives):
    loss = JSDCritic(critic=TeacherOrdersStudent(), negatives=negatives)
    number = np.arange(BATCH, dtype="float32")[:, None]
    np.testing.assert_allclose(loss(number, number), np.full(BATCH, LOG_2), rtol=1e-6)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("negatives", [BATCH - 1, BATCH, 50])
def test_more_negatives_than_a_batch_has_are_all_of_them(critic, negatives):
    loss = _loss(critic=critic, negatives=negatives)
    every = _loss(critic=critic, negatives="all")
    every.set_weights(loss.get_weights())
    features = _features(VECTORS)
    np.testing.assert_allclose(loss(*features), every(*features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", ["global", "local", "feature"])
@pytest.mark.parametrize("negatives", [1, "all"])
def test_a_batch_of_one_is_a_constant(negatives, level):
    shapes = [(1, *shape[1:]) for shape in LEVELS[level][:2]]
    loss = _loss(shapes, negatives=negatives)
    seen = watched(loss)
    value, gradients = _gradients(loss, *_features(shapes))
    np.testing.assert_allclose(value, [2 * LOG_2], rtol=1e-6)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))
    joint, product = seen["mi_nats"]
    assert (joint.shape[0], product.shape[:2]) == (1, (1, 0))


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_features_have_finite_losses_and_gradients(scale):
    loss = _loss(negatives=2)
    teacher, student = _features(VECTORS)
    value, gradients = _gradients(loss, scale * teacher, scale * student)
    assert np.isfinite(value).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("negatives", [3, "all"])
@pytest.mark.parametrize(
    "bound", [bounds.jsd, bounds.nwj, bounds.donsker_varadhan, bounds.smile, hinge]
)
def test_loss_is_minus_the_bound_on_the_scores_it_reads_out(bound, negatives):
    loss = _loss(bound=bound, negatives=negatives)
    seen = watched(loss)
    value = loss(*_features(VECTORS))
    joint, product = seen["mi_nats"]
    assert (joint.shape, product.shape) == ((BATCH, 1), (BATCH, 3, 1))
    assert value.shape == (BATCH,)
    np.testing.assert_allclose(value, -bound(joint, product), rtol=1e-6)


@pytest.mark.parametrize("bound", [bounds.info_nce, functools.partial(bounds.info_nce)])
def test_an_info_nce_critic_is_read_out_with_info_nce(bound):
    loss = _loss(bound=bound, negatives="all", name="nce")
    value = loss(*_features(VECTORS))
    read = {metric.name: float(metric.result()) for metric in loss.metrics}
    assert read["nce_mi_nats"] == pytest.approx(-np.mean(value), rel=1e-5)
    assert read["nce_mi_nats_se"] == pytest.approx(np.std(value, ddof=1) / 2, rel=1e-5)
    assert read["nce_mi_nats_limit"] == pytest.approx(np.log(BATCH))
    # Scores that only say something of the teacher are no information.
    alone = JSDCritic(critic=OfTheTeacher(), bound=bound, negatives="all")
    alone(*_features([(BATCH, 3), (BATCH, 3)]))
    assert float(alone.mi_nats.result()) == pytest.approx(0.0, abs=1e-6)


def test_readouts_are_metrics_of_the_loss_and_called_after_it():
    loss = _loss(name="critic", negatives=2)
    assert type(loss.mi_nats) is MutualInformation
    names = ["critic_mi_nats", "critic_mi_nats_se", "critic_mi_nats_limit"]
    assert [metric.name for metric in loss.metrics] == names
    seen = watched(loss)
    loss(*_features(VECTORS))
    joint, product = seen["mi_nats"]
    estimate, error, limit = (float(metric.result()) for metric in loss.metrics)
    expected = np.mean(joint) - np.log(np.mean(np.exp(product)))
    assert estimate == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert error > 0.0
    assert limit == pytest.approx(np.log(2 * BATCH))


DEGENERATE = {
    "one example": lambda x: x[:1],
    "identical examples": lambda x: np.repeat(x[:1], len(x), axis=0),
    "zeros": np.zeros_like,
    "a constant": lambda x: np.full_like(x, 3.0),
    "channels without variance": lambda x: x * (np.arange(x.shape[-1]) > 1).astype("float32"),
    "one image of zeros": lambda x: x * (np.arange(len(x)) > 0).reshape(-1, *[1] * (x.ndim - 1)),
}


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches_are_finite(case, critic):
    """For every bound and source of negatives, all of one class: values, gradients, read-outs."""
    features = [DEGENERATE[case](x).astype("float32") for x in _features(LEVELS["local"][:2])]
    for bound, options in (
        (bounds.jsd, {"negatives": 2}),
        (bounds.jsd, {"negatives": 2, "negatives_from": "other_classes"}),
        (bounds.info_nce, {"negatives": "all"}),
        (bounds.donsker_varadhan, {"negatives": "all"}),
    ):
        loss = _loss(LEVELS["local"][:2], critic=critic, bound=bound, **options)
        student = tf.constant(features[1])
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss(features[0], student, labels=np.zeros(len(student), int), training=True)
        gradients = tape.gradient(value, [*loss.trainable_weights, student])
        results = [metric.result() for metric in loss.metrics]
        for x in (value, *gradients, *results):
            assert np.isfinite(x).all(), (case, bound)


@pytest.mark.parametrize("scale", [1000.0, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_features_of_any_scale_read_the_same_information(scale):
    """In training and on held-out pairs."""
    first = np.random.default_rng(0).normal(size=(128 * 60, 4)).astype("float32")
    second = 0.8 * first + 0.6 * np.random.default_rng(1).normal(size=first.shape)
    pairs = first, second.astype("float32")
    seen = []
    for factor in (1.0, scale):
        keras.utils.set_random_seed(0)
        train, held_out = np.split(np.stack(pairs) * np.float32(factor), [128 * 40], axis=1)
        seen.append(_read_out(_trained(*train), *held_out)[0])
    assert seen[0] > 0.9  # Of 2.04.
    assert seen[1] == pytest.approx(seen[0], abs=0.05)


def test_evaluation_measures_nothing():
    loss, features = _loss(), _features(VECTORS)
    first = loss(*features, training=False)
    assert not np.any(loss.critic.teacher_moments)
    np.testing.assert_array_equal(loss(*features, training=False), first)
    loss(*features, training=True)
    assert np.any(loss.critic.teacher_moments)


def _trained(teacher, student):
    """A loss whose critic has seen every batch of 128 pairs once."""
    loss = JSDCritic(critic=ConcatCritic(width=32), negatives=3)
    inputs = keras.Input((4,)), keras.Input((4,))
    model = keras.Model(inputs, loss(*inputs))
    model.compile(keras.optimizers.Adam(3e-3), loss=lambda _, value: value)
    targets = np.zeros(len(teacher))
    model.fit([teacher, student], targets, batch_size=128, shuffle=False, verbose=0)
    return loss


def _read_out(loss, teacher, student):
    """DV estimate in nats and its standard error, from independent batches."""
    loss.mi_nats.reset_state()
    seen = watched(loss)
    joint_means, exp_means = [], []
    for part in np.split(np.arange(len(teacher)), len(teacher) // 256 or 1):
        loss(teacher[part], student[part])
        joint, product = seen["mi_nats"]
        joint_means.append(np.mean(joint))
        exp_means.append(np.mean(np.exp(product)))
    linearised = np.array(joint_means) - np.array(exp_means) / np.mean(exp_means)
    return float(loss.mi_nats.result()), np.std(linearised) / np.sqrt(len(linearised))


def test_independent_features_read_no_information_on_pairs_not_trained_on():
    loss = _trained(*_features([(128 * 200, 4)] * 2))
    nats, error = _read_out(loss, *_features([(256 * 60, 4)] * 2, seed=9))
    assert -0.05 < nats < 3 * error < 0.05


def test_an_over_fitted_critic_overstates_on_the_pairs_it_was_trained_on_only():
    features = _features([(128, 4)] * 2)
    loss = _trained(*(np.tile(x, (250, 1)) for x in features))
    assert _read_out(loss, *features)[0] > 0.5
    nats, error = _read_out(loss, *_features([(256 * 60, 4)] * 2, seed=9))
    assert nats < 3 * error


def test_identical_features_read_much_information():
    (features,) = _features([(128 * 200, 4)])
    (held_out,) = _features([(256 * 8, 4)], seed=9)
    nats, error = _read_out(_trained(features, features), held_out, held_out)
    assert nats - 3 * error > 1.5


@pytest.mark.parametrize("bound", [bounds.info_nce, hinge])
@pytest.mark.parametrize("critic", CRITICS)
def test_a_saved_loss_is_the_same_loss(critic, bound, tmp_path):
    shapes = (BATCH, 6), (BATCH, 4, 4, 3)
    options = {"negatives": "all", "grid": 2, "gather": False, "name": "critic", "weight": 0.3}
    inputs = [keras.Input(shape[1:]) for shape in shapes]
    loss = JSDCritic(bound=bound, critic=critic(width=WIDTH), **options)
    model = keras.Model(inputs, loss(*inputs))
    model.save(tmp_path / "critic.keras")
    loaded = keras.saving.load_model(tmp_path / "critic.keras")
    twin = loaded.get_layer("critic")
    assert twin.critic.get_config() == loss.critic.get_config()
    assert options.items() <= twin.get_config().items()
    assert (twin.bound, type(twin.critic)) == (bound, critic)
    features = _features(shapes)
    np.testing.assert_array_equal(loaded(features), model(features))


def test_the_critic_of_an_earlier_file_takes_features_as_they_are_for_good(tmp_path):
    inputs = [keras.Input(shape[1:]) for shape in VECTORS]
    loss = JSDCritic(critic=ConcatCritic(width=WIDTH), name="critic")
    model = keras.Model(inputs, loss(*inputs))
    loss.critic.standardizes = False  # Its file then has no moments, like those of before.
    features = _features(VECTORS)
    expected = model(features)
    for name in ("earlier.keras", "again.keras"):
        model.save(tmp_path / name)
        model = keras.saving.load_model(tmp_path / name)
        assert not model.get_layer("critic").critic.standardizes
        np.testing.assert_array_equal(model(features, training=True), expected)


def test_a_bound_that_was_not_registered_is_refused_on_loading():
    def bound(joint, product):
        return joint[:, 0]

    config = JSDCritic(bound=bound).get_config()
    with pytest.raises(TypeError, match="Could not locate function 'bound'"):
        JSDCritic.from_config(config)


def test_the_default_critic_is_a_cheap_one_trained_on_jsd():
    loss = JSDCritic()
    assert (type(loss.critic), loss.grid) == (SeparableCritic, 8)
    assert (loss.bound, loss.negatives) == (bounds.jsd, 1)
    assert (loss.teacher_layer, loss.student_layer) == ("pooled", "pooled")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": "jsd"}, "`bound` to be a function .* Received: bound='jsd'"),
        ({"bound": None}, "Received: bound=None"),
        ({"critic": "concat"}, "`critic` to be a Critic.* Received: critic='concat'"),
        ({"critic": ConcatCritic}, "`critic` to be a Critic"),
        ({"negatives": 0}, "`negatives` to be an int of at least 1.* Received: negatives=0"),
        ({"negatives": -1}, "negatives=-1"),
        ({"negatives": 1.5}, "negatives=1.5"),
        ({"negatives": "some"}, "or \"all\".* Received: negatives='some'"),
        ({"negatives": None}, "negatives=None"),
        ({"grid": 0}, "`grid` to be an int of at least 1 or None. Received: grid=0"),
        ({"grid": 2.0}, "grid=2.0"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JSDCritic(**options)


@pytest.mark.parametrize(
    ("teacher_shape", "student_shape"),
    [
        ((None, 4, None), (None, 3)),
        ((None, 6), (None,)),
        ((None, 6), (None, 2, 2, 2, 3)),
        (((None, 6), (None, 7)), (None, 3)),
        ((None, None), (None, 3)),
        ((None, 6), (None, 4, 4, None)),
    ],
)
def test_tensors_that_are_neither_vector_nor_map_are_refused(teacher_shape, student_shape):
    message = r"one tensor of each network for 'critic'.* at 'stem', student_shape=.* at 'gap'"
    with pytest.raises(ValueError, match=message):
        JSDCritic(name="critic", teacher_layer="stem", student_layer="gap").build(
            teacher_shape, student_shape
        )


def test_maps_of_unknown_size_are_refused():
    with pytest.raises(ValueError, match="height, width and channels are known.*teacher"):
        JSDCritic().build((None, None, None, 6), (None, 4, 4, 3))


def test_labels_of_several_objects_are_no_classes():
    critic = JSDCritic(negatives_from="other_classes")
    x = np.zeros((4, 3), "float32")
    with pytest.raises(ValueError, match=r"the class of every example.*shape \(4, 2, 1\)"):
        critic(x, x, labels=np.zeros((4, 2, 1)))


def test_labels_that_are_floats_are_compared_as_they_are():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    critic = JSDCritic(negatives_from="other_classes", negatives=4)
    whole = critic(x, x, labels=np.array([0, 0, 1, 1, 2, 2]))
    parts = critic(x, x, labels=np.array([0, 0, 0.3, 0.3, 0.7, 0.7], "float32"))
    np.testing.assert_array_equal(whole, parts)
    assert np.any(whole != critic(x, x, labels=np.zeros(6)))
