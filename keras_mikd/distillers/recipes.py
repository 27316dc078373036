"""The methods of the papers as lists of losses, for any distiller.

A recipe is a function `(teacher, student, ...) -> list of losses`. It finds the stages of both
networks by itself, or the blocks of transformers, which stand for stages in all that is said here.
It raises a `ValueError` where there are none, see `stages`. Weights are floats or schedules. With
one network in both places, its early stages learn from its last one, for a `SelfDistiller`. Lists
add up: `recipes.vid(teacher, student) + recipes.kd(teacher, student)`.
"""

from keras_mikd import bounds
from keras_mikd.critics.critic import SeparableCritic
from keras_mikd.features.places import OUTPUT
from keras_mikd.features.stages import POOLED, pair_stages, raw_places, unactivated_places
from keras_mikd.losses.activation_boundary import ActivationBoundary
from keras_mikd.losses.attention_transfer import AttentionTransfer
from keras_mikd.losses.be_your_own_teacher import BeYourOwnTeacher
from keras_mikd.losses.correlation_congruence import CorrelationCongruence
from keras_mikd.losses.crd import CRD
from keras_mikd.losses.dist import DIST
from keras_mikd.losses.dkd import DKD
from keras_mikd.losses.factor_transfer import FactorTransfer
from keras_mikd.losses.fsp import FSP
from keras_mikd.losses.gaussian_vid_head import GaussianVIDHead
from keras_mikd.losses.hint import Hint
from keras_mikd.losses.itrd import ITRD
from keras_mikd.losses.jsd_critic import JSDCritic
from keras_mikd.losses.lwf import LwF
from keras_mikd.losses.muse import MUSE
from keras_mikd.losses.nst import NST
from keras_mikd.losses.pkt import PKT
from keras_mikd.losses.queue_relation import QueueRelation
from keras_mikd.losses.review_kd import ReviewKD
from keras_mikd.losses.rkd import RKD
from keras_mikd.losses.rld import RLD
from keras_mikd.losses.similarity_preserving import SimilarityPreserving
from keras_mikd.losses.soft_targets import SoftTargets
from keras_mikd.losses.wttm import WTTM


def kd(teacher, student, *, weight=0.9, temperature=4.0):
    """Soft targets, `"kd"` (Hinton et al., arXiv:1503.02531).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss.
        temperature: See `SoftTargets`.
    """
    return [SoftTargets(temperature=temperature, weight=weight, name="kd")]


def lwf(teacher, student, *, weight=1.0, temperature=2.0):
    """A second head for the classes of another teacher, `"lwf"` (LwF, arXiv:1606.09282).

    Args:
        teacher: Network whose logits are the target.
        student: Network with a pooled vector, which the head reads.
        weight: Factor of the loss.
        temperature: See `LwF`.
    """
    return [LwF(temperature=temperature, weight=weight, name="lwf")]


def lskd(teacher, student, *, weight=9.0, temperature=2.0):
    """Soft targets of z-scored logits, `"lskd"` (arXiv:2403.01427).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; 9 is that of the authors on CIFAR-100, beside the labels' 1.
        temperature: See `SoftTargets`.
    """
    options = {"temperature": temperature, "weight": weight, "name": "lskd"}
    return [SoftTargets(standardize=True, **options)]


def dkd(teacher, student, *, weight=1.0, **options):
    """Soft targets of the label's class and of the others apart, `"dkd"` (arXiv:2203.08679).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; the authors' rises from 0 to 1 over the first 20 epochs.
        **options: `alpha`, `beta` and `temperature` of `DKD`.
    """
    return [DKD(weight=weight, name="dkd", **options)]


def rld(teacher, student, *, weight=1.0, **options):
    """Soft targets of what the label does not refute, `"rld"` (arXiv:2408.07703).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; the authors' rises from 0 to 1 over the first 20 epochs.
        **options: `alpha`, `beta`, `temperature` and `confidence_temperature` of `RLD`.
    """
    return [RLD(weight=weight, name="rld", **options)]


def dist(teacher, student, *, weight=2.0, temperature=4.0):
    """Correlations over classes and over examples, `"dist"` (arXiv:2205.10536).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; 2 is that of the authors, beside the labels' 1.
        temperature: See `DIST`.
    """
    return [DIST(temperature=temperature, weight=weight, name="dist")]


def wttm(teacher, student, *, weight=4.0, gamma=0.2):
    """A power of the teacher's probabilities, `"wttm"` (arXiv:2402.11148).

    Args:
        teacher: Network whose logits are the target.
        student: Network that learns them.
        weight: Factor of the loss; 4, with this `gamma`, is that of the authors' example.
        gamma: See `WTTM`.
    """
    return [WTTM(gamma=gamma, weight=weight, name="wttm")]


