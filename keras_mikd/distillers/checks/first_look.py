"""A look at what the networks say to a few examples, before the first step."""

import math
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_mikd.batches import Batch, take_apart
from keras_mikd.checkpoints import fingerprints
from keras_mikd.distillers.checks import loss_checks, output_rows, task_losses
from keras_mikd.distillers.checks.teacher_accuracy import TeacherAccuracy
from keras_mikd.distribution import replicas
from keras_mikd.features.feature_taps import as_called, output_at, pick
from keras_mikd.features.layer_graph import ends, has_graph
from keras_mikd.features.places import OUTPUT

_BATCH = 32  # Keras' default.
_MOST_SHOWN = 4  # Arrays in a message.


class FirstLook:
    """Runs the networks of a distiller once, eagerly, and refuses what would be silently wrong.

    Names of layers do not show everything: a function of any name can be a softmax, and a teacher
    can have lost its weights. Values show it.

    Args:
        networks: `Networks` of the distiller.
        labelled: `[(network, task loss, symbolic output)]`, see `BaseDistiller._labelled`.
        done: Whether an earlier `fit` has looked.
        batch_size: Examples in a batch, for arrays; `None` for Keras' default.
        shuffled: Whether training sees the examples in another order.
        verbose: Whether to print how often the teacher is right.

    Attributes:
        examples: Number of examples to look at; of dense outputs, one batch.
        error: The `ValueError` of a look inside a data set, or `None`.
        keeps_first_batch: Whether `first_batch` is wanted.
        first_batch: Digest of the first batch of a data set that is trained on, or `None`.
    """

    examples = 256

    def __init__(self, networks, labelled, *, done, batch_size, shuffled, verbose):
        self._networks = networks
        self._batch_size = batch_size
        self._labelled = labelled
        _, self._loss, self._output = labelled[0]
        nested = keras.tree.is_nested(self._output)
        self._rank = 2 if nested else max(2, len(self._output.shape))
        self._shuffled = shuffled
        self._teachers = TeacherAccuracy(
            networks, self._loss, self._output, dense=self._rank > 2, verbose=verbose
        )
        self._done = done
        self._alone = False
        self.error = self.first_batch = None
        self.keeps_first_batch = False

    def in_graph(self, batch, trains):
        """Returns the operation that looks at a batch inside the graph of a data set.

        `trains` says whether it is one to train on.
        """
        parts = [batch.x, batch.y, batch.teacher_features]
        specs = tf.nest.map_structure(
            lambda t: None if t is None else tf.type_spec_from_value(t), parts
        )
        flat = tf.nest.flatten(parts, expand_composites=True)
        given = [tensor is not None for tensor in flat]
        # TensorFlow keeps the function for ever, so it must not keep the networks.
        weak = weakref.ref(self)

        def at(*tensors):
            look, rest = weak(), iter(tensors)
            filled = [next(rest) if each else None for each in given]
            if look is not None:
                if trains and look.keeps_first_batch and look.first_batch is None:
                    look.first_batch = fingerprints.of_bytes(*(_bytes(x) for x in tensors))
                look.at_batch(*tf.nest.pack_sequence_as(specs, filled, expand_composites=True))

        return tf.py_function(at, [tensor for tensor in flat if tensor is not None], [])

    def at_batch(self, *parts):
        """Looks at a batch of a data set, and keeps its error, which TensorFlow makes a text."""
        self._batch_size = None  # Of arrays; what comes is a batch.
        try:
            self.at(*parts)
        except ValueError as error:
            self.error = error
            raise

    def at(self, x, y=None, teacher_features=None):
        """Looks at examples, unless others were looked at before.

        Raises:
            ValueError: If a loss of logits meets probabilities, or the reverse; a network puts out
                NaN or infinity; or rows over several labels stand where classes are expected.
        """
        self._warn_of_lonely(len(keras.tree.flatten(x)[0]))
        if self._done:
            return
        self._done = True
        # Dense outputs of more examples than a step sees might not fit into memory.
        count = self.examples if self._rank == 2 else min(self._batch_size or _BATCH, self.examples)
        count = min([count, *self._fixed_sizes()])
        x, y, teacher_features = _first((x, y, teacher_features), count)
        x = keras.tree.map_structure(_as_fed, x)
        self._check_whole_numbers(x)
        features = self._run(x, teacher_features)
        for name, tensors in features.items():
            for place, tensor in tensors.items():
                self._check_finite(name, place, tensor)
        features = self._networks.combined(features, y)
        for term in self._networks.terms:
            self._check_term(term, features, y)
        for model, loss, output in self._labelled:
            name = next(n for n, each in self._networks.models.items() if each is model)
            self._check_task(name, loss, output, features[name][OUTPUT])
        self._judge(features, y)

    def _fixed_sizes(self):
        """Returns the sizes of batches that networks are built for, where they are fixed."""
        models = [model for model in self._networks.models.values() if has_graph(model)]
        specs = [spec for model in models for spec in keras.tree.flatten(ends(model)[0])]
        return [spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None]

    def _comparing(self):
        """Returns the names of the losses that compare the examples of a batch."""
        return [t.loss.name for t in self._networks.terms if t.loss.compares_examples]

    def _warn_of_lonely(self, examples):
        names = self._comparing()
        if names and 1 in (examples, self._batch_size) and not self._alone:
            self._alone = True
            warnings.warn(
                f"Batches have one example, and {', '.join(names)} compares the examples of a "
                "batch: nothing is learned from it. Use batches of two or more.",
                stacklevel=2,
            )

    def start(self, data):
        """Lets losses that wait for examples look at the first of `data`, as `fit` takes it.

        Raises:
            ValueError: If there are several hosts, or data that can be read only once.
        """
        terms = [term for term in self._networks.terms if term.loss.waits_for_examples]
        if not terms:
            return
        batch = _first_examples(data, self.examples, [term.loss.name for term in terms])
        x = keras.tree.map_structure(_as_fed, batch.x)
        features = self._run(x, batch.teacher_features)
        for term in terms:
            term.loss.look_at(
                pick(features[term.teacher], term.loss.teacher_layer),
                pick(features[term.student], term.loss.student_layer),
                **self._networks.masks(term, features),
            )

    def _run(self, x, teacher_features):
        features = self._networks.cached(teacher_features)
        for name, taps in self._networks.taps.items():
            if name in features:
                continue
            states = taps.model.non_trainable_variables
            before = [state.numpy() for state in states]
            features[name] = _read(name, taps, x)
            changed = [
                (state, value)
                for state, value in zip(states, before, strict=True)
                if not np.array_equal(state.numpy(), value)  # Of a layer that counts its calls.
            ]
            for state, value in changed:
                state.assign(value)
            if changed and name in self._networks.fixed:
                _warn_of_changes(taps.model, [state.path for state, _ in changed])
        return features

    def _check_whole_numbers(self, x):
        """Refuses fractions for a network of integers: Keras would cast those below 1 to 0."""
        for name, taps in self._networks.taps.items():
            model = taps.model
            if taps.convert is not None or not has_graph(model):
                continue
            specs = keras.tree.flatten(ends(model)[0])
            for spec, fed in zip(specs, keras.tree.flatten(as_called(model, x)), strict=False):
                values = np.asarray(fed) if fed.dtype.is_floating and "int" in spec.dtype else None
                if values is not None and np.any(values != np.floor(values)):
                    raise ValueError(
                        f"Expected whole numbers, since the {name} {model.name!r} takes "
                        f"{spec.dtype}. Received: {fed.dtype.name} inputs with fractions, of which "
                        "those below 1 would all be 0. Give it integers (a distiller makes them by "
                        "`teacher_inputs`), or build it with a float input."
                    )

    def _check_finite(self, name, place, tensor):
        for each in keras.tree.flatten(tensor):
            if "float" in keras.backend.standardize_dtype(each.dtype) and not _all_finite(each):
                raise ValueError(
                    f"Expected finite numbers from the {name}. Received: NaN or infinity at "
                    f"{place!r} in {self._networks.models[name].name!r}, for the first examples of "
                    "the data. Look at its weights, its precision and how the images are scaled."
                )

    def _check_term(self, term, features, y):
        for role, place in loss_checks.logit_places(term.loss):
            name = {"teacher": term.teacher, "student": term.student}[role]
            if output_rows.are_shares(features[name][place]):
                raise ValueError(
                    f"Expected logits, since {term.loss.name!r} compares logits. Received: "
                    f"{place!r} of the {name}, which is never negative and has the same sum "
                    "for every example: probabilities. Build the network without its softmax, "
                    "or name the layer before it."
                )
            if output_rows.are_fractions(features[name][place]):
                warnings.warn(
                    f"{term.loss.name!r} compares logits, and {place!r} of the {name} lies between "
                    "0 and 1 for all classes of the first examples. Are these sigmoids or other "
                    "probabilities? If so, build the network without them, or name the layer "
                    "before.",
                    stacklevel=2,
                )
        y = _labels_at(y, term.loss.student_layer)
        shape = tuple(getattr(y, "shape", ()))
        if term.loss.reads_classes and self._rank > 2 and math.prod(shape[1:]) > 1:
            raise ValueError(
                f"Expected one class for each example, since {term.loss.name!r} reads classes. "
                f"Received: labels of shape {shape}, one for every position of a dense "
                'output. Use `negatives_from="batch"`, or another loss.'
            )
        self._check_ignored(term.loss, y)
        # A head of its own may learn the teacher's classes beside any labels.
        of_logits = term.loss.expects_logits is True and term.loss.exclusive_classes
        wants_classes = term.loss.reads_classes or of_logits
        if wants_classes and output_rows.are_several_labels(y, self._rank):
            raise ValueError(
                f"Expected one class for each example, since {term.loss.name!r} takes classes that "
                "exclude each other. Received: rows of 0 and 1 with several, or no, classes for an "
                "example. Match features instead, use SoftTargets(binary=True), or, in a critic, "
                '`negatives_from="batch"`.'
            )

    def _check_ignored(self, loss, y):
        """Refuses examples without a class where a loss draws negatives from other classes."""
        ignored = task_losses.ignored_class(self._loss)
        if ignored is None or y is None or not (loss.reads_classes and loss.compares_examples):
            return
        if np.any(np.asarray(y) == ignored):
            raise ValueError(
                f"Expected a class for every example, since {loss.name!r} takes negatives from "
                f"other classes. Received: labels of {ignored}, which the task loss leaves out, "
                'and which would count as a class. Use `negatives_from="batch"`.'
            )

    def _check_task(self, name, loss, output, values):
        for place, each in task_losses.by_place(loss, output):
            logits = task_losses.expects_logits(each)
            found = values if place == OUTPUT else output_at(values, place)
            if logits is None or keras.tree.is_nested(found):
                continue
            if logits and output_rows.are_shares(found):
                raise ValueError(_misfit(name, "probabilities", each, logits))
            hidden = not task_losses.is_binary(each) and output_rows.are_near_zero(found)
            if not logits and (hidden or not _are_within(found, 0.0, 1.0)):
                raise ValueError(_misfit(name, "logits", each, logits))

    def _judge(self, features, y):
        classes = output_rows.classes_of(y, self._rank)
        if classes is None:
            return
        one_each = classes.ndim == 1 and len(classes) >= 8
        if not self._shuffled and one_each and len(np.unique(classes)) == 1:
            if self._comparing():
                warnings.warn(
                    "The first examples are all of one class, so the data looks sorted. "
                    f"{', '.join(self._comparing())} compares examples of a batch: shuffle it.",
                    stacklevel=2,
                )
        self._teachers.judge(features, classes)


