"""Validation that runs the student alone."""

import functools

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


@pytest.fixture
def runs(monkeypatch):
    """Counts the forwards of every network."""
    counts = {}
    read = mikd.FeatureTaps._run

    def counted(self, x, training):
        counts[self.model.name] = counts.get(self.model.name, 0) + 1
        return read(self, x, training)

    monkeypatch.setattr(mikd.FeatureTaps, "_run", counted)
    return counts


def _compiled(name="distiller", **kwargs):
    distiller = cases.distiller(name)
    options = {"metrics": ["accuracy"], "run_eagerly": True, **kwargs}
    distiller.compile(keras.optimizers.SGD(0.1), cases.cross_entropy(), **options)
    return distiller


def test_fit_can_leave_the_teacher_out_of_validation(runs):
    distiller = _compiled()
    teacher = distiller.teacher.name
    options = {"validation_data": cases.data(24, seed=1), "batch_size": 8, "verbose": 0}
    fit = functools.partial(distiller.fit, *cases.data(8), **options)
    fit()  # With the first look.
    before = runs[teacher]
    fit()
    assert runs[teacher] - before == 1 + 3  # A step and three batches of validation.
    history = fit(validation_terms=False).history
    assert runs[teacher] - before == 1 + 3 + 1
    shown = {name for name in history if name.startswith("val_")}
    assert shown == {"val_loss", "val_task_loss", "val_accuracy"}
    assert history["val_loss"] == pytest.approx(
        [distiller.task_loss_weight * each for each in history["val_task_loss"]]
    )
    assert all(loss.name in history for loss in distiller.distillation_losses)
    history = fit(epochs=2, validation_terms=False).history  # The second is after a validation.
    assert runs[teacher] - before == 1 + 3 + 1 + 2
    assert len(history[distiller.distillation_losses[0].name]) == 2


def test_arrays_to_validate_on_may_be_a_list():
    x, y = cases.data(8)
    logs = [
        _compiled().fit(x, y, validation_data=kind((x, y)), verbose=0).history
        for kind in (tuple, list)
    ]
    assert logs[0] == logs[1] and "val_accuracy" in logs[0]


@pytest.mark.parametrize(
    "name",
    [
        "balanced",
        "mcmi",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("distiller", "self", "mutual")),
    ],
)
def test_the_task_is_evaluated_as_with_the_terms(name):
    distiller = _compiled(name, run_eagerly=False)
    x, y = cases.data(24)
    distiller.fit(x, y, batch_size=8, verbose=0)
    options = {"batch_size": 8, "verbose": 0, "return_dict": True}
    whole = distiller.evaluate(x, y, **options)
    alone = distiller.evaluate(x, y, terms=False, **options)
    again = distiller.evaluate(x, y, **options)
    assert whole == again
    assert set(alone) < set(whole) and set(alone) == {"loss", "task_loss", "accuracy"}
    for name in set(alone) - {"loss"}:
        assert alone[name] == pytest.approx(whole[name]), name
    assert np.isfinite(alone["loss"]) and alone["loss"] != whole["loss"]
