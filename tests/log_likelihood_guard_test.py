import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


class _Model(keras.Model):
    """A model whose only weight counts the epochs, so that restored weights show their epoch."""

    def __init__(self):
        super().__init__()
        self.stop_training = False
        self.epoch = self.add_weight(shape=(), initializer="zeros")


def _run(guard, log_likelihoods, cmis):
    model = _Model()
    guard.set_model(model)
    guard.on_train_begin()
    for epoch, (log_likelihood, cmi) in enumerate(zip(log_likelihoods, cmis, strict=True)):
        model.epoch.assign(epoch + 1.0)
        guard.on_epoch_end(epoch, {"val_log_likelihood": log_likelihood, "val_cmi": cmi})
        if model.stop_training:
            break
    return model


def test_it_stops_restores_the_most_information_within_the_limit_and_says_so(capsys):
    guard = mikd.LogLikelihoodGuard(-0.5)
    model = _run(guard, [-0.1, -0.3, -0.4, -0.6, -0.1], [0.1, 0.3, 0.2, 0.9, 0.1])
    assert (guard.stopped_epoch, guard.best_epoch, float(model.epoch)) == (3, 1, 2.0)
    message = capsys.readouterr().out
    assert "after epoch 4, where val_log_likelihood fell to -0.6000 nats" in message
    assert "below the limit of -0.5000. Restored the weights of epoch 2" in message


@pytest.mark.parametrize("value", [-9.0, float("nan")])
def test_without_any_epoch_within_the_limit_it_restores_those_before_training(value, capsys):
    guard = mikd.LogLikelihoodGuard(-0.5)
    model = _run(guard, [value], [0.1])
    assert (guard.stopped_epoch, guard.best_epoch, float(model.epoch)) == (0, None, 0.0)
    assert "Restored the weights before training" in capsys.readouterr().out


def test_above_the_limit_the_weights_stay_those_of_the_last_epoch(capsys):
    guard = mikd.LogLikelihoodGuard(-0.5, verbose=False)
    model = _run(guard, [-0.1, -0.2], [0.3, 0.1])
    assert guard.stopped_epoch is None and float(model.epoch) == 2.0
    assert capsys.readouterr().out == ""


def test_it_saves_a_teacher_from_its_weight():
    x, y = cases.data(16)
    y[: cases.NUM_CLASSES] = np.arange(cases.NUM_CLASSES)
    mcmi = mikd.MCMITeacher(cases.teacher(), weight=50.0, log_likelihood_budget=None)
    mcmi.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    before = mikd.measure_cmi(mcmi.teacher, (x, y), verbose=0)
    guard = mikd.LogLikelihoodGuard(before.log_likelihood - 0.5, verbose=False)
    mcmi.fit(x, y, epochs=5, validation_data=(x, y), verbose=0, callbacks=[guard])
    after = mikd.measure_cmi(mcmi.teacher, (x, y), verbose=0)
    assert guard.stopped_epoch is not None
    assert after.log_likelihood >= before.log_likelihood - 0.5


def test_wrong_limits_and_missing_logs_are_refused():
    for limit in (0.1, float("nan"), "low"):
        with pytest.raises(ValueError, match="number of at most 0. Received: limit="):
            mikd.LogLikelihoodGuard(limit)
    guard = mikd.LogLikelihoodGuard(-1.0)
    guard.set_model(_Model())
    guard.on_train_begin()
    with pytest.raises(ValueError, match="'val_log_likelihood': pass `validation_data`"):
        guard.on_epoch_end(0, {"loss": 1.0})
