import os
import zipfile

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd

LOSS = "val_loss"


class _Script(keras.callbacks.Callback):
    """Writes values for the monitor into the logs, and the epoch into the student's bias."""

    def __init__(self, values, *, stop_at=None):
        super().__init__()
        self._values, self._stop_at = values, stop_at

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self._stop_at:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        _layer(self.model.student).bias.assign([epoch, epoch])
        if self._values[epoch] is not None:
            logs[LOSS] = self._values[epoch]


def _layer(network):
    return network.get_layer("last")


def _network():
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(inputs))


def _model():
    keras.utils.set_random_seed(0)
    distiller = mikd.Distiller(_network(), _network(), [mikd.SoftTargets()])
    distiller.compile("sgd", cases.cross_entropy(), metrics=["accuracy"], run_eagerly=True)
    return distiller


def _data():
    return np.random.default_rng(0).normal(size=(4, 3)).astype("float32"), np.arange(4) % 2


def _fit(callbacks, *, model=None, epochs=1, validated=True, **options):
    model = model or _model()
    options |= {"validation_data": _data()} if validated else {}
    model.fit(*_data(), epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **options)
    return model


def _epoch_of(path):
    """The epoch whose student a file holds."""
    network = _network()
    if str(path).endswith(".weights.h5"):
        network.load_weights(path)
    else:
        network = keras.saving.load_model(path)
    return float(_layer(network).bias[0])


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("auto", [3.0, 1.0, 2.0, 1.0], 1),
        ("max", [1.0, 3.0, 2.0, 3.0], 1),
        ("min", [float("nan"), 2.0, float("nan"), 3.0], 1),
        ("min", [2.0, None, 3.0, 1.0], 3),
    ],
)
@pytest.mark.parametrize("name", ["student.keras", "student.weights.h5"])
def test_the_file_is_the_best_student_alone(name, mode, values, best, tmp_path):
    path = tmp_path / "new" / name
    saving = mikd.StudentCheckpoint(path, monitor=LOSS, mode=mode)
    _fit([_Script(values), saving], epochs=4, validation_freq=5)
    assert _epoch_of(path) == saving.best_epoch == best
    assert saving.best == values[best]
    assert [each.name for each in path.parent.iterdir()] == [name]


def test_every_epoch_with_its_number_and_the_monitor(tmp_path, capsys):
    template = tmp_path / "{epoch:02d}-{val_loss:.1f}.weights.h5"
    saving = mikd.StudentCheckpoint(template, monitor=LOSS, save_best_only=False, verbose=True)
    _fit([_Script([1.0, None, 3.0]), saving], epochs=3, validation_freq=5)
    names = ["01-1.0.weights.h5", "03-3.0.weights.h5"]
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    assert [_epoch_of(tmp_path / name) for name in names] == [0, 2]
    assert f"saved epoch 3 with val_loss 3.0000 as {tmp_path / names[1]}" in capsys.readouterr().out


def test_every_epoch_needs_no_monitor(tmp_path):
    path = tmp_path / "student.keras"
    saving = mikd.StudentCheckpoint(path, save_best_only=False)
    _fit([_Script([None] * 3), saving], epochs=3, validated=False)
    assert _epoch_of(path) == 2
    assert saving.best is None


def test_the_saved_file_opens_without_the_distiller_and_answers_as_the_student(tmp_path):
    path = tmp_path / "student.keras"
    saving = mikd.StudentCheckpoint(path)
    model = _fit([saving])
    loaded, (x, _) = keras.saving.load_model(path), _data()
    np.testing.assert_array_equal(loaded(x), model.student(x))
    with zipfile.ZipFile(path) as file:
        assert b"keras_mikd" not in file.read("config.json")


def test_what_is_saved_of_each_distiller(tmp_path):
    x, y = cases.data(8)
    peers = [cases.teacher(), cases.student()]
    mutual = mikd.MutualDistiller(peers, [mikd.SoftTargets()])
    y[: cases.NUM_CLASSES] = np.arange(cases.NUM_CLASSES)
    mcmi = mikd.MCMITeacher(cases.teacher())
    alone = mikd.SelfDistiller(cases.student(), [])
    for model, saved, options in (
        (mutual, peers[1], {"network": "peer2", "monitor": "val_peer2_accuracy"}),
        (mcmi, mcmi.teacher, {"monitor": "val_cmi", "mode": "max"}),
        (alone, alone.student, {"monitor": "val_task_loss"}),
    ):
        loss = None if model is mcmi else cases.cross_entropy()
        model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=True)
        path = tmp_path / f"{type(model).__name__}.keras"
        saving = mikd.StudentCheckpoint(path, **options)
        model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[saving])
        np.testing.assert_array_equal(keras.saving.load_model(path)(x), saved(x))


