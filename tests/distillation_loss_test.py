"""The contract that every distillation loss keeps, and that the distiller keeps with it."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


class Cosine(mikd.DistillationLoss):
    """The example of the docstring."""

    def call(self, teacher, student, labels=None, training=None):
        return keras.losses.cosine_similarity(teacher, student)  # -1 where they agree.


@keras.saving.register_keras_serializable("distillation_loss_test")
class Watching(mikd.DistillationLoss):
    """Keeps what `call` was given; its loss is the label times the mean of the student."""

    def build(self, teacher_shape, student_shape):
        self.shapes = teacher_shape, student_shape
        self.mean = keras.metrics.Mean(name=f"{self.name}_mean")

    def call(self, teacher, student, labels=None, training=None):
        self.seen = teacher, student, training
        flat = keras.ops.reshape(keras.tree.flatten(student)[0], (len(labels), -1))
        self.mean.update_state(flat)
        return keras.ops.cast(labels, "float32") * keras.ops.mean(flat, axis=-1)


def _evaluate(loss, **kwargs):
    distiller = cases.distiller_with(loss, **kwargs)
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    return distiller, distiller.evaluate(*cases.data(), verbose=0, return_dict=True)


def test_a_loss_without_weights_is_one_method():
    distiller, seen = _evaluate(Cosine(name="cosine"))
    x, _ = cases.data()
    t, s = (model.predict(x, verbose=0) for model in (distiller.teacher, distiller.student))
    cosine = (t * s).sum(-1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(s, axis=-1)
    assert seen["cosine"] == pytest.approx(-cosine.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "given, place",
    [(None, "output"), ("stage1", "stage1"), (("stage1", None), ["stage1", "output"]), ([], [])],
)
def test_places_are_names_or_lists_of_names(given, place):
    loss = Cosine(teacher_layer=given, student_layer=given)
    assert (loss.teacher_layer, loss.student_layer) == (place, place)


@pytest.mark.parametrize("place", [3, {"stage1": 1}, ["stage1", 2]])
def test_other_places_are_refused(place):
    with pytest.raises(ValueError, match="`teacher_layer` to be None.*Received: teacher_layer="):
        Cosine(teacher_layer=place)
    with pytest.raises(ValueError, match="`student_layer` to be None.*Received: student_layer="):
        Cosine(student_layer=place)


@pytest.mark.parametrize("weight", [0, 1, 0.5])
def test_a_weight_is_a_float(weight):
    assert Cosine(weight=weight).weight_at(7) == weight
    assert type(Cosine(weight=weight).weight) is float


def test_a_scheduled_weight_depends_on_the_step():
    loss = Cosine(weight=keras.optimizers.schedules.PolynomialDecay(0.0, 10, 2.0))
    assert [float(loss.weight_at(step)) for step in (0, 5, 10, 99)] == [0.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "weight", [0.25, keras.optimizers.schedules.PiecewiseConstantDecay([10], [0.0, 1.0])]
)
def test_a_config_makes_the_same_loss(weight):
    loss = Watching(
        teacher_layer=["stage1", None], student_layer="pooled", weight=weight, name="watching"
    )
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(twin) is Watching
    assert twin.get_config() == loss.get_config()
    assert [float(twin.weight_at(step)) for step in (0, 11)] == [
        float(loss.weight_at(step)) for step in (0, 11)
    ]


def test_call_gets_the_places_the_labels_and_the_phase():
    loss = Watching(teacher_layer=["stage1", None], student_layer="stage2", name="watching")
    distiller, seen = _evaluate(loss)
    assert loss.shapes == ([(None, 8, 8, 6), (None, 4)], (None, 4, 4, 5))
    x, y = cases.data()
    (stage, logits), student, training = loss.seen
    assert training is False
    read = keras.Model(distiller.student.input, distiller.student.get_layer("relu2").output)(x)
    np.testing.assert_allclose(student, read, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, distiller.teacher(x), rtol=1e-5, atol=1e-6)
    assert stage.shape == (16, 8, 8, 6)
    values = y * np.mean(read, axis=(1, 2, 3))
    assert seen["watching"] == pytest.approx(values.mean(), rel=1e-5)
    distiller.fit(x, y, verbose=0)
    assert loss.seen[-1] is True


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_a_loss_works_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    loss = Watching(student_layer="stage1", name="watching")
    _evaluate(loss)
    teacher, student, _ = loss.seen
    assert (teacher.dtype, student.dtype) == ("float32", "float32")


def test_readouts_are_metrics_under_the_name_of_the_loss():
    distiller, seen = _evaluate(Watching(name="watching"))
    logits = distiller.student.predict(cases.data()[0], verbose=0)
    assert seen["watching_mean"] == pytest.approx(logits.mean(), rel=1e-5)
    assert Cosine().metrics == []


def test_the_example_draws_a_student_towards_its_teacher():
    loss, same = Cosine(), np.ones((1, 4), "float32")
    assert float(loss(same, same)[0]) == pytest.approx(-1.0)
    assert float(loss(same, -same)[0]) == pytest.approx(1.0)


def test_the_output_is_one_number_for_each_example():
    assert Cosine().compute_output_shape((None, 4), (None, 4)) == (None,)
    assert Cosine().compute_output_shape([(16, 4), (16, 2)], (16, 4)) == (16,)


def test_the_default_name_is_the_same_however_often_a_loss_is_made():
    for _ in range(2):
        assert mikd.SoftTargets().name == "soft_targets"
        assert mikd.Hint(teacher_layer="stage3", student_layer="stage2").name == "hint_stage2"
        level = mikd.JSDCritic(teacher_layer="P3", student_layer="feature_pyramid/P3")
        assert level.name == "jsd_critic_feature_pyramid_P3"
        assert mikd.MUSE(student_layer=["stage1", "stage2"]).name == "muse"
        assert mikd.GaussianVIDHead(student_layer="pooled").name == "gaussian_vid_head_pooled"
        assert mikd.Hint(name="mine", student_layer="stage2").name == "mine"


@pytest.mark.parametrize("places", [["stage1", "stage1"], [None, "output"], [None, None]])
def test_a_place_that_is_named_twice_is_refused(places):
    with pytest.raises(ValueError, match="`student_layer` to name no place twice. Received: stud"):
        Cosine(student_layer=places)


@pytest.mark.parametrize("loss", [mikd.MUSE, mikd.BeYourOwnTeacher])
def test_losses_of_several_stages_want_one_at_least(loss):
    with pytest.raises(ValueError, match=r"to name a stage. Received: student_layer=\[\]"):
        loss(student_layer=[])
