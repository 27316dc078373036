"""Checks of the masks of padded sequences that a loss gets."""


def check_masks(loss, shapes, masks):
    """Checks that masks fit their places, and that the loss leaves padded tokens out.

    Args:
        loss: The `DistillationLoss`.
        shapes: Shapes of the teacher's and the student's tensor, or lists of them.
        masks: Symbolic masks by the argument of `call`; empty where nothing is padded.

    Raises:
        ValueError: If a mask has another number of tokens than its place, stands for no sequence or
            meets a map, or the loss takes none.
    """
    for side, places, shape in zip(
        ("teacher", "student"), (loss.teacher_layer, loss.student_layer), shapes, strict=True
    ):
        mask, named = masks.get(f"{side}_mask"), getattr(loss, f"{side}_mask_layer")
        if mask is None and named is not None:
            raise ValueError(
                "Expected a sequence (batch, tokens, channels) beside its mask. Received: "
                f"{side}_layer={places!r} of shape {shape}, {side}_mask_layer={named!r}. Leave "
                f"`{side}_mask_layer` out."
            )
        if isinstance(places, list):
            by_place = dict(zip(places, shape, strict=True))
            pairs = [(place, by_place[place], each) for place, each in (mask or {}).items()]
        else:
            pairs = [] if mask is None else [(places, shape, mask)]
        for pair in pairs:
            _check_fits(side, *pair)
    _check_left_out(loss, shapes, masks)


def _check_fits(side, place, shape, mask):
    if tuple(mask.shape[1:]) != tuple(shape[1:2]):
        raise ValueError(
            "Expected a mask (batch, tokens) of as many tokens as its place has. Received: "
            f"{side}_layer={place!r} of shape {shape}, with a mask of shape {tuple(mask.shape)}. "
            f"Name its place as `{side}_mask_layer`."
        )


def _check_left_out(loss, shapes, masks):
    padded = " and ".join(argument.removesuffix("_mask") for argument in masks)
    received = (
        f"Received: {type(loss).__name__} between {shapes[0]} and {shapes[1]}, of which that of "
        f"the {padded} is padded"
    )
    if masks and not loss.takes_masks:
        raise ValueError(
            "Expected a loss that leaves padded tokens out: a `call` with the arguments "
            "`teacher_mask` and `student_mask`, a bound with an argument `mask`, a critic whose "
            f"`observe` has `weights`, no BatchNorm. {received}. "
            + ("Take SoftTargets" if loss.expects_logits else "Read pooled vectors")
            + ", or see docs/tokens.md."
        )
    if masks and {len(shape) for shape in shapes if not isinstance(shape, list)} == {3, 4}:
        raise ValueError(
            f"Expected tokens without a mask to compare with a map. {received}. Compare vectors "
            "or sequences."
        )
