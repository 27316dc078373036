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
    message = rf"labels in `{argument}` to be integers from 0 to 3.*Received: labels {seen}"
    _refused(_distiller(run_eagerly=False), message, x, y + shift, argument, source)


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


def test_a_generator_is_not_looked_into():
    x, y = cases.data()
    batches = (batch for batch in [(x, y)])
    history = _distiller().fit(batches, steps_per_epoch=1, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.parametrize("as_dataset", [False, True])
def test_labels_by_name_for_one_output_are_refused(as_dataset):
    distiller = cases.distiller("soft_targets")
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    x, y = cases.data(8)
    data = (x, {"classes": y})
    if as_dataset:
        data = (tf.data.Dataset.from_tensor_slices(data).batch(4),)
    with pytest.raises(ValueError, match="one output. Received: .*'classes'.* alone"):
        distiller.fit(*data, shuffle=False, verbose=0)
