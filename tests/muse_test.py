"""MUSE's terms in NumPy, how they combine, what they can reach, and where gradients go."""

import math

import cases
import critic_twins
import keras
import numpy as np
import pytest
import tensorflow as tf
from readouts import watched

import keras_mikd as mikd
from keras_mikd import bounds

BATCH, WIDTH, TEMPERATURE = 5, 4, 0.5
STAGES = [(BATCH, 4, 4, 3), (BATCH, 2, 2, 6)]
TARGETS = {"vector": (BATCH, 7), "map": (BATCH, 2, 2, 7)}
COMBINE = pytest.mark.parametrize("combine", ["additive", "multiplicative"])


def _features(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def _loss(target=(BATCH, 7), stages=STAGES, **kwargs):
    """A loss with weights of ordinary size, biases too."""
    loss = mikd.MUSE(
        student_layer=[f"stage{i + 1}" for i in range(len(stages))],
        **{"width": WIDTH, "temperature": TEMPERATURE, "name": "muse", **kwargs},
    )
    loss.build(target, stages)
    critic_twins.set_random_weights(loss)
    return loss


def _cells(feature, rows):
    """`(batch, locations, channels)` in float64, averaged to `rows` rows and columns."""
    feature = feature.astype("float64")
    if feature.ndim == 2:
        return feature[:, None]
    batch, height, _, channels = feature.shape
    cell = height // rows
    feature = feature.reshape(batch, rows, cell, rows, cell, channels).mean(axis=(2, 4))
    return feature.reshape(batch, rows * rows, channels)


def _reflexive(critic, a, b):
    """Score of a feature with a feature of the same stage, both through the student's side."""
    a, b = (x @ np.array(critic.student_layer.kernel) for x in (a, b))
    cosine = np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return cosine / critic.temperature + float(critic.bias)


def _jsd(joint, product):
    value = -np.logaddexp(0, -joint) - np.logaddexp(0, product).mean(0)
    return 2 * math.log(2) + value.mean()


def _info_nce(joint, product):
    every = np.concatenate([joint[None], product])
    return np.mean(joint - np.log(np.exp(every).sum(0)) + math.log(len(every)))


def _estimates(score, first, second, bound, others):
    """Per example; `others(i)` are the indices of its negatives."""
    return np.array(
        [
            bound(
                score(first[i], second[i]),
                np.stack([score(first[i], second[j]) for j in others(i)]),
            )
            for i in range(BATCH)
        ]
    )


def _twin(loss, target, stages, bound, others):
    """`(mutual, own)`, each of shape `(batch, stages)`."""
    mutual, own = [], []
    for critic, stage in zip(loss.critics, stages, strict=True):
        rows = 2 if target.ndim == 4 else stage.shape[1]
        t, s = _cells(target, 2), _cells(stage, rows)

        def pair(a, b, critic=critic):
            return critic_twins.score(critic, a, b)

        def itself(a, b, critic=critic):
            return _reflexive(critic, a, b)

        mutual.append(_estimates(pair, t, s, bound, others))
        own.append(_estimates(itself, s, s, bound, others))
    return np.stack(mutual, 1), np.stack(own, 1)


def _next(count):
    return critic_twins.partners(BATCH, count).get


def _softplus(x):
    return np.logaddexp(0, x)


@pytest.mark.parametrize("bound, twin", [(bounds.jsd, _jsd), (bounds.info_nce, _info_nce)])
@pytest.mark.parametrize("negatives, others", [(1, _next(1)), ("all", _next(BATCH - 1))])
@pytest.mark.parametrize("target", TARGETS)
def test_the_terms_and_the_sum_equal_numpy(target, negatives, others, bound, twin):
    target, *stages = _features(TARGETS[target], *STAGES)
    loss = _loss(target.shape, negatives=negatives, bound=bound, combine="additive")
    mutual, own = _twin(loss, target, stages, twin, others)
    seen = watched(loss)
    value = loss(target, stages)
    assert value.dtype == "float32"
    np.testing.assert_allclose(value, -(mutual + own).sum(1), rtol=1e-4, atol=1e-4)
    for i in range(2):
        (value,) = seen[f"stage{i + 1}_mutual_nats"]
        np.testing.assert_allclose(value, mutual[:, i], rtol=1e-4, atol=1e-4)
        (value,) = seen[f"stage{i + 1}_self_nats"]
        np.testing.assert_allclose(value, own[:, i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_the_product_is_that_of_the_non_negative_estimates_of_the_batch(target):
    target, *stages = _features(TARGETS[target], *STAGES)
    loss = _loss(target.shape, combine="multiplicative")
    mutual, own = _twin(loss, target, stages, _jsd, _next(1))
    expected = -np.sum(_softplus(mutual.mean(0)) * _softplus(own.mean(0)))
    value = loss(target, stages)
    assert value.shape == (BATCH,)
    np.testing.assert_allclose(np.mean(value), expected, rtol=1e-4)


def test_the_gradient_is_that_of_the_product():
    target, *stages = _features((BATCH, 7), *STAGES)
    sums, product = _loss(combine="additive"), _loss(combine="multiplicative")
    product.set_weights(sums.get_weights())
    stages, seen = [tf.constant(stage) for stage in stages], watched(sums)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(stages)
        sums(target, stages)
        total = 0.0
        for place in ("stage1", "stage2"):
            means = [tf.reduce_mean(seen[f"{place}_{t}_nats"][0]) for t in ("mutual", "self")]
            total -= tf.nn.softplus(means[0]) * tf.nn.softplus(means[1])
        value = tf.reduce_mean(product(target, stages))
    np.testing.assert_allclose(value, total, rtol=1e-5)
    for ours, expected in zip(
        tape.gradient(value, [*product.trainable_weights, *stages]),
        tape.gradient(total, [*sums.trainable_weights, *stages]),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-6)


def test_far_below_zero_the_product_still_has_a_gradient():
    target, stage = _features((BATCH, 7), (BATCH, 3))
    loss = _loss(stages=[(BATCH, 3)], combine="multiplicative", temperature=0.02)
    (critic,) = loss.critics
    critic.bias.assign(-60.0)  # Every score is far too low: both estimates are.
    seen = watched(loss)
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(loss(target, [stage]))
    assert seen["stage1_mutual_nats"][0].numpy().mean() < -10
    gradient = tape.gradient(value, critic.bias)
    assert np.isfinite(gradient) and gradient < 0  # A step downhill raises the scores.


@pytest.mark.parametrize("count", [1, 2])
def test_negatives_of_other_classes_come_first(count):
    labels = np.array([0, 0, 1, 0, 0])
    drawn = critic_twins.partners(BATCH, BATCH - 1)
    others = {i: sorted(drawn[i], key=lambda j, i=i: labels[j] == labels[i]) for i in drawn}
    target, *stages = _features((BATCH, 7), *STAGES)
    loss = _loss(negatives=count, negatives_from="other_classes", combine="additive")
    mutual, own = _twin(loss, target, stages, _jsd, lambda i: others[i][:count])
    for form in (labels, labels[:, None], np.eye(3, dtype="float32")[labels]):
        value = loss(target, stages, labels=tf.constant(form))
        np.testing.assert_allclose(value, -(mutual + own).sum(1), rtol=1e-4, atol=1e-4)


def test_negatives_of_other_classes_need_labels():
    loss = _loss(negatives_from="other_classes")
    with pytest.raises(ValueError, match="Expected labels.*Received: labels=None"):
        loss(*_parts(_features((BATCH, 7), *STAGES)))
    with pytest.raises(ValueError, match="negatives_from=\"other_classes\".*negatives='all'"):
        mikd.MUSE(negatives="all", negatives_from="other_classes")


def _parts(features):
    return features[0], features[1:]


def test_information_of_the_input():
    target, image, *stages = _features((BATCH, 7), (BATCH, 8, 8, 2), *STAGES)
    loss = _loss(
        [target.shape, image.shape],
        teacher_layer=["pooled", "input"],
        self_information="input",
        combine="additive",
        grid=2,
    )
    gist = _cells(image, 2).reshape(BATCH, 1, -1)
    expected = 0
    for critic, source, stage in zip(loss.critics, loss.input_critics, stages, strict=True):
        for scores, first in ((critic, _cells(target, 1)), (source, gist)):
            expected -= _estimates(
                lambda a, b, scores=scores: critic_twins.score(scores, a, b),
                first,
                _cells(stage, 2),
                _jsd,
                _next(1),
            )
    np.testing.assert_allclose(loss([target, image], stages), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bound, ceiling", [(bounds.jsd, 2 * math.log(2)), (bounds.info_nce, None)])
def test_estimates_rise_to_their_ceiling_and_not_above(bound, ceiling):
    ceiling = ceiling or math.log(BATCH)
    (stage,) = _features((BATCH, 8), seed=3)
    loss = _loss(
        stage.shape,
        [stage.shape],
        bound=bound,
        negatives="all",
        width=16,
        temperature=0.01,
        combine="additive",
    )
    optimizer, weights = keras.optimizers.Adam(0.05), loss.trainable_weights
    optimizer.build(weights)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(stage, [stage]))
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))

    for _ in range(60):
        step()
    handed = watched(loss)
    loss(stage, [stage])
    seen = {suffix: np.mean(values[0]) for suffix, values in handed.items()}
    assert seen["ceiling_nats"] == pytest.approx(ceiling)
    for term in ("mutual", "self"):
        assert 0.98 * ceiling < seen[f"stage1_{term}_nats"] <= ceiling * (1 + 1e-6)


@COMBINE
def test_a_batch_of_one_says_nothing_and_pulls_nowhere(combine):
    target, *stages = _features((1, 7), *((1, *shape[1:]) for shape in STAGES))
    loss = _loss(combine=combine)
    stages, seen = [tf.constant(stage) for stage in stages], watched(loss)
    with tf.GradientTape() as tape:
        tape.watch(stages)
        value = loss(target, stages)
    assert [v[0].numpy().tolist() for k, v in seen.items() if "stage" in k] == [[0.0]] * 4
    for gradient in tape.gradient(value, [*stages, *loss.trainable_weights]):
        assert gradient is None or not np.any(gradient)


@pytest.mark.parametrize(
    "bound", [bounds.nwj, bounds.donsker_varadhan, bounds.smile, bounds.barber_agakov, "jsd"]
)
def test_bounds_without_a_ceiling_are_refused_with_the_reason(bound):
    with pytest.raises(ValueError, match="with itself is infinite.*Received: bound="):
        mikd.MUSE(bound=bound)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("combine", "sum"),
        ("self_information", "output"),
        ("negatives_from", "bank"),
        ("negatives", 0),
        ("width", 0),
        ("temperature", 0.0),
        ("grid", 0),
    ],
)
def test_bad_arguments_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: .*{value}"):
        mikd.MUSE(**{argument: value})


