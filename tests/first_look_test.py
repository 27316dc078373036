"""What only values show is found before the first step."""

import contextlib
import gc
import warnings
import weakref

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd

SOURCES = pytest.mark.parametrize("source", ["arrays", "dataset"])


def _followed_by(model, function):
    inputs = keras.Input(cases.IMAGE_SHAPE)
    return keras.Model(inputs, keras.layers.Lambda(function)(model(inputs)))


def _distiller(teacher, student=None, losses=None, loss=None):
    distiller = mikd.Distiller(teacher, student or cases.student(), losses or [mikd.SoftTargets()])
    distiller.compile("sgd", loss or cases.cross_entropy(), run_eagerly=True)
    return distiller


def _fit(distiller, x, y, source="arrays", **kwargs):
    if source == "dataset":
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
        return distiller.fit(dataset, shuffle=False, verbose=0, **kwargs).history
    return distiller.fit(x, y, batch_size=8, verbose=0, **kwargs).history


def _refused(distiller, message, *data, source="arrays"):
    before = [v.numpy() for v in distiller.variables]
    with pytest.raises(ValueError, match=message):
        _fit(distiller, *data, source=source)
    for old, variable in zip(before, distiller.variables, strict=True):
        np.testing.assert_array_equal(variable, old)


@SOURCES
@pytest.mark.parametrize(
    "hidden",
    [
        tf.nn.softmax,
        lambda x: 0.3 * tf.nn.softmax(x),
        lambda x: tf.clip_by_value(tf.nn.softmax(x), 1e-3, 1.0),
        lambda x: (tf.nn.softmax(x) + tf.nn.softmax(2.0 * x)) / 2.0,
    ],
)
def test_probabilities_that_no_name_shows_are_refused(source, hidden):
    distiller = _distiller(_followed_by(cases.teacher(), hidden))
    _refused(
        distiller,
        "Expected logits.*'output' of the teacher.*same sum",
        *cases.data(),
        source=source,
    )


def _in_bfloat16(x):
    return tf.cast(tf.nn.softmax(tf.cast(3.0 * x, tf.bfloat16)), tf.float32)


def _in_256_steps(x):
    return tf.round(255.0 * tf.nn.softmax(3.0 * x)) / 255.0


@pytest.mark.parametrize("rounded", [_in_bfloat16, _in_256_steps])
def test_probabilities_whose_sums_are_rounded_are_refused(rounded):
    teacher = _followed_by(cases.teacher(), rounded)
    _refused(_distiller(teacher), "Expected logits.*same sum", *cases.data(64))


def test_logits_that_hardly_differ_are_no_probabilities():
    # A teacher that says much the same of every example: all above 0, sums within 1 %.
    teacher = _followed_by(cases.teacher(), lambda x: 5.0 + 1e-2 * tf.nn.tanh(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isfinite(_fit(_distiller(teacher), *cases.data(64))["loss"][0])


def test_values_between_0_and_1_are_asked_about():
    teacher = _followed_by(cases.teacher(), tf.sigmoid)
    with pytest.warns(UserWarning, match="'output' of the teacher lies between 0 and 1"):
        _fit(_distiller(teacher), *cases.data(64))


def test_a_map_beside_logits_is_not_taken_for_probabilities():
    inputs = keras.Input(cases.IMAGE_SHAPE)
    small = keras.layers.Conv2D(3, 3, activation="sigmoid", name="first")(inputs)
    last = keras.layers.Conv2D(3, 3, activation="sigmoid", name="last")(small)
    logits = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(last))
    byot = mikd.BeYourOwnTeacher(teacher_layer=["last", "output"], student_layer=["first"])
    model = mikd.SelfDistiller(keras.Model(inputs, logits), [byot])
    model.compile("sgd", cases.cross_entropy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(*cases.data(64), verbose=0)


class _Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, number):
        return cases.data(16)


def _generated():
    while True:
        yield cases.data(16)


@pytest.mark.parametrize("source", ["PyDataset", "generator", "train_on_batch"])
def test_the_first_batch_of_other_sources_is_looked_at(source):
    hidden = _followed_by(cases.teacher(), tf.nn.softmax)
    for teacher, refused in ((hidden, True), (cases.teacher(), False)):
        distiller = _distiller(teacher)
        message = pytest.raises(ValueError, match="Expected logits.*same sum")
        with message if refused else contextlib.nullcontext():
            if source == "train_on_batch":
                distiller.train_on_batch(*cases.data(16))
            else:
                data = _Batches() if source == "PyDataset" else _generated()
                distiller.fit(data, steps_per_epoch=2, epochs=2, shuffle=False, verbose=0)
        taken = 1 if source == "train_on_batch" else 4
        assert distiller.optimizer.iterations == (0 if refused else taken)


def test_labels_by_name_of_one_batch_are_looked_at():
    x, y = cases.data(16)
    several = np.eye(4, dtype="float32")[y] + np.eye(4, dtype="float32")[(y + 1) % 4]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="rows of 0 and 1 with several"):
        _distiller(cases.teacher(), loss=loss).train_on_batch(x, y=several)


