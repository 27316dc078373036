import keras
import numpy as np
import pytest

import detectors
import keras_mikd as mikd


def test_boxes_are_learned_and_the_critics_train():
    critic = mikd.JSDCritic(teacher_layer="P5", student_layer="P3", weight=0.1, name="critic")
    distiller = detectors.offline(losses=[critic])
    distiller.compile(keras.optimizers.Adam(0.01), **detectors.LOSSES, critic_optimizer="adam")
    before = [v.numpy() for v in critic.trainable_variables]
    history = detectors.fit(distiller, epochs=15, batch_size=8)
    assert history["box_loss"][-1] < 0.7 * history["box_loss"][0]
    assert history["classification_loss"][-1] < 0.7 * history["classification_loss"][0]
    assert any(name.endswith("_nats") for name in history)
    for old, variable in zip(before, critic.trainable_variables, strict=True):
        assert np.any(old != variable.numpy())


@pytest.mark.slow
def test_muse_with_a_teachers_backbone_and_pyramid_leaves_the_teacher():
    levels = ["P3", "P4", "P5"]
    pyramid = [f"feature_pyramid/{level}" for level in levels]
    losses = [
        detectors.muse(student_layer=levels),
        detectors.muse(teacher_layer="feature_pyramid/P5", student_layer=pyramid, name="pyramid"),
    ]
    distiller = detectors.eager(detectors.offline(losses=losses))
    teacher = [w.copy() for w in distiller.teacher.get_weights()]
    history = detectors.fit(distiller)
    for place in (*levels, *(name.replace("/", "_") for name in pyramid)):
        name = f"{'pyramid' if 'feature' in place else 'muse'}_{place}_mutual_nats"
        assert np.all(np.isfinite(history[name])), name
    for old, new in zip(teacher, distiller.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