def test_bad_places_are_refused():
    with pytest.raises(ValueError, match=r"one place as `teacher_layer`.*Received: teacher_layer="):
        _loss([(BATCH, 7), (BATCH, 8, 8, 2)], teacher_layer=["pooled", "input"])
    with pytest.raises(ValueError, match="target's and the input's"):
        _loss(self_information="input")
    with pytest.raises(ValueError, match=r"of known size. Received: shape=\(None, None, 4, 3\)"):
        _loss(stages=[(None, None, 4, 3)])
    with pytest.raises(ValueError, match=r"sequences .*Received: shape=\(5, 4, None\)"):
        _loss(stages=[(5, 4, None)])


def test_gradients_reach_the_first_stage_and_stop_at_the_target():
    """In a network, from the term of one stage: what lies before it, and nothing behind."""

    def gradients(stop_gradient, stage):
        model = cases.student()
        loss = mikd.MUSE(student_layer=[stage], width=WIDTH, name="muse")
        distiller = mikd.SelfDistiller(
            model, [loss], task_loss_weight=0.0, stop_gradient=stop_gradient
        )
        distiller.compile(keras.optimizers.SGD(1.0), cases.cross_entropy(), run_eagerly=True)
        before = {v.path: v.numpy() for v in model.trainable_variables}
        distiller.fit(*cases.data(), batch_size=16, verbose=0)
        after = {v.path: v.numpy() for v in model.trainable_variables}
        return {path for path in before if np.any(before[path] != after[path])}

    def layers(paths):
        return sorted({path.split("/")[0] for path in paths})

    assert layers(gradients(True, "stage1")) == ["conv1"]
    assert layers(gradients(True, "stage2")) == ["conv1", "conv2"]
    assert layers(gradients(False, "stage1")) == ["conv1", "conv2"]


