"""What files hold, and what is refused; a file is written whole and loaded whole."""

import copy
import os
import pickle

import cases
import h5py
import keras
import numpy as np
import pytest

import keras_mikd as mikd


def _distiller(optimizer="adam", *, dropout=0.0, wide=False):
    student = cases.network((4, 5) if wide else (3, 5), seed=2, dropout=dropout)
    losses = [mikd.SoftTargets(), mikd.Hint(teacher_layer="stage2", student_layer="stage2")]
    distiller = mikd.Distiller(cases.teacher(), student, losses)
    distiller.compile(optimizer, cases.cross_entropy(), run_eagerly=True)
    return distiller


def _fit(distiller, **options):
    distiller.fit(*cases.data(8), batch_size=4, shuffle=False, verbose=0, **options)
    return distiller


def _values(distiller):
    return [variable.numpy() for variable in distiller.run_variables()]


def _assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# Formats that hold no teacher.


def _from_json(distiller, path):
    distiller.save_weights(path / "d.weights.h5")
    model = keras.models.model_from_json(distiller.to_json())
    model.compile("adam", cases.cross_entropy(), run_eagerly=True)
    model.load_weights(path / "d.weights.h5")
    return model


def _from_h5(distiller, path):
    keras.saving.save_model(distiller, path / "d.h5")  # Past the method that refuses.
    return keras.saving.load_model(path / "d.h5", {"Distiller": mikd.Distiller})


def _from_config(distiller, path):
    return type(distiller).from_config(distiller.get_config())


@pytest.mark.parametrize(
    "made", [_from_json, _from_h5, _from_config, lambda d, path: keras.models.clone_model(d)]
)
def test_a_teacher_that_nobody_gave_weights_trains_nobody(made, tmp_path):
    distiller = _distiller()
    model = made(distiller, tmp_path)
    model.compile("adam", cases.cross_entropy(), run_eagerly=True)
    with pytest.raises(ValueError, match="a teacher with trained weights.*out of a configuration"):
        _fit(model)
    with pytest.raises(ValueError, match="a teacher with trained weights"):
        model.evaluate(*cases.data(8), verbose=0)
    with pytest.raises(ValueError, match="a teacher with trained weights"):
        model.train_on_batch(*cases.data(8))
    model.teacher.set_weights(distiller.teacher.get_weights())
    _fit(model)


@pytest.mark.parametrize("made", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_with_a_teacher_train(made):
    distiller = _distiller()
    model = made(distiller)
    _assert_same(model.teacher.get_weights(), distiller.teacher.get_weights())
    _fit(model)


def test_a_teacher_without_weights_needs_none():
    inputs = keras.Input(cases.IMAGE_SHAPE)
    flat = keras.layers.Flatten()(inputs)
    teacher = keras.Model(inputs, flat[:, : cases.NUM_CLASSES] * 2.0)
    model = mikd.Distiller(teacher, cases.student(), [mikd.SoftTargets()])
    model = keras.models.clone_model(model)
    model.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    _fit(model)


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_an_h5_file_of_a_whole_distiller_is_refused_before_the_first_step(suffix, tmp_path):
    distiller, path = _distiller(), tmp_path / f"distiller{suffix}"
    with pytest.raises(ValueError, match="Expected a path that ends in '.keras'. Received"):
        distiller.save(path)
    if suffix == ".h5":
        before = _values(distiller)
        with pytest.raises(ValueError, match="leaves out teachers"):
            _fit(distiller, callbacks=[keras.callbacks.ModelCheckpoint(path)])
        _assert_same(_values(distiller), before)
    assert list(tmp_path.iterdir()) == []


# Precision.


@pytest.mark.parametrize(
    ("saved_under", "loaded_under"), [("mixed_float16", "float32"), ("float32", "mixed_float16")]
)
@pytest.mark.parametrize("kind", ["distiller", "self", "mcmi", "mutual"])
def test_a_file_goes_on_under_another_precision(kind, saved_under, loaded_under, tmp_path):
    keras.config.set_dtype_policy(saved_under)
    make = {
        "distiller": _distiller,
        "self": lambda: mikd.SelfDistiller(cases.student(), []),
        "mcmi": lambda: mikd.MCMITeacher(cases.teacher()),
        "mutual": lambda: mikd.MutualDistiller(
            [cases.teacher(), cases.student()], [mikd.SoftTargets()]
        ),
    }
    first = make[kind]()
    loss = None if kind == "mcmi" else cases.cross_entropy()
    first.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)
    _fit(first)
    first.save(tmp_path / "d.keras")
    keras.config.set_dtype_policy(loaded_under)
    second = keras.saving.load_model(tmp_path / "d.keras")
    scaled = saved_under == "mixed_float16"
    assert isinstance(second.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    assert second.dtype_policy.name == saved_under
    assert int(second.optimizer.iterations) == int(first.optimizer.iterations) == 2
    _assert_same(_values(second), _values(first))


def test_a_half_precision_student_out_of_a_file_has_its_loss_scaled(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    cases.student().save(tmp_path / "student.keras")
    keras.config.set_dtype_policy("float32")
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert student.dtype_policy.name == "float32"  # Keras keeps the policy of layers only.
    distiller = mikd.MUSEDistiller(student)
    distiller.compile("sgd", cases.cross_entropy())
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    x, _ = cases.data(4)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))


