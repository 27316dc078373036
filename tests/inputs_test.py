"""What makes a teacher's input from the batch: layers and functions, in every way to train."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.features.inputs import TeacherInputs

L = keras.layers


def network(shape, dtype="float32", *, rescaling=False, width=6, seed=1):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape, dtype=dtype)
    x = L.Rescaling(1 / 255)(inputs) if rescaling else inputs
    x = L.Conv2D(width, 3, padding="same", activation="relu", name="conv")(x)
    x = L.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(inputs, L.Dense(cases.NUM_CLASSES, name="logits")(x))


@keras.saving.register_keras_serializable("inputs_test")
def to_uint8(x):
    return keras.ops.cast(keras.ops.round(255 * x), "uint8")


@keras.saving.register_keras_serializable("inputs_test")
def to_colour(x):
    return keras.ops.repeat(x, 3, axis=-1)


@keras.saving.register_keras_serializable("inputs_test")
def image_alone(x):
    return {"pixels": x["image"]}


def images(shape, examples=16):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(examples, *shape)).astype("float32")
    return x, rng.integers(cases.NUM_CLASSES, size=examples)


def new(teacher, student, teacher_inputs, *losses, eager=True, **kwargs):
    losses = list(losses) or [mikd.SoftTargets(temperature=1.0, name="kd")]
    distiller = mikd.Distiller(
        teacher, student, losses, teacher_inputs=teacher_inputs, xla_critics=False
    )
    loss = cases.cross_entropy()
    distiller.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eager, **kwargs)
    return distiller


def fit(distiller, x, y, **kwargs):
    return distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0, **kwargs).history


def fit_batches(distiller, dataset, verbose=0):
    return distiller.fit(dataset, shuffle=False, verbose=verbose).history


def divergence(teacher, student):
    """KL(softmax(teacher) || softmax(student)), the mean over the examples."""
    log_p, log_q = (
        z - np.log(np.exp(z).sum(-1, keepdims=True))
        for z in (teacher.astype("float64"), student.astype("float64"))
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()


CASES = {
    # shape of the batch; the teacher; what makes its inputs; the same in NumPy
    "larger": (
        (8, 8, 2),
        lambda: network((24, 24, 2)),
        lambda: L.Resizing(24, 24, interpolation="nearest"),
        lambda x: x.repeat(3, axis=1).repeat(3, axis=2),
    ),
    "integers": (
        (8, 8, 2),
        lambda: network((8, 8, 2), "uint8", rescaling=True),
        lambda: to_uint8,
        lambda x: np.round(255 * x).astype("uint8"),
    ),
    "rescaled": (
        (8, 8, 2),
        lambda: network((8, 8, 2), rescaling=True),
        lambda: keras.Sequential([L.Rescaling(255.0)]),
        lambda x: 255 * x,
    ),
    "colour": (
        (8, 8, 1),
        lambda: network((16, 16, 3)),
        lambda: [to_colour, L.Resizing(16, 16, interpolation="nearest")],
        lambda x: x.repeat(2, axis=1).repeat(2, axis=2).repeat(3, axis=3),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_teacher_sees_what_its_inputs_make_and_a_file_goes_on(case, tmp_path):
    shape, make_teacher, make_inputs, expected = CASES[case]
    x, y = images(shape)
    hint = mikd.Hint(teacher_layer="gap", student_layer="gap", name="hint")
    kd = mikd.SoftTargets(temperature=1.0, name="kd")
    teacher, student = make_teacher(), network(shape, width=3, seed=2)
    distiller = new(teacher, student, make_inputs(), kd, hint)
    logits = teacher.predict(expected(x), verbose=0)
    seen = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert seen["kd"] == pytest.approx(divergence(logits, student.predict(x, verbose=0)), rel=1e-4)
    before = teacher.get_weights()
    fit(distiller, x, y)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    histories = [fit(each, x, y) for each in (distiller, loaded)]
    assert histories[0] == histories[1]
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_graph_and_eager_make_the_same_inputs_of_integer_images():
    """Keras' image layers keep integers where they run eagerly, and make floats in a graph."""
    x, y = images((8, 8, 2))
    x = np.round(255 * x).astype("uint8")
    histories = []
    for eager in (True, False):
        teacher = network((12, 12, 2), rescaling=True)
        student = network((8, 8, 2), rescaling=True, width=3, seed=2)
        histories.append(fit(new(teacher, student, L.Resizing(12, 12), eager=eager), x, y))
    assert histories[0] == {k: pytest.approx(v, rel=1e-5) for k, v in histories[1].items()}