def test_offline_the_teacher_is_the_target():
    loss = mikd.MUSE(student_layer=["stage1", "stage2"], width=WIDTH, name="muse")
    distiller = cases.distiller_with(loss)
    distiller.compile(keras.optimizers.Adam(0.01), cases.cross_entropy())
    before = [v.numpy() for v in distiller.teacher.variables]
    history = distiller.fit(*cases.data(), epochs=30, verbose=0).history
    for old, variable in zip(before, distiller.teacher.variables, strict=True):
        np.testing.assert_array_equal(variable, old)
    assert history["muse"][-1] < history["muse"][0]
    for name in ("stage1_mutual", "stage1_self", "stage2_mutual", "stage2_self"):
        values = history[f"muse_{name}_nats"]
        assert values[0] < values[-1] < history["muse_ceiling_nats"][-1]


def test_the_reported_ceiling_is_that_of_the_batches_by_their_size():
    """Of 33 examples in batches of 32, one has no negative, and a ceiling of 0."""
    muse = mikd.MUSE(
        student_layer=["stage1", "stage2"],
        bound=mikd.bounds.info_nce,
        negatives="all",
        temperature=0.01,
        name="muse",
    )
    distiller = mikd.SelfDistiller(cases.student(), [muse], xla_critics=False)
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    seen = distiller.evaluate(*cases.data(33), verbose=0, return_dict=True)
    assert seen["muse_ceiling_nats"] == pytest.approx(32 / 33 * np.log(32), rel=1e-5)
    for stage in ("stage1", "stage2"):
        assert seen[f"muse_{stage}_self_nats"] <= seen["muse_ceiling_nats"] + 1e-5


