"""Feature maps and sequences of tokens, brought to the places at which they are compared."""

import math
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_mikd import masks

# None; a class token; and one of distillation; four registers; these and a class token. Any number
# up to so many would let most sequences pass for some grid.
_SPECIAL_TOKENS = (0, 1, 2, 4, 5)


def common_grid(teacher_shape, student_shape, *, limit=None):
    """Returns the grid `(rows, columns)` on which two feature maps can be compared.

    It is the smaller of the two in each direction, and at most `limit`. Shapes are
    `(batch, height, width, channels)`.

    Raises:
        ValueError: If a shape is not that of a feature map, or a size is unknown.
    """
    return _grid({"teacher": teacher_shape, "student": student_shape}, limit)


def _grid(shapes, limit):
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(
                f"Expected the {name}'s tensor to be a feature map of shape "
                f"(batch, height, width, channels). Received: {name}_shape={tuple(shape)}"
            )
        if None in shape[1:]:
            raise ValueError(
                "Expected feature maps whose height, width and channels are known. "
                f"Received: {name}_shape={tuple(shape)}. Build the {name} with a fixed input size."
            )
    sizes = [min(pair) for pair in zip(*(shape[1:3] for shape in shapes.values()), strict=True)]
    return tuple(size if limit is None else min(size, limit) for size in sizes)


