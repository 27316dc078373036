"""Finds the stages or blocks of a network in its graph, and pairs those of two networks."""

import itertools
import math
from typing import NamedTuple

import keras

from keras_mikd import checks
from keras_mikd.features.blocks import find_blocks
from keras_mikd.features.layer_graph import LayerGraph, check_channels_last, has_graph, sized

POOLED = "pooled"

_MOST_BLOCKS = 4
# A halving is at least 3 -> 2; an unpadded convolution (28 -> 26) stays within its stage.
_STEP = 1.5
_NOISE = (
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
)


class Stage(NamedTuple):
    """A tensor of a network: the path of the layer that makes it, and its shape."""

    layer: str
    shape: tuple


class Stages(dict):
    """`{place: Stage}` that prints as a table."""

    def __repr__(self):
        if not self:
            return "(no stages)"
        rows = [(place, str(stage.shape), stage.layer) for place, stage in self.items()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{p:<{widths[0]}}  {s:<{widths[1]}}  {layer}" for p, s, layer in rows)


def stages(model: keras.Model) -> dict[str, Stage]:
    """Finds the places that methods read: `"stage1"` ..., `"block1"` ... and `"pooled"`.

    Only tensors on every path from the input to the output count, so nothing inside a residual
    block or a squeeze-and-excitation gate does. Of these:

    * `"stage1"` ... `"stageN"` are the last feature maps, `(batch, height, width, channels)`, at
      each resolution, in order. A new resolution begins where height or width changes by a factor
      of 1.5 or more. Maps that no kernel made, maps that were only padded or upsampled, and maps of
      1 x 1 do not count.
    * `"block1"` ... `"blockN"` are the residual streams of a transformer,
      `(batch, tokens, channels)`, after each block; in post-norm networks (BERT), after its last
      normalization. All of them are places. Four are listed, evenly spread, the last block last.
      Networks whose maps change resolution after an attention (MiT) have stages instead.
    * `"pooled"` is the last vector, `(batch, channels)`, before dropout and the classifier: the
      last layer with a kernel, if it outputs vectors on the way to a single output. Without a
      classifier it is the last vector of the network. A map of 1 x 1 counts, and is read, as a
      vector.

    Where cells skip cells, as in NASNet, there is little to find; name layers instead.

    >>> inputs = keras.Input((32, 32, 3))
    >>> x = keras.layers.Conv2D(8, 3, padding="same", name="conv1")(inputs)
    >>> x = keras.layers.Conv2D(16, 3, strides=2, padding="same", name="conv2")(x)
    >>> x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    >>> stages(keras.Model(inputs, keras.layers.Dense(10)(x)))
    stage1  (None, 32, 32, 8)   conv1
    stage2  (None, 16, 16, 16)  conv2
    pooled  (None, 16)          pool

    Args:
        model: Functional or built Sequential model with channels-last maps.

    Returns:
        A dict from place to `Stage(layer, shape)`. Places that the network does not have are
        missing.

    Raises:
        ValueError: If the model is subclassed or not built.
    """
    found = all_stages(model)
    blocks = [place for place in found if place.startswith("block")]
    listed = _spread(len(blocks), min(len(blocks), _MOST_BLOCKS))
    left_out = {*blocks} - {blocks[i] for i in listed}
    return Stages({place: stage for place, stage in found.items() if place not in left_out})


def all_stages(model):
    """Returns what `stages` does, with every block."""
    found = Stages()
    graph, resized = _measured_graph(model)
    for place, position in _find(graph).items():
        call = graph.calls[position]
        shape = tuple(call.shapes[0])
        if place == POOLED:
            shape = (shape[0], shape[-1])
        elif resized and len(shape) == 4:
            shape = (shape[0], None, None, shape[-1])
        # The blocks of DeiT return scores after their tokens.
        path = call.path if len(call.shapes) == 1 else f"{call.path}/0"
        found[place] = Stage(path, shape)
    return found


def raw_places(model):
    """Returns `{"stage1": path of the layer to read, ...}`: the outputs of residual stages, raw.

    In a network of pre-activation blocks, a stage ends with the BatchNorm and the activation that
    open the next block. The raw output is the sum before these. A network may also name its raw
    outputs "stage1_output" and so on, as those of `models` do. Elsewhere it is the stage itself.
    """
    graph, _ = _measured_graph(model)
    return {
        place: _named_output(graph, place, position) or graph.calls[_raw(graph, position)].path
        for place, position in _find(graph).items()
        if place.startswith("stage")
    }


def unactivated_places(model):
    """Returns `{"stage1": path of the layer to read, ...}`: stages before their last activation.

    Where a stage ends with a layer that only activates, it is what feeds that layer: the sum of a
    residual block, or the BatchNorm that opens the next block of pre-activation. Elsewhere it is
    the stage itself.
    """
    graph, _ = _measured_graph(model)
    found = {}
    for place, position in _find(graph).items():
        if isinstance(graph.calls[position].layer, _ACTIVATIONS):
            (position,) = graph.calls[position].parents
        if place != POOLED:
            found[place] = graph.calls[position].path
    return found


def pair_stages(teacher: keras.Model, student: keras.Model) -> list[tuple[str, str]]:
    """Pairs the stages of two networks, for methods that match them one by one.

    Stages with stages: with as many on both sides they pair in order. Otherwise the last two pair,
    and every other stage of the network with fewer takes one of the other's: in order, none twice,
    with the smallest sum of distances in `log2(input size / stage size)` (on a tie, the earlier
    stages). A first stage that only recolours single pixels, by 1x1 convolutions, pairs with
    nothing.

    Blocks with blocks or stages: at most four evenly spread ones of the network with fewer, each
    with the one at the same relative depth, the last with the last (as TinyBERT, arXiv:1909.10351).
    A network of stages and blocks has its stages before its blocks; a single one is the embedding
    of its patches, and pairs with nothing.

    Args:
        teacher: Functional or built Sequential model.
        student: Functional or built Sequential model.

    Returns:
        List of `(teacher_place, student_place)`: `[("stage2", "stage1"), ("stage3", "stage2")]`, or
        `[("block6", "block1"), ("block12", "block2")]`.

    Raises:
        ValueError: If one is no model, is subclassed or not built, or has neither stages nor
            blocks.
    """
    checks.model("student", student)
    checks.model("teacher", teacher)
    levels = []
    for role, model in (("teacher", teacher), ("student", student)):
        levels.append(_levels(model))
        if not levels[-1]:
            role = "network" if teacher is student else role
            raise ValueError(
                f"Expected a {role} with stages: feature maps (batch, height, width, channels), or "
                "blocks of a transformer (batch, tokens, channels), on every path to its output. "
                f"Received: {type(model).__name__} {model.name!r}, which has none. Name the layers "
                "to match in losses of your own, and pass them as `distillation_losses`."
            )
    few, many = sorted(levels, key=len)
    if any(place.startswith("block") for place in [*few, *many]):
        shorter, longer = list(few), list(many)
        pairs = [
            (shorter[i], longer[_share(i + 1, len(few), len(many))])
            for i in _spread(len(few), min(len(few), _MOST_BLOCKS))
        ]
    else:
        pairs = _closest_sizes(few, many)
    return pairs if few is levels[0] else [(longer, shorter) for shorter, longer in pairs]


def _closest_sizes(few, many):
    """Pairs stages, `{place: log2(input size / stage size)}` of each network."""
    depths = list(many.values())
    ways = itertools.combinations(range(len(many) - 1), len(few) - 1)
    best = min(
        ((*way, len(many) - 1) for way in ways),
        key=lambda way: sum(abs(a - depths[j]) for a, j in zip(few.values(), way, strict=True)),
    )
    return [(place, list(many)[j]) for place, j in zip(few, best, strict=True)]


def _spread(number, chosen):
    """Returns `chosen` of the first `number` integers, evenly spread, the last one last."""
    return [_share(part, chosen, number) for part in range(1, chosen + 1)]


def _share(part, parts, number):
    """Returns the last of the first `number` integers that belongs to a number of equal parts."""
    return math.floor(part * number / parts + 0.5) - 1


def _measured_graph(model):
    """Returns the graph with heights and widths filled in, and whether any was assumed."""
    checks.model("model", model)
    if not has_graph(model):
        raise ValueError(
            "Expected a Functional model, or a Sequential one that has an input, to find stages "
            f"in. Received: {type(model).__name__} {model.name!r}. For other models, make losses "
            "with places of a `features` function, and pass them as `distillation_losses`."
        )
    check_channels_last(model)
    specs = [sized(tensor) for tensor in model.inputs]
    resized = any(s.shape != t.shape for s, t in zip(specs, model.inputs, strict=True))
    return LayerGraph(model, specs), resized


def _find(graph):
    """Returns `{place: position in graph.calls}`."""
    learned = _learned(graph)
    trunk = [i for i in graph.trunk() if learned[i] and len(graph.calls[i].shapes) == 1]
    last, first_size = [], None
    for position in trunk:
        if not _is_feature_map(graph, position):
            continue
        size = graph.calls[position].shapes[0][1:3]
        if first_size is None or _is_step(size, first_size):
            last.append(position)
            first_size = size
        last[-1] = position
    blocks = find_blocks(graph, learned)
    if len(last) > 1 and blocks and last[-1] >= blocks[0]:
        blocks = []  # Blocks inside of stages, as in MiT.
    found = _numbered("stage", last) | _numbered("block", blocks)
    pooled = _pooled(graph, trunk)
    return found if pooled is None else {**found, POOLED: pooled}


def _numbered(name, positions):
    return {f"{name}{k}": position for k, position in enumerate(positions, start=1)}


def _named_output(graph, place, position):
    """Returns the layer "stage1_output" that stands beside the stage in its network, if any."""
    inside, _, _ = graph.calls[position].path.rpartition("/")
    path = f"{inside}/{place}_output".removeprefix("/")
    return path if path in graph.names else None


def _raw(graph, position):
    """Returns the position of the sum that a BatchNorm and an activation follow, or the same."""
    before, normalized = position, False
    while len(graph.calls[before].parents) == 1 and not _has_kernel(graph.calls[before].layer):
        normalized |= isinstance(graph.calls[before].layer, keras.layers.BatchNormalization)
        (before,) = graph.calls[before].parents
    return before if normalized and len(graph.calls[before].parents) > 1 else position


def _learned(graph):
    """Whether the result of each call depends on a kernel: a weight of two axes or more."""
    learned = []
    for call in graph.calls:
        learned.append(_has_kernel(call.layer) or any(learned[parent] for parent in call.parents))
    return learned


def _has_kernel(layer):
    if not getattr(layer, "has_learned_kernel", True):  # A rescaling of `quantization_aware`.
        return False
    return any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))


