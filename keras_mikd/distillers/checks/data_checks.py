"""Checks of the data before the first step, and of every batch that a data set brings."""

import contextlib
import itertools
import types

import keras
import numpy as np
import tensorflow as tf

from keras_mikd.batches import take_apart
from keras_mikd.cache.teacher_cache import TeacherCache
from keras_mikd.distillers.checks import task_losses
from keras_mikd.features.layer_graph import ends, has_graph
from keras_mikd.keras_internals import layers_of

_AT_ONCE = 4096  # Rows of an array that are looked at together, so that no large copy is made.


def checked_data(argument, data, *, taps, loss, output, look):
    """Returns `data`, after a `ValueError` if it cannot be what the networks are to be trained on.

    `data` is `x` or a tuple `(x, y, ...)`; `taps`, `{name: FeatureTaps}`, read `x`, and `output` is
    the symbolic output that the labels are for. `look` gets the first batch, see `FirstLook`.
    Arrays are checked here. A `tf.data.Dataset` is not read, which would change the order of its
    shuffling: it comes back with a check of every batch (see `told`). Of a `PyDataset` or a
    generator only the first batch is looked at.
    """
    if isinstance(data, tf.data.Dataset):
        return _checked_dataset(argument, data, taps, loss, output, look)
    if isinstance(data[0] if isinstance(data, tuple) else data, TeacherCache):
        raise ValueError(
            f"Expected batches as `{argument}`. Received: a TeacherCache; pass "
            "cache.batches(batch_size)."
        )
    x, y, sample_weight = (*data, None, None)[:3] if isinstance(data, tuple) else (data, None, None)
    if isinstance(x, tf.data.Dataset):
        return (_checked_dataset(argument, x, taps, loss, output, look), *data[1:])
    arrays = keras.tree.flatten(x)
    if not all(hasattr(array, "shape") and hasattr(array, "dtype") for array in arrays):
        return _looked_at(data, x, look)
    _check_inputs(taps, argument, x)
    of_labels, of_weights = argument, argument
    if argument == "x":
        of_labels, of_weights = "x" if y is None else "y", "sample_weight"
    _check_kind_of_labels(of_labels, y, loss)
    for name, part, values in zip(
        (argument, of_labels, of_weights), _PARTS, (x, y, sample_weight), strict=False
    ):
        if not all(_is_finite(array) for array in keras.tree.flatten(values)):
            raise ValueError(f"{_finite_message(name, part)} Received: NaN or infinity.")
    _check_names(of_labels, y, loss, output)
    _check_categorical(of_labels, np.shape(y), loss, output)
    classes = _num_classes(loss, output, y)
    if classes is not None:
        _check_indices(of_labels, np.shape(y), output)
        values = np.asarray(y)
        values = values[values != task_losses.ignored_class(loss)]
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{_labels_message(of_labels, classes)} Received: labels from {values.min()} to "
                f"{values.max()}. {_IGNORE}"
            )
        broken = values[values != np.floor(values)] if values.dtype.kind == "f" else ()
        if len(broken):
            raise ValueError(
                f"{_labels_message(of_labels, classes)} Received: labels such as {broken[0]}, "
                "which the task loss would round down."
            )
    look.at(x, y)
    return data


def _looked_at(data, x, look):
    """Returns data that is not checked, after a look at the first batch, which it still has."""
    if isinstance(x, keras.utils.PyDataset):
        first = take_apart(x[0]) if x.num_batches != 0 else None
    elif isinstance(x, types.GeneratorType):
        batches = list(itertools.islice(x, 1))
        first = take_apart(batches[0]) if batches else None
        x = _one_after_another(batches, x)
        data = (x, *data[1:]) if isinstance(data, tuple) else x
    else:
        return data
    if first is not None:
        look.at(first.x, first.y, first.teacher_features)
    return data


def _one_after_another(first, rest):
    yield from first
    yield from rest


