"""The teachers of a distiller by name, and which of them a loss reads."""

import keras

from keras_mikd import checks
from keras_mikd.checkpoints import fingerprints
from keras_mikd.distillers.networks import ALL, Term

ONE = "teacher"
"""Name of a teacher that is the only one."""

_TAKEN = ("student", ALL)


def by_name(teacher):
    """Returns `{name: model}` of a teacher, a list of teachers, or a dict of them by name."""
    if isinstance(teacher, (list, tuple)):
        teacher = {f"{ONE}{i}": model for i, model in enumerate(teacher, start=1)}
    if not isinstance(teacher, dict):
        return {ONE: teacher}
    if not teacher or not all(isinstance(name, str) and name for name in teacher):
        raise ValueError(
            "Expected a teacher, a list of at least one, or a dict of teachers by name. Received: "
            f"teacher={teacher!r}"
        )
    for name in _TAKEN:
        if name in teacher:
            raise ValueError(
                f"Expected other names of teachers than {', '.join(map(repr, _TAKEN))}. Received: "
                f"{list(teacher)}"
            )
    return dict(teacher)


def of_each(argument, value, names):
    """Returns `{name of a teacher: its part}` of an argument; without those that have none.

    With an only teacher it is the argument itself, and with several a dict.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        if names != [ONE]:
            raise ValueError(
                f"Expected `{argument}` to be a dict by the names of the teachers, {names}. "
                f"Received: {argument}={value!r}"
            )
        value = {ONE: value}
    if not value.keys() <= set(names):
        raise ValueError(
            f"Expected the keys of `{argument}` to be among {names}. Received: {list(value)}"
        )
    return {name: each for name, each in value.items() if each is not None}


def fingerprints_of(models):
    """Returns what a file keeps of teachers that it does not hold, `{name: text}`."""
    return {name: fingerprints.of_model(model) for name, model in models.items()}


def given_beside_file(kept):
    """Returns the teachers that a caller gives to `load_model` as custom objects, by name.

    Raises:
        ValueError: If one is missing, or is not the one of `kept`, the fingerprints of the file.
    """
    names = ", ".join(f"{name!r}: ..." for name in kept)
    how = f"keras.saving.load_model(path, custom_objects={{{names}}})"
    given = {name: keras.saving.get_registered_object(name) for name in kept}
    missing = [name for name, model in given.items() if model is None]
    if missing:
        raise ValueError(
            "Expected the teachers of a file that holds only their fingerprints "
            f"(save_teacher=False). Received: none for {missing}. Give the models: {how}"
        )
    for name, model in given.items():
        found = fingerprints.of_model(checks.model(name, model))
        if found != kept[name]:
            raise ValueError(
                f"Expected the {name!r} with which the distiller was saved, of fingerprint "
                f"{kept[name]}. Received: {model.name!r} of fingerprint {found}, which has other "
                "weights or layers. Load the file of the teacher that the run had."
            )
    return given[ONE] if list(given) == [ONE] else given


def terms(losses, names):
    """Returns the `Term` of every loss: it reads the teacher that it names, or all of them.

    Raises:
        ValueError: If a loss of features names none of several teachers.
    """
    return [Term(loss, _read_by(loss, names), "student") for loss in losses]


def check_combined(networks, combine):
    """Refuses a way to combine teachers where no loss reads several together."""
    together = any(term.teacher == ALL for term in networks.terms)
    binary = [t.loss.name for t in networks.terms if not t.loss.exclusive_classes]
    if combine == "confidence" and binary:
        raise ValueError(
            "Expected losses of classes that exclude each other with combine='confidence', which "
            f"weights teachers by the probability of the one class. Received: {binary} with "
            "binary=True. Use combine='mean'."
        )
    if combine != "mean" and not together:
        raise ValueError(
            f"Expected several teachers and a loss of logits without `teacher=`, since combine="
            f"{combine!r} says how it reads all of them. Received: teachers {networks.fixed}, and "
            "losses that read one each."
        )


def check_one(assembly, teacher):
    """Refuses several teachers for the class of a distiller that assembles losses for one."""
    if isinstance(teacher, (dict, list, tuple)):
        raise ValueError(
            f"Expected one teacher, for which {assembly.__name__} assembles its losses. Received: "
            f"{len(teacher)} teachers. Make a Distiller of them, with recipes for each: "
            'keras_mikd.recipes.from_teacher("a", keras_mikd.recipes.vid(a, student)).'
        )


def _read_by(loss, names):
    if loss.teacher is not None or len(names) == 1:
        return loss.teacher or names[0]
    if loss.expects_logits:
        return ALL
    raise ValueError(
        f"Expected {loss.name!r} to name its teacher, since it compares features, which no two "
        f"teachers have in common. Received: teacher=None, and the teachers {names}. Set "
        f"`teacher={names[0]!r}`, and make such a loss for every teacher."
    )
