"""A teacher of other classes than the student's."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd

CLASSES = 7


def _teacher(classes=CLASSES):
    return cases.network((6, 8), classes=classes, seed=1)


def _compiled(losses, teacher=None, loss=None, student=None):
    teacher, student = teacher or _teacher(), student or cases.student()
    losses = losses(teacher, student) if callable(losses) else losses
    distiller = mikd.Distiller(teacher, student, losses, xla_critics=False)
    distiller.compile("adam", loss or cases.cross_entropy(), run_eagerly=True)
    return distiller


FEATURES = {
    "lwf": lambda t, s: [mikd.LwF()],
    "hint": mikd.recipes.hint,
    "attention_transfer": mikd.recipes.attention_transfer,
    "vid": lambda t, s: mikd.recipes.vid(t, s, logits_weight=1.0),
    "mimkd": mikd.recipes.mimkd,
    "info_nce": mikd.recipes.info_nce,
    "muse": mikd.recipes.muse,
    "teacher_logits": lambda t, s: [mikd.JSDCritic(teacher_layer="output")],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", FEATURES.values(), ids=FEATURES)
def test_features_and_logits_of_a_teacher_of_other_classes_are_learned(losses, capsys):
    """Nothing is refused, and the teacher is not judged by labels that are not its own."""
    x, y = cases.data(64)
    distiller = _compiled(losses)
    before = [v.numpy() for v in distiller.student.trainable_variables]
    history = distiller.fit(x, y, verbose=2).history
    assert all(np.isfinite(values).all() for values in history.values())
    moved = zip(before, distiller.student.trainable_variables, strict=True)
    assert all(np.any(old != new) for old, new in moved)
    assert "has 7 classes and the labels 4, so this cannot tell" in capsys.readouterr().out


def test_logits_of_other_classes_are_refused_without_a_map():
    message = r"same classes.*\(None, 7\).*\(None, 4\).*`teacher_classes`.*keras_mikd.LwF"
    with pytest.raises(ValueError, match=message):
        _compiled([mikd.SoftTargets()])


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
def test_a_teacher_is_judged_by_the_classes_that_a_loss_maps(capsys):
    x, _ = cases.data(500)
    teacher = _teacher()
    head = teacher.get_layer("logits")
    head.kernel.assign(30 * head.kernel)
    head.bias.assign(-np.mean(teacher(x), axis=0))  # So that it puts out every class.
    p = tf.nn.softmax(teacher(x)).numpy()
    y = np.argmax([p[:, group].sum(1) for group in ([6], [0], [3, 1], [5])], axis=0)
    assert len(np.unique(y[:256])) == 4
    right = mikd.SoftTargets(teacher_classes=[6, 0, [3, 1], 5])
    _compiled([right], teacher).fit(x, y, verbose=2)
    assert "The teacher is right for 100.0% of the first 256" in capsys.readouterr().out
    turned = mikd.SoftTargets(teacher_classes=[0, [3, 1], 5, 6])
    with pytest.warns(UserWarning, match="near chance for 4.*classes of these labels in their"):
        _compiled([turned], teacher).fit(x, y, verbose=0)


def test_the_second_head_is_saved_with_the_distiller_and_no_part_of_the_student(tmp_path):
    x, y = cases.data()
    distiller = _compiled([mikd.LwF(weight=0.5)])
    distiller.fit(x, y, shuffle=False, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.distillation_losses[0].head.kernel.shape == (5, CLASSES)
    for each in (distiller, loaded):
        each.fit(x, y, shuffle=False, verbose=0)
    for a, b in zip(distiller.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)
    plain = cases.student()
    assert [v.path for v in distiller.student.variables] == [v.path for v in plain.variables]
    distiller.student.save(tmp_path / "student.keras")
    alone = keras.saving.load_model(tmp_path / "student.keras")
    assert alone.output_shape == (None, cases.NUM_CLASSES)


def test_labels_of_several_classes_disturb_no_second_head():
    x, _ = cases.data()
    y = np.float32(np.random.default_rng(0).integers(2, size=(16, cases.NUM_CLASSES)))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    assert np.isfinite(_compiled([mikd.LwF()], loss=loss).fit(x, y, verbose=0).history["loss"])


def test_a_feature_of_the_student_may_be_anything_and_the_teacher_has_to_put_out_logits():
    """Shares at the student's place are a feature like others."""
    inputs = keras.Input(cases.IMAGE_SHAPE)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3)(inputs))
    shares = keras.layers.Softmax(name="shares")(pooled)
    student = keras.Model(inputs, keras.layers.Dense(cases.NUM_CLASSES)(shares))
    x, y = cases.data()
    distiller = _compiled([mikd.LwF(student_layer="shares")], student=student)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"])
    model = _teacher()
    named = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
    with pytest.raises(ValueError, match="Expected logits, since 'lwf_pooled'.*teacher"):
        _compiled([mikd.LwF()], teacher=named)
    hidden = keras.Model(model.inputs, keras.layers.Lambda(tf.nn.softmax)(model.outputs[0]))
    with pytest.raises(ValueError, match="Expected logits, since 'lwf_pooled'.*of the teacher"):
        _compiled([mikd.LwF()], teacher=hidden).fit(x, y, verbose=0)


def test_a_cache_of_a_teacher_of_other_classes():
    x, y = cases.data()
    teacher = _teacher()
    cache = mikd.TeacherCache(teacher, x, y, top_k=3).build(verbose=0)
    losses = [mikd.LwF(), mikd.SoftTargets(teacher_classes=[6, [0, 1], 3, 5])]
    distiller = _compiled(losses, teacher=teacher)
    history = distiller.fit(cache.batches(8), shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"])


def test_labels_of_mixed_images_have_the_students_classes():
    x, y = cases.data()
    few = _teacher(classes=3)
    with pytest.raises(ValueError, match="integers from 0 to 2.*set `num_classes`"):
        mikd.TeacherCache(few, x, y, mix="mixup")
    for teacher in (few, _teacher()):
        cache = mikd.TeacherCache(teacher, x, y, mix="mixup", num_classes=cases.NUM_CLASSES)
        batches = cache.build(verbose=0).batches(8)
        assert next(iter(batches)).y.shape == (8, cases.NUM_CLASSES)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        distiller = _compiled([mikd.LwF()], teacher, loss)
        assert np.isfinite(distiller.fit(batches, shuffle=False, verbose=0).history["loss"])