def test_dict_inputs():
    x, y = images((8, 8, 2))
    batch = {"image": x, "extra": np.ones((16, 3), "float32")}
    image, extra = keras.Input((8, 8, 2), name="image"), keras.Input((3,), name="extra")
    joined = L.Concatenate()([L.GlobalAveragePooling2D()(image), extra])
    student = keras.Model({"image": image, "extra": extra}, L.Dense(4)(joined))
    pixels = keras.Input((8, 8, 2), name="pixels")
    teacher = keras.Model({"pixels": pixels}, L.Dense(4)(L.GlobalAveragePooling2D()(pixels)))
    with pytest.raises(ValueError, match="same inputs.*'pixels'.*'extra'.*teacher_inputs="):
        new(teacher, student, None)
    distiller = new(teacher, student, image_alone)
    logits = teacher.predict({"pixels": x}, verbose=0)
    seen = distiller.evaluate(batch, y, verbose=0, return_dict=True)
    assert seen["kd"] == pytest.approx(
        divergence(logits, student.predict(batch, verbose=0)), rel=1e-4
    )
    fit(distiller, batch, y)


def test_predictions_and_exports_are_those_of_the_student(tmp_path):
    x, _ = images((8, 8, 2))
    student = network((8, 8, 2), width=3)
    distiller = new(network((24, 24, 2)), student, L.Resizing(24, 24))
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))
    distiller.export(tmp_path / "student", verbose=False)
    exported = tf.saved_model.load(tmp_path / "student")
    np.testing.assert_allclose(exported.serve(x), student(x), rtol=1e-5, atol=1e-6)


def test_layers_with_weights_are_fixed_and_saved_with_the_distiller_alone(tmp_path):
    x, y = images((8, 8, 2))
    normalization = L.Normalization()
    normalization.adapt(3 * x + 1)
    colours = L.Conv2D(2, 1, name="colours")
    student = network((8, 8, 2), width=3, seed=2)
    distiller = new(network((8, 8, 2)), student, [normalization, colours])
    own = [v.path for v in (*normalization.variables, *colours.variables)]
    assert not set(own) & {v.path for v in distiller.variables}
    before = [v.numpy() for v in colours.variables]
    fit(distiller, x, y)
    for value, variable in zip(before, colours.variables, strict=True):
        np.testing.assert_array_equal(value, variable)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    for a, b in zip(distiller.teacher_inputs, loaded.teacher_inputs, strict=True):
        for first, second in zip(a.variables, b.variables, strict=True):
            np.testing.assert_array_equal(first, second)
    assert fit(distiller, x, y) == fit(loaded, x, y)
    # Neither do weight files hold them, nor does a configuration.
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    copy = keras.models.clone_model(distiller)
    copy.load_weights(tmp_path / "distiller.weights.h5")
    copy.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    with pytest.raises(ValueError, match="trained weights.* out of a configuration"):
        fit(copy, x, y)
    copy.teacher.set_weights(distiller.teacher.get_weights())
    with pytest.raises(ValueError, match="initialised with .in 'normalization'"):
        fit(copy, x, y)


def test_a_lambda_and_an_unregistered_function_are_saved_as_keras_saves_them(tmp_path):
    def doubled(x):
        return 2 * x

    distiller = new(network((8, 8, 2)), network((8, 8, 2), width=3), doubled)
    with pytest.warns(UserWarning, match="'doubled' is saved by its name only"):
        distiller.save(tmp_path / "named.keras")
    loaded = keras.saving.load_model(tmp_path / "named.keras", custom_objects={"doubled": doubled})
    assert loaded.teacher_inputs is doubled
    distiller = new(network((8, 8, 2)), network((8, 8, 2), width=3), lambda x: 2 * x)
    with pytest.warns(UserWarning, match="includes a `lambda`"):
        distiller.save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match="safe_mode"):
        keras.saving.load_model(tmp_path / "lambda.keras")
    loaded = keras.saving.load_model(tmp_path / "lambda.keras", safe_mode=False)
    x, y = images((8, 8, 2))
    assert fit(distiller, x, y) == fit(loaded, x, y)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.pool, self.dense = L.GlobalAveragePooling2D(), L.Dense(cases.NUM_CLASSES)

    def call(self, x):
        return self.dense(self.pool(x))