def _bytes(tensor):
    array = np.asarray(tensor)
    return np.array(array.tolist()).tobytes() if array.dtype == object else array.tobytes()


def _labels_at(y, place):
    """Returns the labels of an output by its name, where labels have names."""
    if isinstance(y, dict) and isinstance(place, str) and place.startswith(f"{OUTPUT}/"):
        return y.get(place.partition("/")[2], y)
    return y


def _first(arrays, count):
    return keras.tree.map_structure(lambda each: None if each is None else each[:count], arrays)


def _first_examples(data, count, names):
    """Returns the `Batch` of the first examples, of as many batches as it takes."""
    if hasattr(data, "__next__") or replicas.on_several_hosts():
        raise ValueError(
            f"Expected data on one host that can be read again, since {', '.join(names)} looks at "
            "its first examples before the first step. Received: a generator or several hosts. "
            "Load a distiller that `fit` has trained on such data and saved, or set "
            "`initial_variance` to a number where there is one."
        )
    if isinstance(data, keras.utils.PyDataset):
        data = map(data.__getitem__, range(len(data) if data.num_batches else 1))
    elif not isinstance(data, tf.data.Dataset):
        data = [(data,)]
    parts, found = [], 0
    for batch in map(take_apart, data):
        parts.append(_first((batch.x, batch.teacher_features), count - found))
        found += len(keras.tree.flatten(batch.x)[0])
        if found >= count:
            break
    x, features = keras.tree.map_structure(
        lambda *each: None if each[0] is None else tf.concat(each, 0), *parts
    )
    return Batch(x, None, None, features)


