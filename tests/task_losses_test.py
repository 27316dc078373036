"""Whatever its class and wherever it stands, a task loss is asked what it expects."""

import functools

import cases
import keras
import pytest

import keras_mikd as mikd
from keras_mikd.distillers.checks import task_losses

losses = keras.losses


class _Own(losses.Loss):
    from_logits = True

    def call(self, y_true, y_pred):
        return losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.CategoricalFocalCrossentropy(), False),
        (losses.CategoricalFocalCrossentropy(from_logits=True), True),
        (losses.BinaryFocalCrossentropy(from_logits=True), True),
        (losses.SparseCategoricalCrossentropy(), False),
        (losses.KLDivergence(), False),
        (losses.Dice(), False),
        (losses.Tversky(), False),
        (losses.CategoricalGeneralizedCrossEntropy(), False),
        (losses.Poisson(), None),  # Of rates, which are no probabilities.
        (losses.categorical_focal_crossentropy, False),
        (functools.partial(losses.categorical_crossentropy, from_logits=True), True),
        (_Own(), True),
        (losses.MeanSquaredError(), None),
        (losses.mean_squared_error, None),
        (lambda y_true, y_pred: y_pred, None),
    ],
)
def test_expects_logits(loss, expected):
    assert task_losses.expects_logits(loss) is expected


def _two_outputs(as_dict):
    student = cases.student()
    outputs = [student.output, keras.layers.Dense(3, name="other")(student.output)]
    outputs = {"a": outputs[0], "b": outputs[1]} if as_dict else outputs
    return keras.Model(student.input, outputs)


@pytest.mark.parametrize(
    ("student", "loss", "place"),
    [
        (cases.student, "categorical_focal_crossentropy", "output"),
        (cases.student, [losses.CategoricalFocalCrossentropy()], "output"),
        (cases.student, losses.KLDivergence(), "output"),
        (lambda: _two_outputs(True), {"b": losses.CategoricalCrossentropy()}, "output/b"),
        (lambda: _two_outputs(True), {"a": cases.cross_entropy(), "b": "kld"}, "output/b"),
        (lambda: _two_outputs(False), [None, losses.CategoricalCrossentropy()], "output/1"),
        (lambda: _two_outputs(False), {"other": losses.CategoricalCrossentropy()}, "output/1"),
    ],
)
def test_a_loss_of_probabilities_is_refused_for_logits(student, loss, place):
    hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled")
    distiller = mikd.Distiller(cases.teacher(), student(), [hint])
    with pytest.raises(ValueError, match=f"logits at '{place}' and .* expects probabilities"):
        distiller.compile("sgd", loss)


def test_a_loss_that_knows_no_logits_says_what_to_do():
    distiller = cases.distiller_with(mikd.SoftTargets())
    with pytest.raises(ValueError, match="It takes no logits: use a cross-entropy from logits"):
        distiller.compile("sgd", losses.Dice())


def test_a_metric_of_probabilities_is_told():
    wrong, right = (
        keras.metrics.SparseCategoricalCrossentropy(from_logits=x) for x in (False, True)
    )
    distiller = cases.distiller_with(mikd.SoftTargets())
    with pytest.warns(UserWarning, match="expects probabilities, and .* puts out logits"):
        distiller.compile("sgd", cases.cross_entropy(), metrics=["accuracy", wrong])
    distiller.compile("sgd", cases.cross_entropy(), metrics=["accuracy", right])


@pytest.mark.parametrize(
    "metrics",
    [
        ["AUC"],
        ["crossentropy"],
        ["sparse_categorical_crossentropy"],
        [["accuracy", keras.metrics.AUC()]],
        {"other": keras.metrics.Precision()},
        [keras.metrics.Recall(thresholds=[0.5])],
        [keras.metrics.SensitivityAtSpecificity(0.5)],
        [keras.metrics.KLDivergence()],
    ],
)
def test_metrics_by_name_and_with_thresholds_are_told_too(metrics):
    distiller = cases.distiller_with(mikd.SoftTargets())
    with pytest.warns(UserWarning, match="expects probabilities, and .* puts out logits"):
        distiller.compile("sgd", cases.cross_entropy(), metrics=metrics)