def test_a_subclassed_teacher_reads_what_is_made():
    x, y = images((8, 8, 1))
    teacher, student = Subclassed(), network((8, 8, 1), width=3)
    teacher(x.repeat(3, axis=3))
    seen = new(teacher, student, to_colour).evaluate(x, y, verbose=0, return_dict=True)
    logits = teacher.predict(x.repeat(3, axis=3), verbose=0)
    expected = divergence(logits, student.predict(x, verbose=0))
    assert seen["kd"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("distiller", [mikd.VIDDistiller, mikd.MIMKDDistiller])
def test_the_distillers_of_the_papers_take_it_too(distiller):
    x, y = cases.data()
    student = cases.student()
    keras.utils.set_random_seed(3)
    inputs = keras.Input((24, 24, 2))
    feature_map = inputs
    for strides in (1, 2):
        feature_map = L.Conv2D(6, 3, strides, "same", activation="relu")(feature_map)
    pooled = L.GlobalAveragePooling2D()(feature_map)
    teacher = keras.Model(inputs, L.Dense(cases.NUM_CLASSES)(pooled))
    resizing = L.Resizing(24, 24)
    model = distiller(teacher, student, teacher_inputs=resizing, xla_critics=False)
    model.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    assert all(np.isfinite(values[0]) for values in fit(model, x, y).values())


def test_sizes_that_the_teacher_leaves_open_are_those_that_are_made():
    teacher = network((None, None, 2))
    student = network((8, 8, 2), width=3)
    critic = mikd.JSDCritic(
        teacher_layer="conv", student_layer="conv", critic=mikd.SeparableCritic(width=4)
    )
    distiller = new(teacher, student, L.Resizing(12, 12), critic, mikd.SoftTargets())
    specs = distiller._networks.taps["teacher"].specs
    assert specs["conv"].shape == (None, 12, 12, 6)
    fit(distiller, *images((8, 8, 2)))


# What does not fit


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (L.Resizing(16, 16), r"make what '\w+' takes, \(None, 24, 24, 2\) of float32. Received: .*"
         r"\(None, 16, 16, 2\) of float32.*Resizing\(height, width\)"),
        (lambda x: x[..., :1], r"makes \(None, 8, 8, 1\)"),
        (lambda x: {"image": x}, r"makes image: \(None, 8, 8, 2\)"),
        (lambda x: keras.ops.reshape(x, (7, 7)), "fails for .None, 8, 8, 2. of float32: "),
        (lambda x: 1.0, "make batches, tensors of at least one axis. Received: .*shape=.."),
        (L.Resizing, "an instance of a class"),
        ([], "a layer, a function"),
        ("resize", "a layer, a function"),
    ],
)  # fmt: skip
def test_what_the_teacher_does_not_take_is_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        new(network((24, 24, 2)), network((8, 8, 2)), steps)


def test_floats_for_a_teacher_of_integers_are_refused():
    teacher = network((8, 8, 2), "uint8", rescaling=True)
    student = network((8, 8, 2), width=3)
    with pytest.raises(ValueError, match="No data fits both.*or pass `teacher_inputs`"):
        new(teacher, student, None)
    with pytest.raises(ValueError, match=r"takes, .*of uint8. Received: it makes .* of float32"):
        new(teacher, student, L.Rescaling(255.0))


def test_other_sizes_are_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match="same inputs.*24, 24.*8, 8.*teacher_inputs=, a layer such"
    ):
        new(network((24, 24, 2)), network((8, 8, 2)), None)


@keras.saving.register_keras_serializable("inputs_test")
def transposed(x):
    return keras.ops.transpose(x, (0, 2, 1, 3))


@pytest.mark.parametrize("as_dataset", [False, True])
def test_integers_that_a_teacher_of_floats_gets_are_refused(as_dataset):
    x, y = images((8, 8, 2))
    x = np.round(255 * x).astype("uint8")
    student = network((8, 8, 2), rescaling=True, width=3)
    data = (x, y)
    if as_dataset:
        data = (tf.data.Dataset.from_tensor_slices((x, y)).batch(8),)
    with pytest.raises(ValueError, match="`teacher_inputs` holds integer images, and the teacher"):
        new(network((8, 8, 2)), student, transposed).fit(*data, shuffle=False, verbose=0)
    distiller = new(network((8, 8, 2)), student, [transposed, L.Rescaling(1 / 255)])
    distiller.fit(*data, shuffle=False, verbose=0)


