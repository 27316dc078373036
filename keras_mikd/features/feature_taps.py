"""Reads tensors inside a model: one forward pass returns every requested place."""

from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_mikd import checks
from keras_mikd.features.inputs import TeacherInputs, check_fit
from keras_mikd.features.layer_graph import ends, has_graph, tapped
from keras_mikd.features.places import (
    OUTPUT,
    checked_places,
    described,
    is_output,
    mask_of,
    resolve,
)
from keras_mikd.features.stages import POOLED
from keras_mikd.keras_internals import mask_at

_PADDING_MASK = "padding_mask"  # As KerasHub calls it, which hands it around beside the tokens.


class FeatureTaps:
    """A model and the places to read in it.

    A place is

    * `None` or `"output"`: the model's output, in its own structure; `"output/logits"` or
      `"output/0"` is one tensor of a dict or list;
    * the name of a layer, `"conv2"`, or its path through nested models,
      `"backbone/stack3_block2_add"`; `"lstm/0"` is one output of a layer with several, `"relu@2"`
      the second call of a layer that is called several times, `"backbone@2/conv1"` what is inside
      that of a nested model;
    * `"stage1"`, `"block1"`, ... or `"pooled"`, see `stages`; `"input"`, the model's only input;
    * a pyramid level of a KerasCV or KerasHub backbone, `"P4"`, also inside a detector of KerasCV;
      `"feature_pyramid/P4"` is the same level after the pyramid of a KerasCV RetinaNet.

    The layers are the model's own. Reading a place changes nothing that the model shows, computes
    or saves. It is not a Keras layer, so an owner does not track the model twice.

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    >>> x = keras.layers.GlobalAveragePooling2D()(x)
    >>> taps = FeatureTaps(keras.Model(inputs, keras.layers.Dense(10)(x)), ["conv", None])
    >>> {place: spec.shape for place, spec in taps.specs.items()}
    {'conv': (None, 6, 6, 4), 'output': (None, 10)}

    Args:
        model: Keras model. Without `features`, only the output of a subclassed one can be read.
        places: Iterable of places.
        features: Function `(model, x, training) -> {place: tensor}` that runs the model once and
            returns `"output"` and every other place in `places`, under names of its choice.
        inputs: `KerasTensor`s in the structure of `x`, for a (subclassed) model without symbolic
            inputs.
        convert: `TeacherInputs` that make the model's input of `x`; `None` if `x` is that.

    Attributes:
        places: Tuple of the places, without repetition, always with `"output"`.
        features: The function, or `None`.
        convert: The argument.
        specs: `{place: KerasTensor}`; a structure of them for an output of several tensors. A
            padded sequence has its mask beside it, as `mask_of(place)`: Keras' own, or the input
            `padding_mask` of as many tokens.
        image_size: `(height, width)` of the only input that is an image, if known, or `None`.

    Raises:
        TypeError: If `places` is not an iterable of names.
        ValueError: If a place does not exist or is not one tensor, the model is none, is not built
            or hides its layers, or `features` returns something else.
    """

    def __init__(
        self,
        model: keras.Model,
        places: Iterable[str | None],
        *,
        features: Callable[[keras.Model, Any, bool], dict[str, Any]] | None = None,
        inputs: Any = None,
        convert: TeacherInputs | None = None,
    ) -> None:
        self.model = checks.any_model("model", model)
        self.places = checked_places(places)
        self.features = features
        self.convert = convert
        self._paths, self._tap, self._masks = {}, None, None
        inner = [place for place in self.places if not is_output(place)]
        known = has_graph(model)
        made = convert is not None and inputs is not None
        if made:
            inputs = self.fed(inputs)
            check_fit(model, as_called(model, inputs))
        if inputs is None and known:
            inputs = ends(model)[0]
        if features is None and known:
            if inner:
                self._paths = resolve(model, inner)
                self._tap = tapped(model, set(self._paths.values()))
        else:
            _check_hidden(model, inner, features, inputs)
        if made or features is not None or not known:  # Sizes are known that a graph leaves open.
            self.specs = _Run(self._run).compute_output_spec(inputs)
        else:
            result = self._tap.output if inner else ends(model)[1]
            self.specs = self._with_masks(inputs, self._by_place(result))
        self._masks = self.specs.keys() - set(self.places)
        sizes = [spec.shape[1:3] for spec in keras.tree.flatten(inputs) if len(spec.shape) == 4]
        self.image_size = tuple(sizes[0]) if len(sizes) == 1 and None not in sizes[0] else None

    def __call__(self, x: Any, training: bool) -> dict[str, Any]:
        """Runs the model once on `x`, in training mode if `training`.

        A tensor will do for a dict of one. Returns `{place: tensor}` for every place in `places`,
        and `{mask_of(place): mask}` where `specs` have one: bool of shape `(batch, tokens)`.
        """
        tensors = self._run(x if self.convert is None else self.convert(x), training)
        if tensors.keys() != self.specs.keys():
            raise ValueError(
                f"Expected the masks that {described(self.model)} had when the distiller was made, "
                f"{sorted(self._masks)}. Received: {sorted(tensors.keys() - set(self.places))}. "
                "Name the place of the mask in the loss, as `teacher_mask_layer` or "
                "`student_mask_layer`."
            )
        return tensors

    def fed(self, x: Any) -> Any:
        """Returns `x`, or `KerasTensor`s of what the model gets where that is made of `x`."""
        return x if self.convert is None else self.convert.specs(x)

    def _run(self, x, training):
        if self.features is not None:
            result = self.features(self.model, x, training)
        else:
            x = as_called(self.model, x)
            _check_kind(self.model, x)
            result = (self._tap or self.model)(x, training=training)
        return self._with_masks(x, self._by_place(result))

    def _with_masks(self, x, tensors):
        """Adds the masks of padded sequences to `{place: tensor}`."""
        padding = x.get(_PADDING_MASK) if isinstance(x, dict) else None
        found = {}
        for place, tensor in tensors.items():
            if keras.tree.is_nested(tensor) or len(tensor.shape) != 3:
                continue
            mask = mask_at(tensor)
            if mask is None and padding is not None:
                fits = tuple(padding.shape[1:]) == tuple(tensor.shape[1:2])
                known = fits if self._masks is None else mask_of(place) in self._masks
                mask = padding if known else None
            if mask is not None and len(mask.shape) == 2:
                found[mask_of(place)] = keras.ops.cast(mask, "bool")
        return tensors | found

    def _by_place(self, result):
        if self.features is not None:
            _check_features(result, self.places)
            output, read = result[OUTPUT], result
        elif self._tap is None:
            output, read = result, {}
        else:
            output, by_path = result
            read = {place: by_path[path] for place, path in self._paths.items()}
            if POOLED in read and tuple(read[POOLED].shape[1:3]) == (1, 1):
                read[POOLED] = keras.ops.squeeze(read[POOLED], axis=(1, 2))
        return {
            place: output_at(output, place) if is_output(place) else read[place]
            for place in self.places
        }


