import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.losses.soft_targets import SoftTargets

TEACHER = np.array([[4.0, 1.0, -2.0], [0.5, 0.0, 3.0]], "float32")
STUDENT = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], "float32")


def _softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _twin(teacher, student, temperature):
    p, q = (_softmax(x.astype("float64") / temperature) for x in (teacher, student))
    return temperature**2 * np.sum(p * (np.log(p) - np.log(q)), -1)


def _gradient(loss, teacher, student):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(tf.constant(teacher), student)
    return value, tape.gradient(value, student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_value_equals_numpy(temperature):
    loss = SoftTargets(temperature=temperature)(TEACHER, STUDENT)
    np.testing.assert_allclose(loss, _twin(TEACHER, STUDENT, temperature), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("labels", [1, 3])
def test_binary_logits_equal_numpy(labels, temperature):
    teacher, student = (8.0 * x[:, :labels] for x in (TEACHER, STUDENT))
    value, gradient = _gradient(SoftTargets(temperature=temperature, binary=True), teacher, student)
    p, q = (1 / (1 + np.exp(-x.astype("float64") / temperature)) for x in (teacher, student))
    of_each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(value, temperature**2 * of_each.mean(-1), rtol=1e-4)
    np.testing.assert_allclose(gradient, temperature * (q - p) / labels, rtol=1e-4, atol=1e-6)


def test_one_logit_is_two_classes_of_which_one_stays_at_zero():
    teacher, student = np.array([[3.0], [-0.5]]), np.array([[-1.0], [100.0]])
    one = SoftTargets(temperature=2.0, binary=True)(teacher, student)
    two = SoftTargets(temperature=2.0)(*(np.hstack([0 * x, x]) for x in (teacher, student)))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert np.isfinite(one).all()


def test_binary_logits_take_a_position_each():
    teacher, student = (np.random.default_rng(i).normal(size=(2, 4, 4, 1)) for i in range(2))
    value = SoftTargets(binary=True)(teacher, student)
    each = SoftTargets(binary=True)(teacher.reshape(-1, 1), student.reshape(-1, 1))
    np.testing.assert_allclose(value, np.reshape(each, (2, 16)).mean(1), rtol=1e-5)


@pytest.mark.parametrize("options", [{"standardize": True}, {"teacher_classes": [1, 0]}])
def test_binary_logits_have_no_classes_to_map_or_to_standardize(options):
    with pytest.raises(ValueError, match="neither `teacher_classes` nor `standardize` with binary"):
        SoftTargets(binary=True, **options)


def test_one_logit_of_a_softmax_is_refused():
    with pytest.raises(ValueError, match="at least two classes.*SoftTargets\\(binary=True\\)"):
        SoftTargets()(np.ones((2, 1)), np.ones((2, 1)))


def test_value_worked_out_by_hand():
    loss = SoftTargets(temperature=1.0)(np.log([[3.0, 1.0]]), np.log([[1.0, 1.0]]))
    np.testing.assert_allclose(loss, [0.75 * np.log(1.5) - 0.25 * np.log(2.0)], rtol=1e-5)


def test_it_is_what_keras_means_and_not_what_its_default_does():
    ours = np.mean(SoftTargets(temperature=3.0)(TEACHER, STUDENT))
    instance = keras.distillation.LogitsDistillation(3.0, loss=keras.losses.KLDivergence())
    default = keras.distillation.LogitsDistillation(3.0)
    teacher, student = tf.constant(TEACHER), tf.constant(STUDENT)
    np.testing.assert_allclose(ours, instance.compute_loss(teacher, student), rtol=1e-5)
    assert abs(ours - default.compute_loss(teacher, student)) > 0.5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_equals_its_closed_form(temperature):
    _, gradient = _gradient(SoftTargets(temperature=temperature), TEACHER, STUDENT)
    p, q = (_softmax(x / temperature) for x in (TEACHER, STUDENT))
    np.testing.assert_allclose(gradient, temperature * (q - p), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_extreme_logits_stay_finite(size):
    teacher = np.array([[size, -size, 0.0]], "float32")
    loss, gradient = _gradient(SoftTargets(temperature=1.0), teacher, -teacher)
    np.testing.assert_allclose(loss, [2 * size], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[-1.0, 1.0, 0.0]], atol=1e-6)


def test_equal_logits_up_to_a_constant_cost_nothing():
    np.testing.assert_allclose(SoftTargets()(TEACHER, TEACHER + 7.0), [0.0, 0.0], atol=1e-5)


def test_a_batch_of_one_and_float16_logits():
    loss = SoftTargets()(TEACHER[:1].astype("float16"), STUDENT[:1].astype("float16"))
    assert loss.shape == (1,)
    assert loss.dtype == "float32"


def test_a_saved_loss_is_the_same_loss(tmp_path):
    inputs = keras.Input((3,)), keras.Input((3,))
    loss = SoftTargets(temperature=2.5, weight=0.9)
    model = keras.Model(inputs, loss(*inputs))
    model.save(tmp_path / "loss.keras")
    loaded = keras.saving.load_model(tmp_path / "loss.keras")
    assert loaded.layers[-1].get_config() == loss.get_config()
    assert loaded.layers[-1].temperature == 2.5
    np.testing.assert_array_equal(loaded([TEACHER, STUDENT]), loss(TEACHER, STUDENT))


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan"), "4", True, None])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` to be a finite number of at least"):
        SoftTargets(temperature=temperature)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ((2, 10), (2, 100), r"same classes.*\(2, 10\).*\(2, 100\).*`teacher_classes`.*LwF"),
        ((2, 1), (2, 1), "at least two classes"),
        ((2, 4, 4, 1), (2, 4, 4, 1), "at least two classes"),
        ((2, 4, 4, 3), (2, 3), "two vectors"),
        ((2, 16, 3), (2, 15, 3), "same positions.*Resample the finer"),
        ((2, 2, 4, 4, 3), (2, 1, 4, 4, 3), "same positions"),
        ((2, None, None, 3), (2, 4, 4, 3), "Build the teacher with a fixed input size"),
    ],
)
def test_bad_shapes_are_refused(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        SoftTargets().build(teacher, student)


def test_logits_are_expected():
    assert SoftTargets.expects_logits


def _exact(teacher, student, temperature):
    """Values of `T^2 KL` in 80 bits, and their gradient with respect to the student."""
    log_p, log_q = (_log_softmax(np.longdouble(z) / temperature) for z in (teacher, student))
    p, q = np.exp(log_p), np.exp(log_q)
    return temperature**2 * (p * (log_p - log_q)).sum(axis=1), temperature * (q - p)


def _log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 4.0, 100.0, 1e4, 1e6])
def test_every_temperature_is_right_to_a_ten_thousandth(temperature):
    rng = np.random.default_rng(0)
    teacher, student = 3 * rng.normal(size=(2, 64, 10))
    teacher, student = (z.astype("float32") for z in (teacher, student))
    value, slope = _exact(teacher, student, temperature)
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        loss = SoftTargets(temperature=temperature)(tf.constant(teacher), variable)
    np.testing.assert_allclose(loss, value, rtol=1e-4, atol=1e-9)
    gradient = tape.gradient(loss, variable)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


