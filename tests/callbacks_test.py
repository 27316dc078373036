import re

import cases
import keras
import pytest

import keras_mikd as mikd
from keras_mikd.distillers.callbacks import log_groups
from tests.example_runs import tensorboard_tags


def _compiled(losses=None):
    losses = losses or [mikd.SoftTargets(name="kd"), mikd.JSDCritic(name="critic", grid=2)]
    distiller = mikd.Distiller(cases.teacher(), cases.student(), losses)
    distiller.compile("sgd", cases.cross_entropy(), metrics=["accuracy"], run_eagerly=True)
    return distiller


def _printed(capsys, callbacks=()):
    x, y = cases.data()
    distiller = _compiled()
    history = distiller.fit(
        x, y, 8, verbose=2, validation_data=(x, y), callbacks=list(callbacks)
    ).history
    shown = re.findall(r"(\w+): -?\d", capsys.readouterr().out)
    return shown, history


def test_the_console_shows_totals_and_metrics(capsys):
    shown, history = _printed(capsys)
    names = ["accuracy", "loss", "task_loss"]
    assert shown == [*names, *(f"val_{name}" for name in names)]
    assert {"kd", "critic", "critic_mi_nats", "val_kd"} <= set(history)


def test_weights_and_shares_are_no_totals(capsys):
    x, y = cases.data()
    distiller = cases.distiller("balanced")
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    history = distiller.fit(x, y, 8, verbose=2).history
    assert re.findall(r"(\w+): -?\d", capsys.readouterr().out) == ["loss", "task_loss"]
    balance = {name for name, group in log_groups(distiller).items() if group == "balance"}
    assert balance == {name for name in history if name.endswith(("_share", "_weight"))}
    assert len(balance) == 8


def test_every_term_is_shown_if_asked(capsys):
    shown, history = _printed(capsys, [keras.callbacks.ProgbarLogger()])
    assert set(shown) == set(history)


def test_tensorboard_has_terms_and_read_outs_in_groups(tmp_path):
    x, y = cases.data()
    callbacks = [mikd.TensorBoard(tmp_path)]
    _compiled().fit(x, y, 8, verbose=0, validation_data=(x, y), callbacks=callbacks)
    for split in ("train", "validation"):
        tags = {tag for tag in tensorboard_tags(tmp_path / split) if tag.startswith("epoch_")}
        assert {tag.partition("/")[0] for tag in tags} - {"epoch_learning_rate"} == {
            *("epoch_accuracy", "epoch_loss", "epoch_task_loss"),
            *("epoch_terms", "epoch_readouts"),
        }
        assert {"epoch_terms/kd", "epoch_readouts/critic_mi_nats"} <= tags


def test_tensorboard_is_that_of_keras_for_other_models(tmp_path):
    x, y = cases.data()
    model = cases.student()
    model.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    model.fit(x, y, verbose=0, callbacks=[mikd.TensorBoard(tmp_path)])
    assert "epoch_loss" in tensorboard_tags(tmp_path / "train")


class _Silent(mikd.DistillationLoss):
    def build(self, teacher_shape, student_shape):
        self.nats = keras.metrics.Mean(name=f"{self.name}_nats")

    def call(self, teacher, student, labels=None, training=None):
        return keras.ops.mean(keras.ops.square(teacher - student), axis=-1)


def test_a_read_out_that_never_came_is_told_once():
    x, y = cases.data()
    with pytest.warns(UserWarning, match="'silent_nats' is logged as 0.*never updates it") as told:
        _compiled([_Silent(name="silent")]).fit(x, y, epochs=2, verbose=0)
    assert len(told) == 1
