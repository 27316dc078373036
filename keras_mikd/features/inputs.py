"""What networks take as inputs, and what makes a teacher's input from a batch."""

import contextlib
import types
import warnings

import keras
import tensorflow as tf

from keras_mikd.features.layer_graph import ends, has_graph, image_augmentations


class TeacherInputs:
    """Makes the input of a teacher from that of the student, by layers and functions in order.

    Layers run in inference mode, and nobody trains them.

    Args:
        steps: A `keras.layers.Layer`, a function `x -> x`, or a list of these.

    Attributes:
        layers: The layers among the steps.

    Raises:
        ValueError: If `steps` holds something else, or nothing.
    """

    def __init__(self, steps):
        self.steps = list(steps) if isinstance(steps, (list, tuple)) else [steps]
        kinds = (keras.layers.Layer, types.FunctionType)
        if not self.steps or not all(isinstance(step, kinds) for step in self.steps):
            raise ValueError(
                "Expected `teacher_inputs` to be a layer, a function x -> the teacher's x, or a "
                f"list of these. Received: teacher_inputs={steps!r}. Make an instance of a class, "
                "such as keras.layers.Resizing(96, 96), and a function of a callable object."
            )
        self.layers = [step for step in self.steps if isinstance(step, keras.layers.Layer)]
        random = [name for layer in self.layers for name in image_augmentations(layer)]
        if random:
            warnings.warn(
                f"`teacher_inputs` has layers that change images at random ({', '.join(random)}). "
                "They do nothing there, since what makes a teacher's input runs in inference mode. "
                "Augment the data set instead, which both networks read.",
                stacklevel=2,
            )

    def __call__(self, x):
        """Returns the teacher's input for a batch, a tensor or a structure of tensors."""
        return self._graph()(x) if tf.executing_eagerly() else self._in_order(x)

    def specs(self, x):
        """Returns `KerasTensor`s of what comes out for arrays, tensors or specs of them.

        Raises:
            ValueError: If the steps fail on these, or return something else than tensors.
        """
        x = keras.tree.map_structure(_spec, x)
        self._build(x)
        try:
            made = self._graph().get_concrete_function(x).structured_outputs
        except Exception as error:  # Whatever a function of the caller raises.
            raise ValueError(
                "Expected `teacher_inputs` that takes the batches of the student. Received: it "
                f"fails for {described(x)}: {error}"
            ) from error
        tensors = keras.tree.flatten(made)
        if not all(tf.is_tensor(tensor) and tensor.shape.rank for tensor in tensors):
            raise ValueError(
                f"Expected `teacher_inputs` to make batches, tensors of at least one axis. "
                f"Received: {made!r}"
            )
        return keras.tree.map_structure(
            lambda tensor: keras.KerasTensor((None, *tensor.shape[1:]), tensor.dtype.name), made
        )

    def _build(self, specs):
        """Builds layers outside of a graph, in which Normalization would keep what it makes."""
        if all(layer.built for layer in self.layers):
            return
        with tf.init_scope(), contextlib.suppress(Exception):  # `specs` says what is wrong.
            self._in_order(
                keras.tree.map_structure(
                    lambda spec: tf.ones([size or 1 for size in spec.shape], spec.dtype), specs
                )
            )

    def _graph(self):
        """Returns the steps as a graph, also for where a model runs eagerly.

        Keras' image layers keep integers there, and make floats of them in a graph. It is a new one
        every time, since a graph keeps what a Normalization knew when it was made.
        """
        return tf.function(self._in_order, autograph=False)

    def _in_order(self, x):
        for step in self.steps:
            x = step(x, training=False) if isinstance(step, keras.layers.Layer) else step(x)
        return x


def check_fit(model, made):
    """Checks that what `teacher_inputs` makes, symbolic tensors, is what a model takes.

    Raises:
        ValueError: If structures or shapes differ, or floats meet an input of integer images.
    """
    if not has_graph(model):
        return
    wanted = ends(model)[0]
    pairs = zip(keras.tree.flatten(wanted), keras.tree.flatten(made), strict=False)
    if not compatible(shapes(wanted), shapes(made)) or any(
        len(own.shape) == 4 and "int" in own.dtype and "float" in new.dtype for own, new in pairs
    ):
        raise ValueError(
            f"Expected `teacher_inputs` to make what {model.name!r} takes, {described(wanted)}. "
            f"Received: it makes {described(made)}. Add a step, such as "
            "keras.layers.Resizing(height, width), or a function with keras.ops.cast or "
            "keras.ops.repeat."
        )


def shapes(inputs):
    """Returns the shapes of symbolic inputs, by name or by position."""
    if isinstance(inputs, dict):
        return {name: tuple(tensor.shape) for name, tensor in sorted(inputs.items())}
    return [tuple(tensor.shape) for tensor in keras.tree.flatten(inputs)]


def compatible(first, second):
    """Whether one batch fits both of what `shapes` returns."""
    if type(first) is not type(second) or len(first) != len(second):
        return False
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return False
        first, second = list(first.values()), list(second.values())
    return all(
        len(a) == len(b)
        and all(None in pair or pair[0] == pair[1] for pair in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def described(inputs):
    """Describes symbolic inputs in a message: shapes and dtypes."""
    if isinstance(inputs, dict):
        return ", ".join(f"{name}: {described(inputs[name])}" for name in sorted(inputs))
    return ", ".join(
        f"{tuple(each.shape)} of {keras.backend.standardize_dtype(each.dtype)}"
        for each in keras.tree.flatten(inputs)
    )


def _spec(array):
    """Returns the spec of a batch as Keras hands it to a network, of any size."""
    dtype = keras.backend.standardize_dtype(array.dtype)
    dtype = keras.config.floatx() if dtype == "float64" else dtype
    return tf.TensorSpec((None, *array.shape[1:]), dtype)
