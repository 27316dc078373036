"""CRD with a memory of all training examples."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from crd_twins import TEMPERATURE, contrast, embedded
from random_features import random_features

import keras_mikd as mikd
from keras_mikd.critics.negatives import drawn_rows
from keras_mikd.losses.parts.memory_bank import index_scope

BANK, NEGATIVES = 12, 20


class Twin:
    """The authors' memory of both networks, float64: `contrast` is their loss of a direction."""

    def __init__(self, crd):
        self.crd = crd
        self.teacher, self.student = (
            np.array(x, "float64") for x in (crd.memory.teacher, crd.memory.student)
        )
        self.z = None

    def step(self, teacher, student, index, rows, classes=None):
        t, s = embedded(self.crd, teacher, student)
        known = np.full(BANK, -1) if classes is None else self.classes
        values, outs = [], []
        for anchor, memory in ((s, self.teacher), (t, self.student)):
            out = []
            for n, i in enumerate(index):
                own = rows != i if classes is None else (rows != i) & (known[rows] != classes[n])
                out.append(np.exp(memory[[i, *rows[own]]] @ anchor[n] / TEMPERATURE))
            outs.append(out)
        self.z = self.z or [np.concatenate(out).mean() * BANK for out in outs]
        for n in range(len(index)):
            values.append(
                sum(contrast(out[n][None] / z, BANK) for out, z in zip(outs, self.z, strict=True))
            )
        for memory, new in ((self.teacher, t), (self.student, s)):
            moved = 0.5 * memory[index] + 0.5 * new
            memory[index] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        if classes is not None:
            self.classes[index] = classes
        return values

    classes = np.full(BANK, -1)


def _crd(**kwargs):
    return mikd.CRD(
        **{"teacher_layer": "pooled", "student_layer": "pooled", "width": 6, "bank": BANK}
        | {"negatives": NEGATIVES}
        | kwargs
    )


@pytest.mark.parametrize("classes", [None, np.array([0, 1, 1])])
def test_values_and_memory_are_those_of_the_authors_code(classes, capsys):
    crd = _crd(negatives_from="batch" if classes is None else "other_classes")
    crd.build((None, 3), (None, 4))
    assert f"a memory of 12 examples, {4 * 12 * (6 + 6 + 1)} bytes" in capsys.readouterr().out
    twin, rows = Twin(crd), np.array(drawn_rows(NEGATIVES, BANK))
    for step, index in enumerate(([0, 5, 11], [5, 1, 2], [0, 1, 2])):
        teacher, student = random_features(((3, 3), (3, 4)), seed=step)
        with index_scope(tf.constant(index)):
            values = crd(teacher, student, labels=classes, training=True)
        expected = twin.step(teacher, student, np.array(index), rows, classes)
        np.testing.assert_allclose(values, expected, rtol=1e-4)
    np.testing.assert_allclose(crd.memory.teacher, twin.teacher, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(crd.memory.student, twin.student, rtol=1e-4, atol=1e-6)


def test_gradients_reach_both_maps():
    crd = _crd()
    crd.build((None, 3), (None, 4))
    with index_scope(tf.constant([0, 5, 11])), tf.GradientTape() as tape:
        values = crd(*random_features(((3, 3), (3, 4))), training=True)
    gradients = tape.gradient(values, crd.trainable_weights)
    assert len(gradients) == 4
    assert all(np.any(g.numpy() != 0) for g in gradients)


def test_evaluation_needs_no_index_and_leaves_the_memory_as_it_is():
    crd = _crd()
    teacher, student = random_features(((3, 3), (3, 4)))
    before = [np.array(v) for v in (crd(teacher, student, training=False), *crd.variables)]
    after = [np.array(v) for v in (crd(teacher, student, training=False), *crd.variables)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_index_outside_of_the_memory_is_not_silent():
    crd = _crd()
    with index_scope(tf.constant([0, 12, -1])):
        values = crd(*random_features(((3, 3), (3, 4))), training=True)
    np.testing.assert_array_equal(np.isfinite(values), [True, False, False])


def _compiled(loss, **kwargs):
    distiller = cases.distiller_with(loss)
    distiller.compile(keras.optimizers.SGD(0.05), cases.cross_entropy(), **kwargs)
    return distiller


def _batches(examples=BANK):
    x, y = cases.data(examples)
    return tf.data.Dataset.from_tensor_slices((x, y, np.arange(examples))).batch(4)


def _fit(distiller):
    history = distiller.fit(mikd.with_index(_batches()), epochs=2, shuffle=False, verbose=0)
    assert np.isfinite(history.history["crd_pooled"]).all()
    return [v.numpy() for v in distiller.variables]


def test_batches_without_an_index_are_refused():
    with pytest.raises(ValueError, match="Expected batches with the index of every example"):
        _compiled(_crd()).fit(*cases.data(BANK), batch_size=4, verbose=0)


def test_validation_takes_plain_batches():
    distiller = _compiled(_crd())
    distiller.fit(
        mikd.with_index(_batches()), validation_data=cases.data(4), verbose=0, shuffle=False
    )


def test_replicas_and_xla_give_the_weights_and_the_memory_of_one_device(two_replicas):
    def new(gather=True, **kwargs):
        loss = _crd(temperature=0.5, negatives_from="other_classes", gather=gather)
        return _compiled(loss, **kwargs)

    alone = _fit(new(run_eagerly=True))
    with two_replicas.scope():
        on_two = [new(gather=gather) for gather in (True, False)]  # A memory is of all replicas.
    for other in map(_fit, [*on_two, new(jit_compile=True)]):
        for a, b in zip(alone, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_training_goes_on_from_a_file(tmp_path):
    distiller = _compiled(_crd())
    _fit(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    for a, b in zip(_fit(distiller), _fit(loaded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("arguments", [{"bank": 1}, {"negatives": 0}, {"momentum": 1.0}])
def test_bad_arguments_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` to be"):
        mikd.CRD(**arguments)
