"""Which classes of a teacher the classes of a student are."""

import numbers

from keras import ops


def checked_map(classes):
    """Returns `teacher_classes` as ints and lists of ints, as a configuration holds it.

    It has an entry for each class of the student: the index of the teacher's class, or a list of
    indices. `None` stands for the same classes.

    Raises:
        ValueError: If there are fewer than two entries, or one is empty, not of indices, or names a
            class of the teacher that was named before.
    """
    if classes is None:
        return None
    entries = [_entry(each) for each in classes] if hasattr(classes, "__iter__") else []
    indices = [index for group in _groups(entries) for index in group]
    known = all(type(index) is int and index >= 0 for index in indices)  # A bool is none.
    if len(entries) < 2 or not known or [] in entries:
        raise ValueError(
            "Expected `teacher_classes` to have an entry for each class of the student, two or "
            "more: the index of the teacher's class, or a list of indices. Received: "
            f"teacher_classes={classes!r}. For a class that the teacher does not know, take "
            "keras_mikd.LwF or match features."
        )
    twice = sorted({index for index in indices if indices.count(index) > 1})
    if twice:
        raise ValueError(
            "Expected `teacher_classes` to name a class of the teacher once, since classes exclude "
            f"each other. Received: {twice} twice in teacher_classes={classes!r}. Leave it out of "
            "all classes of the student but one."
        )
    return entries


def check_fits(classes, teacher_shape, student_shape):
    """Checks that a map of classes is for logits of these shapes.

    Raises:
        ValueError: If it has not one entry for each class of the student, or an index is beyond the
            classes of the teacher.
    """
    last = max(index for group in _groups(classes) for index in group)
    if len(classes) != student_shape[-1] or last >= teacher_shape[-1]:
        raise ValueError(
            f"Expected `teacher_classes` to have {student_shape[-1]} entries, one for each class "
            f"of the student, from 0 to {teacher_shape[-1] - 1}, the teacher's last. Received: "
            f"{len(classes)} entries up to {last}, teacher_shape={teacher_shape}, "
            f"student_shape={student_shape}. Its order is that of the student's classes."
        )


def in_students_classes(logits, classes):
    """Returns a teacher's logits `(batch, ..., classes)` as logits of the student's classes.

    Their softmax is the teacher's probability of each class relative to all that are named; the
    probabilities of several that are one class of the student are added.
    """
    if classes is None:
        return logits
    groups = _groups(classes)
    most = max(map(len, groups))
    if most == 1:
        return ops.take(logits, [index for (index,) in groups], axis=-1)
    # Shorter groups are filled up with a class of no probability.
    none = logits.shape[-1]
    table = [[*group, *[none] * (most - len(group))] for group in groups]
    logits = ops.concatenate([logits, ops.full_like(logits[..., :1], -float("inf"))], axis=-1)
    return ops.logsumexp(ops.take(logits, table, axis=-1), axis=-1)


def _groups(classes):
    return [each if isinstance(each, list) else [each] for each in classes]


def _entry(value):
    """Returns NumPy's integers and arrays as Python's, and anything else as it is."""
    if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
        return [_entry(each) for each in value]
    is_index = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if is_index else value
