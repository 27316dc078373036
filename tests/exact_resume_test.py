import pathlib
import re
import subprocess
import sys

import cases
import keras
import numpy as np
import pytest
import resumed_run
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.checkpoints import run_state
from keras_mikd.keras_internals import unseeded_draws


class _Interrupt(keras.callbacks.Callback):
    """Interrupts training at the beginning of a batch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self._at = (epoch, batch)
        self._now = None

    def on_epoch_begin(self, epoch, logs=None):
        self._now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self._now, batch) == self._at:
            raise KeyboardInterrupt


def _interrupted(kind, folder, moments, **options):
    for moment in moments:
        with pytest.raises(KeyboardInterrupt):
            resumed_run.fit(kind, folder, [_Interrupt(*moment)], **options)
    return resumed_run.fit(kind, folder, **options)


def _assert_same(whole, other):
    assert whole.keys() == other.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


STEPS = {"save_freq": 2}


@pytest.mark.parametrize(
    ("kind", "options", "moments"),
    [
        ("mcmi", {}, [(2, 3)]),
        *(
            pytest.param(kind, options, [(0, 3), (1, 5), (3, 0)], marks=pytest.mark.slow)
            for kind in resumed_run.FITS
            for options in ({}, STEPS)
        ),
    ],
)
def test_an_interrupted_run_ends_with_the_variables_and_history_of_an_undisturbed_one(
    kind, options, moments, tmp_path, deterministic_ops
):
    whole = resumed_run.fit(kind, tmp_path / "whole")
    _assert_same(whole, _interrupted(kind, tmp_path / "other", moments, **options))


def _killed(folder, *arguments):
    here = pathlib.Path(__file__).parent
    command = [sys.executable, here / "kill_runs.py", f"--folder={folder}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_process_that_is_killed_goes_on(tmp_path):
    shown = _killed(tmp_path, "--kills=2", "--runs", "dropout, by steps")
    assert re.search(r"[23] kills of \d runs, 0 with a fault", shown)
    assert shown == _killed(tmp_path, "--kills=2", "--runs", "dropout, by steps")  # Nothing anew.


@pytest.mark.slow
def test_forty_kills(tmp_path):
    assert re.search(r"4[01] kills of \d+ runs, 0 with a fault", _killed(tmp_path, "--kills=40"))


def _model(**options):
    """A distiller that is quick to train."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    distiller = mikd.SelfDistiller(model, [], **options)
    distiller.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    return distiller


def _data(number=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(number, 3)), rng.normal(size=(number, 2))


def _fit(folder, callbacks=(), *, data=None, model=None, **options):
    """Trains on arrays of three batches in their order."""
    options = {"epochs": 3, "batch_size": 2, "shuffle": False, "verbose": 0, **options}
    resume = mikd.ExactResume(folder, verbose=False)
    model = model or _model()
    data = _data() if data is None else data
    return model, model.fit(*data, callbacks=[resume, *callbacks], **options)


def test_a_run_that_has_ended_is_told_from_one_that_goes_on(tmp_path, capsys):
    def fit(epochs):
        resume = mikd.ExactResume(tmp_path)
        options = {"batch_size": 2, "shuffle": False, "verbose": 0}
        history = _model().fit(*_data(), epochs=epochs, callbacks=[resume], **options)
        return len(history.epoch), capsys.readouterr().out.partition(" (")[0]

    assert fit(2) == (2, "")
    assert fit(2) == (2, "ExactResume: the run has ended after epoch 2")
    assert fit(3) == (3, "ExactResume: goes on with epoch 3")


@pytest.mark.parametrize("epochs", [3, 5])
def test_a_run_goes_on_to_more_epochs_and_shows_their_number(epochs, tmp_path, capsys):
    for number in (2, epochs):
        resume = mikd.ExactResume(tmp_path, verbose=False)
        options = {"batch_size": 2, "shuffle": False, "verbose": 2}
        _model().fit(*_data(), epochs=number, callbacks=[resume], **options)
    assert f"Epoch {epochs}/{epochs}" in capsys.readouterr().out


