"""The layers of a model as one flat graph that opens nested models, and models that read inside."""

import collections
from typing import Any, NamedTuple

import keras

from keras_mikd.features.encoder_layers import opened
from keras_mikd.keras_internals import (
    constant_arguments,
    has_keras_call,
    layers_of,
    nodes_behind,
    operation_of,
)

_ASSUMED_SIZE = 256


class Call(NamedTuple):
    """One call of a layer or Keras operation: its path, its result and the calls that feed it.

    The path is that of this call alone, `"relu@2"` where the layer is called several times.
    """

    path: str
    layer: Any
    shapes: tuple
    parents: tuple
    arguments: tuple = ()
    """What it was called with beside tensors, such as the number in `x / 255.0`."""


class LayerGraph:
    """Every call of a layer between the inputs and the outputs of a model, inputs first.

    The layers of nested models appear as `"backbone/conv1"`, the nested models only in `names`. So
    do the blocks of an encoder that is one layer (`opened`). The model has a graph (`has_graph`);
    `input_specs` replace its inputs, to see which shapes follow.

    Attributes:
        calls: List of `Call`; `parents` are positions in it.
        names: `{path: [position of each tensor of that name]}`, several if a layer is called
            several times or has several outputs; one output of it is also there as `"pyramid/0"`,
            one call as `"relu@2"`, and what is inside a nested model's as `"block@2/relu"`.
        levels: `{"P3": [path], ...}`, the pyramid levels of KerasCV and KerasHub backbones, also
            inside a detector, and `{"feature_pyramid/P3": [path], ...}` of a KerasCV RetinaNet.
        outputs: Positions of the model's outputs.
    """

    def __init__(self, model, input_specs=None):
        self.calls = []
        self.names = {}
        self.levels = {}
        specs = model.inputs if input_specs is None else input_specs
        feeds = [
            self._add(operation_of(tensor), operation_of(tensor).name, [spec.shape], [])
            for tensor, spec in zip(model.inputs, specs, strict=True)
        ]
        self.outputs = self._open(model, "", feeds, specs)

    def trunk(self, parents=None):
        """Returns the positions of the calls that lie on every path from an input to an output.

        `parents` replace those of the calls, for some of the paths.
        """
        parents = [call.parents for call in self.calls] if parents is None else parents
        ahead = [0] * len(self.calls)
        for position in self.outputs:
            ahead[position] += 1
        for position in reversed(range(len(self.calls))):
            for parent in parents[position]:
                ahead[parent] += ahead[position]
        behind = []
        for own in parents:
            behind.append(sum(behind[parent] for parent in own) if own else 1)
        every = sum(behind[position] for position in self.outputs)
        return [i for i, (a, b) in enumerate(zip(ahead, behind, strict=True)) if a * b == every]

    def _add(self, layer, path, shapes, parents, arguments=()):
        position = len(self.calls)
        self.calls.append(Call(path, layer, tuple(shapes), tuple(parents), tuple(arguments)))
        self.names.setdefault(path, []).extend([position] * len(shapes))
        for output in _output_paths(path, shapes):
            self.names.setdefault(output, []).append(position)
        return position

    def _open(self, model, prefix, feeds, specs):
        """Adds the calls in `model`, fed by those at `feeds`; returns where its outputs are."""
        nodes = nodes_behind(model.outputs)
        shapes = _shapes(model, nodes, specs)
        source = {id(t): position for t, position in zip(model.inputs, feeds, strict=True)}
        repeated = {}
        for node, name in zip(nodes, _numbered(nodes), strict=True):
            if not node.input_tensors:
                continue
            layer, path = node.operation, prefix + name
            parents = [source[id(t)] for t in node.input_tensors]
            nested = _graph_in(node)
            if nested is not None and len(nested.inputs) <= len(parents):
                # What follows the inputs is a mask.
                fed = node.input_tensors[: len(nested.inputs)]
                inner = [keras.KerasTensor(shapes[id(t)], t.dtype) for t in fed]
                made = self._open(nested, f"{path}/", parents[: len(fed)], inner)
                self.names.setdefault(path, []).extend(made)
                if nested is not layer:
                    made = self._name_outputs(path, node.outputs, made)
            else:
                own = [shapes[id(t)] for t in node.outputs]
                arguments = constant_arguments(node)
                made = [self._add(layer, path, own, parents, arguments)] * len(own)
            if name != layer.name:
                repeated[path] = prefix + layer.name
            source.update(zip(map(id, node.outputs), made, strict=True))
        self._add_levels(model, prefix)
        self._name_all_calls(repeated)
        return [source[id(t)] for t in model.outputs]

    def _name_all_calls(self, repeated):
        """Lets `"block/relu"` stand for all of `"block@1/relu"`, `"block@2/relu"`, ..."""
        for call, path in repeated.items():
            for name, positions in list(self.names.items()):
                if name == call or name.startswith(f"{call}/"):
                    self.names.setdefault(path + name.removeprefix(call), []).extend(positions)

    def _name_outputs(self, path, outputs, made):
        """Names the outputs of an opened layer as those of a closed one; returns where they are."""
        for name, position in zip(_output_paths(path, outputs), made, strict=False):
            self.names.setdefault(name, []).append(position)
        # The constants that it returns as well, such as the scores of DeiT, are read by nobody.
        return made + made[:1] * (len(outputs) - len(made))

    def _add_levels(self, model, prefix):
        levels = _pyramid_level_inputs(model)  # KerasCV: names of layers
        levels = levels or getattr(model, "pyramid_outputs", None)  # KerasHub: tensors
        # KerasCV's detectors put the layers of their backbone into a model of their own.
        levels = levels or _pyramid_level_inputs(getattr(model, "backbone", None)) or {}
        for level, name in levels.items():
            if isinstance(name, keras.KerasTensor):
                name = operation_of(name).name
            found = [p for p in self.names if p.startswith(prefix) and p.rpartition("/")[2] == name]
            for path in [prefix + name] if prefix + name in found else found:
                # A level of the outer model stands for those of the models inside it.
                others = [p for p in self.levels.get(level, []) if not p.startswith(prefix)]
                self.levels[level] = [*others, path]
        self._add_pyramid(prefix + getattr(getattr(model, "feature_pyramid", None), "name", ""))

    def _add_pyramid(self, path):
        """Names the outputs of a RetinaNet's pyramid, a layer or a model of any name."""
        for i, position in enumerate(self.names.get(path, [])):
            inner = self.calls[position].path
            self.levels[f"feature_pyramid/P{i + 3}"] = [f"{path}/{i}" if inner == path else inner]


