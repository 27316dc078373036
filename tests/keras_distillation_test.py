"""What README.md says of `keras.distillation` holds of the Keras that is installed.

A test here that fails has good news: Keras is mended, and README.md and its page are to be changed.
What this library does instead is in `peer_defects_test.py`.
"""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.distillation import FeatureDistillation, LogitsDistillation


def _distiller(losses, *, student=None, optimizer=None, weight=0.5, **options):
    teacher, student = cases.teacher(), student or cases.student()
    distiller = keras.distillation.Distiller(teacher, student, losses, student_loss_weight=weight)
    options = {"run_eagerly": True, **options}
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), cases.cross_entropy(), **options)
    return distiller


def _step(distiller, **options):
    x, y = cases.data()
    return distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0, **options).history


def test_the_default_hands_raw_logits_to_a_divergence_of_probabilities():
    teacher, student = np.array([[3.0, 1.0, -2.0]]), np.array([[0.5, 0.2, 1.5]])
    p, q = (np.exp(z / 3.0) / np.exp(z / 3.0).sum() for z in (teacher, student))
    hinton = 9.0 * (p * np.log(p / q)).sum()
    theirs = float(LogitsDistillation(temperature=3.0).compute_loss(teacher, student))
    divergence = keras.losses.kl_divergence(tf.constant(teacher / 3.0), tf.constant(student / 3.0))
    assert theirs == pytest.approx(float(tf.reduce_mean(divergence)))
    assert theirs != pytest.approx(hinton, rel=1e-2)


def test_a_loss_given_as_a_string_counts_once_for_each_replica(two_replicas):
    def moved(scope):
        with scope:
            loss = FeatureDistillation("mse", None, None)
            distiller = _distiller([loss], weight=0.0, run_eagerly=False, jit_compile=False)
        before = [v.numpy() for v in distiller.student.trainable_variables]
        _step(distiller)
        after = distiller.student.trainable_variables
        return np.sqrt(
            sum(np.sum((a.numpy() - b) ** 2) for a, b in zip(after, before, strict=True))
        )

    alone = moved(tf.distribute.get_strategy().scope())
    assert moved(two_replicas.scope()) == pytest.approx(2.0 * alone, rel=1e-3)


def test_a_named_layer_runs_the_student_twice_and_evaluate_moves_its_batch_norm(monkeypatch):
    student = cases.student(normalize=True)
    calls = []
    normalization = keras.layers.BatchNormalization.call

    def counted(self, *args, **kwargs):
        calls.append(self.name)
        return normalization(self, *args, **kwargs)

    names = {"teacher_layer_name": "logits", "student_layer_name": "logits"}
    distiller = _distiller([FeatureDistillation("mse", **names)], student=student)
    monkeypatch.setattr(keras.layers.BatchNormalization, "call", counted)
    _step(distiller)
    assert calls.count("bn1") == 2
    moving = student.get_layer("bn1").moving_mean
    before = moving.numpy()
    distiller.evaluate(*cases.data(), verbose=0)
    assert not np.array_equal(before, moving)


def test_regularizers_and_sample_weights_are_dropped():
    stands_still = keras.optimizers.SGD(0.0)
    regularized = cases.student()
    regularized.get_layer("conv1").kernel.regularizer = keras.regularizers.L2(10.0)
    logits = LogitsDistillation()
    plain = _step(_distiller([logits], optimizer=stands_still))["loss"]
    heavy = _distiller([logits], student=regularized, optimizer=keras.optimizers.SGD(0.0))
    assert _step(heavy)["loss"] == pytest.approx(plain)
    assert _step(heavy, sample_weight=np.zeros(16))["loss"] == pytest.approx(plain)


def test_optimizer_slots_are_lost_when_it_is_saved(tmp_path):
    distiller = _distiller([LogitsDistillation()], optimizer=keras.optimizers.Adam())
    _step(distiller)
    distiller.save(tmp_path / "distiller.keras")
    with pytest.warns(UserWarning, match="`compile\\(\\)` was not called"):
        loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert any(np.any(v) for v in distiller.optimizer.variables if "momentum" in v.path)
    assert getattr(loaded, "optimizer", None) is None


def test_a_critic_with_weights_is_not_trained():
    class Critic(keras.distillation.DistillationLoss):
        def __init__(self):
            self.layer = keras.layers.Dense(4)

        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            error = self.layer(teacher_outputs) - student_outputs
            return keras.ops.mean(keras.ops.square(error))

    critic = Critic()
    distiller = _distiller([critic])
    _step(distiller)
    before = critic.layer.kernel.numpy()
    _step(distiller)
    np.testing.assert_array_equal(critic.layer.kernel, before)
    assert not any(v is critic.layer.kernel for v in distiller.trainable_variables)
