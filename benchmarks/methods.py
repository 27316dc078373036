"""Every method that the benchmarks measure, and what it is to be compared with.

No script by itself: `import methods` works where one of the benchmarks is started.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

import keras_mikd as mikd

# What distillation cannot do without: the teacher's forward and the student's plain step.
FLOOR = "floor"
STUDENT, TWO_STUDENTS, TEACHER = "student alone", "two students alone", "teacher alone"


class Method(NamedTuple):
    """How a model is made that `compiled` and `fit` take, and the name of its reference."""

    build: Callable
    """`(function that makes a teacher, function that makes a student) -> model`."""
    reference: str


class SideBySide(keras.Model):
    """Networks that take their plain steps at once and learn nothing from one another."""

    def __init__(self, networks):
        super().__init__()
        self.networks = networks
        self.built = True

    def call(self, inputs, training=None):
        return [network(inputs, training=training) for network in self.networks]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return sum(self.loss(y, output) for output in y_pred)


def offline(losses):
    """A `Distiller` with the losses that `losses` makes for a teacher and a student."""

    def build(new_teacher, new_student):
        teacher, student = new_teacher(), new_student()
        return mikd.Distiller(teacher, student, losses(teacher, student))

    return Method(build, FLOOR)


def soft_targets(teacher, student):
    return [mikd.SoftTargets(weight=0.9)]


def at_stages(loss):
    return lambda teacher, student: [
        loss(teacher_layer=place, student_layer=own, name=f"loss_{own}")
        for place, own in mikd.pair_stages(teacher, student)
    ]


def info_nce(**options):
    options = {"bound": mikd.bounds.info_nce, "negatives": "all", **options}
    return lambda teacher, student: [mikd.JSDCritic(critic=mikd.SeparableCritic(), **options)]


def _assembled(distiller, **options):
    return Method(lambda teacher, student: distiller(teacher(), student(), **options), FLOOR)


def muse(**options):
    return Method(lambda _, student: mikd.MUSEDistiller(student(), **options), STUDENT)


def _stages(model):
    return [place for place, _ in mikd.pair_stages(model, model)]


def _be_your_own_teacher(_, new_student):
    student = new_student()
    *early, last = _stages(student)
    heads = mikd.BeYourOwnTeacher(teacher_layer=[last, "output"], student_layer=early)
    return mikd.SelfDistiller(student, [heads])


def _mutual(with_muse):
    def build(_, new_student):
        peers = [new_student(), new_student()]
        losses = [mikd.SoftTargets(temperature=1.0, name="dml")]
        if with_muse:
            stages = _stages(peers[0])
            losses += [mikd.MUSE(teacher_layer="pooled", student_layer=stages, name="muse")]
        return mikd.MutualDistiller(peers, losses)

    return Method(build, TWO_STUDENTS)


def _mcmi(new_teacher, _):
    model = mikd.MCMITeacher(new_teacher(), centroids="epoch")
    # Any centroids will do where a step is called outside `fit`, which would measure them first.
    classes = model.regularizer.num_classes
    model.regularizer.set_centroids(np.full((classes, classes), 1 / classes))
    return model


STAGES = ("stage1_output", "stage2_output", "stage3_output")  # As Keras' own losses call them.


def keras_features():
    loss = keras.distillation.FeatureDistillation
    return [loss("mse", teacher_layer_name=name, student_layer_name=name) for name in STAGES]


def keras_logits():
    return keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())


def _keras(losses):
    return Method(
        # It freezes its teacher, so that no other method could train or tune it.
        lambda teacher, student: keras.distillation.Distiller(teacher(), student(), losses()),
        FLOOR,
    )


METHODS = {
    STUDENT: Method(lambda _, student: student(), STUDENT),
    TWO_STUDENTS: Method(lambda _, student: SideBySide([student(), student()]), TWO_STUDENTS),
    TEACHER: Method(lambda teacher, _: teacher(), TEACHER),
    "KD": offline(soft_targets),
    "AT": offline(at_stages(mikd.AttentionTransfer)),
    "hint": offline(at_stages(mikd.Hint)),
    "VID": _assembled(mikd.VIDDistiller),
    "VID + logits": _assembled(mikd.VIDDistiller, logits_weight=1.0),
    "MIMKD": _assembled(mikd.MIMKDDistiller, xla_critics=True),
    "MIMKD (no XLA)": _assembled(mikd.MIMKDDistiller, xla_critics=False),
    "InfoNCE in the batch": offline(info_nce()),
    "Keras (logits)": _keras(keras_logits),
    "BYOT (self)": Method(_be_your_own_teacher, STUDENT),
    "MUSE (self)": muse(),
    "MUSE additive (self)": muse(combine="additive"),
    "DML (two peers)": _mutual(with_muse=False),
    "DML + MUSE (two peers)": _mutual(with_muse=True),
    "MCMI": Method(_mcmi, TEACHER),
}
# Keras compares features of equal shape only, which few pairs of networks have.
EQUAL_SHAPES = {
    "Keras (3 features)": _keras(keras_features),
    "same in mikd.Distiller": offline(lambda teacher, student: keras_features()),
}


def compiled(model, steps_per_execution=1):
    # A rate of 0 costs the same arithmetic, and no variant drifts into other numbers.
    model.compile(
        keras.optimizers.SGD(0.0, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
    )
    return model
