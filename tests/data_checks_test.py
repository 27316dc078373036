"""Data that cannot be trained on is refused before the first step."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd

ARGUMENTS = pytest.mark.parametrize("argument", ["x", "validation_data"])
SOURCES = pytest.mark.parametrize("source", ["arrays", "dataset"])


def _distiller(student=None, teacher=None, loss=None, run_eagerly=True):
    distiller = cases.distiller_with(
        mikd.SoftTargets(), student_model=student, teacher_model=teacher
    )
    distiller.compile("sgd", loss or cases.cross_entropy(), run_eagerly=run_eagerly)
    return distiller


def _fit(distiller, x, y, argument="x", source="arrays"):
    """Fits on the data, or on good data with this for validation."""
    bad = (x, y) if source == "arrays" else _dataset(x, y)
    data = {"x": bad, "validation_data": cases.data()}
    if argument == "validation_data":
        data = {"x": cases.data(), "validation_data": bad}
    if isinstance(data["x"], tuple):
        data["x"], data["y"] = data["x"]
    if not isinstance(data["x"], tf.data.Dataset):
        data["batch_size"] = 8
    return distiller.fit(**data, shuffle=False, verbose=0).history


def _dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def _refused(distiller, message, *data):
    before = [v.numpy() for v in distiller.variables]
    with pytest.raises(ValueError, match=message):
        _fit(distiller, *data)
    for old, variable in zip(before, distiller.variables, strict=True):
        np.testing.assert_array_equal(variable, old)


def _integer_images():
    x, y = cases.data()
    return np.uint8(np.clip(x * 50 + 100, 0, 255)), y


def _rescaling(model):
    inputs = keras.Input(cases.IMAGE_SHAPE)
    return keras.Model(inputs, model(keras.layers.Rescaling(1 / 255)(inputs)))


@ARGUMENTS
@SOURCES
def test_integer_images_into_a_float_model_are_refused(argument, source):
    message = rf"Expected floats.*`{argument}` holds integer images.*Received: dtype=uint8"
    _refused(_distiller(), message, *_integer_images(), argument, source)


@SOURCES
def test_integer_images_are_for_models_that_rescale_them(source):
    teacher, student = _rescaling(cases.teacher()), _rescaling(cases.student())
    x, y = _integer_images()
    integers = _fit(_distiller(student, teacher), x, y, source=source)
    floats = _fit(_distiller(cases.student(), cases.teacher()), x / np.float32(255), y)
    assert integers["loss"] == pytest.approx(floats["loss"], rel=1e-5)


def test_both_models_must_rescale_integer_images():
    _refused(_distiller(student=_rescaling(cases.student())), "the teacher", *_integer_images())
    _refused(_distiller(teacher=_rescaling(cases.teacher())), "the student", *_integer_images())


def test_integers_that_are_no_images_are_left_alone():
    def tokens():
        inputs = keras.Input((5,), dtype="int32")
        x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 3)(inputs))
        return keras.Model(inputs, keras.layers.Dense(cases.NUM_CLASSES)(x))

    x, y = np.arange(80).reshape(16, 5) % 9, cases.data()[1]
    history = _distiller(tokens(), tokens()).fit(x, y, verbose=0).history
    assert np.isfinite(history["loss"][0])


@ARGUMENTS
@SOURCES
@pytest.mark.parametrize("shift, seen", [(1, "1 to 4"), (-1, "-1 to 2")])
def test_labels_out_of_range_are_refused(argument, source, shift, seen):
    x, y = cases.data()
    seen = f"from {seen}" if source == "arrays" else "outside that range"
    named = "y" if (argument, source) == ("x", "arrays") else argument
    message = rf"labels in `{named}` to be integers from 0 to 3.*Received: labels {seen}"
    _refused(_distiller(run_eagerly=False), message, x, y + shift, argument, source)


@SOURCES
def test_labels_with_fractions_are_refused(source):
    x, y = cases.data()
    seen = "such as 0.5, which" if source == "arrays" else ".*or with fractions"
    _refused(_distiller(run_eagerly=False), f"Received: labels {seen}", x, y + 0.5, "x", source)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1] * 8, "labels in `y` as an array. Received: a int in a list"),
        (np.array(["cat", "dog"] * 8), "Expected numbers as the labels in `y`.*<U3.*np.unique"),
        (None, "Expected labels, since there is a task loss. Received: none.*loss=None"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(y, message):
    _refused(_distiller(), message, cases.data()[0], y)


def test_lists_of_examples_are_refused_in_a_few_words():
    x, y = cases.data()
    _refused(
        _distiller(),
        "Expected `x` as one array.*which have 1. .*a list of 16.*np.stack",
        list(x),
        y,
    )
    _refused(_distiller(), "labels in `y` as an array.*int64 in a list", x, list(y.astype("int64")))


@SOURCES
def test_indices_for_a_loss_of_distributions_are_refused(source):
    distiller = _distiller(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    message = r"rows over the classes, \('batch', 4\).*SparseCategoricalCrossentropy"
    _refused(distiller, message, *cases.data(), "x", source)


def test_a_data_set_of_single_examples_is_refused():
    examples = tf.data.Dataset.from_tensor_slices(cases.data())
    with pytest.raises(ValueError, match=r"`x` to be a data set of batches.*Call .batch\(64\)"):
        _distiller().fit(examples, verbose=0)


def test_weights_of_classes_are_finite():
    with pytest.raises(ValueError, match="Expected finite weights of classes.*nan"):
        _distiller().fit(*cases.data(), class_weight={0: float("nan")}, verbose=0)
    with pytest.raises(ValueError, match="a dict {class: weight}. Received: class_weight='balanc"):
        _distiller().fit(*cases.data(), class_weight="balanced", verbose=0)


def test_arrays_of_labels_are_checked_to_the_last():
    x, y = cases.data()
    y[-1] = 7
    _refused(_distiller(), "Received: labels from 0 to 7", x, y)
    _refused(_distiller(), "Received: labels from 0.0 to 7.0", x, y.astype("float32")[:, None])


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "class"])
def test_labels_of_a_student_with_probabilities(loss):
    student = cases.student()
    student = keras.Model(student.inputs, keras.layers.Softmax()(student.outputs[0]))
    distiller = mikd.Distiller(
        cases.teacher(), student, [mikd.Hint(teacher_layer="gap", student_layer="gap")]
    )
    cross_entropy = keras.losses.SparseCategoricalCrossentropy()
    distiller.compile("sgd", cross_entropy if loss == "class" else loss)
    x, y = cases.data()
    _refused(distiller, "from 0 to 3", x, y + 1)


def test_labels_of_a_subclassed_student():
    class Student(keras.Model):
        def __init__(self):
            super().__init__()
            self.pool = keras.layers.GlobalAveragePooling2D()
            self.dense = keras.layers.Dense(cases.NUM_CLASSES)

        def call(self, x):
            return self.dense(self.pool(x))

    x, y = cases.data()
    student = Student()
    student(x)
    _refused(_distiller(student), "from 0 to 3", x, y + 1)
    assert np.isfinite(_fit(_distiller(student), x, y)["loss"][0])


def test_the_class_that_the_loss_ignores_is_no_mistake():
    x, y = cases.data()
    y[:4] = -1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    assert np.isfinite(_fit(_distiller(loss=loss), x, y)["loss"][0])
    _refused(_distiller(loss=loss), "Received: labels from -2 to", x, np.where(y == -1, -2, y))


def test_targets_of_other_losses_are_left_alone():
    x, _ = cases.data()
    y = np.full((16, cases.NUM_CLASSES), -7.0)
    history = _distiller(loss=keras.losses.MeanSquaredError()).fit(x, y, verbose=0).history
    assert np.isfinite(history["loss"][0])


@ARGUMENTS
def test_empty_arrays_are_refused(argument):
    x, y = cases.data()
    message = rf"at least one example, but `{argument}` is empty. Received: shape=\(0, 8, 8, 2\)"
    _refused(_distiller(), message, x[:0], y[:0], argument)


@ARGUMENTS
def test_an_empty_dataset_is_refused(argument):
    x, y = cases.data()
    message = rf"Expected a batch. Received: `{argument}` is an empty data set"
    _refused(_distiller(), message, x[:0], y[:0], argument, "dataset")


def test_weights_of_examples_do_not_disturb_the_checks():
    x, y = cases.data()
    distiller = _distiller()
    dataset = tf.data.Dataset.from_tensor_slices((x, y + 1, np.ones(16, "float32"))).batch(8)
    with pytest.raises(ValueError, match="labels in `x`"):
        distiller.fit(dataset, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="labels in `validation_data`"):
        distiller.fit(x, y, validation_data=(x, y + 1, np.ones(16)), verbose=0)


def test_a_generator_keeps_the_batch_that_was_looked_at():
    x, y = cases.data()
    batches = (batch for batch in [(x, y)])
    history = _distiller().fit(batches, steps_per_epoch=1, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0])


PARTS = {"inputs": 0, "labels": 1, "sample weights": 2}


@SOURCES
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_before_any_update(part, value, source):
    x, y = cases.data()
    y = np.eye(cases.NUM_CLASSES, dtype="float32")[y]
    data = [x, y, np.ones(16, "float32")]
    data[PARTS[part]][13] = value
    distiller = _distiller(cases.student(normalize=True), loss=keras.losses.MeanSquaredError())
    before = [v.numpy() for v in distiller.variables]
    own = {"labels": "y", "sample weights": "sample_weight"} if source == "arrays" else {}
    message = f"Expected finite numbers: the {part} in `{own.get(part, 'x')}` are not"
    with pytest.raises(ValueError, match=message):
        if source == "arrays":
            distiller.fit(*data[:2], sample_weight=data[2], verbose=0)
        else:
            batches = tf.data.Dataset.from_tensor_slices(tuple(data)).batch(16)
            distiller.fit(batches, verbose=0, shuffle=False)
    for old, variable in zip(before, distiller.variables, strict=True):
        np.testing.assert_array_equal(variable, old)


@SOURCES
def test_256_classes_fit_into_labels_of_8_bits(source):
    def network(width):
        inputs = keras.Input(cases.IMAGE_SHAPE)
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(width, 3)(inputs))
        return keras.Model(inputs, keras.layers.Dense(256)(pooled))

    x, _ = cases.data()
    y = np.uint8(np.linspace(0, 255, 16))
    assert np.isfinite(_fit(_distiller(network(4), network(5)), x, y, "x", source)["loss"][0])


@SOURCES
@ARGUMENTS
def test_images_of_another_size_or_of_other_channels_are_refused(argument, source):
    x, y = cases.data()
    for images in (x[..., :1], x[:, :6]):
        _refused(
            _distiller(), r"the teacher 'func.*takes, \(8, 8, 2\)", images, y, argument, source
        )


def _integer_input(network):
    inputs = keras.Input(cases.IMAGE_SHAPE, dtype="uint8")
    rescaled = keras.layers.Rescaling(1 / 255)(inputs)
    return keras.Model(inputs, network(rescaled))


def test_networks_that_no_image_fits_are_refused():
    teacher = _integer_input(cases.teacher())
    with pytest.raises(ValueError, match="teacher inputs of uint8, student inputs of float32"):
        _distiller(teacher=teacher)
    both = _distiller(_integer_input(cases.student()), teacher)
    both.fit(*_integer_images(), verbose=0)
    with pytest.raises(ValueError, match="integer images.* takes uint8.*images of float32"):
        both.fit(*cases.data(), verbose=0)


@ARGUMENTS
@SOURCES
def test_labels_by_name_are_refused_where_there_is_one_output(argument, source):
    x, y = cases.data()
    named = "y" if (argument, source) == ("x", "arrays") else argument
    message = rf"labels in `{named}` as one array, .*Received: labels by name, \['logits'\]"
    _refused(_distiller(), message, x, {"logits": y}, argument, source)