def patch_grid(tokens, aspect=(1, 1)):
    """Returns the grid `(rows, columns)` that the last of `tokens` form, or `None`.

    It is the largest one with the aspect of `aspect`, a grid. None, 1, 2, 4 or 5 tokens, and fewer
    than the grid has, may come before it: class, distillation and register tokens.
    """
    divisor = math.gcd(*aspect)
    rows, columns = (size // divisor for size in aspect)
    scale = math.isqrt((tokens or 0) // (rows * columns))
    patches = scale**2 * rows * columns
    if not scale or tokens - patches not in _SPECIAL_TOKENS or tokens >= 2 * patches:
        return None
    return scale * rows, scale * columns


def as_map(tokens, grid):
    """Returns the last tokens, those of a grid, as a map `(batch, rows, columns, channels)`."""
    rows, columns = grid
    return ops.reshape(tokens[:, -rows * columns :], (-1, rows, columns, tokens.shape[-1]))


class _Side(NamedTuple):
    """How the tensor of one network is read."""

    rank: int
    patches: tuple | None
    """Grid of patch tokens that are read as a map."""
    grid: tuple | None
    """`(rows, columns)` of a map, `(tokens,)` of a sequence, `None` of a vector."""


class Alignment:
    """Where two features are compared: vectors, maps or sequences of tokens, from their shapes.

    Two maps are averaged to the smaller grid, of at most `limit` rows and columns. Two sequences of
    as many tokens are compared one by one; others are averaged to the smaller number. A map meets
    tokens that form a grid of its aspect, see `patch_grid`. With an `image_size`, different numbers
    of tokens are patches of that image, and form grids too. A vector meets each place of the other.
    With `as_they_are`, both have the same places, of any number and with any axes.

    Raises:
        ValueError: If the two cannot be compared.
    """

    def __init__(
        self, teacher_shape, student_shape, *, limit=None, image_size=None, as_they_are=False
    ):
        shapes = {"teacher": tuple(teacher_shape), "student": tuple(student_shape)}
        patches = _patches(shapes, image_size)
        read = {
            name: (shape[0], *patches[name], shape[-1]) if patches[name] else shape
            for name, shape in shapes.items()
        }
        grids = dict.fromkeys(read) if as_they_are else self._grids(read, limit)
        numbers = [shape[1] for shape in read.values() if len(shape) == 3]
        self._resamples = len(numbers) == 2 and numbers[0] != numbers[1]
        self.teacher, self.student = (
            _Side(len(shapes[name]), patches[name], grids[name]) for name in shapes
        )

    @property
    def places(self):
        """Number of places at which features are compared; `None` if it is not known."""
        sizes = [side.grid for side in (self.teacher, self.student) if side.grid is not None]
        return None if (None,) in sizes else max(map(math.prod, sizes), default=1)

    def __call__(self, teacher, student, teacher_mask=None, student_mask=None):
        """Brings both to the places where they are compared.

        Masks have the shape `(batch, tokens)`. Returns the teacher's and the student's vectors,
        maps `(batch, rows, columns, channels)` or sequences `(batch, tokens, channels)`, and a mask
        of the latter: where real tokens meet. It is `None` where all are real; otherwise padded
        tokens are zeros, and the sequences have whole lanes, see `masks`.
        """
        teacher, student = _read(teacher, self.teacher), _read(student, self.student)
        # Layers may hand on a mask to what is no sequence any more.
        teacher_mask = teacher_mask if self.teacher.rank == 3 else None
        student_mask = student_mask if self.student.rank == 3 else None
        if teacher_mask is None and student_mask is None:
            pooled = _pooled(teacher, self.teacher.grid), _pooled(student, self.student.grid)
            return *pooled, None
        if 4 in (len(teacher.shape), len(student.shape)):
            raise ValueError(
                "Expected tokens without a mask to compare with a map. Received: a mask of shape "
                f"{tuple((teacher_mask if student_mask is None else student_mask).shape)} with "
                f"maps of {self.teacher.grid} cells. Compare vectors or sequences."
            )
        if self._resamples:
            return _resampled_both(teacher, student, teacher_mask, student_mask)
        mask = teacher_mask if student_mask is None else student_mask
        if teacher_mask is not None and student_mask is not None:
            mask = ops.logical_and(teacher_mask, student_mask)
        mask = masks.in_lanes(mask)
        teacher, student = (
            masks.only_real(masks.in_lanes(feature), mask) if len(feature.shape) == 3 else feature
            for feature in (teacher, student)
        )
        return teacher, student, mask

    def at_locations(self, teacher, student, teacher_mask=None, student_mask=None):
        """Returns the same, as `(batch, locations, channels)`; a vector has one location."""
        *features, mask = self(teacher, student, teacher_mask, student_mask)
        return *(_flat(feature) for feature in features), mask

    def _grids(self, shapes, limit):
        ranks = [len(shape) for shape in shapes.values()]
        if ranks == [4, 4]:
            return dict.fromkeys(shapes, _grid(shapes, limit))
        if ranks == [3, 3]:
            numbers = [shape[1] for shape in shapes.values()]
            if None in numbers and numbers != [None, None]:
                raise ValueError(
                    "Expected as many tokens, or numbers of them that are known. Received: "
                    f"{_received(shapes)}. Build both networks with inputs of a known length."
                )
            return dict.fromkeys(shapes, (None if None in numbers else min(numbers),))
        grids = {2: lambda name: None, 3: lambda name: (shapes[name][1],)}
        grids[4] = lambda name: _grid({name: shapes[name]}, limit)
        return {name: grids[len(shape)](name) for name, shape in shapes.items()}


def _patches(shapes, image_size):
    """Returns the grids of those tokens that are read as a map, `{name: grid or None}`."""
    patches = dict.fromkeys(shapes)
    tokens = {name: shape[1] for name, shape in shapes.items() if len(shape) == 3}
    maps = [shape for shape in shapes.values() if len(shape) == 4]
    if tokens and maps:
        aspect = _grid(dict.fromkeys(["map"], maps[0]), None)
    elif image_size and len(set(tokens.values())) == 2:
        aspect = image_size
    else:
        return patches
    for name, number in tokens.items():
        patches[name] = patch_grid(number, aspect)
        if patches[name] is None:
            raise ValueError(
                f"Expected the {name}'s tokens to form a grid with the aspect of "
                f"{aspect[0]} x {aspect[1]}, that of the {'map' if maps else 'images'}, after 0, "
                f"1, 2, 4 or 5 class and register tokens. Received: {_received(shapes)}. Compare a "
                "vector with tokens, two maps, or as many tokens."
            )
    return patches


def _received(shapes):
    return ", ".join(f"{name}_shape={shape}" for name, shape in shapes.items())


def _read(feature, side):
    """Returns a vector, map or sequence, after a look at its rank."""
    if len(feature.shape) != side.rank:
        kinds = {
            2: "a vector (batch, channels)",
            3: "a sequence (batch, tokens, channels)",
            4: f"a map of {side.grid} cells",
        }
        built_for = kinds.get(side.rank, f"{side.rank} axes")
        raise ValueError(
            f"Expected {built_for}, for which the loss was built. Received: "
            f"shape={tuple(feature.shape)}. Make a new loss for tensors of another rank."
        )
    return as_map(feature, side.patches) if side.patches else feature


def _pooled(feature, grid):
    if grid is None or grid == (None,) or tuple(feature.shape[1:-1]) == grid:
        return feature
    if len(grid) == 2:
        return pool_to(feature, grid)
    return ops.squeeze(pool_to(feature[:, :, None], (*grid, 1)), axis=2)


def _flat(feature):
    if len(feature.shape) == 2:
        return feature[:, None]
    if len(feature.shape) == 3:
        return feature
    return ops.reshape(feature, (-1, math.prod(feature.shape[1:3]), feature.shape[-1]))


def _resampled_both(teacher, student, *given):
    """Averages the real tokens of every example over as many cells as the shorter side has."""
    features, own = (teacher, student), []
    for feature, mask in zip(features, given, strict=True):
        mask = ops.ones(ops.shape(feature)[:2], "bool") if mask is None else mask
        own.append(masks.in_lanes(mask))
    cells = ops.minimum(*(masks.number(mask, "int32") for mask in own))
    most = min(feature.shape[1] for feature in features)
    mask = masks.in_lanes(ops.arange(most, dtype="int32")[None] < cells[:, None])
    teacher, student = (
        _resampled(masks.only_real(masks.in_lanes(feature), real), real, cells, mask)
        for feature, real in zip(features, own, strict=True)
    )
    return teacher, student, mask


def _resampled(tokens, real, cells, mask):
    """Averages the real tokens of every example over its number of `cells`, shape `(batch,)`."""
    cell = ops.arange(ops.shape(mask)[1], dtype="int32")[None, :, None]
    length = masks.number(real, "int32")[:, None, None]
    position = ops.cumsum(ops.cast(real, "int32"), axis=1)[:, None] - 1
    cells = ops.maximum(cells, 1)[:, None, None]
    inside = (cell * length // cells <= position) & (position < -(-(cell + 1) * length // cells))
    inside = ops.cast(inside & real[:, None] & mask[:, :, None], tokens.dtype)
    weights = inside / ops.maximum(ops.sum(inside, axis=2, keepdims=True), 1)
    return ops.matmul(weights, tokens)


def pool_to(feature_map, grid):
    """Averages a map `(batch, height, width, channels)` over the cells of a coarser grid.

    The cells overlap where a size is not a multiple of the grid's, as in adaptive average pooling.

    Raises:
        ValueError: If the map has fewer rows or columns than the grid, or an unknown number.
    """
    _, height, width, channels = feature_map.shape
    rows, columns = grid
    if (height, width) == (rows, columns):
        return feature_map
    if None in (height, width) or height < rows or width < columns:
        raise ValueError(
            f"Expected a feature map of at least {rows} rows and {columns} columns, the grid that "
            f"the loss was built for. Received: shape={tuple(feature_map.shape)}. A coarser map "
            "cannot be averaged to it: make a new loss, which chooses its grid for these maps."
        )
    if height % rows == 0 and width % columns == 0:
        cell = (height // rows, width // columns)
        return ops.average_pool(feature_map, cell, strides=cell, data_format="channels_last")
    # Not ops.adaptive_average_pool: in a graph it cannot pool an axis to one cell.
    feature_map = ops.reshape(feature_map, (-1, height, width * channels))
    feature_map = ops.matmul(_cells(height, rows, feature_map.dtype), feature_map)
    feature_map = ops.reshape(feature_map, (-1, width, channels))
    feature_map = ops.matmul(_cells(width, columns, feature_map.dtype), feature_map)
    return ops.reshape(feature_map, (-1, rows, columns, channels))


def _cells(size, cells, dtype):
    """Returns the matrix of shape `(cells, size)` that averages an axis over its cells."""
    first = np.arange(cells)[:, None] * size // cells
    last = -(-(np.arange(cells)[:, None] + 1) * size // cells)
    inside = (first <= np.arange(size)) & (np.arange(size) < last)
    return ops.cast(inside / inside.sum(axis=1, keepdims=True), dtype)
