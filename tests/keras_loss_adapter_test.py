import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.distillation import FeatureDistillation, LogitsDistillation

import keras_mikd
from keras_mikd.losses.keras_loss_adapter import KerasLossAdapter
from keras_mikd.losses.soft_targets import SoftTargets

TEACHER = np.array([[4.0, 1.0, -2.0], [0.5, 0.0, 3.0]], "float32")
STUDENT = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], "float32")


@keras.saving.register_keras_serializable("keras_mikd_test")
class LargestDifference(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return keras.ops.max(keras.ops.abs(teacher_outputs[:, :1] - student_outputs[:, :1]))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def _divergence(temperature=3.0):
    return LogitsDistillation(temperature, loss=keras.losses.KLDivergence())


def test_every_example_gets_the_number_of_the_batch():
    loss = KerasLossAdapter(_divergence())(TEACHER, STUDENT)
    expected = np.mean(SoftTargets(temperature=3.0)(TEACHER, STUDENT))
    np.testing.assert_allclose(loss, [expected] * 2, rtol=1e-5)


def test_gradient_of_the_mean_is_that_of_the_keras_loss():
    teacher, student = tf.constant(TEACHER), tf.constant(STUDENT)
    keras_loss = FeatureDistillation("mse")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        ours = tf.reduce_mean(KerasLossAdapter(keras_loss)(teacher, student))
        theirs = keras_loss.compute_loss(teacher, student)
    np.testing.assert_allclose(tape.gradient(ours, student), tape.gradient(theirs, student))


@pytest.mark.parametrize(
    "loss",
    [
        "kl_divergence",
        "categorical_crossentropy",
        keras.losses.CategoricalCrossentropy(from_logits=True),
    ],
)
def test_losses_that_get_logits_for_probabilities_give_a_warning(loss):
    with pytest.warns(UserWarning, match=r"raw logits.*SoftTargets\(temperature=5.0\)"):
        KerasLossAdapter(LogitsDistillation(5.0, loss=loss))


def test_the_default_and_nested_losses_give_the_warning_too():
    with pytest.warns(UserWarning, match="SoftTargets"):
        KerasLossAdapter(LogitsDistillation())
    nested = LogitsDistillation(loss=[keras.losses.KLDivergence(), "kl_divergence", None])
    with pytest.warns(UserWarning, match="SoftTargets"):
        KerasLossAdapter(nested)


def test_logits_are_expected_of_logits_losses_only():
    assert KerasLossAdapter(_divergence()).expects_logits
    assert not KerasLossAdapter(FeatureDistillation()).expects_logits


def test_layer_names_become_places():
    named = FeatureDistillation(teacher_layer_name="a", student_layer_name="b")
    adapter = KerasLossAdapter(named)
    assert (adapter.teacher_layer, adapter.student_layer) == ("a", "b")
    teacher_only = KerasLossAdapter(FeatureDistillation(teacher_layer_name="a"))
    assert (teacher_only.teacher_layer, teacher_only.student_layer) == ("a", "output")
    ours = KerasLossAdapter(FeatureDistillation(), teacher_layer="stage1", student_layer="stage2")
    assert (ours.teacher_layer, ours.student_layer) == ("stage1", "stage2")


def test_a_student_layer_alone_is_refused_not_ignored():
    lonely = FeatureDistillation(student_layer_name="b")
    with pytest.raises(ValueError, match="the teacher's layer.*student_layer_name='b'"):
        KerasLossAdapter(lonely)
    adapter = KerasLossAdapter(lonely, teacher_layer="output")
    assert (adapter.teacher_layer, adapter.student_layer) == ("output", "b")


def test_a_place_named_twice_is_refused():
    named = FeatureDistillation(teacher_layer_name="a", student_layer_name="b")
    with pytest.raises(ValueError, match="the place once.*student_layer='c'"):
        KerasLossAdapter(named, student_layer="c")


def test_several_outputs():
    keras_loss = FeatureDistillation(loss=["mse", None, keras.losses.MeanAbsoluteError()])
    places = ["a", "b", "c"]
    adapter = KerasLossAdapter(keras_loss, teacher_layer=places, student_layer=places)
    teacher = [np.ones((4, 2)), np.ones((4, 5)), np.ones((4, 3))]
    student = [np.zeros((4, 2)), np.zeros((4, 5)), np.full((4, 3), -2.0)]
    np.testing.assert_allclose(adapter(teacher, student), [1.0 + 3.0] * 4)


def test_loss_instances_do_not_divide_by_the_replicas(monkeypatch):
    adapters = [
        KerasLossAdapter(FeatureDistillation(loss))
        for loss in ("mse", keras.losses.MeanSquaredError())
    ]
    adapters.append(KerasLossAdapter(_divergence()))
    alone = [adapter(TEACHER, STUDENT) for adapter in adapters]

    class TwoReplicas:
        num_replicas_in_sync = 2

    monkeypatch.setattr(tf.distribute, "get_strategy", TwoReplicas)
    assert keras.losses.MeanSquaredError()(TEACHER, STUDENT) < 0.6 * alone[1][0]
    together = [adapter(TEACHER, STUDENT) for adapter in adapters]
    np.testing.assert_allclose(together, alone)


def test_the_callers_loss_is_left_as_it_was():
    mean_squared_error = keras.losses.MeanSquaredError()
    keras_loss = FeatureDistillation(mean_squared_error)
    KerasLossAdapter(keras_loss)
    assert keras_loss.loss is mean_squared_error
    assert mean_squared_error.reduction == "sum_over_batch_size"


def test_a_class_of_the_users_own():
    adapter = KerasLossAdapter(LargestDifference())
    np.testing.assert_allclose(adapter(TEACHER, STUDENT[:, :2]), [3.0, 3.0])


@pytest.mark.parametrize(
    "make",
    [
        _divergence,
        LargestDifference,
        lambda: FeatureDistillation("mae", teacher_layer_name="a", student_layer_name="b"),
        lambda: FeatureDistillation(keras.losses.MeanSquaredError()),
    ],
)
def test_a_saved_loss_is_the_same_loss(make, tmp_path):
    inputs = keras.Input((3,)), keras.Input((3,))
    adapter = KerasLossAdapter(make(), weight=0.3)
    model = keras.Model(inputs, adapter(*inputs))
    model.save(tmp_path / "loss.keras")
    loaded = keras.saving.load_model(tmp_path / "loss.keras")
    assert loaded.layers[-1].get_config() == adapter.get_config()
    assert type(loaded.layers[-1].keras_loss) is type(adapter.keras_loss)
    np.testing.assert_array_equal(loaded([TEACHER, STUDENT]), adapter(TEACHER, STUDENT))


def test_bad_losses_are_refused():
    with pytest.raises(TypeError, match="to be a keras.distillation.DistillationLoss.*'mse'"):
        KerasLossAdapter("mse")
    with pytest.raises(ValueError, match="mean over the batch"):
        KerasLossAdapter(FeatureDistillation(keras.losses.MeanSquaredError(reduction="sum")))


def test_a_loss_with_weights_is_refused_as_they_would_not_train():
    with_critic = LargestDifference()
    with_critic.critics = [keras.layers.Dense(2)]
    with pytest.raises(ValueError, match="would not be trained"):
        KerasLossAdapter(with_critic)


@pytest.mark.parametrize(
    ("keras_loss", "shapes", "message"),
    [
        (FeatureDistillation(), ((2, 5), (2, 4)), "tensors of one shape.*Hint"),
        (FeatureDistillation("cosine_similarity"), ((2, 5), (2, 1)), "tensors of one shape"),
        (FeatureDistillation(["mse", "mse"]), ((2, 5), (2, 5)), "one place in each network"),
        (_divergence(), ([(2, 5)] * 2, [(2, 5)] * 2), "one place in each network"),
        (LargestDifference(), ([(2, 5)] * 2, [(2, 5)]), "arity mismatch"),
    ],
)
def test_bad_shapes_are_refused(keras_loss, shapes, message):
    with pytest.raises(ValueError, match=message):
        KerasLossAdapter(keras_loss).build(*shapes)


def _two_heads(width, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(cases.IMAGE_SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(width, 3)(inputs))
    return keras.Model(inputs, {"a": keras.layers.Dense(4)(x), "b": keras.layers.Dense(4)(x)})


@pytest.mark.parametrize("loss", [{"a": "mse", "b": None}, {"a": "mse", "b": "mae"}])
def test_a_dict_of_losses_is_for_the_outputs_of_its_names(loss):
    teacher, student = _two_heads(8, 0), _two_heads(4, 1)
    keras_loss = FeatureDistillation(loss=loss)
    distiller = keras_mikd.Distiller(teacher, student, [KerasLossAdapter(keras_loss, name="own")])
    distiller.compile("sgd", {"a": cases.cross_entropy(), "b": cases.cross_entropy()})
    x, y = cases.data()
    logs = distiller.evaluate(x, {"a": y, "b": y}, verbose=0, return_dict=True)
    assert logs["own"] == pytest.approx(float(keras_loss.compute_loss(teacher(x), student(x))))
    history = distiller.fit(x, {"a": y, "b": y}, verbose=0).history
    assert np.isfinite(history["own"][0])