def _misfit(name, found, loss, logits):
    return (
        f"Expected a task loss that fits: the {name} puts out {found}, by its first values, and "
        f"the loss expects {'logits' if logits else 'probabilities'}. Received: loss={loss!r}. "
        f"{task_losses.remedy(loss, logits)}"
    )


def _as_fed(array):
    """Returns an array as Keras hands it to a network: floats in its default precision."""
    tensor = keras.ops.convert_to_tensor(array)
    is_double = keras.backend.standardize_dtype(tensor.dtype) == "float64"
    return keras.ops.cast(tensor, keras.config.floatx()) if is_double else tensor


def _warn_of_changes(teacher, paths):
    warnings.warn(
        "Expected a teacher that inference does not change. Received: "
        f"{teacher.name!r}, whose {', '.join(paths)} changes when it is called. Training changes "
        "it further. To keep the teacher as it is, give the distiller a copy: save it, and load "
        "the file.",
        stacklevel=2,
    )


def _read(name, taps, x):
    """Returns what a network gives for `x`; says what it was given if it stops."""
    try:
        return taps(x, training=False)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        if str(error).startswith("Expected"):  # One of ours, which says more.
            raise
        given = [f"{tuple(each.shape)} of {each.dtype}" for each in keras.tree.flatten(x)]
        if len(given) > _MOST_SHOWN:
            given = [*given[:_MOST_SHOWN], f"{len(given) - _MOST_SHOWN} others"]
        raise ValueError(
            f"Expected examples that the {name} {taps.model.name!r} takes. Received: "
            f"{', '.join(given)}, with which it stops: see the error above. Are they of its kind "
            "of numbers (floats, or integers before a Rescaling layer) and of its size?"
        ) from error


def _all_finite(tensor):
    return bool(tf.reduce_all(tf.math.is_finite(tf.cast(tensor, "float32"))))


def _are_within(tensor, low, high):
    values = np.asarray(tensor, "float32")
    return values.size == 0 or (values.min() >= low - 1e-3 and values.max() <= high + 1e-3)
