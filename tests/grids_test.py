import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.features.grids import as_map, common_grid, patch_grid, pool_to


def _pooled(feature_map, rows, columns):
    def along(axis, x, cells):
        size = x.shape[axis]
        windows = [range(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
        return np.stack([x.take(window, axis).mean(axis) for window in windows], axis)

    return along(2, along(1, feature_map, rows), columns)


@pytest.mark.parametrize(
    ("teacher", "student", "limit", "grid"),
    [
        ((None, 8, 8, 32), (None, 8, 8, 16), None, (8, 8)),
        ((None, 16, 4, 32), (None, 8, 8, 16), None, (8, 4)),
        ((None, 16, 4, 32), (None, 8, 8, 16), 5, (5, 4)),
        ((None, 2, 2, 3), (None, 9, 9, 3), 4, (2, 2)),
    ],
)
def test_common_grid_is_the_smaller_one(teacher, student, limit, grid):
    assert common_grid(teacher, student, limit=limit) == grid


@pytest.mark.parametrize(
    ("tokens", "aspect", "grid"),
    [
        (196, (7, 7), (14, 14)),
        (197, (7, 7), (14, 14)),  # A class token.
        (198, (1, 1), (14, 14)),  # And a distillation token.
        (65, (1, 1), (8, 8)),
        (56, (7, 8), (7, 8)),
        (103, (4, 2), (14, 7)),  # Four register tokens and a class token.
        (105, (4, 2), None),  # Seven.
        (33, (4, 4), None),  # 8 x 4 patches and a class token are no 5 x 5 after eight.
        (15, (4, 4), None),
        (7, (4, 2), None),  # More than patches.
        (1, (1, 1), (1, 1)),
        (3, (4, 4), None),
        (None, (1, 1), None),
    ],
)
def test_patch_grid_is_that_of_the_last_tokens(tokens, aspect, grid):
    assert patch_grid(tokens, aspect) == grid


def test_as_map_takes_the_last_tokens_row_by_row():
    tokens = np.arange(2 * 8 * 3, dtype="float32").reshape(2, 8, 3)
    expected = tokens[:, 2:].reshape(2, 3, 2, 3)
    np.testing.assert_array_equal(as_map(tf.constant(tokens), (3, 2)), expected)


def test_common_grid_refuses_vectors_and_unknown_sizes():
    with pytest.raises(ValueError, match=r"student's tensor to be a feature map.*\(None, 3\)"):
        common_grid((None, 4, 4, 3), (None, 3))
    with pytest.raises(ValueError, match="height, width and channels are known"):
        common_grid((None, None, None, 3), (None, 4, 4, 3))


@pytest.mark.parametrize("grid", [(4, 3), (5, 4), (7, 6), (1, 1), (3, 6), (7, 1)])
def test_pool_to_averages_cells_of_any_ratio(grid):
    feature_map = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype("float32")
    pooled = pool_to(tf.constant(feature_map), grid)
    np.testing.assert_allclose(pooled, _pooled(feature_map, *grid), atol=1e-6)


def test_pool_to_the_same_grid_is_the_same_tensor():
    feature_map = keras.ops.ones((2, 4, 4, 3))
    assert pool_to(feature_map, (4, 4)) is feature_map


def test_pool_to_is_differentiable_under_xla():
    @tf.function(jit_compile=True)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(pool_to(x, (2, 1)))
        return tape.gradient(total, x)

    np.testing.assert_allclose(gradient(tf.ones((1, 4, 3, 1))), np.full((1, 4, 3, 1), 1 / 6), 1e-6)


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (2, 8, 7, 3), (2, 4, 16, 3)])
def test_a_map_that_is_coarser_than_the_grid_is_refused(shape):
    with pytest.raises(ValueError, match=r"at least 8 rows and 8 columns.*Received: shape=\(2, "):
        pool_to(tf.ones(shape), (8, 8))


@pytest.mark.parametrize(
    "make", [mikd.Hint, mikd.AttentionTransfer, mikd.GaussianVIDHead, mikd.JSDCritic]
)
def test_a_loss_refuses_maps_that_are_coarser_than_those_it_was_built_for(make):
    loss, shape = make(teacher_layer="stage1", student_layer="stage1"), (2, 8, 8, 3)
    loss.build(shape, shape)
    with pytest.raises(ValueError, match="at least 8 rows and 8 columns.*make a new loss"):
        loss(tf.ones((2, 8, 8, 3)), tf.ones((2, 4, 4, 3)))
    finer = loss(tf.ones((2, 8, 8, 3)), tf.ones((2, 16, 16, 3)))  # Those are averaged.
    np.testing.assert_allclose(finer, loss(tf.ones((2, 8, 8, 3)), tf.ones((2, 8, 8, 3))), rtol=1e-5)


@pytest.mark.parametrize("built", [(2, 8, 8, 3), (2, 3)])
def test_a_critic_refuses_another_rank_than_it_was_built_for(built):
    loss = mikd.JSDCritic()
    loss.build((2, 3), built)
    other = tf.ones((2, 3) if len(built) == 4 else (2, 8, 8, 3))
    with pytest.raises(
        ValueError, match="Expected a .* for which the loss was built.*another rank"
    ):
        loss(tf.ones((2, 3)), other)