def has_graph(model):
    """Whether a model's layers can be seen: it is Functional, or Sequential and built."""
    if not isinstance(model, keras.Model):
        return False
    if not has_keras_call(model):
        return False
    if isinstance(model, keras.Sequential):
        # Without an input, `inputs` raises AttributeError.
        return hasattr(model, "inputs")
    return isinstance(model, keras.Function)


def _graph_in(node):
    """Returns the model whose layers a call stands for: a nested model or an opened layer."""
    if has_graph(node.operation):
        return node.operation
    return opened(node.operation, node.input_tensors[0]) if len(node.input_tensors) == 1 else None


def _pyramid_level_inputs(model):
    try:
        return getattr(model, "pyramid_level_inputs", None)
    except NotImplementedError:  # KerasCV's ViTDet has the attribute and no pyramid.
        return None


def check_channels_last(model):
    """Refuses a model whose feature maps have their channels first.

    Raises:
        ValueError: If a layer is made so; the message names it.
    """
    for layer in layers_of(model):
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                "Expected feature maps (batch, height, width, channels). Received: "
                f"{model.name!r}, whose layer {layer.name!r} has channels first. Build it with "
                'data_format="channels_last".'
            )


def image_augmentations(model):
    """Returns the names of the layers, also of a layer itself, that change images at random."""
    kinds = {
        layer.name: [kind.__name__ for kind in type(layer).__mro__] for layer in layers_of(model)
    }
    return [
        name
        for name, of_layer in kinds.items()
        if any(kind in _AUGMENTATIONS or kind.startswith("Random") for kind in of_layer)
    ]


_AUGMENTATIONS = {"BaseImageAugmentationLayer", "MixUp", "CutMix", "AugMix", "RandAugment"}