def test_another_schedule_is_another_run(tmp_path):
    def model(rate, steps, weight):
        schedules = keras.optimizers.schedules
        keras.utils.set_random_seed(0)
        fades = schedules.PiecewiseConstantDecay([2], [weight, 0.0])
        made = cases.distiller_with(mikd.SoftTargets(weight=fades, name="kd"))
        decay = schedules.CosineDecay(rate, steps)
        made.compile(keras.optimizers.SGD(decay), cases.cross_entropy(), run_eagerly=True)
        return made

    data = cases.data(8)
    _fit(tmp_path, data=data, model=model(1e-2, 12, 1.0), epochs=1)
    for other in ((1e-4, 12, 1.0), (1e-2, 24, 1.0), (1e-2, 12, 2.0)):
        with pytest.raises(ValueError, match="which has .*(rate|weight|steps).*Name another"):
            _fit(tmp_path, data=data, model=model(*other), epochs=2)
    _fit(tmp_path, data=data, model=model(1e-2, 12, 1.0), epochs=2)


def _head(**options):
    places = {"teacher_layer": "pooled", "student_layer": "pooled"}
    return lambda: [mikd.GaussianVIDHead(**places, name="own", **options)]


def _critic(**options):
    places = {"teacher_layer": "pooled", "student_layer": "pooled"}
    return lambda: [mikd.JSDCritic(**places, name="own", **options)]


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"losses": _head()}, {"losses": _head(reduction="sum")}, "'own' reduction="),
        (
            {"losses": _critic()},
            {"losses": _critic(bound=mikd.bounds.donsker_varadhan)},
            "'own' bound=",
        ),
        ({}, {"task": None}, "loss=SparseCategoricalCrossentropy"),
        ({}, {"losses": lambda: [*_head()(), mikd.SoftTargets(name="kd")]}, "'kd'=SoftTargets"),
        ({}, {"optimizer": "adam"}, "optimizer 1=SGD"),
        ({}, {"balance": "gradient"}, "balance=None"),
    ],
)
def test_another_objective_is_another_run(first, second, named, tmp_path):
    one_head = _head()

    def model(losses=one_head, task=cases.cross_entropy, optimizer="sgd", **options):
        keras.utils.set_random_seed(0)
        networks = cases.teacher(), cases.student()
        made = mikd.Distiller(*networks, losses(), xla_critics=False, **options)
        made.compile(optimizer, task and task(), run_eagerly=True)
        return made

    data = cases.data(8)
    _fit(tmp_path, data=data, model=model(**first), epochs=1)
    with pytest.raises(ValueError, match=re.escape(named)):
        _fit(tmp_path, data=data, model=model(**second), epochs=2)
    _fit(tmp_path, data=data, model=model(**first), epochs=2)


def test_a_schedule_may_weigh_the_task(tmp_path):
    def model(end):
        fades = keras.optimizers.schedules.PolynomialDecay(1.0, 6, end_learning_rate=end)
        return _model(task_loss_weight=fades)

    _fit(tmp_path, model=model(0.5), epochs=1)
    with pytest.raises(ValueError, match="task_loss_weight end_learning_rate=0.5"):
        _fit(tmp_path, model=model(0.1), epochs=2)
    _fit(tmp_path, model=model(0.5), epochs=2)


