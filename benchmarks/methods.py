"""Every method that the benchmarks measure, and what it is to be compared with.

No script by itself: `import methods` works where one of the benchmarks is started.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

import keras_mikd as mikd
from keras_mikd import recipes

# Teachers of benchmarks are untrained: a step takes as long with them.
warnings.filterwarnings("ignore", message="The teacher is right for")

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


def offline(recipe, *, xla_critics="auto", reference=FLOOR, balance_every=None, **options):
    """A `Distiller` with the losses of a recipe, balanced if it is said how often."""

    def build(new_teacher, new_student):
        teacher, student = new_teacher(), new_student()
        losses = recipe(teacher, student, **options)
        how = {"balance": "gradient", "balance_every": balance_every} if balance_every else {}
        return mikd.Distiller(teacher, student, losses, xla_critics=xla_critics, **how)

    return Method(build, reference)


def by_itself(recipe, **options):
    """A `SelfDistiller` with the losses of a recipe."""

    def build(_, new_student):
        student = new_student()
        return mikd.SelfDistiller(student, recipe(student, student, **options))

    return Method(build, STUDENT)


def mutual(recipe):
    """Two peers, with the losses of a recipe."""

    def build(_, new_student):
        peers = [new_student(), new_student()]
        return mikd.MutualDistiller(peers, recipe(*peers))

    return Method(build, TWO_STUDENTS)


def hints(teacher, student):
    return recipes.hint(teacher, student, pairs=mikd.pair_stages(teacher, student))


def info_nce(teacher, student, **options):
    """One critic of the pooled vectors, against all of the batch."""
    critic = mikd.SeparableCritic()
    options = {"bound": mikd.bounds.info_nce, "negatives": "all", **options}
    return [mikd.JSDCritic(critic=critic, **options)]


def dml(peer, other):
    return [mikd.SoftTargets(temperature=1.0, name="dml")]


def dml_muse(peer, other):
    return dml(peer, other) + recipes.muse(peer, other, negatives_from="batch")


def _mcmi(new_teacher, _):
    model = mikd.MCMITeacher(new_teacher(), centroids="epoch")
    # Any centroids will do where a step is called outside `fit`, which would measure them first.
    classes = model.regularizer.num_classes
    model.regularizer.set_centroids(np.full((classes, classes), 1 / classes))
    return model


STAGES = ("stage1_output", "stage2_output", "stage3_output")  # As Keras' own losses call them.


def keras_features(*_):
    loss = keras.distillation.FeatureDistillation
    return [loss("mse", teacher_layer_name=name, student_layer_name=name) for name in STAGES]


def keras_logits(*_):
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
    "KD": offline(recipes.kd),
    "AT": offline(recipes.attention_transfer),
    "hint": offline(hints),
    "VID": offline(recipes.vid),
    "VID + logits": offline(recipes.vid, logits_weight=1.0),
    # The two kinds of step of `balance="gradient"`: of 16 steps, one measures by default.
    "VID balanced (plain step)": offline(recipes.vid, reference="VID", balance_every=10**9),
    "VID balanced (measuring step)": offline(recipes.vid, reference="VID", balance_every=1),
    "MIMKD": offline(recipes.mimkd, xla_critics=True),
    "MIMKD (no XLA)": offline(recipes.mimkd, xla_critics=False),
    "InfoNCE in the batch": offline(info_nce),
    "Keras (logits)": _keras(keras_logits),
    "BYOT (self)": by_itself(recipes.be_your_own_teacher),
    "MUSE (self)": by_itself(recipes.muse),
    "MUSE additive (self)": by_itself(recipes.muse, combine="additive"),
    "DML (two peers)": mutual(dml),
    "DML + MUSE (two peers)": mutual(dml_muse),
    "MCMI": Method(_mcmi, TEACHER),
}
# Keras compares features of equal shape only, which few pairs of networks have.
EQUAL_SHAPES = {
    "Keras (3 features)": _keras(keras_features),
    "same in mikd.Distiller": offline(keras_features),
}


def check_names(flag, names, known):
    """Refuses names that are not known, and none at all."""
    if not names or not set(names) <= set(known):
        raise SystemExit(
            f"Expected --{flag} to be some of {', '.join(known)}. "
            f"Received: --{flag}={','.join(names)}"
        )


def compiled(model, steps_per_execution=1):
    # A rate of 0 costs the same arithmetic, and no variant drifts into other numbers.
    model.compile(
        keras.optimizers.SGD(0.0, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
    )
    return model