def test_one_batch_leaves_the_look_at_more_examples_to_fit(capsys):
    x, y = cases.data(64)
    distiller = _distiller(cases.teacher())
    distiller.train_on_batch(x[:2], y[:2])
    with pytest.warns(UserWarning, match="first 64 examples, near chance"):
        warnings.simplefilter("always")
        _fit(distiller, x, y)


def test_fractions_for_a_network_of_integers_are_refused_in_every_rank():
    def network(width, dtype):
        inputs = keras.Input((4, 6), dtype=dtype)
        x = keras.layers.Rescaling(1 / 255)(inputs)
        return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))

    x = np.random.default_rng(0).uniform(size=(32, 4, 6)).astype("float32")
    y = np.arange(32) % 4
    distiller = _distiller(network(3, "int16"), network(2, "float32"))
    _refused(distiller, "Expected whole numbers, since the teacher .* takes int16", x, y)
    assert np.isfinite(_fit(distiller, np.floor(255 * x), y)["loss"][0])


@pytest.mark.parametrize("smoothed", [False, True])
def test_several_labels_by_the_name_of_an_output_are_no_classes(smoothed):
    def network(seed):
        one = cases.network((3, 4), seed=seed)
        other = keras.layers.Dense(2)(one.get_layer("gap").output)
        return keras.Model(one.input, {"main": one.output, "other": other})

    place = {"teacher_layer": "output/main", "student_layer": "output/main"}
    binary = {"main": keras.losses.BinaryCrossentropy(from_logits=True)}
    distiller = _distiller(network(1), network(2), [mikd.SoftTargets(**place)], binary)
    x, y = cases.data()
    several = np.zeros((len(y), 4), "float32")
    several[:, :2] = 1.0
    if smoothed:
        several = 0.9 * several + 0.05
    _refused(distiller, "takes classes that exclude each other", x, {"main": several})


@pytest.mark.parametrize("loss", [mikd.DKD(), mikd.RLD(), "byot"])
def test_examples_without_a_class_have_no_part_in_losses_of_classes(loss):
    if loss == "byot":
        places = {"teacher_layer": ["stage2", None], "student_layer": ["stage1"]}
        loss = mikd.BeYourOwnTeacher(**places, name="byot")
    x, y = cases.data(8)
    y = np.where(np.arange(8) < 4, y, 255)
    ignoring = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    distiller = _distiller(cases.teacher(), cases.student(), [loss], ignoring)
    whole = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)[loss.name]
    half = distiller.evaluate(x[:4], y[:4], batch_size=4, verbose=0, return_dict=True)[loss.name]
    assert whole == pytest.approx(half / 2, rel=1e-5)
    assert np.isfinite(_fit(distiller, x, y)["loss"][0])


@pytest.mark.parametrize("given", ["list", "peers"])
def test_a_class_is_left_out_however_the_loss_is_given(given):
    x, y = cases.data(8)
    ignoring = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    if given == "peers":
        distiller = mikd.MutualDistiller(
            [cases.student(), cases.network((4, 6), seed=3)], [mikd.RLD()]
        )
        distiller.compile("sgd", ignoring, run_eagerly=True)
    else:
        distiller = _distiller(cases.teacher(), cases.student(), [mikd.DKD()], [ignoring])
    nothing = distiller.evaluate(x, np.full_like(y, 255), verbose=0, return_dict=True)
    for loss in distiller.distillation_losses:
        assert nothing[loss.name] == 0.0
    with pytest.raises(ValueError, match="Received: labels from .* to 99"):
        distiller.fit(x, np.where(y == 0, 99, y), verbose=0)