def _checked_dataset(argument, dataset, taps, loss, output, look):
    if dataset.cardinality() == 0:
        raise ValueError(f"Expected a batch. Received: `{argument}` is an empty data set.")
    batch = take_apart(dataset.element_spec)
    _check_batched(argument, batch)
    _check_kind_of_labels(argument, batch.y, loss)
    _check_inputs(taps, argument, batch.x)
    _check_names(argument, batch.y, loss, output)
    if isinstance(batch.y, tf.TensorSpec) and batch.y.shape.rank is not None:
        _check_categorical(argument, tuple(batch.y.shape), loss, output)
    classes = _num_classes(loss, output, batch.y)
    if classes is not None:
        _check_indices(argument, batch.y.shape, output)
    ignored = task_losses.ignored_class(loss)
    trains = argument == "x"

    @tf.autograph.experimental.do_not_convert
    def check(position, data):
        batch = take_apart(data)
        needed = [
            (_all_finite(values), _finite_message(argument, part))
            for part, values in zip(_PARTS, batch, strict=True)
        ]
        if classes is not None:
            needed.append((_fit(batch.y, classes, ignored), _labels_message(argument, classes)))
        asserts = [tf.debugging.Assert(fits, [message]) for fits, message in needed]
        asserts.append(tf.cond(position == 0, lambda: look.in_graph(batch, trains), tf.no_op))
        with tf.control_dependencies(asserts):
            return tf.nest.map_structure(tf.identity, data)

    checked = dataset.enumerate().map(check)
    if argument == "validation_data":  # Reading it disturbs no training and saves an epoch.
        with told(output, look):
            next(iter(checked), None)
    return checked


@contextlib.contextmanager
def told(output, look):
    """Raises a `ValueError` where a checked data set meets what does not fit the networks."""
    try:
        yield
    except tf.errors.OpError as error:
        if look.error is not None:
            raise look.error from None
        classes = None if keras.tree.is_nested(output) else output.shape[-1]
        for argument in ("x", "validation_data"):
            messages = {_finite_message(argument, part): "NaN or infinity." for part in _PARTS}
            wrong = f"labels outside that range, or with fractions. {_IGNORE}"
            messages[_labels_message(argument, classes)] = wrong
            for message, received in messages.items():
                if message in str(error):
                    raise ValueError(f"{message} Received: {received}") from None
        raise


_IGNORE = "A label that is to be left out is named in the task loss, such as ignore_class=255."
_PARTS = ("inputs", "labels", "sample weights", "tensors of the teacher", "index")


def _finite_message(argument, part):
    return f"Expected finite numbers: the {part} in `{argument}` are not."


def _labels_message(argument, classes):
    last = None if classes is None else classes - 1
    return (
        f"Expected the labels in `{argument}` to be integers from 0 to {last}, one for every output"
        " of the network."
    )


def _is_finite(array):
    if not hasattr(array, "dtype") or "float" not in keras.backend.standardize_dtype(array.dtype):
        return True
    parts = range(0, np.shape(array)[0], _AT_ONCE)
    return all(np.isfinite(array[first : first + _AT_ONCE]).all() for first in parts)


def _all_finite(values):
    parts = tf.nest.flatten(values, expand_composites=True)
    floats = [x for x in parts if x is not None and x.dtype.is_floating]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in floats] or [True])


def _fit(labels, classes, ignored):
    """Whether all labels are class indices; uint8 cannot hold 256 classes, so they are cast."""
    labels = labels if labels.dtype.is_floating else tf.cast(labels, tf.int64)
    fits = tf.logical_and(labels >= 0, labels < tf.cast(classes, labels.dtype))
    if labels.dtype.is_floating:
        fits = tf.logical_and(fits, labels == tf.floor(labels))
    if ignored is not None:
        fits = tf.logical_or(fits, labels == tf.cast(ignored, labels.dtype))
    return tf.reduce_all(fits)


def _check_batched(argument, batch):
    """Refuses a data set of single examples, by the specs of its elements."""
    specs = [s for s in keras.tree.flatten((batch.x, batch.y)) if isinstance(s, tf.TensorSpec)]
    if any(spec.shape.rank == 0 for spec in specs):
        raise ValueError(
            f"Expected `{argument}` to be a data set of batches. Received: one of single examples, "
            f"{[tuple(spec.shape) for spec in specs]}. Call .batch(64) on it."
        )