def pick(tensors, places):
    """Returns the tensor at a place, or the list of tensors at a list of places."""
    return [tensors[p] for p in places] if isinstance(places, list) else tensors[places]


def pick_masks(tensors, places, mask_layer=None):
    """Returns the mask at a place, bool of shape `(batch, tokens)`, or `None` without one.

    With `mask_layer`, that place is the mask of every sequence. For a list of places, the result is
    a dict `{place: mask}`, or `None` without any.
    """
    found = {}
    for place in places if isinstance(places, list) else [places]:
        if mask_layer is not None and len(getattr(tensors[place], "shape", ())) == 3:
            found[place] = keras.ops.not_equal(tensors[mask_layer], 0)
        elif mask_of(place) in tensors:
            found[place] = tensors[mask_of(place)]
    return (found or None) if isinstance(places, list) else found.get(places)


def output_at(output, place):
    """Follows a place such as `"output/key/0"` into the structure of the output."""
    found = output
    for key in place.split("/")[1:]:
        items = found if isinstance(found, dict) else {}
        if isinstance(found, (list, tuple)):
            items = {str(i): item for i, item in enumerate(found)}
        if key not in items:
            exist = ", ".join(f"{OUTPUT}/{name}" for name in items) or OUTPUT
            raise ValueError(f"Expected one of the outputs: {exist}. Received: {place!r}")
        found = items[key]
    return found


def as_called(model, x):
    """Returns `x` in the structure of the model's inputs, if it is the only one of them.

    Keras takes a tensor for a dict of one as well, as KerasCV does, but warns.
    """
    inputs = ends(model)[0] if has_graph(model) else None
    if isinstance(inputs, dict) and len(inputs) == 1 and not isinstance(x, dict):
        return dict.fromkeys(inputs, x)
    return x


class _Run(keras.Operation):
    """Lets Keras infer what a function of the inputs returns."""

    def __init__(self, function):
        super().__init__(name="features")
        self.function = function

    def call(self, inputs):
        return self.function(inputs, False)


def _check_kind(model, x):
    """Refuses images of floats for integer inputs: Keras would cast floats below 1 to 0."""
    specs = keras.tree.flatten(ends(model)[0]) if has_graph(model) else []
    for spec, image in zip(specs, keras.tree.flatten(x), strict=False):
        dtype = keras.backend.standardize_dtype(image.dtype)
        if "int" in spec.dtype and "float" in dtype and len(spec.shape) == 4:
            raise ValueError(
                f"Expected integer images, since {described(model)} takes {spec.dtype}: as such, "
                f"floats below 1 are all 0. Received: images of {dtype}. Give it images from 0 to "
                "255 (a distiller makes them by `teacher_inputs`), or build it with a float input."
            )


def _check_hidden(model, inner, features, inputs):
    """Checks that a model whose layers cannot be seen comes with what reading it takes."""
    if features is None and inner:
        raise ValueError(
            f"Expected a model with a graph to find {inner} in, not {described(model)}. Give it an "
            "input (if it is a Sequential model), or pass `features`, a function (model, x, "
            "training) -> {place: tensor}. Received: features=None"
        )
    if not getattr(model, "built", False):
        raise ValueError(
            f"Expected a model that has its weights. Received: {described(model)}, which is not "
            "built. Call it once on a batch."
        )
    if inputs is None:
        raise ValueError(
            f"Expected `inputs` for {described(model)}, which has no symbolic ones: tensors of "
            "keras.Input in the structure in which it is called. Received: inputs=None"
        )


def _check_features(result, places):
    if not isinstance(result, dict):
        raise ValueError(
            "Expected `features` to return a dict {place: tensor}. "
            f"Received: {type(result).__name__}"
        )
    missing = {OUTPUT if is_output(place) else place for place in places} - set(result)
    if missing:
        raise ValueError(
            f"Expected `features` to return the places {sorted(missing)} as well. "
            f"Received: {sorted(result)}"
        )
