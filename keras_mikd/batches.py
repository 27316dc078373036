"""The parts of a batch, with what a `TeacherCache` or an index of examples adds to them."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mikd import checks


class Batch(NamedTuple):
    """A batch taken apart; as an element of a `tf.data.Dataset`, with `()` for what is missing."""

    x: Any
    y: Any = ()
    sample_weight: Any = ()
    teacher_features: Any = ()
    """`{fingerprint of a teacher: {place: tensor}}`, in the batches of a cache."""
    index: Any = ()
    """Which training examples these are: integers `(batch,)`."""


def take_apart(data):
    """Returns a `Batch` of what `fit`, `evaluate` or `predict` hands to a step, or of its specs.

    `None` stands for what is missing.
    """
    if not isinstance(data, Batch):
        return Batch(*keras.utils.unpack_x_y_sample_weight(data), None, None)
    y, sample_weight, features, index = (None if _is_missing(part) else part for part in data[1:])
    return Batch(data.x, y, sample_weight, features, index)


def with_index(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns batches for `fit` that say which training examples they hold, as `CRD(bank=)` needs.

    ```python
    examples = tf.data.Dataset.from_tensor_slices((images, labels, np.arange(len(images))))
    batches = examples.shuffle(len(images)).map(lambda x, y, i: (augment(x), y, i)).batch(64)
    distiller.fit(keras_mikd.with_index(batches), epochs=240)
    ```

    Args:
        batches: `tf.data.Dataset` of batches `(x, y, index)` or `(x, y, sample_weight, index)`. The
            index of an example is its number in the training data, from 0, in every epoch.

    Returns:
        `tf.data.Dataset` of batches that the distillers of this library take.

    Raises:
        ValueError: If the batches are others.
    """
    spec = getattr(batches, "element_spec", None)
    index = spec[-1] if isinstance(spec, tuple) and len(spec) in (3, 4) else None
    integers = isinstance(index, tf.TensorSpec) and index.dtype.is_integer
    if not integers or index.shape.rank != 1 or isinstance(spec, Batch):
        raise ValueError(
            "Expected a tf.data.Dataset of batches (x, y, index) or (x, y, sample_weight, index), "
            f"with integers (batch,) as the index. Received: {batches!r}. Add "
            "np.arange(len(images)) to the tensors of `from_tensor_slices`, before `shuffle`."
        )
    return batches.map(lambda x, y, *rest: Batch(x, y, *rest[:-1], index=rest[-1]))


def with_class_weight(dataset, class_weight):
    """Weights the examples of a cache by class, which Keras cannot do in such batches."""
    known = max(class_weight) + 1
    table = tf.constant([*(class_weight.get(c, 1.0) for c in range(known)), 1.0])  # 1 for others.

    def weigh(batch):
        labels = None if _is_missing(batch.y) else batch.y
        classes = tf.cast(checks.class_indices(labels, one_hot=True), tf.int64)
        others = tf.logical_or(classes < 0, classes > known)
        weights = tf.gather(table, tf.where(others, tf.cast(known, tf.int64), classes))
        own = batch.sample_weight
        return batch._replace(sample_weight=weights if _is_missing(own) else own * weights)

    return dataset.map(weigh)


def check_teachers(specs, teachers, fingerprint):
    """Checks that cached batches (by their specs) are of `teachers` and hold all their places.

    Args:
        specs: Specs of the batches of a data set.
        teachers: `{name: (model, places)}`; those that the cache does not hold run by themselves.
        fingerprint: Function of a name that returns the fingerprint of that teacher.

    Returns:
        `{name: fingerprint}` of all teachers; empty for plain batches.

    Raises:
        ValueError: If there is no teacher, the cache is of another one, or it lacks a place.
    """
    if not isinstance(specs, Batch) or _is_missing(specs.teacher_features):
        return {}
    if not teachers:
        raise ValueError(
            "Expected plain batches, since this distiller has no teacher. Received: batches of a "
            "TeacherCache. `cache.batches(..., with_teacher=False)` are plain ones."
        )
    own = {name: fingerprint(name) for name in teachers}
    for key, features in specs.teacher_features.items():
        of_key = [teachers[name] for name in own if own[name] == key]
        if not of_key:
            named = [f"{teachers[name][0].name!r} is {own[name]}" for name in own]
            raise ValueError(
                "Expected a TeacherCache of this distiller's teacher, with the weights that it has "
                f"now and the same `teacher_inputs`. Received: a cache of {key}; the teacher "
                f"{', the teacher '.join(named)}. Build the cache again, or distil from the "
                "teacher that it was built with."
            )
        missing = sorted({place for _, places in of_key for place in places} - set(features))
        if missing:
            raise ValueError(
                "Expected a TeacherCache of every place that the losses read; it lacks "
                f"{missing}. Received: places={sorted(features)}. Build one with "
                f"TeacherCache(..., places={sorted({*missing, *features})})."
            )
    return own


def _is_missing(part):
    return isinstance(part, tuple) and len(part) == 0