def test_examples_without_a_class_are_no_negatives_of_other_classes():
    x, y = cases.data()
    y[3] = -1
    ignoring = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=-1)
    critic = mikd.JSDCritic(negatives_from="other_classes")
    distiller = _distiller(cases.teacher(), losses=[critic], loss=ignoring)
    _refused(distiller, "Expected a class for every example.*labels of -1", x, y)


@pytest.mark.parametrize(
    "kept",
    [
        tf.nn.log_softmax,
        tf.nn.relu,
        lambda x: x / 100.0,
        tf.zeros_like,
        lambda x: tf.zeros_like(x) + tf.range(1.0, 1.0 + x.shape[-1]),  # Dead units, and a bias.
    ],
)
def test_other_outputs_pass(kept):
    history = _fit(_distiller(_followed_by(cases.teacher(), kept)), *cases.data())
    assert np.isfinite(history["loss"])


@SOURCES
def test_a_task_loss_that_does_not_fit_a_networks_values_is_refused(source):
    """A subclassed student shows no layers."""

    class Wrapped(keras.Model):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def call(self, x, training=None):
            return self.model(x, training=training)

    for function, loss, found in (
        (tf.nn.softmax, cases.cross_entropy(), "probabilities"),
        (tf.identity, keras.losses.SparseCategoricalCrossentropy(), "logits"),
    ):
        student = Wrapped(_followed_by(cases.student(), function))
        student(cases.data()[0])
        hint = mikd.Hint(teacher_layer="pooled", student_layer="output", weight=0.1)
        distiller = _distiller(cases.teacher(), student, [hint], loss)
        _refused(distiller, f"the student puts out {found}", *cases.data(), source=source)


@SOURCES
def test_a_network_that_is_not_finite_is_named(source):
    teacher = cases.teacher()
    kernel = teacher.get_layer("logits").kernel
    kernel.assign(np.full(kernel.shape, np.inf))
    message = "finite numbers from the teacher.*'output' in"
    _refused(_distiller(teacher), message, *cases.data(), source=source)


@SOURCES
def test_several_labels_for_one_example_are_no_classes(source):
    x, _ = cases.data()
    y = np.float32(np.random.default_rng(0).integers(2, size=(16, cases.NUM_CLASSES)))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    for critic in (
        mikd.JSDCritic(negatives_from="other_classes"),
        mikd.MUSE(student_layer="stage1", negatives_from="other_classes"),
        mikd.SoftTargets(),
    ):
        distiller = _distiller(cases.teacher(), losses=[critic], loss=loss)
        _refused(distiller, f"{critic.name}.*Received: rows of 0 and 1", x, y, source=source)
    plain = _distiller(cases.teacher(), losses=[mikd.JSDCritic()], loss=loss)
    assert np.isfinite(_fit(plain, x, y, source=source)["loss"])


def test_several_labels_are_what_binary_soft_targets_learn(capsys):
    x, y = cases.data(64)
    several = np.eye(4, dtype="float32")[y] + np.eye(4, dtype="float32")[(y + 1) % 4]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    exclusive = _distiller(cases.teacher(), loss=loss)
    _refused(exclusive, "one class for each example.*SoftTargets\\(binary=True\\)", x, several)
    binary = _distiller(cases.teacher(), losses=[mikd.SoftTargets(binary=True)], loss=loss)
    assert np.isfinite(_fit(binary, x, several)["loss"])


def test_outputs_without_an_axis_of_classes_pass():
    student = cases.student()
    one = keras.layers.Reshape(())(keras.layers.Dense(1)(student.get_layer("gap").output))
    student = keras.Model(student.inputs, one)
    hint = mikd.Hint(teacher_layer="gap", student_layer="gap")
    distiller = _distiller(cases.teacher(), student, [hint], keras.losses.MeanSquaredError())
    x, y = cases.data()
    assert np.isfinite(_fit(distiller, x, np.float32(y))["loss"])


def _sorted_data(examples=512):
    x, _ = cases.data(examples)
    return x, np.sort(np.arange(examples) % cases.NUM_CLASSES)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_data_sorted_by_class_is_told_where_examples_are_compared():
    distiller = _distiller(cases.teacher(), losses=[mikd.JSDCritic(name="critic")])
    with pytest.warns(UserWarning, match="all of one class.*critic compares examples"):
        _fit(distiller, *_sorted_data(), source="dataset")
    batches = tf.data.Dataset.from_tensor_slices(_sorted_data()).batch(64).take(1)
    distiller = _distiller(cases.teacher(), losses=[mikd.JSDCritic(name="critic")])
    with pytest.warns(UserWarning, match="all of one class.*critic compares examples"):
        distiller.fit(batches, verbose=0)  # Which Keras does not shuffle, whatever `shuffle` says.
    distiller = _distiller(cases.teacher(), losses=[mikd.JSDCritic(name="critic")])
    distiller.fit(*_sorted_data(2048), batch_size=512, verbose=0)  # Keras shuffles arrays.
    _fit(_distiller(cases.teacher()), *_sorted_data(), source="dataset")