def test_a_float32_student_in_a_half_precision_process_is_not_scaled():
    student = cases.student()
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Model(student.inputs, student.outputs)
    assert model.dtype_policy.name == "mixed_float16"
    distiller = mikd.SelfDistiller(model, [])
    assert distiller.dtype_policy.name == "float32"
    x, _ = cases.data(4)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))


# Weight files.


def _of_other_networks(path):
    _distiller(wide=True).save_weights(path)


def _of_another_optimizer(path):
    _distiller("rmsprop").save_weights(path)


def _of_an_optimizer_with_as_many_slots(path):
    _distiller(keras.optimizers.Adamax()).save_weights(path)


def _with(value):
    def spoiled(path):
        _distiller().save_weights(path)
        with h5py.File(path, "a") as file:
            names = []
            file.visit(names.append)
            (bias,) = (name for name in names if name.endswith("dense/vars/1"))
            file[bias][0] = value

    return spoiled


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_of_other_networks, "objects could not be loaded"),
        (_of_another_optimizer, "state of Adam. Received: RMSprop"),
        (_of_an_optimizer_with_as_many_slots, "state of Adam. Received: Adamax"),
        (_with(np.nan), "logits/bias has 1 numbers that are not finite"),
        (_with(np.inf), "has 1 numbers that are not finite"),
    ],
)
def test_a_weights_file_that_does_not_fit_changes_nothing(spoil, said, tmp_path):
    path = tmp_path / "d.weights.h5"
    spoil(path)
    distiller = _fit(_distiller())
    before = _values(distiller)
    with pytest.raises(ValueError, match="(?s)d.weights.h5', which does not fit.*" + said):
        distiller.load_weights(path)
    _assert_same(_values(distiller), before)


def test_a_missing_file_is_a_missing_file_and_weights_alone_are_loaded(tmp_path):
    distiller = _distiller()
    with pytest.raises(FileNotFoundError):
        distiller.load_weights(tmp_path / "none.weights.h5")
    plain = mikd.Distiller(cases.teacher(), cases.student(), [mikd.SoftTargets()])
    plain.save_weights(tmp_path / "plain.weights.h5")
    other = mikd.Distiller(cases.teacher(), cases.network((3, 5), seed=5), [mikd.SoftTargets()])
    other.compile("sgd", cases.cross_entropy())
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        other.load_weights(tmp_path / "plain.weights.h5")
    _assert_same(other.student.get_weights(), plain.student.get_weights())


@pytest.mark.parametrize("kind", ["whole", "weights"])
def test_dropout_goes_on_from_a_file(kind, tmp_path, deterministic_ops):
    first = _fit(_distiller(dropout=0.5))
    if kind == "whole":
        first.save(tmp_path / "d.keras")
        second = keras.saving.load_model(tmp_path / "d.keras")
    else:
        first.save_weights(tmp_path / "d.weights.h5")
        second = _distiller(dropout=0.5)
        second.load_weights(tmp_path / "d.weights.h5")
    second.run_eagerly = True
    _assert_same(_values(_fit(second)), _values(_fit(first)))


# Written whole.


@pytest.mark.parametrize("name", ["d.keras", "d.weights.h5"])
def test_a_write_that_fails_leaves_the_file_before(name, tmp_path, monkeypatch):
    path, distiller = tmp_path / name, _distiller()
    save = distiller.save if name == "d.keras" else distiller.save_weights
    save(path)
    before, replace = path.read_bytes(), os.replace

    def fails(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(os, "replace", replace)
    linked = tmp_path / f"link-{name}"
    linked.symlink_to(path)
    _fit(distiller)
    (distiller.save if name == "d.keras" else distiller.save_weights)(linked)
    assert linked.is_symlink()
    assert path.read_bytes() != before
