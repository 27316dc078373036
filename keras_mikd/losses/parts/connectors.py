"""Trained layers that bring a student's map to the size and the channels of a teacher's."""

import keras

from keras_mikd.distribution import replicas
from keras_mikd.features.grids import common_grid


def repdistiller_convolutions(teacher_shape, student_shape, *, dtype, instead):
    """Returns the layers that RepDistiller has before a BatchNorm, in a list.

    That is a convolution of 3x3 with stride 2 for a student of twice the size, a transposed one of
    4x4 with stride 2 for one of half the size, and otherwise one as large as it takes without
    padding. They have no bias, which the BatchNorm takes away.

    Raises:
        ValueError: If the shapes are not those of maps of known size, or none of the three leads
            from the one to the other; the message then says what to take `instead`.
    """
    common_grid(teacher_shape, student_shape)  # Refuses vectors and unknown sizes.
    options = {
        "use_bias": False,
        "kernel_initializer": keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        **maps_like_ours(dtype),
    }
    channels, sizes, wanted = teacher_shape[3], student_shape[1:3], teacher_shape[1:3]
    pairs = list(zip(sizes, wanted, strict=True))
    if all(size == 2 * target for size, target in pairs):
        # "same" would pad an even map at the bottom right only.
        padding = keras.layers.ZeroPadding2D(1, **maps_like_ours(dtype))
        return [padding, keras.layers.Conv2D(channels, 3, strides=2, **options)]
    if all(2 * size == target for size, target in pairs):
        return [keras.layers.Conv2DTranspose(channels, 4, strides=2, padding="same", **options)]
    if all(size >= target for size, target in pairs):
        kernel = [1 + size - target for size, target in pairs]
        return [keras.layers.Conv2D(channels, kernel, **options)]
    raise ValueError(
        "Expected a student's map of half the size of the teacher's, or of at least its size. "
        f"Received: teacher_shape={teacher_shape}, student_shape={student_shape}. {instead}"
    )


def unfolding_convolutions(teacher_shape, student_shape, *, width, dtype):
    """Returns layers that unfold a student's vector into a map of the teacher's size, in a list.

    The first makes a cell of the vector. A transposed convolution as large as the smallest grid
    follows, then one of 4x4 with stride 2 for each doubling. Sizes are halved down to the smallest
    grid while both are even and one of them is above 4. `width` is the channels in between.

    Raises:
        ValueError: If the size of the teacher's map is unknown.
    """
    grid, made = list(common_grid(teacher_shape, teacher_shape)), teacher_shape[-1]
    doublings = 0
    while max(grid) > 4 and not any(size % 2 for size in grid):
        grid, doublings = [size // 2 for size in grid], doublings + 1
    taken = student_shape[-1]
    layers = [keras.layers.Reshape((1, 1, taken), dtype=dtype)]
    for i, channels in enumerate([*[width] * doublings, made]):
        # What an element sums over: one cell, later 2 x 2. Keras' `fan_in` of a transposed kernel
        # counts the channels that are made.
        limit = (4 * taken if i else taken) ** -0.5
        layers.append(
            keras.layers.Conv2DTranspose(
                channels,
                4 if i else grid,
                strides=2 if i else 1,
                padding="same" if i else "valid",
                use_bias=False,
                kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
                **maps_like_ours(dtype),
            )
        )
        taken = channels
    return layers


def maps_like_ours(dtype):
    """Returns arguments of a layer on maps that would follow Keras' global settings without them.

    The maps of a loss are channels-last and float32, whatever the networks of a process are.
    """
    return {"data_format": "channels_last", "dtype": dtype}


def batch_norm(dtype):
    """Returns a BatchNormalization as PyTorch has it, with the statistics of all replicas."""
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, synchronized=True, dtype=dtype
    )


def run(layers, feature_map, training):
    """Runs layers one after the other; statistics are those of the real examples."""
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            feature_map = layer(feature_map, training=training)
        else:
            feature_map = replicas.run_network(layer, feature_map)
    return feature_map