def test_a_few_examples_of_one_class_are_not_taken_for_sorted_data():
    x, _ = cases.data(4)
    distiller = _distiller(cases.teacher(), losses=[mikd.JSDCritic()])
    batches = tf.data.Dataset.from_tensor_slices((x, np.zeros(4, int))).batch(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller.fit(batches, shuffle=False, verbose=0)


def _right(model, x):
    """Labels for which a model is always right."""
    return np.argmax(model(x), axis=1)


def _with_right_labels(model):
    """64 images and labels for which a model is right, of the three classes that it knows."""
    x, _ = cases.data(500)
    y = _right(model, x)
    chosen = np.concatenate([np.flatnonzero(y == c)[:32] for c in np.unique(y)])
    chosen = np.random.default_rng(0).permutation(chosen)[:64]
    assert len(chosen) == 64 and len(np.unique(y[chosen])) == 3
    return x[chosen], y[chosen]


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
@SOURCES
def test_a_teacher_no_better_than_chance_is_told_and_a_good_one_is_printed(source, capsys):
    x, y = _with_right_labels(cases.teacher())
    with pytest.warns(UserWarning, match=r"right for \d+.\d% of the first .*near chance for 4"):
        _fit(_distiller(cases.teacher()), x, (y + 1) % cases.NUM_CLASSES, source=source)
    distiller = _distiller(cases.teacher())
    distiller.fit(x, y, verbose=2, epochs=2)
    assert capsys.readouterr().out.count("The teacher is right for 100.0% of the first 64") == 1


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
def test_near_chance_is_less_than_a_fifth_of_the_way_to_perfection():
    """Of 4 classes, below 40 %."""
    x, y = _with_right_labels(cases.teacher())
    wrong = (y + 1) % cases.NUM_CLASSES
    with pytest.warns(UserWarning, match="right for 39.1% .*near chance for 4"):
        _fit(_distiller(cases.teacher()), x, np.where(np.arange(64) < 25, y, wrong))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fit(_distiller(cases.teacher()), x, np.where(np.arange(64) < 26, y, wrong))


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
def test_a_smaller_student_may_be_better_than_its_teacher():
    big, small = cases.teacher(), cases.student()
    x, y = _with_right_labels(big)
    y = np.where(np.arange(len(y)) % 5 < 2, y, _right(small, x))
    assert 0.4 < np.mean(_right(big, x) == y) < np.mean(_right(small, x) == y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fit(_distiller(big, small), x, y)


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
def test_networks_that_are_equally_good_are_not_swapped():
    big, small = cases.teacher(), cases.student()
    x, _ = cases.data(500)
    y = _right(big, x)
    both = np.flatnonzero(y == _right(small, x))[:64]
    assert len(both) >= 32 and len(np.unique(y[both])) >= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fit(_distiller(small, big), x[both], y[both])


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
def test_what_the_teacher_gets_right_is_printed_unless_silent(capsys):
    x, y = _with_right_labels(cases.teacher())
    distiller = _distiller(cases.teacher())
    distiller.fit(x, y, verbose=0)
    assert "is right for" not in capsys.readouterr().out
    distiller = _distiller(cases.teacher())
    distiller.fit(x, y)
    distiller.fit(x, y)  # It has looked.
    assert capsys.readouterr().out.count("is right for 100.0%") == 1


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
def _of_one_output(slope, activation=None):
    numbers = keras.Input((2,))
    network = keras.Model(numbers, keras.layers.Dense(1, activation, name="last")(numbers))
    network.layers[-1].set_weights([np.array([[slope], [0.0]]), np.zeros(1)])
    return network


def _of_two_classes(loss, slope, activation=None):
    hint = mikd.Hint(teacher_layer="last", student_layer="last")
    teacher = _of_one_output(slope, activation)
    return _distiller(teacher, _of_one_output(0.1), [hint], loss)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_a_teacher_of_one_output_is_judged_by_the_side_that_it_is_on(activation, capsys):
    x = np.random.default_rng(0).choice([-1.0, 1.0], (64, 2)).astype("float32")
    y, binary = (x[:, 0] > 0).astype("int64"), keras.losses.BinaryCrossentropy(from_logits=True)
    distiller = _of_two_classes(binary, 0.3, activation)
    distiller.fit(x, y, verbose=1)
    assert "The teacher is right for 100.0% of the first 64 examples" in capsys.readouterr().out
    distiller = _of_two_classes(binary, 0.0, activation)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        distiller.fit(x, y, verbose=0)
    assert any("near chance for 2 classes" in str(each.message) for each in said)


def test_of_a_regression_nothing_is_said_about_classes(capsys):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    _of_two_classes(keras.losses.MeanSquaredError(), 0.3).fit(x, x[:, :1], verbose=1)
    assert "classes" not in capsys.readouterr().out


def test_networks_of_a_fixed_batch_size_are_looked_at_in_one_batch():
    def network(width):
        steps = [keras.layers.LSTM(width, stateful=True), keras.layers.Dense(4)]
        return keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), *steps])

    x = np.random.default_rng(0).normal(size=(32, 5, 3)).astype("float32")
    distiller = _distiller(network(4), network(2))
    history = distiller.fit(x, np.arange(32) % 4, batch_size=8, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_swapped_networks_are_told():
    big, small = cases.teacher(), cases.student()
    x, y = _with_right_labels(big)
    half = np.arange(len(y)) % 2 == 0
    y = np.where(half, y, _right(small, x))  # The small one is right for half or more.
    with pytest.warns(UserWarning, match="Are teacher and student swapped"):
        _fit(_distiller(small, big), x, y)


def test_validation_data_is_looked_at_first():
    """It is read anyway, so the order of training data stays as it is."""
    distiller = _distiller(_followed_by(cases.teacher(), tf.nn.softmax))
    x, y = cases.data()
    with pytest.raises(ValueError, match="Expected logits"):
        distiller.fit(iter([(x, y)]), validation_data=(x, y), verbose=0)


def test_two_replicas_look_once(two_replicas):
    with two_replicas.scope():
        teacher = _followed_by(cases.teacher(), tf.nn.softmax)
        distiller = mikd.Distiller(teacher, cases.student(), [mikd.SoftTargets()])
        distiller.compile("sgd", cases.cross_entropy())
    with pytest.raises(ValueError, match="Expected logits"):
        _fit(distiller, *cases.data(), source="dataset")


def test_networks_that_nobody_holds_are_freed():
    """TensorFlow keeps the functions of data sets for ever."""
    distiller = _distiller(cases.teacher())
    _fit(distiller, *cases.data(), source="dataset")
    held = [weakref.ref(each) for each in (distiller, distiller.teacher, distiller.student)]
    del distiller
    gc.collect()
    assert [each() for each in held] == [None] * 3


@SOURCES
def test_a_network_that_stops_at_the_first_examples_is_named(source):
    """A subclassed network has no inputs that could be looked at before."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = keras.layers.Conv2D(4, 3)
            self.pool = keras.layers.GlobalAveragePooling2D()

        def call(self, x):
            return self.pool(self.convolution(x))

    x, y = cases.data()
    networks = [Own(), Own()]
    for network in networks:
        network(x)
    hint = mikd.Hint(teacher_layer="output", student_layer="output", weight=0.1)
    message = r"the (teacher|student) 'own.*' takes. Received: .*of .*uint8.*before a Rescaling"
    _refused(
        _distiller(*networks, losses=[hint]),
        message,
        (255 * x).astype("uint8"),
        y,
        source=source,
    )


class _CountsCalls(keras.layers.Layer):
    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), trainable=False, initializer="zeros", name="calls")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs


def test_a_teacher_that_inference_changes_is_told():
    inputs = keras.Input(cases.IMAGE_SHAPE)
    counts = _CountsCalls(name="counts")
    teacher = keras.Model(inputs, counts(cases.teacher()(inputs)), name="big")
    distiller = _distiller(teacher)
    with pytest.warns(UserWarning, match="'big', whose counts/calls changes.*load the file"):
        _fit(distiller, *cases.data(32))
    assert float(counts.calls) == 4  # Those of the steps; the look is undone.
    student = keras.Model(inputs, _CountsCalls()(cases.student()(inputs)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*inference does not change")
        _fit(_distiller(cases.teacher(), student), *cases.data(32))