def _check_kind_of_labels(argument, y, loss):
    """Refuses labels that are missing, or that are no numbers."""
    if y is None:
        if loss is not None:
            raise ValueError(
                "Expected labels, since there is a task loss. Received: none. Pass `y`, or train "
                "without labels: compile with loss=None."
            )
        return
    for labels in keras.tree.flatten(y):
        if not hasattr(labels, "dtype") or isinstance(labels, np.generic):  # Of a list of numbers.
            raise ValueError(
                f"Expected the labels in `{argument}` as an array. Received: a "
                f"{type(labels).__name__} in a {type(y).__name__}. Use np.array(labels)."
            )
        if getattr(labels.dtype, "kind", "f") in "OSU" or labels.dtype == tf.string:
            raise ValueError(
                f"Expected numbers as the labels in `{argument}`. Received: dtype={labels.dtype}. "
                "Number the classes: classes, y = np.unique(labels, return_inverse=True)."
            )


def _check_categorical(argument, shape, loss, output):
    """Refuses class indices for a loss of distributions, whose error in Keras names no way out."""
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    categorical = keras.losses.CategoricalCrossentropy, keras.losses.CategoricalFocalCrossentropy
    functions = keras.losses.categorical_crossentropy, keras.losses.categorical_focal_crossentropy
    if keras.tree.is_nested(output) or not (isinstance(loss, categorical) or loss in functions):
        return
    if len(shape) == len(output.shape) - 1 and output.shape[-1] > 1:
        raise ValueError(
            f"Expected the labels in `{argument}` to be rows over the classes, "
            f"{('batch', *output.shape[1:])}, for the task loss. Received: labels of shape "
            f"{tuple(shape)}. For class indices, use keras.losses.SparseCategoricalCrossentropy."
        )


def _check_inputs(taps, argument, x):
    """Checks what every network gets of `x`: arrays, or the specs of a batch."""
    arrays = keras.tree.flatten(x)
    _check_one_array_each(taps, argument, x)
    for array in arrays:
        if array.shape[0] == 0:
            raise ValueError(
                f"Expected at least one example, but `{argument}` is empty. Received: "
                f"shape={tuple(array.shape)}"
            )
    # Networks that read the batch as it is come first: what others get is made of it.
    for name, each in sorted(taps.items(), key=lambda item: item[1].convert is not None):
        shown = f"`{argument}`" if each.convert is None else "`teacher_inputs`"
        for fed in keras.tree.flatten(each.fed(x)):
            if len(fed.shape) == 4:
                _check_size(name, each.model, shown, fed.shape)
                _check_integers(name, each.model, shown, fed)


def _check_one_array_each(taps, argument, x):
    """Refuses a list of examples, which Keras takes for a list of inputs."""
    read = [each.model for each in taps.values() if each.convert is None]
    inputs = [len(keras.tree.flatten(ends(model)[0])) for model in read if has_graph(model)]
    if isinstance(x, list) and inputs and len(x) > max(inputs):
        raise ValueError(
            f"Expected `{argument}` as one array for every input of the networks, which have "
            f"{max(inputs)}. Received: a list of {len(x)}. Stack examples to one array: "
            "np.stack(x)."
        )


def _check_integers(name, model, shown, array):
    dtype = keras.backend.standardize_dtype(array.dtype)
    if "int" in dtype and not accepts_integers(model):
        own = "" if name == "student" else ", or let `teacher_inputs` rescale them for the teacher"
        raise ValueError(
            f"Expected floats such as x / 255: {shown} holds integer images, and the {name} takes "
            f"floats and has no Rescaling layer. Received: dtype={dtype}. Cast images to float32 "
            f"if the networks rescale in another way{own}."
        )


def _check_size(name, model, shown, shape):
    """Refuses images of another size, or with other channels, than a network takes."""
    inputs = [t.shape for t in getattr(model, "inputs", None) or [] if len(t.shape) == 4]
    if len(inputs) != 1:
        return
    pairs = zip(inputs[0][1:], shape[1:], strict=True)
    if not all(None in pair or pair[0] == pair[1] for pair in pairs):
        raise ValueError(
            f"Expected images that the {name} {model.name!r} takes, {tuple(inputs[0][1:])}. "
            f"Received: {shown} with images {tuple(shape[1:])}. Resize them, convert them "
            "(tf.image.rgb_to_grayscale), or put such a layer in front of the network."
        )


