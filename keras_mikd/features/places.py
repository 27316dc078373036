"""Names of places in a model, and which layer each of them means."""

import difflib
import re

from keras_mikd import checks
from keras_mikd.features.layer_graph import LayerGraph
from keras_mikd.features.stages import POOLED, all_stages

OUTPUT = "output"
INPUT = "input"

_LISTED = 30


def resolve(model, places):
    """Returns `{place: path of the layer}` for places inside a model with a graph.

    Raises:
        ValueError: If a place does not exist, or is not one tensor.
    """
    return _Places(model).resolve(places)


def is_output(place):
    """Whether a place is the model's output or one of its tensors."""
    return place.split("/")[0] == OUTPUT


def mask_of(place):
    """Returns the name under which the mask of a place stands beside it."""
    return f"{place}:mask"


def checked_places(places):
    """Returns places as a tuple of names, without repetition and with `"output"`."""
    if isinstance(places, str) or not hasattr(places, "__iter__"):
        raise TypeError(f"Expected an iterable of places. Received: places={places!r}")
    places = [OUTPUT if place is None else place for place in places]
    for place in places:
        if not isinstance(place, str):
            raise TypeError(f"Expected a place to be None or a string. Received: {place!r}")
    return tuple(dict.fromkeys([*places, OUTPUT]))


def described(model):
    """Describes a model in a message."""
    return f"{type(model).__name__} {model.name!r}"


class _Places:
    """The places inside a model."""

    def __init__(self, model):
        self.model = model
        self.graph = LayerGraph(model)
        self.aliases = dict(self.graph.levels)

    def resolve(self, places):
        names = self.graph.names
        if any(place not in names or _is_stage(place) for place in places):
            found = all_stages(self.model).items()
            self.aliases.update({place: [stage.layer] for place, stage in found})
            if len(self.model.inputs) == 1:
                self.aliases[INPUT] = [self.graph.calls[0].path]
        return {place: self._path(place) for place in places}

    def _path(self, place):
        names = self.graph.names
        paths = self.aliases.get(place, []) + [place] * (place in names)
        if not paths:
            raise ValueError(self._unknown(place))
        positions = [position for path in paths for position in names[path]]
        if any(len(names[path]) > 1 for path in paths):
            raise ValueError(
                f"Expected a place to be one tensor. Received: {place!r}, which stands for "
                f"{len(positions)} tensors in {described(self.model)}: {', '.join(paths)} is "
                f"called several times or has several outputs. {self._instead(paths[-1])}"
            )
        if len(set(positions)) > 1:
            raise ValueError(
                f"Expected a place to mean one thing. Received: {place!r}, which in "
                f"{described(self.model)} could be any of {', '.join(paths)}. Rename the layer, "
                "or read another one."
            )
        return paths[-1]

    def _instead(self, path):
        numbered = "/".join(rf"{re.escape(part)}(@\d+)?" for part in path.split("/"))
        calls = [
            name
            for name, positions in self.graph.names.items()
            if len(positions) == 1 and re.fullmatch(numbered, name)
        ]
        if calls:
            return f"Read one of its calls: {checks.listed(calls, _LISTED)}."
        single = [
            name for name in self.graph.names if re.fullmatch(rf"{re.escape(path)}/\d+", name)
        ]
        if len(single) > 1 and len(self.graph.names[single[0]]) == 1:
            return f"Read one of its outputs: {', '.join(single)}."
        return "Read a layer before or after it."

    def _unknown(self, place):
        # What stands for several calls has them beside it.
        single = [name for name, found in self.graph.names.items() if len(set(found)) == 1]
        known = list(dict.fromkeys([OUTPUT, *self.aliases, *single]))
        ends_alike = [name for name in known if name.rpartition("/")[2] == place]
        close = dict.fromkeys(ends_alike[:3] + difflib.get_close_matches(place, known, n=3))
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        return (
            f"Expected a place of {described(self.model)}. Received: {place!r}.{hint} "
            f"Its places: {checks.listed(known, _LISTED)}."
        )


def _is_stage(place):
    return place == POOLED or re.fullmatch(r"(stage|block)\d+", place)
