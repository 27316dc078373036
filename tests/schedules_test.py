"""Weights and temperatures that change in training."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd
from keras_mikd.losses.parts import schedules

_STEPS = keras.optimizers.schedules.PiecewiseConstantDecay([1], [4.0, 2.0])  # 4, 4, 2, 2, ...


def _soft_targets(temperature):
    return mikd.SoftTargets(temperature=temperature, name="kd")


def _byot(temperature):
    return mikd.BeYourOwnTeacher(
        teacher_layer=["stage2", "output"],
        student_layer=["stage1"],
        temperature=temperature,
        name="kd",
    )


def _distiller(loss, **kwargs):
    distiller = cases.distiller_with(loss)
    distiller.compile(keras.optimizers.SGD(0.0), cases.cross_entropy(), **kwargs)
    return distiller


def _values(loss, steps, **kwargs):
    """Loss of one batch in every step; the student does not move."""
    x, y = cases.data(8)
    keras.utils.set_random_seed(0)
    distiller = _distiller(loss, **kwargs)
    return [distiller.train_on_batch(x, y, return_dict=True)["kd"] for _ in range(steps)]


@pytest.mark.parametrize(
    ("make", "options"),
    [(_soft_targets, {}), (_soft_targets, {"jit_compile": True}), (_byot, {})],
)
def test_a_temperature_follows_its_schedule_in_a_compiled_step(make, options):
    scheduled = _values(make(_STEPS), 4, **options)
    (four,), (two,) = (_values(make(t), 1) for t in (4.0, 2.0))
    np.testing.assert_allclose(scheduled, [four, four, two, two], rtol=1e-5)


def test_a_direct_call_reads_the_schedule_at_its_start():
    t, s = np.float32([[1.0, 3.0, 0.0]]), np.float32([[0.0, 1.0, 2.0]])
    first = mikd.SoftTargets(temperature=4.0)(t, s)
    np.testing.assert_array_equal(mikd.SoftTargets(temperature=_STEPS)(t, s), first)
    with schedules.step_scope(2):
        second = mikd.SoftTargets(temperature=_STEPS)(t, s)
    np.testing.assert_array_equal(second, mikd.SoftTargets(temperature=2.0)(t, s))


@pytest.mark.parametrize("make", [_soft_targets, _byot])
def test_a_schedule_is_saved_and_loaded(make, tmp_path):
    distiller = _distiller(make(_STEPS))
    distiller.save(tmp_path / "distiller.keras")
    (loss,) = keras.saving.load_model(tmp_path / "distiller.keras").distillation_losses
    assert loss.temperature.get_config() == _STEPS.get_config()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), "warm", None])
def test_other_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="Expected `temperature` to be a finite number"):
        mikd.SoftTargets(temperature=temperature)


def test_distillation_that_stops_at_a_step_leaves_plain_training():
    """To the bit: the weights are then those of a student that goes on alone."""
    x, y = cases.data(8)
    stop = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.0])
    student = cases.student()
    distiller = cases.distiller_with(mikd.SoftTargets(weight=stop), student_model=student)
    distiller.compile(keras.optimizers.SGD(0.1), cases.cross_entropy(), run_eagerly=True)
    for _ in range(2):
        distiller.train_on_batch(x, y)
    alone = keras.models.clone_model(student)
    alone.set_weights(student.get_weights())
    alone.compile(keras.optimizers.SGD(0.1), cases.cross_entropy(), run_eagerly=True)
    for _ in range(3):
        distiller.train_on_batch(x, y)
        alone.train_on_batch(x, y)
    for a, b in zip(student.weights, alone.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_schedules_of_numbers_out_of_range_are_refused():
    falls = keras.optimizers.schedules.PolynomialDecay(1.0, 50, end_learning_rate=-1.0)
    with pytest.raises(ValueError, match="Expected `temperature` to be a finite number"):
        mikd.SoftTargets(temperature=falls)
    with pytest.raises(ValueError, match="Expected `weight` to be a finite number of at least 0"):
        mikd.SoftTargets(weight=falls)