def accepts_integers(model):
    """Whether a model takes integer images: by its inputs, or since it rescales them."""
    inputs = getattr(model, "inputs", None) or []
    if not inputs or any("int" in tensor.dtype for tensor in inputs):
        return True
    rescaling = (keras.layers.Rescaling, keras.layers.Normalization)
    return any(isinstance(layer, rescaling) for layer in layers_of(model))


def _check_names(argument, labels, loss, output):
    """Refuses labels by name for an only output, which Keras hands to the loss as they are."""
    if loss is not None and isinstance(labels, dict) and not keras.tree.is_nested(output):
        raise ValueError(
            f"Expected the labels in `{argument}` as one array, since the network has one output. "
            f"Received: labels by name, {sorted(labels)}. Pass the array itself, or let the network"
            " put out a dict of these names."
        )


def _check_indices(argument, shape, output):
    """Refuses labels that are no class indices for the output.

    Such are distributions over the classes, as those of mixed images, and labels at other positions
    than those of a dense output.
    """
    *positions, classes = output.shape[1:]
    wanted = f"({', '.join(map(str, ['batch', *positions]))}{'' if positions else ','})"
    if len(shape) == len(output.shape) and shape[-1] == classes and classes > 1:
        raise ValueError(
            f"Expected integer labels of shape {wanted} in `{argument}`, since the task loss is a "
            f"sparse cross-entropy. Received: labels of shape {tuple(shape)}, one number for each "
            f"of {classes} classes, which are for keras.losses.CategoricalCrossentropy."
        )
    if positions:
        of_labels = shape[1:-1] if len(shape) == len(output.shape) else shape[1:]
        same = len(of_labels) == len(positions) and all(
            None in pair or pair[0] == pair[1] for pair in zip(of_labels, positions, strict=True)
        )
        if not same:
            raise ValueError(
                f"Expected a label for every position of the output, {wanted}, in `{argument}`. "
                f"Received: labels of shape {tuple(shape)}, outputs of shape "
                f"{tuple(output.shape)}. Resize the labels by their nearest neighbour, or the "
                "output in the network."
            )


def check_class_weight(class_weight, x, y, output):
    """Refuses weights of classes where no label says the class of an example.

    Keras takes the labels of a dense output as one-hot, and breaks without labels.
    """
    if not class_weight:
        return
    if not isinstance(class_weight, dict):
        raise ValueError(
            "Expected `class_weight` as a dict {class: weight}. Received: "
            f"class_weight={class_weight!r}"
        )
    if not np.all(np.isfinite(list(class_weight.values()))):
        raise ValueError(
            f"Expected finite weights of classes. Received: class_weight={class_weight}"
        )
    if not keras.tree.is_nested(output) and len(output.shape) > 2:
        raise ValueError(
            "Expected no `class_weight`, which is for one class for each example. Received: "
            f"class_weight={class_weight} for outputs of shape {tuple(output.shape)}. Give a "
            "`sample_weight` of the shape of the labels."
        )
    if y is None and isinstance(keras.tree.flatten(x)[0], (np.ndarray, tf.Tensor)):
        raise ValueError(
            "Expected labels with `class_weight`, which is for the class of an example. Received: "
            f"class_weight={class_weight}, y=None. Pass `y`, or weigh examples by `sample_weight`."
        )


def _num_classes(loss, output, labels):
    """Returns the number of classes that labels must stay below; `None` if it is unknown."""
    single = labels is not None and not keras.tree.is_nested(output)
    if not single or keras.tree.is_nested(labels) or not _is_sparse_cross_entropy(loss):
        return None
    return output.shape[-1]


def _is_sparse_cross_entropy(loss):
    alone = keras.tree.flatten(loss)
    loss = alone[0] if len(alone) == 1 else loss
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    sparse = keras.losses.SparseCategoricalCrossentropy
    return isinstance(loss, sparse) or loss is keras.losses.sparse_categorical_crossentropy
