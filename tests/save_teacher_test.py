"""A distiller's file without its teacher, which is asked for when the file is loaded."""

import copy
import zipfile

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


def _losses():
    return [mikd.SoftTargets(), mikd.Hint(teacher_layer="stage2", student_layer="stage2")]


def _distiller(teacher, losses=None, **options):
    losses = losses or _losses()
    distiller = mikd.Distiller(teacher, cases.student(), losses, save_teacher=False, **options)
    distiller.compile("adam", cases.cross_entropy(), run_eagerly=True)
    return distiller


def _fit(distiller, **options):
    x, y = cases.data(8)
    distiller.fit(x, y, batch_size=4, shuffle=False, verbose=0, **options)
    return distiller


def _load(path, **given):
    return keras.saving.load_model(path, custom_objects=given)


def _assert_same(one, other):
    for a, b in zip(one.run_variables(), other.run_variables(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_training_goes_on_from_a_file_that_holds_no_teacher(tmp_path):
    teacher, path = cases.teacher(dropout=0.5), tmp_path / "d.keras"
    first = _fit(_distiller(teacher), callbacks=[keras.callbacks.ModelCheckpoint(path)])
    with zipfile.ZipFile(path) as file:
        config = file.read("config.json").decode()
    assert '"student"' in config and '"Dropout"' not in config  # Of the teacher alone.
    second = _load(path, teacher=teacher)
    assert second.teacher is teacher and second.save_teacher is False
    _assert_same(second, first)
    _assert_same(_fit(second), _fit(first))


def test_the_file_is_smaller_by_the_teacher(tmp_path):
    teacher = cases.network((64, 64), seed=1)
    distiller = _distiller(teacher, [mikd.SoftTargets()])
    distiller.save(tmp_path / "without.keras")
    distiller.save_teacher = True
    distiller.save(tmp_path / "with.keras")
    without, whole = ((tmp_path / f"{name}.keras").stat().st_size for name in ("without", "with"))
    assert whole - without > 4 * teacher.count_params() > without


def test_the_teacher_is_asked_for_and_recognised(tmp_path):
    teacher, path = cases.teacher(), tmp_path / "d.keras"
    _distiller(teacher).save(path)
    with pytest.raises(ValueError, match=r"Received: none for \['teacher'\].*custom_objects={'tea"):
        keras.saving.load_model(path)
    with pytest.raises(ValueError, match="`teacher` to be a keras.Model.*Load the file"):
        _load(path, teacher="teacher.keras")
    for other in (cases.teacher(), cases.network((6, 9), seed=1)):
        other.trainable_weights[0].assign_add(other.trainable_weights[0] + 1.0)
        with pytest.raises(ValueError, match="'teacher' with which.*other weights or layers"):
            _load(path, teacher=other)
    teacher.save(tmp_path / "teacher.keras")
    _load(path, teacher=keras.saving.load_model(tmp_path / "teacher.keras"))


def test_several_teachers_are_given_by_name(tmp_path):
    given, path = {"a": cases.teacher(), "b": cases.network((4, 4), seed=3)}, tmp_path / "d.keras"
    _distiller(given, [mikd.SoftTargets()]).save(path)
    with pytest.raises(ValueError, match=r"none for \['b'\].*{'a': ..., 'b': ...}"):
        _load(path, a=given["a"])
    with pytest.raises(ValueError, match="the 'a' with which"):
        _load(path, a=given["b"], b=given["a"])
    assert _load(path, **given).teachers == given


def test_assembled_distillers_have_the_option(tmp_path):
    teacher, path = cases.teacher(), tmp_path / "d.keras"
    distiller = mikd.VIDDistiller(teacher, cases.student(), save_teacher=False)
    distiller.save(path)
    loaded = _load(path, teacher=teacher)
    assert type(loaded) is mikd.VIDDistiller
    _assert_same(loaded, distiller)


class Unsavable(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.build((None, *cases.IMAGE_SHAPE))

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        raise NotImplementedError


@keras.saving.register_keras_serializable("save_teacher_test")
def _read(model, x, training):
    return {"output": model(x)}


def test_a_teacher_that_keras_cannot_save_needs_no_saving(tmp_path):
    teacher, path = Unsavable(cases.teacher()), tmp_path / "d.keras"
    distiller = _distiller(teacher, [mikd.SoftTargets()], teacher_features=_read)
    distiller.save(path)
    _fit(_load(path, teacher=teacher))


def test_weights_of_what_makes_the_teachers_inputs_are_in_the_file(tmp_path):
    normalization = keras.layers.Normalization()
    normalization.adapt(cases.data(8)[0] * 3 + 1)
    teacher, path = cases.teacher(), tmp_path / "d.keras"
    distiller = _distiller(teacher, teacher_inputs=normalization)
    distiller.save(path)
    loaded = _load(path, teacher=teacher)
    np.testing.assert_array_equal(loaded.teacher_inputs.mean, normalization.mean)
    _fit(loaded)
    with keras.saving.custom_object_scope({"teacher": teacher}):
        twin = keras.models.clone_model(distiller)  # A configuration holds no weights.
    twin.compile("adam", cases.cross_entropy(), run_eagerly=True)
    with pytest.raises(ValueError, match="out of a configuration.*normalization"):
        _fit(twin)


@pytest.mark.parametrize("made", [keras.models.clone_model, copy.deepcopy])
def test_copies_are_made_with_the_teacher_of_the_caller_and_train(made):
    teacher = cases.teacher()
    distiller = _distiller(teacher)
    with pytest.raises(ValueError, match="Received: none for"):
        made(distiller)
    with keras.saving.custom_object_scope({"teacher": teacher}):
        twin = made(distiller)
    assert twin.teacher is teacher
    twin.compile("adam", cases.cross_entropy(), run_eagerly=True)
    _fit(twin)


@pytest.mark.parametrize("saves", [True, False])
def test_weight_files_hold_no_teacher_either_way(saves, tmp_path):
    path, files = tmp_path / "d.weights.h5", []
    for _ in range(2):
        distiller = mikd.Distiller(cases.teacher(), cases.student(), _losses(), save_teacher=saves)
        distiller.compile("adam", cases.cross_entropy(), run_eagerly=True)
        files.append(distiller)
    _fit(files[0]).save_weights(path)
    files[1].teacher.trainable_weights[0].assign_add(files[1].teacher.trainable_weights[0])
    before = files[1].teacher.get_weights()
    files[1].load_weights(path)
    _assert_same(files[0], files[1])
    for a, b in zip(before, files[1].teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_option_is_a_bool():
    with pytest.raises(ValueError, match="`save_teacher` to be True or False. Received: save_teac"):
        mikd.Distiller(cases.teacher(), cases.student(), _losses(), save_teacher="no")