@pytest.mark.parametrize(
    ("metric", "remedy"),
    [
        ("AUC", "Use keras.metrics.AUC(from_logits=True)."),
        ("crossentropy", "Use keras.metrics.SparseCategoricalCrossentropy(from_logits=True)."),
        ("binary_accuracy", "Use keras.metrics.BinaryAccuracy(threshold=0.0)."),
        (keras.metrics.CategoricalCrossentropy(), "Categorical.*from_logits=True"),
        (keras.metrics.Precision(), "It takes no logits: build the network with its softmax"),
        (keras.metrics.kl_divergence, "It takes no logits: build the network with its softmax"),
    ],
)
def test_a_metric_of_probabilities_is_told_with_what_to_write(metric, remedy):
    distiller = cases.distiller_with(mikd.SoftTargets())
    with pytest.warns(UserWarning, match=remedy.replace("(", r"\(").replace(")", r"\)")):
        distiller.compile("sgd", cases.cross_entropy(), metrics=[metric])


def test_metrics_that_take_logits_are_not_told():
    distiller = cases.distiller_with(mikd.SoftTargets())
    top = keras.metrics.Precision(top_k=1), keras.metrics.SparseTopKCategoricalAccuracy(2)
    metrics = ["accuracy", "Accuracy", "mse", *top, keras.metrics.F1Score()]
    distiller.compile("sgd", cases.cross_entropy(), metrics=metrics)


def _of_one_output(activation):
    images = keras.Input(cases.IMAGE_SHAPE)
    vector = keras.layers.GlobalAveragePooling2D(name="pooled")(images)
    return keras.Model(images, keras.layers.Dense(1, activation=activation)(vector))


def test_the_accuracy_of_one_logit_is_told():
    hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled")
    distiller = mikd.Distiller(cases.teacher(), _of_one_output(None), [hint])
    binary = keras.losses.BinaryCrossentropy
    for metric in ("accuracy", keras.metrics.BinaryAccuracy()):
        with pytest.warns(UserWarning, match="accuracy' expects probabilities"):
            distiller.compile("sgd", binary(from_logits=True), metrics=[metric])
    parted = keras.metrics.BinaryAccuracy(threshold=0.0)  # As 0.5 parts probabilities.
    distiller.compile("sgd", binary(from_logits=True), metrics=[parted])
    distiller.compile("sgd", "mse", metrics=["mae"])
    hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled")
    distiller = mikd.Distiller(cases.teacher(), _of_one_output("sigmoid"), [hint])
    distiller.compile("sgd", binary(), metrics=["accuracy", keras.metrics.AUC()])


def test_losses_that_fit_pass():
    for as_dict, loss in (
        (True, {"a": cases.cross_entropy(), "b": None}),
        (False, [cases.cross_entropy(), losses.MeanSquaredError()]),
    ):
        hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled")
        mikd.Distiller(cases.teacher(), _two_outputs(as_dict), [hint]).compile("sgd", loss)


def _ending(name):
    image = keras.Input(cases.IMAGE_SHAPE)
    inner = cases.student()
    logits = inner(image)
    if name == "nested":
        return keras.Model(image, logits)
    if name == "sequential":
        return keras.Sequential([image, keras.layers.Rescaling(0.1), inner])
    ends = {
        "policy": keras.layers.Activation("linear", dtype="float32"),
        "reshaped": keras.layers.Reshape((4,)),
        "dropout": keras.layers.Dropout(0.1),
    }
    return keras.Model(image, ends[name](logits))


@pytest.mark.parametrize("name", ["nested", "sequential", "policy", "reshaped", "dropout"])
def test_logits_are_seen_behind_what_keeps_them(name):
    distiller = mikd.Distiller(cases.teacher(), _ending(name), [mikd.SoftTargets()])
    with pytest.raises(ValueError, match="puts out logits"):
        distiller.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="'auc' expects probabilities"):
        distiller.compile("sgd", cases.cross_entropy(), metrics=[keras.metrics.AUC(name="auc")])


def test_logits_near_zero_are_no_probabilities():
    """As of a network before training, whose last operation does not show what they are."""
    image = keras.Input(cases.IMAGE_SHAPE)
    student = keras.Model(image, 1e-6 * cases.student()(image))
    distiller = mikd.Distiller(cases.teacher(), student, [mikd.SoftTargets()])
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="puts out logits|expects probabilities"):
        distiller.fit(*cases.data(32), verbose=0)