def test_a_write_that_fails_leaves_the_student_before(tmp_path, monkeypatch):
    path = tmp_path / "student.keras"
    saving = mikd.StudentCheckpoint(path, monitor=LOSS)
    model = _fit([_Script([2.0]), saving])
    before = path.read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _fit([_Script([1.0]), saving], model=model)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["student.keras"]
    assert saving.best == 2.0


def test_a_second_fit_with_the_same_callback_goes_on_with_the_best(tmp_path):
    path = tmp_path / "student.keras"
    saving = mikd.StudentCheckpoint(path, monitor=LOSS)
    model = _fit([_Script([2.0, 1.0]), saving], epochs=2)
    _fit([_Script([9.0, 9.0, 1.5, 1.2]), saving], model=model, epochs=4, initial_epoch=2)
    assert (saving.best, saving.best_epoch) == (1.0, 1) and _epoch_of(path) == 1


def test_a_run_that_is_started_again_knows_the_best_and_its_own_file(tmp_path):
    path, values = tmp_path / "student.keras", [2.0, 1.0, 1.5, 1.8]

    def run(script):
        saving = mikd.StudentCheckpoint(path, monitor=LOSS)
        resume = mikd.ExactResume(tmp_path / "resume", verbose=False)
        _fit([resume, script, saving], epochs=4)
        return saving

    with pytest.raises(KeyboardInterrupt):
        run(_Script(values, stop_at=3))
    saving = run(_Script(values))
    assert (saving.best, saving.best_epoch) == (1.0, 1) and _epoch_of(path) == 1


# What is refused.


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("student.h5", {}, r"ends in '.keras' \(the network\) or '.weights.h5'.*student.h5"),
        ("{step}.keras", {}, r"only \{epoch\} and \{val_accuracy\} are filled.*\{step\}.keras"),
        ("{}.keras", {}, "are filled in"),
        ("{epoch:q}.keras", {}, "are filled in"),
        ("{epoch.keras", {}, "are filled in"),
        ("{val_loss}.keras", {}, "are filled in"),
        ("a.keras", {"monitor": None}, "`monitor` to be a name in the logs. Received: None"),
        (
            "a.keras",
            {"mode": "best", "save_best_only": False},
            "`mode` to be 'auto', 'min' or 'max'",
        ),
        (
            "a.keras",
            {"monitor": "val_vid_nats"},
            "mode='max' or mode='min'.*monitor='val_vid_nats'",
        ),
    ],
)
def test_wrong_arguments(path, options, message):
    with pytest.raises(ValueError, match=message):
        mikd.StudentCheckpoint(path, **options)


@pytest.mark.parametrize("name", ["student.keras", "{epoch}-{val_accuracy:.2f}.keras"])
def test_files_of_another_run_are_replaced_only_when_asked(name, tmp_path):
    old = tmp_path / name.format(epoch=7, val_accuracy=0.5)
    old.write_bytes(b"old")
    model = _model()
    before = model.student.get_weights()[0].copy()
    with pytest.raises(FileExistsError, match="pass overwrite=True.*use ExactResume"):
        _fit([mikd.StudentCheckpoint(tmp_path / name)], model=model)
    np.testing.assert_array_equal(model.student.get_weights()[0], before)
    assert old.read_bytes() == b"old"
    _fit([mikd.StudentCheckpoint(tmp_path / name, overwrite=True)], model=model)
    assert (old.read_bytes() == b"old") == ("{" in name)


def _counted(model):
    return int(model.optimizer.iterations)


def test_a_monitor_of_validation_without_validation_is_refused_before_a_step(tmp_path):
    model, path = _model(), tmp_path / "student.keras"
    with pytest.raises(ValueError, match="`validation_data` in `fit`.*monitor='val_accuracy'"):
        _fit([mikd.StudentCheckpoint(path)], model=model, validated=False)
    assert _counted(model) == 0
    # A split is validation, and another callback may bring the monitor.
    _fit([mikd.StudentCheckpoint(path)], validated=False, validation_split=0.5)
    by_script = mikd.StudentCheckpoint(tmp_path / "other.keras", monitor=LOSS)
    _fit([_Script([1.0]), by_script], validated=False)
    assert by_script.best == 1.0