def attention_transfer(teacher, student, *, weight=1000.0, raw=False):
    """Attention maps of every pair of stages, `"at_<place>"` (arXiv:1612.03928).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss; 1000 is that of RepDistiller.
        raw: Whether to read wide ResNets before the BatchNorm and ReLU that follow a stage, as
            RepDistiller does.
    """
    return _at_stages(AttentionTransfer, "at", teacher, student, raw=raw, weight=weight)


def hint(teacher, student, *, weight=100.0, pairs=None, raw=False, regressor="linear"):
    """Regression of the teacher's features, `"hint_<place>"` (FitNets, arXiv:1412.6550).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss; 100 is that of RepDistiller, whose regressor is another.
        pairs: List of `(teacher's place, student's place)`; the pair of stages in the middle if
            `None`.
        raw: As in `attention_transfer`.
        regressor: `"linear"`, `"repdistiller"` or `"orthogonal"`, see `Hint`.
    """
    if pairs is None:
        found = stage_pairs(teacher, student)
        pairs = [found[len(found) // 2]]
    options = {"weight": weight, "regressor": regressor}
    return _at_stages(Hint, "hint", teacher, student, pairs=pairs, raw=raw, **options)


def vkd(teacher, student, *, weight=1.0):
    """Orthogonal projection of the pooled vectors, `"vkd"` (arXiv:2403.06213).

    Args:
        teacher: Network with a pooled vector.
        student: Likewise.
        weight: Factor of the loss.
    """
    places = {"teacher_layer": POOLED, "student_layer": POOLED}
    return [Hint(regressor="orthogonal", weight=weight, name="vkd", **places)]


def activation_boundary(teacher, student, *, weight=1.0):
    """Signs before the ReLU of every pair of stages, `"ab_<place>"` (arXiv:1811.03233).

    Args:
        teacher: Network with stages.
        student: Likewise.
        weight: Factor of every loss. In the losses themselves, the last pair counts as published,
            and each before it half of the next one.
    """
    before = [unactivated_places(model) for model in (teacher, student)]
    pairs = stage_pairs(teacher, student)
    return [
        ActivationBoundary(
            teacher_layer=before[0][place],
            student_layer=before[1][own],
            scale=0.003 * 0.5 ** (len(pairs) - position),
            weight=weight,
            name=_named("ab", place, own),
        )
        for position, (place, own) in enumerate(pairs, start=1)
    ]


def factor_transfer(teacher, student, *, weight=200.0, raw=False, **options):
    """Factors of the last stages, `"ft_<place>"` (arXiv:1802.04977).

    Args:
        teacher: Network with stages.
        student: Likewise.
        weight: Factor of the loss; 200 is that of RepDistiller.
        raw: As in `attention_transfer`.
        **options: `variant`, `rate` and `paraphraser_steps` of `FactorTransfer`.
    """
    pairs = stage_pairs(teacher, student)[-1:]
    options = {"weight": weight, **options}
    return _at_stages(FactorTransfer, "ft", teacher, student, pairs=pairs, raw=raw, **options)


def review_kd(teacher, student, *, weight=5.0):
    """Fused features of all stages and of the pooled vectors, `"review_kd"` (arXiv:2104.09044).

    Args:
        teacher: Network with stages, read before their last ReLU, and a pooled vector.
        student: Likewise, read after it.
        weight: Factor of the loss; the authors' is 5 for most pairs on CIFAR-100, and rises from 0
            over the first 20 epochs.
    """
    before, pairs = unactivated_places(teacher), pair_stages(teacher, student)
    return [
        ReviewKD(
            teacher_layer=[*(before[place] for place, _ in pairs), POOLED],
            student_layer=[*(own for _, own in pairs), POOLED],
            weight=weight,
            name="review_kd",
        )
    ]


def vid(teacher, student, *, stage_weight=1.0, logits_weight=0.0, raw=False, **head):
    """Gaussian heads on the pairs of stages and on the logits (VID, arXiv:1904.05835).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        stage_weight: Factor of every stage pair's loss, `"vid_<place>"`; 0 leaves them out.
        logits_weight: Factor of the loss of the teacher's logits, `"vid_logits"`, likewise.
        raw: As in `attention_transfer`.
        **head: `variant`, `initial_variance` and `reduction` of `GaussianVIDHead`.
    """
    losses = []
    if stage_weight:
        head_options = {"weight": stage_weight, **head}
        losses += _at_stages(GaussianVIDHead, "vid", teacher, student, raw=raw, **head_options)
    if logits_weight:
        places = {"teacher_layer": OUTPUT, "student_layer": POOLED}
        losses.append(GaussianVIDHead(**places, weight=logits_weight, name="vid_logits", **head))
    return losses


def mimkd(
    teacher,
    student,
    *,
    global_weight=3.0,
    local_weight=3.0,
    feature_weight=3.0,
    critic=SeparableCritic,
    negatives=1,
    grid=8,
    gather=True,
):
    """Jensen-Shannon critics at three levels (MIMKD, arXiv:2110.15946): a reconstruction.

    Args:
        teacher: Network with stages.
        student: Network with stages.
        global_weight: Factor of `"jsd_global"`, the pooled vectors; 0 leaves it out.
        local_weight: Factor of `"jsd_local"`, the teacher's pooled vector and the student's last
            map, likewise.
        feature_weight: Factor of `"jsd_<place>"`, every pair of stages, likewise.
        critic: Function of no arguments that makes the score network of a level.
        negatives: Negatives for every positive, see `JSDCritic`.
        grid: Most rows and columns on which maps are compared, see `JSDCritic`.
        gather: Whether negatives come from the batch of all replicas, see `JSDCritic`.
    """
    pairs = pair_stages(teacher, student)
    levels = [
        ("jsd_global", POOLED, POOLED, global_weight),
        ("jsd_local", POOLED, pairs[-1][1], local_weight),
        *((_named("jsd", place, own), place, own, feature_weight) for place, own in pairs),
    ]
    return [
        JSDCritic(
            teacher_layer=teacher_place,
            student_layer=student_place,
            weight=weight,
            critic=critic(),
            negatives=negatives,
            grid=grid,
            gather=gather,
            name=name,
        )
        for name, teacher_place, student_place, weight in levels
        if weight
    ]


def info_nce(teacher, student, *, weight=1.0, grid=8, gather=True):
    """InfoNCE critics on the pairs of stages, `"nce_<place>"`, against all of the batch.

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss.
        grid: Most rows and columns on which maps are compared, see `JSDCritic`.
        gather: Whether negatives come from the batch of all replicas, see `JSDCritic`.
    """
    options = {"bound": bounds.info_nce, "negatives": "all", "grid": grid, "gather": gather}
    return [
        JSDCritic(
            teacher_layer=teacher_place,
            student_layer=student_place,
            critic=SeparableCritic(),
            weight=weight,
            name=_named("nce", teacher_place, student_place),
            **options,
        )
        for teacher_place, student_place in stage_pairs(teacher, student)
    ]


def muse(teacher, student, *, weight=1.0, **options):
    """MUSE of all stages towards the pooled vector, `"muse"` (arXiv:2110.12606): a reconstruction.

    Args:
        teacher: Network with a pooled vector; the student itself for self-distillation.
        student: Network with stages.
        weight: Factor of the loss.
        **options: Other arguments of `MUSE`; negatives are of other classes if not given.
    """
    options = {"negatives_from": "other_classes", **options}
    places = [place for place, _ in pair_stages(student, student)]
    return [MUSE(teacher_layer=POOLED, student_layer=places, weight=weight, name="muse", **options)]


def stage_critics(teacher, student, *, weight=1.0, negatives_from="other_classes"):
    """The mutual term of MUSE by itself, `"jsd_<place>"`: every stage with the pooled vector.

    Args:
        teacher: Network with a pooled vector; the student itself for self-distillation.
        student: Network with stages.
        weight: Factor of every loss.
        negatives_from: See `JSDCritic`.
    """
    return [
        JSDCritic(
            teacher_layer=POOLED,
            student_layer=place,
            critic=SeparableCritic(),
            negatives_from=negatives_from,
            weight=weight,
            name=f"jsd_{place}",
        )
        for place, _ in pair_stages(student, student)
    ]


def be_your_own_teacher(teacher, student, *, weight=1.0):
    """Classifiers on the early stages, `"byot"` (arXiv:1905.08094), for a `SelfDistiller`.

    Args:
        teacher: Network whose last stage and logits the classifiers learn from.
        student: The same network.
        weight: Factor of the loss.
    """
    *early, last = [place for place, _ in pair_stages(student, student)]
    heads = BeYourOwnTeacher(
        teacher_layer=[last, OUTPUT], student_layer=early, weight=weight, name="byot"
    )
    return [heads]


def from_teacher(name, losses):
    """Lets losses read one of several teachers: `from_teacher("a", vid(a, student))`.

    Args:
        name: Name of the teacher in the `Distiller`.
        losses: New losses, such as those of a recipe. They get the teacher's name in front of their
            own: `"a_vid_stage2"`.

    Returns:
        The same losses.
    """
    for loss in losses:
        loss.teacher, loss.name = name, f"{name}_{loss.name}"
    return losses


def similarity_preserving(teacher, student, *, weight=3000.0, raw=False):
    """Similarities between examples at the last pair of stages, `"sp_<place>"` (arXiv:1907.09682).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of the loss; 3000 is that of RepDistiller.
        raw: As in `attention_transfer`.
    """
    pairs = stage_pairs(teacher, student)[-1:]
    options = {"pairs": pairs, "raw": raw, "weight": weight}
    return _at_stages(SimilarityPreserving, "sp", teacher, student, **options)


def rkd(teacher, student, *, weight=1.0, **options):
    """Distances and angles between pooled vectors, `"rkd"` (arXiv:1904.05068).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 1 is that of RepDistiller.
        **options: Other arguments of `RKD`.
    """
    return _of_pooled(RKD, "rkd", weight=weight, **options)


def pkt(teacher, student, *, weight=30000.0, **options):
    """Probabilities of being neighbours between pooled vectors, `"pkt"` (arXiv:1803.10837).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 30000 is that of RepDistiller.
        **options: Other arguments of `PKT`.
    """
    return _of_pooled(PKT, "pkt", weight=weight, **options)


def correlation_congruence(teacher, student, *, weight=0.02, **options):
    """Correlations between pooled vectors, `"cc"` (arXiv:1904.01802).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 0.02 is that of RepDistiller, and belongs to its variant.
        **options: Other arguments of `CorrelationCongruence`.
    """
    return _of_pooled(CorrelationCongruence, "cc", weight=weight, **options)


def nst(teacher, student, *, weight=50.0, raw=False):
    """Selectivity of the neurons of every pair of stages, `"nst_<place>"` (arXiv:1707.01219).

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.
        weight: Factor of every loss; 50 is that of RepDistiller.
        raw: As in `attention_transfer`.
    """
    return _at_stages(NST, "nst", teacher, student, raw=raw, weight=weight)


def fsp(teacher, student, *, weight=1.0, raw=False):
    """Flow between consecutive stages, `"fsp"` (Yim et al., CVPR 2017), for equal channels.

    Args:
        teacher: Network with two or more stages.
        student: Another one, as wide.
        weight: Factor of the loss. RepDistiller and the paper train on it alone, before the task.
        raw: As in `attention_transfer`.
    """
    of_teacher, of_student = (raw_places(m) if raw else {} for m in (teacher, student))
    pairs = stage_pairs(teacher, student)
    places = {
        "teacher_layer": [of_teacher.get(place, place) for place, _ in pairs],
        "student_layer": [of_student.get(own, own) for _, own in pairs],
    }
    return [FSP(**places, weight=weight, name="fsp")]


def crd(teacher, student, *, weight=0.8, **options):
    """Contrast of pooled vectors, `"crd"` (arXiv:1910.10699), in the batch if not told otherwise.

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss; 0.8 is that of RepDistiller, with `bank` and other classes.
        **options: Other arguments of `CRD`.
    """
    return _of_pooled(CRD, "crd", weight=weight, **options)


def queue_relation(teacher, student, *, weight=1.0, **options):
    """Similarities to a queue of the teacher's pooled vectors, `"queue"` (arXiv:2101.04731).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss.
        **options: Other arguments of `QueueRelation`.
    """
    return _of_pooled(QueueRelation, "queue", weight=weight, **options)


def itrd(teacher, student, *, weight=1.0, **options):
    """Correlation and mutual information of pooled vectors, `"itrd"` (arXiv:2112.00459).

    Args:
        teacher: Network with a pooled vector.
        student: Another one.
        weight: Factor of the loss, beside those of its two terms.
        **options: Other arguments of `ITRD`.
    """
    return _of_pooled(ITRD, "itrd", weight=weight, **options)


def stage_pairs(teacher, student):
    """Pairs the stages of two networks, or the early stages of one with its last.

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.

    Returns:
        List of `(teacher's place, student's place)`.
    """
    pairs = pair_stages(teacher, student)
    return pairs if teacher is not student else [(pairs[-1][0], own) for _, own in pairs[:-1]]


def _at_stages(loss, name, teacher, student, *, pairs=None, raw=False, **options):
    of_teacher, of_student = (raw_places(m) if raw else {} for m in (teacher, student))
    return [
        loss(
            teacher_layer=of_teacher.get(place, place),
            student_layer=of_student.get(own, own),
            name=_named(name, place, own),
            **options,
        )
        for place, own in pairs or stage_pairs(teacher, student)
    ]


def _of_pooled(loss, name, **options):
    return [loss(teacher_layer=POOLED, student_layer=POOLED, name=name, **options)]


def _named(name, place, own):
    """Returns a name that says which pair it is: `"vid_stage2"`, `"vid_stage3_to_stage4"`."""
    return f"{name}_{own}" if place == own else f"{name}_{place}_to_{own}".replace("/", "_")
