"""Heads on the stages: their loss in NumPy, what they need, what trains them."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd

BATCH, CLASSES = 4, 3
TEACHER = (BATCH, 2, 2, 8), (BATCH, CLASSES)
STUDENT = (BATCH, 8, 8, 3), (BATCH, 4, 4, 5)
LABELS = np.array([0, 2, 1, 2])


def _loss(**kwargs):
    loss = mikd.BeYourOwnTeacher(**{"name": "byot", **kwargs})
    loss.build([list(shape) for shape in TEACHER], [list(shape) for shape in STUDENT])
    return loss


def _tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def _log_softmax(logits):
    logits = logits.astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _bottleneck(layers, x):
    """The branch in inference mode: strided convolutions without overlap are products."""
    for convolution, norm in zip(layers[0::3], layers[1::3], strict=True):
        (kernel,) = convolution.get_weights()
        rows, columns = kernel.shape[:2]
        batch, height, width, channels = x.shape
        cells = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
        x = np.einsum("bhrwcd,rcde->bhwe", cells, kernel.astype("float64"))
        gamma, beta, mean, variance = norm.get_weights()
        x = np.maximum(gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta, 0)
    return x


def _twin(loss, teacher, student):
    last_map, logits = teacher
    target = _log_softmax(logits / loss.temperature)
    total = np.zeros(BATCH)
    for feature_map, bottleneck, classifier in zip(
        student, loss.bottlenecks, loss.classifiers, strict=True
    ):
        feature = _bottleneck(bottleneck.layers, feature_map).mean((1, 2))
        kernel, bias = classifier.get_weights()
        head = feature @ kernel + bias
        own = _log_softmax(head / loss.temperature)
        total += (1 - loss.alpha) * -_log_softmax(head)[np.arange(BATCH), LABELS]
        total += loss.alpha * (np.exp(target) * (target - own)).sum(-1)
        distance = ((feature - last_map.mean((1, 2))) ** 2).sum(-1)
        total += loss.feature_weight * distance
    return total


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.8, "temperature": 1.5, "feature_weight": 0.5}, {"alpha": 0.0}]
)
def test_loss_equals_numpy_for_every_form_of_labels(options):
    loss = _loss(**options)
    rng = np.random.default_rng(1)
    loss.set_weights([rng.uniform(0.1, 1.0, size=w.shape) for w in loss.get_weights()])
    teacher, student = _tensors(TEACHER), _tensors(STUDENT, seed=2)
    expected = _twin(loss, teacher, student)
    for labels in (LABELS, LABELS[:, None], np.eye(CLASSES, dtype="float32")[LABELS]):
        value = loss(teacher, student, labels=tf.constant(labels), training=False)
        assert (value.shape, value.dtype) == ((BATCH,), "float32")
        np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_heads_that_agree_with_the_end_have_no_divergence():
    loss = _loss(alpha=1.0, feature_weight=0.0)
    for classifier in loss.classifiers:
        classifier.kernel.assign(tf.zeros_like(classifier.kernel))
    teacher, student = _tensors(TEACHER), _tensors(STUDENT)
    teacher[1] = np.zeros_like(teacher[1])
    value = loss(teacher, student, labels=LABELS)
    np.testing.assert_allclose(value, np.zeros(BATCH), atol=1e-6)


def test_extreme_logits_are_finite():
    loss = _loss()
    teacher, student = _tensors(TEACHER), [tf.constant(x) for x in _tensors(STUDENT)]
    teacher[1] = np.array([[100.0, -100.0, 0.0]] * BATCH, "float32")
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student, labels=LABELS, training=True)
    for x in (value, *tape.gradient(value, [*student, *loss.trainable_weights])):
        assert np.all(np.isfinite(x))


def test_heads_learn_and_the_network_stays_plain():
    model = cases.student()
    byot = mikd.BeYourOwnTeacher(
        teacher_layer=["stage2", "output"], student_layer=["stage1"], alpha=0.0, feature_weight=0.0
    )
    distiller = mikd.SelfDistiller(model, [byot])
    distiller.compile(keras.optimizers.Adam(0.01), cases.cross_entropy())
    repeated = [np.concatenate([array] * 30) for array in cases.data()]
    history = distiller.fit(*repeated, batch_size=16, epochs=3, verbose=0).history
    byot = history[byot.name]
    assert byot[-1] < 0.7 * byot[0]
    assert model.count_params() == cases.student().count_params()


def test_labels_are_needed():
    with pytest.raises(ValueError, match="Expected labels in the data. Received: labels=None"):
        _loss()(_tensors(TEACHER), _tensors(STUDENT))


@pytest.mark.parametrize(
    "argument, value",
    [("alpha", 1.1), ("alpha", -0.1), ("temperature", 0), ("feature_weight", -1), ("alpha", True)],
)
def test_bad_numbers_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"Received: {argument}={value}"):
        mikd.BeYourOwnTeacher(**{argument: value})


@pytest.mark.parametrize(
    "teacher_layer, student_layer",
    [("stage2", ["stage1"]), (["stage2", "output"], "stage1"), (["output", "stage2"], ["stage1"])],
)
def test_other_places_are_refused(teacher_layer, student_layer):
    byot = mikd.BeYourOwnTeacher(teacher_layer=teacher_layer, student_layer=student_layer)
    with pytest.raises(ValueError, match="the last feature map and the logits.*Received: teacher"):
        mikd.SelfDistiller(cases.student(), [byot])


def test_probabilities_are_refused():
    model = cases.student()
    model = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
    byot = mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])
    with pytest.raises(ValueError, match="compares logits.*Received: teacher_layer='output'"):
        mikd.SelfDistiller(model, [byot])


def test_no_gradient_enters_the_end_of_the_network():
    distiller = mikd.SelfDistiller(
        network := cases.student(),
        [mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])],
        task_loss_weight=0.0,
    )
    distiller.compile(keras.optimizers.SGD(1.0), cases.cross_entropy(), run_eagerly=True)
    before = {layer.name: layer.get_weights() for layer in network.layers}
    distiller.fit(*cases.data(), verbose=0)
    moved = {
        layer.name
        for layer in network.layers
        for a, b in zip(before[layer.name], layer.get_weights(), strict=True)
        if np.any(a != b)
    }
    assert moved == {"conv1"}


def test_a_single_logit_is_refused():
    body = cases.student()
    binary = keras.Model(body.input, keras.layers.Dense(1)(body.get_layer("gap").output))
    byot = mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])
    with pytest.raises(ValueError, match="at least two classes.*one logit per class"):
        mikd.SelfDistiller(binary, [byot])


@pytest.mark.parametrize(
    "labels",
    [{"logits": LABELS}, [LABELS], {"logits": LABELS[:, None]}, {"out": np.eye(CLASSES)[LABELS]}],
)
def test_the_only_labels_may_have_a_name(labels):
    loss = _loss()
    tensors = _tensors(TEACHER), _tensors(STUDENT, seed=1)
    np.testing.assert_allclose(
        loss(*tensors, labels=labels), loss(*tensors, labels=LABELS), rtol=1e-6
    )


def test_of_several_labels_the_heads_take_those_of_their_output():
    loss = _loss(teacher_layer=["stage3", "output/b"])
    tensors = _tensors(TEACHER), _tensors(STUDENT, seed=1)
    labels = {"a": LABELS + 7, "b": LABELS}
    np.testing.assert_allclose(loss(*tensors, labels=labels), loss(*tensors, labels=LABELS))
    with pytest.raises(ValueError, match="outputs: output/a, output/c. Received: 'output/b'"):
        loss(*tensors, labels={"a": LABELS, "c": LABELS})


@pytest.mark.parametrize("labels", [np.eye(5)[LABELS], np.zeros((BATCH, 2, 2))])
def test_labels_of_another_shape_are_refused(labels):
    message = "Received: labels of shape .*a column for each of the 3 classes"
    with pytest.raises(ValueError, match=message):
        _loss()(_tensors(TEACHER), _tensors(STUDENT, seed=1), labels=labels)
