"""Where the losses of a recipe stand: pairs of stages or pooled vectors, and their names."""

import keras

from keras_mikd.features.stages import POOLED, pair_stages, raw_places
from keras_mikd.losses.distillation_loss import DistillationLoss


def stage_pairs(teacher: keras.Model, student: keras.Model) -> list[tuple[str, str]]:
    """Pairs the stages of two networks, or the early stages of one with its last.

    Args:
        teacher: Network with stages.
        student: Likewise, or the teacher itself.

    Returns:
        List of `(teacher's place, student's place)`.
    """
    pairs = pair_stages(teacher, student)
    return pairs if teacher is not student else [(pairs[-1][0], own) for _, own in pairs[:-1]]


def from_teacher(name: str, losses: list[DistillationLoss]) -> list[DistillationLoss]:
    """Lets losses read one of several teachers: `from_teacher("a", vid(a, student))`.

    Args:
        name: Name of the teacher in the `Distiller`.
        losses: New losses, such as those of a recipe. They get the teacher's name in front of their
            own: `"a_vid_stage2"`.

    Returns:
        The same losses.

    Raises:
        ValueError: If one of them reads a teacher by name already.
    """
    for loss in losses:
        if loss.teacher is not None:
            raise ValueError(
                f"Expected new losses for every teacher. Received: {loss.name!r}, which reads "
                f"{loss.teacher!r}. Make them anew, such as from_teacher({name!r}, vid(...))."
            )
        loss.teacher, loss.name = name, f"{name}_{loss.name}"
    return losses


def at_stages(loss, name, teacher, student, *, pairs=None, raw=False, **options):
    """Returns a loss of a class for every pair of stages."""
    pairs = pairs or stage_pairs(teacher, student)  # First, since it knows which network is which.
    of_teacher, of_student = (raw_places(m) if raw else {} for m in (teacher, student))
    return [
        loss(
            teacher_layer=of_teacher.get(place, place),
            student_layer=of_student.get(own, own),
            name=named(name, place, own),
            **options,
        )
        for place, own in pairs
    ]


def of_pooled(loss, name, **options):
    """Returns a loss of a class for the pooled vectors, in a list."""
    return [loss(teacher_layer=POOLED, student_layer=POOLED, name=name, **options)]


def named(name, place, own):
    """Returns a name that says which pair it is: `"vid_stage2"`, `"vid_stage3_to_stage4"`."""
    pair = own if place == own else f"{place}_to_{own}"
    return f"{name}_{pair}".replace("/", "_")
