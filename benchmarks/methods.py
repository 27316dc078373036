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


def offline(
    recipe,
    *,
    xla_critics="auto",
    reference=FLOOR,
    balance_every=None,
    reads_out=True,
    **options,
):
    """A `Distiller` with the losses of a recipe, balanced if it is said how often.

    Without `reads_out`, its step is one of those that `readout_every` leaves out.
    """

    def build(new_teacher, new_student):
        teacher, student = new_teacher(), new_student()
        losses = recipe(teacher, student, **options)
        how = {"balance": "gradient", "balance_every": balance_every} if balance_every else {}
        how["readout_every"] = 1 if reads_out else None
        model = mikd.Distiller(teacher, student, losses, xla_critics=xla_critics, **how)
        model.readout_turns.due = reads_out  # As `fit` sets it, step by step.
        return model

    return Method(build, reference)


def as_tokens(recipe, reference, **options):
    """The same losses, of the same maps as sequences of tokens `(batch, places, channels)`."""

    def build(new_teacher, new_student):
        teacher, student = new_teacher(), new_student()
        losses = recipe(teacher, student, **options)
        return mikd.Distiller(
            teacher,
            student,
            losses,
            teacher_features=_read_as_tokens(teacher, [loss.teacher_layer for loss in losses]),
            student_features=_read_as_tokens(student, [loss.student_layer for loss in losses]),
        )

    return Method(build, reference)


def _read_as_tokens(model, places):
    taps = mikd.FeatureTaps(model, places)

    def flat(feature):
        if len(feature.shape) != 4:
            return feature
        _, rows, columns, channels = feature.shape
        return keras.ops.reshape(feature, (-1, rows * columns, channels))

    return lambda _, x, training: keras.tree.map_structure(flat, taps(x, training))


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
    "VID (RepDistiller's head)": offline(recipes.vid, variant="repdistiller"),
    "VID (no read-outs)": offline(recipes.vid, reads_out=False),
    "VID + logits": offline(recipes.vid, logits_weight=1.0),
    # The two kinds of step of `balance="gradient"`: of 16 steps, one measures by default.
    "VID balanced (plain step)": offline(recipes.vid, reference="VID", balance_every=10**9),
    "VID balanced (measuring step)": offline(recipes.vid, reference="VID", balance_every=1),
    "MIMKD": offline(recipes.mimkd, xla_critics=True),
    "MIMKD (no XLA)": offline(recipes.mimkd, xla_critics=False),
    "MIMKD (no XLA or read-outs)": offline(recipes.mimkd, xla_critics=False, reads_out=False),
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

# Every other recipe with a teacher. VID, MIMKD and the like are above.
LOSSES = {
    "KD": METHODS["KD"],
    "LSKD": offline(recipes.lskd),
    "LwF": offline(recipes.lwf),
    "DKD": offline(recipes.dkd),
    "RLD": offline(recipes.rld),
    "DIST": offline(recipes.dist),
    "WTTM": offline(recipes.wttm),
    "hint, one stage": offline(recipes.hint),
    "VkD": offline(recipes.vkd),
    "AT": METHODS["AT"],
    "AB": offline(recipes.activation_boundary),
    "FT": offline(recipes.factor_transfer),
    "ReviewKD": offline(recipes.review_kd),
    "NST": offline(recipes.nst),
    "SP": offline(recipes.similarity_preserving),
    "RKD": offline(recipes.rkd),
    "PKT": offline(recipes.pkt),
    "CC": offline(recipes.correlation_congruence),
    "queue": offline(recipes.queue_relation),
    "ITRD": offline(recipes.itrd),
    "CRD in the batch": offline(recipes.crd),
    "InfoNCE on the stages": offline(recipes.info_nce),
}
# It wants the same channels in both networks.
SAME_CHANNELS = {"FSP": offline(recipes.fsp)}

# What tokens cost, beside maps of as many places: none of both is averaged to a coarser grid.
EVERY_PLACE = "MIMKD at every place"
TOKENS = {
    EVERY_PLACE: offline(recipes.mimkd, grid=None),
    "VID of tokens": as_tokens(recipes.vid, "VID"),
    "MIMKD of tokens": as_tokens(recipes.mimkd, EVERY_PLACE, grid=None),
}


def check_names(flag, names, known):
    """Refuses names that are not known, and none at all."""
    if not names or not set(names) <= set(known):
        raise SystemExit(
            f"Expected --{flag} to be some of {', '.join(known)}. "
            f"Received: --{flag}={','.join(names)}"
        )


def extra_weights(model):
    """Returns how many weights of the losses are trained, and are no part of the student."""
    losses = [x for x in getattr(model, "distillation_losses", []) if isinstance(x, keras.Layer)]
    return sum(count(loss.trainable_variables) for loss in losses)


def count(variables):
    """Returns the number of elements of variables."""
    return sum(v.value.shape.num_elements() for v in variables)


def compiled(model, steps_per_execution=1, jit_compile="auto"):
    # A rate of 0 costs the same arithmetic, and no variant drifts into other numbers.
    model.compile(
        keras.optimizers.SGD(0.0, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
        jit_compile=jit_compile,
    )
    return model