def test_a_class_that_both_mask_counts_for_nothing():
    teacher, student = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    kept, _ = _exact(teacher[:, 1:], student[:, 1:], 4.0)
    teacher[:, 0] = student[:, 0] = -np.inf
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        loss = SoftTargets(temperature=4.0)(tf.constant(teacher), variable)
    np.testing.assert_allclose(loss, kept, rtol=1e-5)
    assert np.all(np.isfinite(tape.gradient(loss, variable)))


@pytest.mark.parametrize("temperature", [1e-20, 1e20])
def test_a_temperature_whose_square_leaves_float32_is_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` to be a finite number"):
        SoftTargets(temperature=temperature)


def _at_positions(*shape):
    return (3 * np.random.default_rng(0).normal(size=(2, *shape))).astype("float32")


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 4, 3), (2, 2, 3, 2, 3)])
def test_logits_at_positions_are_averaged_over_them(shape):
    teacher, student = _at_positions(*shape)
    value, gradient = _gradient(SoftTargets(temperature=2.0), teacher, student)
    each = _twin(teacher, student, 2.0).reshape(len(teacher), -1)
    np.testing.assert_allclose(value, each.mean(axis=1), rtol=1e-5)
    p, q = (_softmax(x / 2.0) for x in (teacher, student))
    np.testing.assert_allclose(gradient, 2.0 * (q - p) / each.shape[1], rtol=1e-4, atol=1e-6)


def test_a_map_costs_what_its_positions_cost_as_a_sequence():
    teacher, student = _at_positions(2, 3, 4, 3)
    as_map = SoftTargets()(teacher, student)
    as_sequence = SoftTargets()(teacher.reshape(2, 12, 3), student.reshape(2, 12, 3))
    np.testing.assert_allclose(as_map, as_sequence, rtol=1e-6)


@pytest.mark.parametrize("finer", ["teacher", "student"])
def test_the_finer_map_of_logits_is_averaged_first(finer):
    logits = {"teacher": _at_positions(2, 2, 4, 3)[0], "student": _at_positions(2, 2, 4, 3)[1]}
    expected = SoftTargets()(**logits)
    coarse = logits[finer]
    logits[finer] = np.repeat(np.repeat(coarse, 2, axis=1), 3, axis=2)
    noise = np.random.default_rng(1).normal(size=(2, 2, 2, 4, 3, 3))
    noise -= noise.mean(axis=(2, 4), keepdims=True)  # Of no weight in the average of a cell.
    logits[finer] += np.float32(noise.reshape(2, 4, 12, 3))
    np.testing.assert_allclose(SoftTargets()(**logits), expected, rtol=1e-4, atol=1e-5)


def test_dense_logits_of_unknown_size_are_compared_where_they_are():
    teacher, student = _at_positions(2, 3, 4, 3)
    loss = SoftTargets()
    loss.build((None, None, None, 3), (None, None, None, 3))
    np.testing.assert_allclose(loss(teacher, student), SoftTargets()(teacher, student))


def test_a_position_where_the_networks_are_close_keeps_its_precision():
    """The series for close logits is chosen position by position."""
    teacher, student = _at_positions(1, 6, 3)
    student[0, :3] = teacher[0, :3] + np.float32(1e-3) * student[0, :3]
    value, _ = _exact(teacher[0], student[0], 1.0)
    np.testing.assert_allclose(
        SoftTargets(temperature=1.0)(teacher, student), [value.mean()], rtol=1e-5
    )
    close = SoftTargets(temperature=1.0)(teacher[:, :3], student[:, :3])
    np.testing.assert_allclose(close, [value[:3].mean()], rtol=1e-4)


def _merged(teacher, groups):
    """The teacher's probabilities at temperature 1, added by group, as logits."""
    p = _softmax(teacher.astype("float64"))
    return np.log(np.stack([p[..., group].sum(-1) for group in groups], axis=-1))


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 2, 6)])
@pytest.mark.parametrize("classes", [[4, 1, 2], [[4, 0], 1, [2, 3, 5]], ([0, 1, 2, 3], [4], 5)])
def test_classes_of_the_teacher_are_mapped_to_those_of_the_student(shape, classes):
    teacher, _ = _at_positions(*shape)
    student = _at_positions(*shape[:-1], 3)[1]
    groups = [each if isinstance(each, list) else [each] for each in classes]
    loss = SoftTargets(temperature=3.0, teacher_classes=classes)
    value, gradient = _gradient(loss, teacher, student)
    merged = _merged(teacher, groups)
    each = _twin(merged, student, 3.0).reshape(2, -1)
    np.testing.assert_allclose(value, each.mean(axis=1), rtol=1e-5)
    p, q = _softmax(merged / 3.0), _softmax(student / 3.0)
    np.testing.assert_allclose(gradient, 3.0 * (q - p) / each.shape[1], rtol=1e-3, atol=1e-6)
    twin = SoftTargets.from_config(loss.get_config())
    np.testing.assert_array_equal(twin(teacher, student), value)


def test_a_class_of_the_teacher_that_is_masked_adds_nothing_to_its_group():
    teacher = np.array([[1.0, -np.inf, 0.5, -0.5]], "float32")
    student = np.array([[0.2, 0.1, -0.4]], "float32")
    value = SoftTargets(teacher_classes=[[0, 1], 2, 3])(teacher, student)
    np.testing.assert_allclose(value, SoftTargets()(teacher[:, [0, 2, 3]], student), rtol=1e-6)


def test_the_same_classes_in_their_order_are_no_map():
    mapped = SoftTargets(teacher_classes=np.arange(3))
    np.testing.assert_array_equal(mapped(TEACHER, STUDENT), SoftTargets()(TEACHER, STUDENT))
    assert mapped.get_config()["teacher_classes"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "an entry for each class of the student"),
        ([3], "two or more"),
        (5, "an entry for each class"),
        ([0, -1], "index of the teacher's class"),
        ([0, 1.0], "index of the teacher's class"),
        ([0, True], "index of the teacher's class"),
        ([0, "cat"], "index of the teacher's class"),
        ([0, []], "does not know, take keras_mikd.LwF"),
        ([0, [1, [2]]], "index of the teacher's class"),
        ([0, [1, 0]], r"once.*Received: \[0\] twice"),
        ([2, 1, 2], r"once.*Received: \[2\] twice"),
    ],
)
def test_bad_maps_of_classes_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        SoftTargets(teacher_classes=classes)


@pytest.mark.parametrize(
    ("classes", "received"),
    [
        ([0, 1], r"2 entries up to 1, teacher_shape=\(2, 5\), student_shape=\(2, 3\)"),
        ([0, 1, 5], "3 entries up to 5"),
        ([0, [1, 7], 2], "3 entries up to 7"),
    ],
)
def test_a_map_of_other_classes_is_refused(classes, received):
    with pytest.raises(ValueError, match=f"3 entries, .*from 0 to 4.*Received: {received}"):
        SoftTargets(teacher_classes=classes).build((2, 5), (2, 3))


def _z_scores(x):
    x = x.astype("float64")
    return (x - x.mean(-1, keepdims=True)) / (1e-7 + x.std(-1, ddof=1, keepdims=True))


@pytest.mark.parametrize("classes", [3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardized_logits_equal_numpy(classes, temperature):
    for seed in range(3):
        teacher, student = np.random.default_rng(seed).normal(size=(2, 5, classes)) * [[[9]], [[1]]]
        teacher, student = teacher.astype("float32"), student.astype("float32")
        loss = SoftTargets(temperature=temperature, standardize=True)
        value, gradient = _gradient(loss, teacher, student)
        expected = _twin(_z_scores(teacher), _z_scores(student), temperature)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
        # Neither scale nor shift of the student matters.
        np.testing.assert_allclose(gradient.numpy().sum(-1), 0.0, atol=1e-5)
        np.testing.assert_allclose((gradient.numpy() * student).sum(-1), 0.0, atol=1e-4)
    assert SoftTargets.from_config(loss.get_config()).standardize


@pytest.mark.parametrize("student", [np.zeros((2, 3)), np.full((2, 3), 3.3), 1e4 * STUDENT])
def test_standardized_logits_that_are_all_equal_have_no_gradient(student):
    student = student.astype("float32")
    value, gradient = _gradient(SoftTargets(standardize=True), TEACHER, student)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))
    constant = student.max(-1) == student.min(-1)
    np.testing.assert_array_equal(gradient.numpy()[constant], 0.0)
    (same, _) = _gradient(SoftTargets(standardize=True), TEACHER, 5 * TEACHER + 1)
    np.testing.assert_allclose(same, [0.0, 0.0], atol=1e-5)


def test_two_standardized_classes_are_refused():
    with pytest.raises(ValueError, match="at least three classes.*standardize=False"):
        SoftTargets(standardize=True).build((2, 2), (2, 2))
    with pytest.raises(ValueError, match="`standardize` to be True or False"):
        SoftTargets(standardize=1)


_MASKED = np.array([[5.0, 1.0, 0.0, -np.inf], [0.0, 3.0, 1.0, -np.inf]], "float32")
_KEPT = np.array([[0.0, 1.0, 3.0, 0.5], [3.0, 0.0, 1.0, 0.5]], "float32")


def test_standardized_logits_leave_out_a_class_that_both_mask():
    student = np.where(np.isinf(_MASKED), -np.inf, _KEPT)
    loss = SoftTargets(standardize=True)
    value, gradient = _gradient(loss, _MASKED, student)
    kept, slope = _gradient(SoftTargets(standardize=True), _MASKED[:, :3], student[:, :3])
    expected = _twin(_z_scores(_MASKED[:, :3]), _z_scores(student[:, :3]), 4.0)
    np.testing.assert_allclose(kept, expected, rtol=1e-4)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient[:, :3], slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 3], 0.0)


def test_standardized_logits_that_one_network_masks_are_as_without_z_scores():
    loss = SoftTargets(standardize=True)
    value, gradient = _gradient(loss, _MASKED, _KEPT)
    p = np.pad(_softmax(_z_scores(_MASKED[:, :3]) / 4.0), [(0, 0), (0, 1)])
    q = _softmax(_z_scores(_KEPT) / 4.0)
    entropy = np.sum(p[:, :3] * np.log(p[:, :3]), -1)
    np.testing.assert_allclose(value, 16.0 * (entropy - (p * np.log(q)).sum(-1)), rtol=1e-4)
    assert np.all(np.isfinite(gradient)) and np.all(np.any(gradient != 0, axis=-1))
    # No probability where the teacher has one is infinitely far.
    np.testing.assert_array_equal(loss(_KEPT, _MASKED), SoftTargets()(_KEPT, _MASKED))
    np.testing.assert_array_equal(loss(_KEPT, _MASKED), [np.inf, np.inf])


def test_one_or_two_classes_that_no_mask_leaves_out_have_no_gradient():
    for left in (1, 2):
        student = np.where(np.arange(4) < left, _KEPT, -np.inf)
        value, gradient = _gradient(SoftTargets(standardize=True), _KEPT, student)
        assert np.all(value == np.inf)
        masked = np.where(np.arange(4) < left, _KEPT + [1.0, -1.0, 0.0, 0.0], -np.inf)
        value, gradient = _gradient(SoftTargets(standardize=True), masked, student)
        assert np.all(np.isfinite(value))
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_of_a_broken_network_are_no_number(standardize, broken):
    logits = np.array([[broken, 1.0, 2.0]], "float32")
    for pair in ((logits, TEACHER[:1]), (TEACHER[:1], logits), (logits, logits)):
        assert np.isnan(SoftTargets(standardize=standardize)(*pair))


@pytest.mark.parametrize("scale", [1e-4, 1e-6])
def test_z_scores_of_a_student_that_hardly_varies_have_a_gradient_that_float16_holds(scale):
    loss = SoftTargets(standardize=True)
    student = STUDENT[:1]
    _, ordinary = _gradient(loss, TEACHER[:1], student)
    _, gradient = _gradient(loss, TEACHER[:1], scale * student)
    assert 0 < np.max(np.abs(gradient)) < 500.0 * np.max(np.abs(ordinary))