@pytest.mark.parametrize("epochs", [1, 2])
def test_data_of_another_order_is_found_by_its_first_batch(epochs, tmp_path):
    def batches(seed):  # As image_dataset_from_directory, which draws a seed.
        data = tf.data.Dataset.from_tensor_slices(_data(12))
        return data.shuffle(12, seed=seed).batch(4)

    def fit(seed, epochs, folder):
        resume = mikd.ExactResume(folder, verbose=False)
        model = _model()
        model.fit(batches(seed), epochs=epochs, shuffle=False, verbose=0, callbacks=[resume])
        return [v.numpy() for v in model.trainable_variables]

    fit(1, epochs, tmp_path / "run")
    with pytest.raises(ValueError, match="Received: another first batch. Give the data a seed"):
        fit(2, 3, tmp_path / "run")
    for a, b in zip(fit(1, 3, tmp_path / "run"), fit(1, 3, tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)


class _Shuffled(keras.utils.PyDataset):
    """Batches in a new order in every epoch."""

    def __init__(self):
        super().__init__()
        self._rng, self._order = np.random.default_rng(3), np.arange(6)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = self._order[2 * index : 2 * index + 2]
        return tuple(part[rows] for part in _data())

    def on_epoch_end(self):
        self._rng.shuffle(self._order)


def _generated():
    for rng in map(np.random.default_rng, range(9)):
        yield rng.normal(size=(2, 3)), rng.normal(size=(2, 2))


def _slices():
    return tf.data.Dataset.from_tensor_slices(_data())


def _noisy(x, y):
    return x + tf.random.uniform((3,), dtype=tf.float64), y


SOURCES = {
    "a PyDataset": lambda: {"x": _Shuffled(), "shuffle": False},
    "a generator": lambda: {"x": _generated(), "steps_per_epoch": 3, "shuffle": False},
    "endless data": lambda: {
        "x": _slices().shuffle(6).repeat().batch(2),
        "steps_per_epoch": 3,
        "shuffle": False,
    },
    "epochs that end inside the data": lambda: {
        "x": _slices().shuffle(6).repeat(9).batch(2),
        "steps_per_epoch": 4,
        "shuffle": False,
    },
    "noise": lambda: {"x": _slices().map(_noisy).batch(2), "shuffle": False},
    "a shuffle in front of a cache": lambda: {
        "x": _slices().shuffle(6).cache().batch(2),
        "shuffle": False,
    },
    "weights and a split": lambda: {
        **dict(zip("xy", _data(12), strict=True)),
        "batch_size": 2,
        "sample_weight": np.arange(12.0),
        "validation_split": 0.5,
    },
    "a later first epoch": lambda: {"x": _slices().shuffle(6).batch(2), "initial_epoch": 1},
}


@pytest.mark.parametrize("source", SOURCES)
def test_data_of_every_kind_is_read_as_far_as_it_was(source, tmp_path):
    def fit(folder, *interruptions):
        model = _model()
        options = {"epochs": 3, "verbose": 0, "shuffle": source.startswith("weights")}
        resume = mikd.ExactResume(tmp_path / folder, save_freq=1, verbose=False)
        callbacks = [keras.callbacks.LearningRateScheduler(lambda e: 0.1 / (e + 1)), resume]
        history = model.fit(**options | SOURCES[source](), callbacks=[*callbacks, *interruptions])
        return {str(i): v.numpy() for i, v in enumerate(model.run_variables())}, history.history

    whole, logs = fit("whole")
    for moment in ((1, 1), (2, 2)):
        with pytest.raises(KeyboardInterrupt):
            fit("other", _Interrupt(*moment))
    other, resumed = fit("other")
    _assert_same(whole, other)
    assert resumed == logs


def test_several_steps_in_one_execution_and_a_log_go_on(tmp_path):
    def fit(folder, *callbacks):
        model = _model()
        model.compile("adam", "mse", steps_per_execution=2)
        log = keras.callbacks.CSVLogger(tmp_path / f"{folder}.csv")  # Without append=True.
        try:
            return _fit(tmp_path / folder, [log, *callbacks], data=_data(14), model=model)
        finally:
            log.csv_file.close()

    whole, logs = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("other", _Interrupt(2, 4))
    other, resumed = fit("other")
    assert resumed.history == logs.history
    _assert_same(*({str(i): v.numpy() for i, v in enumerate(m.weights)} for m in (whole, other)))
    rows = [(tmp_path / f"{name}.csv").read_text() for name in ("whole", "other")]
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) == 1 + 3


