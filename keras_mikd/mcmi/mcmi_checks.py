"""Checks before a teacher is tuned."""

import keras

from keras_mikd import checks
from keras_mikd.distillers.checks import network_checks
from keras_mikd.features.feature_taps import FeatureTaps
from keras_mikd.features.places import OUTPUT
from keras_mikd.features.probabilities import holds_probabilities
from keras_mikd.mcmi.batch_statistics import normalizations


def num_classes(teacher):
    """Returns the number of classes of a classifier that puts out logits.

    Raises:
        ValueError: If the teacher is not a built model, has nothing to train, or puts out
            probabilities or anything else than one vector for each example.
    """
    checks.model("teacher", teacher)
    inputs = network_checks.common_inputs({"teacher": teacher})
    spec = FeatureTaps(teacher, [], inputs=inputs).specs[OUTPUT]
    shape = getattr(spec, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] is None or shape[1] < 2:
        raise ValueError(
            "Expected a teacher with one output of shape (batch, classes): MCMI is for one class "
            f"for each example. Received: {teacher.name!r} with output {spec!r}"
        )
    if holds_probabilities(teacher):
        raise ValueError(
            f"Expected a teacher that puts out logits. Received: {teacher.name!r}, whose last "
            "operation is a softmax or sigmoid. Build it without the final activation and give it "
            "the weights of this one with set_weights."
        )
    if not teacher.trainable_variables:
        raise ValueError(
            f"Expected a teacher with weights to train. Received: {teacher.name!r} without any: "
            "set `trainable = True` on it, or on its last layers."
        )
    return shape[1]


def freeze_normalizations(teacher):
    """Lets BatchNormalization stay as it is, if something else is left to train."""
    for layer in normalizations(teacher):
        layer.trainable = False
    if not teacher.trainable_variables:
        raise ValueError(
            "Expected weights to train beside those of BatchNormalization. Received: "
            f'{teacher.name!r} without any, and batch_norm="frozen". Use batch_norm="measured".'
        )


def checked_loss(loss):
    """Returns the cross entropy, which is the only loss."""
    wanted = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if loss is None:
        return wanted
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        if {**loss.get_config(), "name": wanted.name} == wanted.get_config():
            return loss
    raise ValueError(
        "Expected `loss` to be left out, or SparseCategoricalCrossentropy(from_logits=True), to "
        f"which an MCMITeacher adds its own term. Received: loss={loss!r}"
    )


def checked_metrics(metrics):
    """Returns metrics as a list; a teacher has one output."""
    if not isinstance(metrics, (list, tuple, type(None))):
        raise ValueError(f"Expected `metrics` to be a list. Received: metrics={metrics!r}")
    return list(metrics or ())


def check_split(validation_split):
    """Refuses `validation_split`: the centroids would be measured on the validation part too."""
    if validation_split:
        raise ValueError(
            "Expected `validation_data`, since the centroids are measured on all of `x`. "
            f"Received: validation_split={validation_split}"
        )


def check_readable_twice(data):
    """Refuses generators: the centroids are measured before training, on the same data."""
    if hasattr(data, "__next__"):
        raise ValueError(
            "Expected data that can be read more than once, since the centroids are measured on it "
            "first: arrays, a tf.data.Dataset or a keras.utils.PyDataset. "
            f"Received: x={data!r}"
        )


def check_centroids(regularizer):
    """Raises a `ValueError` if no centroids were measured yet."""
    if not regularizer.has_centroids:
        raise ValueError(
            "Expected centroids, which `fit` and `fit_centroids` measure. Received: none yet. "
            "keras_mikd.measure_cmi(model, data) measures the CMI of a model without any."
        )