def test_the_data_is_that_of_the_student():
    student = network((8, 8, 2), width=3)
    distiller = new(network((24, 24, 2)), student, L.Resizing(24, 24))
    with pytest.raises(ValueError, match=r"that the student .* takes, \(8, 8, 2\).*\(24, 24, 2\)"):
        distiller.fit(*images((24, 24, 2)), verbose=0)


def test_augmentation_is_told_to_do_nothing():
    flip = L.RandomFlip()
    with pytest.warns(UserWarning, match="change images at random .random_flip.*do nothing there"):
        made = TeacherInputs([flip])
    x, _ = images((8, 8, 2))
    np.testing.assert_array_equal(made(x), x)


def test_a_later_assignment_is_refused():
    distiller = new(network((24, 24, 2)), network((8, 8, 2)), L.Resizing(24, 24))
    with pytest.raises(AttributeError, match="`teacher_inputs` of .* to stay as it is"):
        distiller.teacher_inputs = None


# A cache


def _cache(teacher, teacher_inputs, **kwargs):
    x, y = images((8, 8, 2))
    return mikd.TeacherCache(teacher, x, y, teacher_inputs=teacher_inputs, **kwargs)


def test_a_cache_makes_the_same_inputs(tmp_path, deterministic_ops):
    teacher, student = network((24, 24, 2)), network((8, 8, 2), width=3, seed=2)
    start = student.get_weights()
    cache = _cache(teacher, L.Resizing(24, 24), folder=tmp_path / "cache", batch_size=8)
    cache.build(verbose=0)
    ends = []
    for with_teacher in (True, False):
        student.set_weights(start)
        distiller = new(teacher, student, L.Resizing(24, 24))
        batches = cache.batches(8, with_teacher=with_teacher)
        distiller.fit(batches, shuffle=False, epochs=2, verbose=0)
        ends.append(student.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    # A later process has another object with the same arguments.
    _cache(teacher, [L.Resizing(24, 24)], folder=tmp_path / "cache", batch_size=8)
    with pytest.raises(ValueError, match="teacher"):
        other = L.Resizing(24, 24, interpolation="nearest")
        _cache(teacher, other, folder=tmp_path / "cache", batch_size=8)


def _half(x):
    return x / 2


def _third(x):
    return x / 3


@pytest.mark.parametrize(
    "other", [None, _third, L.Rescaling(1 / 2), L.Rescaling(1 / 3), [_half, L.Rescaling(1.0)]]
)
def test_a_cache_with_other_inputs_is_refused(other):
    teacher = network((8, 8, 2))
    cache = _cache(teacher, _half).build(verbose=0)
    distiller = new(teacher, network((8, 8, 2), width=3), other)
    for method in (fit_batches, mikd.Distiller.evaluate):
        with pytest.raises(ValueError, match="and the same `teacher_inputs`. Received: a cache of"):
            method(distiller, cache.batches(8), verbose=0)
    fit_batches(new(teacher, network((8, 8, 2), width=3), _half), cache.batches(8))


def test_a_cache_knows_the_numbers_of_a_normalization():
    teacher = network((8, 8, 2))
    keys = set()
    for mean in ([0.0, 1.0], [0.0, 2.0], np.array([0.0, 3.0])):
        keys.add(_cache(teacher, L.Normalization(mean=mean, variance=[1.0, 1.0])).fingerprint)
    for scale in (1, 2):
        normalization = L.Normalization()
        normalization.adapt(scale * images((8, 8, 2))[0])
        keys.add(_cache(teacher, normalization).fingerprint)
    assert len(keys) == 5


def test_a_cache_refuses_what_its_teacher_does_not_take():
    with pytest.raises(ValueError, match=r"takes, \(None, 24, 24, 2\).*it makes \(None, 8, 8, 2\)"):
        _cache(network((24, 24, 2)), _half)


@pytest.mark.parametrize("between", [[], [L.Resizing(16, 16)]])
def test_a_normalization_of_given_numbers_is_built_outside_of_a_graph(between):
    size = 16 if between else 8
    teacher = network((size, size, 3))
    steps = [*between, L.Normalization(mean=0.5, variance=0.25)]
    distiller = new(teacher, network((8, 8, 3), seed=2), steps, eager=False)
    x, y = images((8, 8, 3))
    seen = distiller._networks.taps["teacher"](x, training=False)["output"]
    resized = L.Resizing(16, 16)(x) if between else x
    np.testing.assert_allclose(seen, teacher((resized - 0.5) / 0.5), atol=1e-5)
    assert np.isfinite(fit(distiller, x, y)["loss"]).all()
