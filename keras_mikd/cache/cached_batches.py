"""How a batch carries what a teacher said about it, from a `TeacherCache` to a distiller."""

from keras_mikd.cache import fingerprints

_INPUTS = "keras_mikd_inputs"
_TEACHER = "keras_mikd_teacher_"


def pack(x, features, key):
    """Returns a batch for a distiller whose teacher is called `key`.

    Args:
        x: Inputs of the student.
        features: `{place: tensor}`.
        key: What `fingerprints.of_model` calls the teacher.
    """
    return {_INPUTS: x, _TEACHER + key: features}


def unpack(x):
    """Returns `(inputs, features)`; `features` is `None` for a batch that carries none."""
    if not isinstance(x, dict) or _INPUTS not in x:
        return x, None
    (features,) = (value for name, value in x.items() if name != _INPUTS)
    return x[_INPUTS], features


def check_teacher(x, teacher, places):
    """Checks that what batches carry is of this teacher, and all that the losses need.

    Args:
        x: Batch, or the specs of one.
        teacher: The teacher of the distiller, or `None`.
        places: Places that its losses read.

    Raises:
        ValueError: If the cache is of another teacher, or lacks a place.
    """
    _, features = unpack(x)
    if features is None:
        return
    if teacher is None:
        raise ValueError(
            "Expected plain batches, since this distiller has no teacher. Received: batches of a "
            "TeacherCache. `cache.batches(..., with_teacher=False)` are plain ones."
        )
    (key,) = (name.removeprefix(_TEACHER) for name in x if name != _INPUTS)
    own = fingerprints.of_model(teacher)
    if key != own:
        raise ValueError(
            "Expected a TeacherCache of this distiller's teacher, with the weights that it has "
            f"now. Received: a cache of {key}; the teacher {teacher.name!r} is {own}. Build the "
            "cache again, or distil from the teacher that it was built with."
        )
    missing = sorted(set(places) - set(features))
    if missing:
        raise ValueError(
            f"Expected a TeacherCache of every place that the losses read; it lacks {missing}. "
            f"Received: places={sorted(features)}. Build one with "
            f"TeacherCache(..., places={sorted(set(places) | set(features))})."
        )