def test_a_network_that_no_file_holds_is_refused_before_the_first_step(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.last = keras.layers.Dense(units)

        def call(self, x):
            return self.last(x)

    student = Subclassed(2)
    student(np.zeros((1, 3), "float32"))
    model = mikd.Distiller(_network(), student, [mikd.SoftTargets()])
    model.compile("sgd", cases.cross_entropy(), metrics=["accuracy"], run_eagerly=True)
    before = student.last.kernel.numpy()
    with pytest.raises(ValueError, match="class Subclassed has no `get_config`.*'.weights.h5'"):
        _fit([mikd.StudentCheckpoint(tmp_path / "a.keras")], model=model)
    np.testing.assert_array_equal(student.last.kernel, before)
    _fit([mikd.StudentCheckpoint(tmp_path / "a.weights.h5")], model=model)
    assert (tmp_path / "a.weights.h5").exists()


def test_a_run_that_saved_nothing_says_so(tmp_path):
    never, nan = (tmp_path / name for name in ("never.keras", "nan.keras"))
    other = keras.callbacks.Callback()
    other.__class__ = type("Other", (keras.callbacks.Callback,), {"__module__": "theirs"})
    with pytest.warns(UserWarning) as said:
        _fit([other, mikd.StudentCheckpoint(never)], validated=False, epochs=2)
    first, last = (str(each.message) for each in said)
    assert f"saves nothing to '{never}' until a callback brings it" in first  # Not after hours.
    assert "in the whole run: the logs have no finite 'val_accuracy'" in last
    with pytest.warns(UserWarning, match="in the whole run"):
        _fit([mikd.StudentCheckpoint(never)], validation_freq=2)
    with pytest.warns(UserWarning, match=f"in the whole run.*'{LOSS}'"):
        _fit([_Script([float("nan")]), mikd.StudentCheckpoint(nan, monitor=LOSS)])
    assert not never.exists() and not nan.exists()


def test_the_weights_that_are_saved_are_those_that_were_validated(tmp_path):
    def saving(name):
        return mikd.StudentCheckpoint(tmp_path / name, monitor="val_task_loss")

    def averages(**options):
        return keras.callbacks.SwapEMAWeights(**options)

    model = _model()
    average = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    model.compile(average, cases.cross_entropy(), run_eagerly=True)
    for wrong in (
        [averages(), saving("a.keras")],
        [saving("a.keras"), averages(swap_on_epoch=True)],
    ):
        with pytest.raises(ValueError, match="before StudentCheckpoint.*Received: swap_on_epoch="):
            _fit(wrong, model=model)
    best = saving("b.keras")
    _fit([averages(swap_on_epoch=True), best], model=model, epochs=3, batch_size=2)
    saved = keras.saving.load_model(tmp_path / "b.keras")
    saved.compile(loss=cases.cross_entropy())
    assert saved.evaluate(*_data(), verbose=0) == pytest.approx(best.best, rel=1e-5)


@pytest.mark.parametrize("monitor", ["val_acuracy", "acuracy"])
def test_a_monitor_that_is_not_in_the_logs_is_refused_after_the_first_step(monitor, tmp_path):
    model = _model()
    saving = mikd.StudentCheckpoint(tmp_path / "student.keras", monitor=monitor, mode="max")
    with pytest.raises(ValueError, match=f"the logs to have '{monitor}'.*Received: .*'accuracy'"):
        _fit([saving], model=model, batch_size=2)
    assert _counted(model) == 1


def test_a_monitor_that_no_other_callback_has_brought_is_refused_after_the_epoch(tmp_path):
    saving = mikd.StudentCheckpoint(tmp_path / "student.keras", monitor="val_ap", mode="max")
    with pytest.raises(ValueError, match="the logs to have 'val_ap'.*Received: .*'val_accuracy'"):
        _fit([_Script([1.0]), saving])


def test_read_outs_that_are_in_no_steps_logs_can_be_the_monitor(tmp_path):
    critic = mikd.JSDCritic(teacher_layer="gap", student_layer="gap", name="jsd")
    model = mikd.Distiller(cases.teacher(), cases.student(), [critic])
    model.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    name = next(each.name for each in model.metrics if getattr(each, "of_epoch", False))
    saving = mikd.StudentCheckpoint(tmp_path / "a.keras", monitor=f"val_{name}", mode="min")
    data = cases.data(8)
    model.fit(*data, validation_data=data, verbose=0, callbacks=[saving])
    assert saving.best_epoch == 0


def test_other_models_and_unknown_peers_are_refused(tmp_path):
    path = tmp_path / "student.keras"
    plain = _network()
    plain.compile("sgd", cases.cross_entropy())
    with pytest.raises(ValueError, match="a distiller or an MCMITeacher.*ModelCheckpoint"):
        plain.fit(*_data(), verbose=0, callbacks=[mikd.StudentCheckpoint(path)])
    with pytest.raises(ValueError, match=r"one of \['student'\]. Received: network='peer1'"):
        _fit([mikd.StudentCheckpoint(path, network="peer1")])
    peers = mikd.MutualDistiller([_network(), _network()], [mikd.SoftTargets()])
    peers.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    saving = mikd.StudentCheckpoint(path, monitor="val_peer1_loss")
    with pytest.raises(ValueError, match=r"\['peer1', 'peer2'\]. Received: network=None"):
        _fit([saving], model=peers)


def test_a_file_whose_name_looks_like_a_pattern_is_not_overwritten(tmp_path):
    path = tmp_path / "run[1].keras"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        _fit([mikd.StudentCheckpoint(path)])
    assert path.read_bytes() == b"old"