def _is_step(size, other):
    return any(max(pair) >= _STEP * min(pair) for pair in zip(size, other, strict=True))


def _is_feature_map(graph, position):
    call = graph.calls[position]
    area = _area(call.shapes[0])
    if area is None or area == 1:
        return False
    before = [_area(graph.calls[parent].shapes[0]) for parent in call.parents]
    enlarged = all(size is not None and size < area for size in before)
    return not enlarged or _has_kernel(call.layer)


def _area(shape):
    """Height times width of a feature map, `None` for another tensor."""
    return math.prod(shape[1:3]) if len(shape) == 4 and None not in shape[1:3] else None


def _pooled(graph, trunk):
    vectors = [i for i in trunk if _is_vector(graph.calls[i].shapes[0])]
    kernels = [i for i in trunk if _has_kernel(graph.calls[i].layer)]
    if len(graph.outputs) == 1 and kernels and kernels[-1] in vectors:
        vectors = [i for i in vectors if i < kernels[-1]]
    vectors = [i for i in vectors if not isinstance(graph.calls[i].layer, _NOISE)]
    return vectors[-1] if vectors else None


def _is_vector(shape):
    return len(shape) == 2 or _area(shape) == 1


def _levels(model):
    """Returns `{place: log2(input size / its size)}` of what pairs; blocks have no size (0)."""
    graph, _ = _measured_graph(model)
    areas = [_area(call.shapes[0]) for call in graph.calls]
    fed = areas[: len(model.inputs)]
    whole = max(filter(None, fed if any(fed) else areas), default=None)
    found = {place: position for place, position in _find(graph).items() if place != POOLED}
    blocks = [place for place in found if place.startswith("block")]
    stages_found = [place for place in found if place not in blocks]
    if blocks and len(stages_found) == 1:
        stages_found = []  # The embedding of patches.
    elif len(stages_found) > 1 and _recolours(graph, found["stage1"]):
        del stages_found[0]
    sizes = {place: math.log2(whole / areas[found[place]]) / 2 for place in stages_found}
    return sizes | dict.fromkeys(blocks, 0.0)


def _recolours(graph, position):
    """Whether each location of a map saw one pixel of the image, as ShuffleNet's stem on CIFAR."""
    if graph.calls[position].shapes[0][1:3] != graph.calls[0].shapes[0][1:3]:
        return False
    behind, seen = [position], set()
    while behind:
        call = graph.calls[behind.pop()]
        if _has_kernel(call.layer) and getattr(call.layer, "kernel_size", None) != (1, 1):
            return False
        behind += [parent for parent in call.parents if parent not in seen]
        seen.update(call.parents)
    return True
