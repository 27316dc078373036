"""Feature maps of different resolution, brought to one grid."""

import numpy as np
from keras import ops


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


def comparison_grids(teacher_shape, student_shape, *, limit=None):
    """Returns the grids on which two features, vectors or maps, are compared location by location.

    Two maps share their common grid. A map that meets a vector keeps its own grid, of at most
    `limit` rows and columns. A vector has none (`None`).
    """
    if len(teacher_shape) == len(student_shape) == 4:
        grid = common_grid(teacher_shape, student_shape, limit=limit)
        return grid, grid
    return tuple(
        _grid({name: shape}, limit) if len(shape) == 4 else None
        for name, shape in (("teacher", teacher_shape), ("student", student_shape))
    )


def locations(feature, grid):
    """Brings a vector or map, averaged to `grid`, to `(batch, locations, channels)`."""
    if len(feature.shape) != (2 if grid is None else 4):
        built_for = "a vector (batch, channels)" if grid is None else f"a map of {grid} cells"
        raise ValueError(
            f"Expected {built_for}, for which the loss was built. Received: "
            f"shape={tuple(feature.shape)}. Make a new loss for tensors of another rank."
        )
    if grid is None:
        return feature[:, None]
    return ops.reshape(pool_to(feature, grid), (-1, grid[0] * grid[1], feature.shape[-1]))


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
