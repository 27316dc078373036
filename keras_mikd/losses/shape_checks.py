"""Checks of shapes for the losses that compare one tensor with one tensor."""

from keras_mikd.features.grids import common_grid

_KINDS = {2: "vectors (batch, channels)", 4: "feature maps (batch, height, width, channels)"}


def check_pair(teacher_shape, student_shape, *, ranks=(2, 4)):
    """Checks that two tensors can be compared: two vectors or two feature maps.

    Raises:
        ValueError: If there is a list of tensors instead of one, the rank is not one of `ranks`
            (`None`: any from 2 on), the ranks differ, or a number of channels is unknown.
    """
    received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
    for shape in (teacher_shape, student_shape):
        if any(isinstance(size, (list, tuple)) for size in shape):
            raise ValueError(
                "Expected one tensor of each network, so one place, not a list, for "
                f"`teacher_layer` and for `student_layer`. {received}"
            )
    rank = len(teacher_shape)
    if rank != len(student_shape) or (rank < 2 if ranks is None else rank not in ranks):
        kinds = " or two ".join(_KINDS[rank] for rank in ranks or _KINDS)
        raise ValueError(
            f"Expected two {kinds}. {received}. Choose other places with `teacher_layer` and "
            "`student_layer`: 'pooled' and 'output' usually are vectors, 'stage1' ... are maps."
        )
    if teacher_shape[-1] is None or student_shape[-1] is None:
        raise ValueError(f"Expected the last axis of both tensors to be known. {received}")


def logits_grid(teacher_shape, student_shape):
    """Returns the grid on which logits at positions, `(batch, ..., classes)`, are compared.

    `None` says that both have the same positions, or none: `(batch, classes)`. The student's tensor
    may be a feature of which logits are made.

    Raises:
        ValueError: If the ranks differ, the positions differ and are not those of two maps, or the
            teacher has fewer than two classes.
    """
    received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
    check_pair(teacher_shape, student_shape, ranks=None)
    if teacher_shape[-1] < 2:
        raise ValueError(
            "Expected logits of at least two classes: the softmax of one is always 1, so that "
            f"the loss would always be 0. {received}. Train networks with one logit per class."
        )
    if tuple(teacher_shape[1:-1]) == tuple(student_shape[1:-1]):
        return None
    if len(teacher_shape) == 4:
        return common_grid(teacher_shape, student_shape)
    raise ValueError(
        f"Expected logits at the same positions. {received}. Resample the finer of the two in its "
        "network, by a layer before the output."
    )