def ends(model):
    """Returns the symbolic inputs and outputs of a model in the structure in which it is called."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], _unpacked(model.outputs)
    return model.input, _unpacked(model.output)


def sized(tensor):
    """Returns a symbolic image with assumed sizes where its input leaves them open."""
    if len(tensor.shape) != 4:
        return tensor
    batch, *sizes, channels = tensor.shape
    shape = (batch, *(size or _ASSUMED_SIZE for size in sizes), channels)
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def tapped(model, paths):
    """Returns a model that is called like `model` and returns `(its output, {path: tensor})`.

    It shares the layers of `model`, which has a graph; each path has one position in its
    `LayerGraph`. A tensor inside a nested model is not in the outer graph: a tapped model replaces
    the nested one, and the layers around it are called again on new symbolic inputs.
    """
    inputs, outputs = ends(model)
    nodes = nodes_behind(model.outputs)
    called = dict(zip(_numbered(nodes), nodes, strict=True))
    nested = {}
    for path in paths:
        name, _, rest = path.partition("/")
        if rest and name in called and _reads_inside(called[name], rest):
            # What one call is read at, all are: they are calls of one model.
            _, inside = nested.setdefault(called[name].operation.name, (called[name], set()))
            inside.add(rest)
    if nested:
        taps = {name: tapped(_graph_in(node), inside) for name, (node, inside) in nested.items()}
        inputs, outputs, made = _called_again(model, called, taps)
    else:
        made = {operation_of(t).name: t for t in model.inputs}
        for name, node in called.items():
            made.update(_by_path(name, node.outputs))
    return keras.Model(inputs, (outputs, {path: made[path] for path in paths}), name=model.name)


def _reads_inside(node, rest):
    if not node.input_tensors or _graph_in(node) is None:
        return False
    # An opened layer has its outputs by number.
    return has_graph(node.operation) or not rest.isdigit()


def _called_again(model, called, taps):
    """Calls the layers of `model` on new inputs, with `taps` in place of nested models.

    `called` are the calls of the model by name. Keras makes them in an order of its own: which call
    it is shows in the tensors that come in.
    """
    made, waiting = {}, {name: node for name, node in called.items() if node.input_tensors}
    renewed = {}  # id of an old tensor: the new one.

    def call(layer, *args, **kwargs):
        fed = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        name = next(n for n, node in waiting.items() if _is_call(node, layer, fed, renewed))
        node = waiting.pop(name)
        renewed.update({id(old): new for old, new in zip(node.input_tensors, fed, strict=True)})
        if layer.name in taps:
            result, read = taps[layer.name](*args, **kwargs)
            made.update({f"{name}/{path}": value for path, value in read.items()})
        else:
            result = layer(*args, **kwargs)
        outputs = keras.tree.flatten(result)
        renewed.update({id(old): new for old, new in zip(node.outputs, outputs, strict=False)})
        made.update(_by_path(name, outputs))
        return result

    # `clone_model` would compile a copy of a compiled model; this one never is.
    plain = keras.Model(*ends(model), name=model.name)
    again = keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)
    for old, new in zip(plain.inputs, again.inputs, strict=True):
        made[operation_of(old).name] = new
    return again.input, again.output, made


def _is_call(node, layer, fed, renewed):
    """Whether a layer that gets new tensors is in the call of these old ones."""
    return (
        node.operation is layer
        and len(node.input_tensors) == len(fed)
        and all(
            renewed.get(id(old), new) is new
            for old, new in zip(node.input_tensors, fed, strict=True)
        )
    )


def _numbered(nodes):
    """Returns the name of each call: that of its layer, or `"relu@2"` if it is called again."""
    every = collections.Counter(node.operation.name for node in nodes)
    so_far = collections.Counter()
    names = []
    for node in nodes:
        name = node.operation.name
        so_far[name] += 1
        names.append(f"{name}@{so_far[name]}" if every[name] > 1 else name)
    return names


def _output_paths(path, outputs):
    """Returns the paths of the single outputs of a layer that has several."""
    return [f"{path}/{i}" for i in range(len(outputs))] if len(outputs) > 1 else []


def _by_path(path, outputs):
    """Returns `{path: tensor}` of a layer's outputs; its own path is that of the first."""
    return {path: outputs[0]} | dict(zip(_output_paths(path, outputs), outputs, strict=False))


def _shapes(model, nodes, specs):
    """Returns `{id(tensor): shape}` of every tensor when the inputs have the shapes of `specs`."""
    tensors = [t for node in nodes for t in node.outputs]
    shapes = {id(t): t.shape for t in tensors}
    shapes.update({id(t): spec.shape for t, spec in zip(model.inputs, specs, strict=True)})
    if any(t.shape != shapes[id(t)] for t in model.inputs):
        every = keras.Function(model.inputs, tensors).compute_output_spec(list(specs))
        shapes.update({id(t): spec.shape for t, spec in zip(tensors, every, strict=True)})
    return shapes


def _unpacked(outputs):
    alone = isinstance(outputs, (list, tuple)) and len(outputs) == 1
    return outputs[0] if alone else outputs
