"""Checks of shapes for the losses that compare one tensor with one tensor."""

_KINDS = {
    2: "vectors (batch, channels)",
    3: "sequences (batch, tokens, channels)",
    4: "feature maps (batch, height, width, channels)",
}


def check_pair(teacher_shape, student_shape, *, ranks=(2, 3, 4)):
    """Checks that two tensors can be compared: two vectors, sequences of tokens or feature maps.

    A map and a sequence can be compared as well, where both are in `ranks`.

    Raises:
        ValueError: If there is a list of tensors instead of one, the rank is not one of `ranks`,
            the ranks do not fit, or a number of channels is unknown.
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
    if not found <= set(ranks) or (len(found) > 1 and found != {3, 4}):
        kinds = " or two ".join(_KINDS[rank] for rank in ranks)
        raise ValueError(
            f"Expected two {kinds}. {received}. Choose other places with `teacher_layer` and "
            "`student_layer`: 'pooled' and 'output' usually are vectors, 'stage1' ... are maps, "
            "'block1' ... are sequences."
        )
    if teacher_shape[-1] is None or student_shape[-1] is None:
        raise ValueError(f"Expected the last axis of both tensors to be known. {received}")