@pytest.mark.parametrize("between", ["stages", "peers"])
def test_no_gradient_enters_what_is_learnt_from(between):
    """The target is the second stage: the layers behind the first one keep their weights."""
    options = {"teacher_layer": "stage2", "student_layer": ["stage1"], "width": 4, "name": "muse"}
    first, second = cases.network((3, 5), seed=1), cases.network((4, 5), seed=2)
    if between == "stages":
        distiller = mikd.SelfDistiller(first, [mikd.MUSE(**options)], task_loss_weight=0.0)
    else:
        distiller = mikd.MutualDistiller(
            [first, second], [mikd.MUSE(**options)], task_loss_weight=0.0
        )
    before = {id(net): net.get_layer("conv2").get_weights() for net in (first, second)}
    early = {id(net): net.get_layer("conv1").get_weights() for net in (first, second)}
    distiller.compile(keras.optimizers.SGD(1.0), cases.cross_entropy(), run_eagerly=True)
    distiller.fit(*cases.data(), verbose=0)
    for net in (first, second)[: 1 + (between == "peers")]:
        for a, b in zip(before[id(net)], net.get_layer("conv2").get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        moved = zip(early[id(net)], net.get_layer("conv1").get_weights(), strict=True)
        assert any(np.any(a != b) for a, b in moved)


def test_the_product_is_of_means_over_examples_with_a_real_token():
    loss = _loss(combine="multiplicative")
    mutual, own = _features((BATCH, 2), (BATCH, 2))
    real = np.array([[1.0], [0.0], [1.0], [1.0], [0.0]], "float32") * np.ones((1, 2), "float32")
    product = loss._product(tf.constant(mutual), tf.constant(own), tf.constant(real))
    m, o = ((x * real).sum(0) / real.sum(0) for x in (mutual, own))
    expected = np.logaddexp(0, m) * np.logaddexp(0, o)
    np.testing.assert_allclose((product * real).numpy().sum(0) / real.sum(0), expected, rtol=1e-5)
