"""Checks of shapes for the losses that compare one tensor with one tensor."""

_KINDS = {2: "vectors (batch, channels)", 4: "feature maps (batch, height, width, channels)"}


def check_pair(teacher_shape, student_shape, *, ranks=(2, 4)):
    """Checks that two tensors can be compared: two vectors or two feature maps.

    Raises:
        ValueError: If there is a list of tensors instead of one, the rank is not one of `ranks`,
            the ranks differ, or a number of channels is unknown.
    """
    received = f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}"
    for shape in (teacher_shape, student_shape):
        if any(isinstance(size, (list, tuple)) for size in shape):
            raise ValueError(
                "Expected one tensor of each network, so one place, not a list, for "
                f"`teacher_layer` and for `student_layer`. {received}"
            )
    if len(teacher_shape) != len(student_shape) or len(teacher_shape) not in ranks:
        kinds = " or two ".join(_KINDS[rank] for rank in ranks)
        raise ValueError(
            f"Expected two {kinds}. {received}. Choose other places with `teacher_layer` and "
            "`student_layer`: 'pooled' and 'output' usually are vectors, 'stage1' ... are maps."
        )
    if teacher_shape[-1] is None or student_shape[-1] is None:
        raise ValueError(f"Expected the last axis of both tensors to be known. {received}")


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
