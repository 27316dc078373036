"""Read-outs that only some steps of training update."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


def _losses():
    return [
        mikd.GaussianVIDHead(teacher_layer="stage2", student_layer="stage2", name="vid"),
        mikd.JSDCritic(teacher_layer="stage2", student_layer="stage2", name="jsd"),
    ]


def _distiller(every, kind="distiller", **options):
    options = {"readout_every": every, "xla_critics": False, **options}
    if kind == "distiller":
        return mikd.Distiller(cases.teacher(), cases.student(), _losses(), **options)
    if kind == "self":
        within = mikd.JSDCritic(teacher_layer="stage2", student_layer="stage1", name="jsd")
        return mikd.SelfDistiller(cases.student(), [within], **options)
    return mikd.MutualDistiller([cases.student(), cases.student()], _losses()[1:], **options)


def _compiled(distiller, **options):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    distiller.compile(optimizer, cases.cross_entropy(), **options)
    return distiller


def _fit(distiller, examples=40, epochs=2, **options):
    x, y = cases.data(examples)
    validation = cases.data(16)
    return distiller.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=validation,
        **options,
    ).history


def _read_examples(distiller):
    """How many examples the critic's read-out has seen in the epoch."""
    return float(distiller.distillation_losses[-1].mi_nats.sums[0])


@pytest.mark.parametrize(
    ("kind", "every", "eagerly"),
    [("distiller", 3, False), ("self", None, True), ("mutual", 3, True), ("mutual", None, True)],
)
def test_training_is_the_same_and_validation_reads_everything(kind, every, eagerly):
    always, seldom = (
        _compiled(_distiller(number, kind), run_eagerly=eagerly) for number in (1, every)
    )
    histories = _fit(always), _fit(seldom)
    for a, b in zip(always.trainable_variables, seldom.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, values in histories[1].items():
        if not any(name.endswith(f"_{what}") for what in ("nats", "nats_se")):
            continue
        if name.startswith("val_"):
            np.testing.assert_allclose(values, histories[0][name], rtol=1e-5, err_msg=name)
        else:
            assert values != histories[0][name], name  # Those of fewer steps.
    missing = histories[0].keys() - histories[1].keys()
    assert bool(missing) == (every is None)
    assert not any(name.startswith("val_") for name in missing)


class _Counts(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.read, self.batches = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)
        self.read.append(_read_examples(self.model))


@pytest.mark.parametrize(
    ("every", "options", "expected"),
    [
        (1, {}, [8, 16, 24, 32, 40]),
        (2, {}, [8, 8, 16, 16, 24]),
        (9, {"run_eagerly": True}, [8, 8, 8, 8, 8]),
        (None, {}, [0, 0, 0, 0, 0]),
        (2, {"steps_per_execution": 2}, [16, 16, 24]),
    ],
)
def test_the_first_step_of_every_epoch_and_then_every_so_many(every, options, expected):
    distiller, counts = _compiled(_distiller(every), **options), _Counts()
    _fit(distiller, callbacks=[counts])
    assert counts.read == expected * 2
    assert distiller.readout_turns.due  # Outside of `fit` every step reads.
    distiller.reset_metrics()
    distiller.train_on_batch(*cases.data(8))
    assert _read_examples(distiller) == 8


def test_without_read_outs_in_training_the_logs_have_those_of_validation_alone(recwarn):
    history = _fit(_compiled(_distiller(None)))
    names = {name.removeprefix("val_") for name in history if name.startswith("val_")}
    readouts = {"vid_gaussian_nats", "jsd_mi_nats", "jsd_mi_nats_se", "jsd_mi_nats_limit"}
    assert names - history.keys() == readouts
    assert {"vid", "jsd", "task_loss", "loss"} <= history.keys()
    assert not [w for w in recwarn if "is logged as 0" in str(w.message)]


def test_it_goes_with_balance_and_comes_back_from_a_file(tmp_path):
    distiller = _compiled(_distiller(2, balance="gradient", balance_every=3))
    counts = _Counts()
    _fit(distiller, callbacks=[counts])
    assert counts.read == [8, 8, 16, 16, 24] * 2
    shares = distiller.gradient_balance.shares.numpy()
    np.testing.assert_allclose(shares.sum(), 1.0, rtol=1e-5)
    distiller.save(tmp_path / "distiller.keras")
    assert keras.saving.load_model(tmp_path / "distiller.keras").readout_every == 2


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "all"])
def test_other_numbers_are_refused(every):
    with pytest.raises(ValueError, match="Expected `readout_every` to be"):
        _distiller(every)


def test_it_cannot_be_changed_later():
    with pytest.raises(AttributeError, match="readout_every"):
        _compiled(_distiller(2)).readout_every = 1


if __name__ == "__main__":
    pytest.main([__file__])