@pytest.mark.slow
def test_replicas_go_on_in_the_middle_of_an_epoch(two_replicas, tmp_path, deterministic_ops):
    def fit(folder, *callbacks):
        keras.utils.set_random_seed(0)
        with two_replicas.scope():
            distiller = resumed_run.distilled(True)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            distiller.compile("adam", loss, metrics=["accuracy"])
        resume = mikd.ExactResume(tmp_path / folder, save_freq=1, verbose=False)
        history = distiller.fit(
            resumed_run.shuffled(),
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[resume, *callbacks],
        )
        return {str(i): v.numpy() for i, v in enumerate(distiller.run_variables())}, history.history

    whole, logs = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("other", _Interrupt(1, 2))
    other, resumed = fit("other")
    for name, value in whole.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=1e-6, err_msg=name)
    for name, values in logs.items():
        np.testing.assert_allclose(values, resumed[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_run_that_has_ended_returns_at_once_and_more_epochs_go_on_from_it(tmp_path):
    first, ended = _fit(tmp_path)
    without = _model().fit(*_data(), epochs=3, batch_size=2, shuffle=False, verbose=0)
    assert ended.history == without.history
    again, history = _fit(tmp_path)
    assert history.history == ended.history
    assert history.epoch == [0, 1, 2]
    np.testing.assert_array_equal(again.get_weights()[0], first.get_weights()[0])
    assert mikd.ExactResume(tmp_path).epoch == 3
    more, history = _fit(tmp_path, epochs=5)
    whole, longer = _fit(tmp_path / "whole", epochs=5)
    assert history.history == longer.history
    np.testing.assert_array_equal(more.get_weights()[0], whole.get_weights()[0])


def test_a_second_fit_on_the_same_data_goes_on_too(tmp_path):
    def script(folder, *interruptions):
        data = (_slices().shuffle(6).batch(2),)
        model = _model()
        for phase, callbacks in enumerate(((), interruptions)):
            options = {"data": data, "model": model, "batch_size": None}
            _fit(tmp_path / f"{folder}{phase}", callbacks, **options)
        return model.get_weights()

    whole = script("whole")
    with pytest.raises(KeyboardInterrupt):
        script("other", _Interrupt(1, 2))
    for a, b in zip(whole, script("other"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stopped_run_stays_stopped_and_other_fits_of_the_model_begin_at_0(tmp_path):
    def stopping():
        return keras.callbacks.EarlyStopping("loss", min_delta=9.0, restore_best_weights=True)

    _, stopped = _fit(tmp_path, [stopping()], epochs=6)
    assert stopped.epoch == [0, 1]
    model, history = _fit(tmp_path, [stopping()], epochs=6)
    assert history.history == stopped.history
    assert model.fit(*_data(), epochs=2, verbose=0).epoch == [0, 1]


def test_what_callbacks_have_counted_goes_on_and_their_arguments_are_the_new_ones(tmp_path):
    def best():
        return keras.callbacks.EarlyStopping("loss", patience=3, mode="max")

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, [best(), _Interrupt(2, 0)], epochs=9)
    second = best()
    second.patience = 5
    _, history = _fit(tmp_path, [second], epochs=9)
    assert history.epoch == list(range(6))
    assert second.best == history.history["loss"][0]


def test_a_guard_gives_back_the_weights_of_an_epoch_before_the_kill(tmp_path):
    class Told(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            told = {"val_log_likelihood": [-0.1, -0.2, -0.2, -0.9], "val_cmi": [3.0, 2.0, 1.0, 0.0]}
            logs.update({name: values[epoch] for name, values in told.items()})

    def fit(folder, *callbacks):
        guard = mikd.LogLikelihoodGuard(-0.5, verbose=False)
        model, _ = _fit(tmp_path / folder, [Told(), guard, *callbacks], epochs=9)
        return guard, model.get_weights()

    guard, weights = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("other", _Interrupt(2, 1))
    resumed, others = fit("other")
    assert (resumed.best_epoch, resumed.stopped_epoch) == (0, 3)
    assert (guard.best_epoch, guard.stopped_epoch) == (0, 3)
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_plain_model_is_refused(tmp_path):
    model = _model().student
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Expected a distiller.*SelfDistiller"):
        model.fit(*_data(), callbacks=[mikd.ExactResume(tmp_path)], verbose=0)


@pytest.mark.slow
def test_a_data_set_of_unknown_length_goes_on_after_its_last_batch(tmp_path):
    def data():
        return (tf.data.Dataset.from_tensor_slices(_data()).batch(2).filter(lambda x, y: True),)

    with pytest.warns(UserWarning, match="ran out of data"):
        _, whole = _fit(tmp_path / "whole", data=data(), batch_size=None)

    class Stop(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            raise KeyboardInterrupt

    def fit(callbacks):
        resume = mikd.ExactResume(tmp_path / "other", save_freq=1, verbose=False)
        return _model().fit(
            *data(),
            epochs=3,
            shuffle=False,
            verbose=0,
            validation_data=_data(2),
            callbacks=[resume, *callbacks],
        )

    with pytest.warns(UserWarning, match="ran out of data"):
        with pytest.raises(KeyboardInterrupt):
            fit([Stop()])
        history = fit([])
    assert {k: v for k, v in history.history.items() if "val" not in k} == whole.history


def test_data_that_begins_with_the_epoch_is_not_read_again(tmp_path):
    def fit(folder, callbacks=()):
        resume = mikd.ExactResume(folder, replay_data=False, save_freq=1, verbose=False)
        epochs = [np.random.default_rng(epoch).normal(size=(6, 5)) for epoch in range(3)]
        data = tf.data.Dataset.from_tensor_slices(np.concatenate(epochs[resume.epoch :]))
        data = data.map(lambda row: (row[:3], row[3:])).batch(2)
        options = {"epochs": 3, "steps_per_epoch": 3, "shuffle": False, "verbose": 0}
        return _model().fit(data, callbacks=[resume, *callbacks], **options).history

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "other", [_Interrupt(1, 2)])
    assert mikd.ExactResume(tmp_path / "other").epoch == 1
    assert fit(tmp_path / "other") == fit(tmp_path / "whole")


def test_an_order_that_a_new_start_cannot_repeat_is_refused(tmp_path):
    model = _model()
    tf.random.set_seed(None)
    with pytest.raises(ValueError, match="same order.*Received: shuffle=True without a seed"):
        _fit(tmp_path, shuffle=True, model=model)
    _fit(tmp_path, model=model)
    unseeded = (_slices().shuffle(6).batch(2).prefetch(1),)
    with pytest.raises(ValueError, match="Received: ShuffleDataset without a seed. Call keras.uti"):
        _fit(tmp_path, data=unseeded, batch_size=None)


def test_draws_without_a_seed_are_found_anywhere_in_a_pipeline():
    def found():
        numbers = tf.data.Dataset.range(4)
        both = tf.data.Dataset.zip((numbers, tf.data.Dataset.random())).map(lambda *x: x)
        return [unseeded_draws(each) for each in (numbers.shuffle(4).batch(2), both, numbers)]

    assert found() == [None, None, None]
    tf.random.set_seed(None)
    assert found() == ["ShuffleDataset", "RandomDataset", None]
    assert unseeded_draws(tf.data.Dataset.range(4).shuffle(4, seed=0)) is None


def test_another_run_in_the_folder_is_refused(tmp_path):
    _fit(tmp_path)
    with pytest.raises(ValueError, match="which has steps=3. Received: steps=2. Name another"):
        _fit(tmp_path, batch_size=3)
    slower = _model()
    slower.compile(keras.optimizers.SGD(0.05), "mse")
    with pytest.raises(ValueError, match=r"optimizer 1 learning_rate=0.1.*Received:.*0.05"):
        _fit(tmp_path, model=slower)
    heavier = _model(task_loss_weight=2.0)
    with pytest.raises(ValueError, match="task_loss_weight=1.0. Received: task_loss_weight=2.0"):
        _fit(tmp_path, model=heavier)


def test_an_evaluation_before_the_first_epoch_changes_nothing(tmp_path):
    class Evaluates(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.evaluate(*_data(4), verbose=0)

    _, whole = _fit(tmp_path / "whole", shuffle=True)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "other", [Evaluates(), _Interrupt(1, 1)], shuffle=True)
    _, resumed = _fit(tmp_path / "other", [Evaluates()], shuffle=True)
    assert resumed.history == whole.history


def test_a_damaged_file_is_refused_by_name(tmp_path):
    _fit(tmp_path)
    path = tmp_path / "state.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    for damaged in (content, content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="state.npz', which is damaged"):
            _fit(tmp_path)


def test_two_are_refused_and_so_is_a_frequency_of_0(tmp_path):
    with pytest.raises(ValueError, match="Expected one ExactResume in `callbacks`. Received: 2"):
        _fit(tmp_path, [mikd.ExactResume(tmp_path)])
    with pytest.raises(ValueError, match="`save_freq` to be an int of at least 1"):
        mikd.ExactResume(tmp_path, save_freq=0)


def test_a_state_is_written_after_every_so_many_batches(tmp_path):
    resume = mikd.ExactResume(tmp_path, save_freq=2, verbose=False)
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        _model().fit(*_data(), callbacks=[resume, _Interrupt(0, 2)], **options)
    assert run_state.read(resume.path, arrays=False)["batch"] == 2


@pytest.mark.parametrize("kind", [int, np.int64])
def test_a_run_goes_on_with_another_patience(kind, tmp_path):
    def best(patience):
        return keras.callbacks.EarlyStopping("loss", patience=kind(patience), mode="max")

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, [best(3), _Interrupt(2, 0)], epochs=9)
    _, history = _fit(tmp_path, [best(5)], epochs=9)
    assert history.epoch == list(range(6))


class _Sum(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step, self.total = step, 0

    def on_epoch_end(self, epoch, logs=None):
        self.total += self.step


def test_two_callbacks_of_one_class_keep_their_own_state(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, [_Sum(1), _Sum(10), _Interrupt(1, 0)], epochs=2)
    resumed = [_Sum(1), _Sum(10)]
    _fit(tmp_path, resumed, epochs=2)
    assert [each.total for each in resumed] == [2, 20]


def test_a_state_holds_bfloat16(tmp_path):
    value = keras.ops.convert_to_numpy(keras.ops.cast([1.5, -2.0], "bfloat16"))
    run_state.write(tmp_path / "state.npz", {"variables": [value]})
    (read,) = run_state.read(tmp_path / "state.npz")["variables"]
    assert read.dtype == value.dtype
    np.testing.assert_array_equal(read, value)
