"""A teacher whose outputs are one more input, as in docs/tutorials/outside_teacher.md."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd


def _losses(maps, logits):
    head = mikd.GaussianVIDHead(teacher_layer=maps, student_layer="stage2", name="vid")
    return [head, mikd.SoftTargets(teacher_layer=logits, weight=0.9, name="kd")]


def _fitted(teacher, student, losses, x, y):
    keras.utils.set_random_seed(0)  # Of the head.
    distiller = mikd.Distiller(teacher, student, losses)
    distiller.compile(keras.optimizers.SGD(0.05), cases.cross_entropy())
    return distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history


def test_it_trains_as_the_network_that_the_outputs_are_of():
    x, y = cases.data(16)
    network, student = cases.teacher(), cases.student()
    start = student.get_weights()
    expected = _fitted(network, student, _losses("stage2", "output"), x, y)
    weights = student.get_weights()
    student.set_weights(start)

    taps = mikd.FeatureTaps(network, ["stage2", "output"])
    maps, logits = (np.asarray(taps(x, training=False)[name]) for name in ("stage2", "output"))
    image = student.input.name
    inputs = {
        image: student.input,
        "said_maps": keras.Input(maps.shape[1:], name="said_maps"),
        "said_logits": keras.Input(logits.shape[1:], name="said_logits"),
    }
    said = {n: keras.layers.Identity()(inputs[f"said_{n}"]) for n in ("maps", "logits")}
    stand_in = keras.Model(inputs, said)
    beside = keras.Model(inputs, student.output)
    x = {image: x, "said_maps": maps, "said_logits": logits}
    found = _fitted(stand_in, beside, _losses("output/maps", "output/logits"), x, y)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(student.get_weights(), weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
