"""Checks of shapes for the losses that compare one tensor with one tensor."""

from keras_mikd.features.grids import Alignment

_KINDS = {
    2: "vectors (batch, channels)",
    3: "sequences (batch, tokens, channels)",
    4: "feature maps (batch, height, width, channels)",
}


def check_pair(teacher_shape, student_shape, *, ranks=(2, 3, 4), unfolds=False):
    """Checks that two tensors can be compared: two vectors, sequences of tokens or feature maps.

    A map and a sequence can be compared as well, where both are in `ranks`; and a teacher's map
    with a student's vector, if the loss `unfolds` the vector into a map.

    Raises:
        ValueError: If there is a list of tensors instead of one, the rank is not one of `ranks`
            (`None`: any from 2 on), the ranks do not fit, or a number of channels is unknown.
    """
    received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
    shapes = teacher_shape, student_shape
    for shape in shapes:
        if any(isinstance(size, (list, tuple)) for size in shape):
            raise ValueError(
                "Expected one tensor of each network, so one place, not a list, for "
                f"`teacher_layer` and for `student_layer`. {received}"
            )
    found = {len(shape) for shape in shapes}
    known = min(found) >= 2 if ranks is None else found <= set(ranks)
    mixed = len(found) > 1 and (ranks is None or found != {3, 4})
    if unfolds and [len(shape) for shape in shapes] == [4, 2]:
        mixed = False
    if not known or mixed:
        kinds = " or two ".join(_KINDS[rank] for rank in ranks or _KINDS)
        raise ValueError(
            f"Expected two {kinds}. {received}. Choose other places with `teacher_layer` and "
            "`student_layer`: 'pooled' and 'output' usually are vectors, 'stage1' ... are maps, "
            "'block1' ... are sequences."
        )
    if teacher_shape[-1] is None or student_shape[-1] is None:
        raise ValueError(f"Expected the last axis of both tensors to be known. {received}")


def compared_logits(teacher_shape, student_shape, *, binary=False):
    """Returns the `Alignment` of logits at positions, `(batch, ..., classes)`.

    Maps are averaged to the smaller grid; others have the same positions, or none. The student's
    tensor may be a feature of which logits are made.

    Raises:
        ValueError: If the ranks differ, the positions differ and are not those of two maps, or the
            teacher has fewer than two classes, where logits are not `binary`.
    """
    received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
    check_pair(teacher_shape, student_shape, ranks=None)
    if not binary:
        _check_classes(teacher_shape, received)
    same = tuple(teacher_shape[1:-1]) == tuple(student_shape[1:-1])
    if not same and len(teacher_shape) != 4:
        raise ValueError(
            f"Expected logits at the same positions. {received}. Resample the finer of the two in "
            "its network, by a layer before the output."
        )
    return Alignment(teacher_shape, student_shape, as_they_are=same)


def check_logits(teacher_shape, student_shape):
    """Checks that two tensors are logits `(batch, classes)` of the same two or more classes.

    Raises:
        ValueError: If they are not.
    """
    check_pair(teacher_shape, student_shape, ranks=(2,))
    received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
    if teacher_shape[-1] != student_shape[-1]:
        raise ValueError(
            f"Expected teacher and student to have the same classes. {received}. Give the "
            "student a second output with the teacher's classes, or match features instead."
        )
    _check_classes(teacher_shape, received)


def _check_classes(teacher_shape, received):
    if teacher_shape[-1] < 2:
        raise ValueError(
            "Expected logits of at least two classes: the softmax of one is always 1, so that "
            f"the loss would always be 0. {received}. Train networks with one logit per class, or "
            "use SoftTargets(binary=True) for one logit of a sigmoid."
        )


def check_known(teacher_shape, student_shape):
    """Checks that there is one tensor of each network, whose sizes are known but for the batch.

    Raises:
        ValueError: If there is a list of tensors instead of one, or a size is unknown.
    """
    for shape in (teacher_shape, student_shape):
        if len(shape) < 2 or not all(isinstance(size, int) for size in shape[1:]):
            raise ValueError(
                "Expected one tensor (batch, ...) of each network, with known sizes. Received: "
                f"teacher_shape={teacher_shape}, student_shape={student_shape}. Name one place, "
                "not a list, of each network, and build the networks with a fixed input size."
            )
