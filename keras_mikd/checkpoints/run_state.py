"""The state of a run in one file: lists and dicts of numbers, texts, arrays, functions by name."""

import json
import sys
import zipfile

import numpy as np

from keras_mikd.atomic_files import written_whole

_STRUCTURE = "structure"


def write(path, state):
    """Writes a state, such as `{"epoch": 3, "variables": [array, ...]}`, whole or not at all.

    Raises:
        TypeError: If it holds anything else than numbers, texts, `None`, arrays, lists, tuples and
            dicts.
    """
    arrays = []
    structure = json.dumps(packed(state, arrays))
    # As bytes: NumPy's own format does not know bfloat16.
    content = {str(i): np.frombuffer(each.tobytes(), "uint8") for i, each in enumerate(arrays)}
    content[_STRUCTURE] = np.frombuffer(structure.encode(), "uint8")
    with written_whole(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **content)


def read(path, *, arrays=True):
    """Returns the state in a file; without `arrays`, `None` stands for each of them.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            structure = json.loads(content[_STRUCTURE].tobytes())
            return _unpacked(structure, content if arrays else None)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(
            f"Expected a whole file, as ExactResume writes it. Received: {str(path)!r}, which is "
            f"damaged ({error}). Remove it to begin the run anew, or put a copy in its place."
        ) from error


def packed(value, arrays):
    """Returns what JSON can hold of a value, whose arrays are added to the list `arrays`."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _described(value, arrays)
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [packed(each, arrays) for each in value]}
    if isinstance(value, dict):
        return {"dict": [packed(pair, arrays) for pair in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    module, name = (getattr(value, part, None) for part in ("__module__", "__qualname__"))
    if value is _named(module, name):  # Such as the comparison that EarlyStopping has chosen.
        return {"function": [module, name]}
    raise TypeError(f"Expected numbers, texts or arrays. Received: {type(value).__name__}")


def _described(value, arrays):
    if value.dtype.hasobject:
        raise TypeError("Expected an array of numbers. Received: one of objects")
    arrays.append(np.asarray(value))
    return {
        "array": len(arrays) - 1,
        "dtype": value.dtype.name if value.dtype.kind == "V" else value.dtype.str,
        "shape": np.shape(value),
        "scalar": isinstance(value, np.generic),
    }


def _named(module, name):
    """Returns what an imported module has under a name; a new object if that is nothing."""
    return getattr(sys.modules.get(module), name or "", object())


def _unpacked(value, content):
    if not isinstance(value, dict):
        return value
    if "array" in value:
        if content is None:
            return None
        flat = np.frombuffer(content[str(value["array"])].tobytes(), np.dtype(value["dtype"]))
        array = flat.reshape(value["shape"]).copy()
        return array[()] if value["scalar"] else array
    ((kind, parts),) = value.items()
    parts = [_unpacked(each, content) for each in parts]
    if kind == "function":
        return _named(*parts)
    return {"list": list, "tuple": tuple, "dict": dict}[kind](parts)
