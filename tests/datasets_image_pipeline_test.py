import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.datasets.image_pipeline import ImagePipeline

RANDOM = np.random.RandomState(0)


def _windows(image, padding, mode):
    """Every crop of the padded image, by `(row, column)`."""
    height, width, _ = image.shape
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)], mode=mode)
    return {
        (row, column): padded[row : row + height, column : column + width]
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
    }


def _recognise(image, result, padding, mode):
    """Returns the `(row, column, mirrored)` that turn `image` into `result`."""
    return [
        (*corner, mirrored)
        for corner, window in _windows(image, padding, mode).items()
        for mirrored in (False, True)
        if np.array_equal(window[:, ::-1] if mirrored else window, result)
    ]


@pytest.mark.parametrize(("mode", "numpy_mode"), [("CONSTANT", "constant"), ("REFLECT", "reflect")])
def test_augmentation_reaches_every_window_and_mirrors_half(mode, numpy_mode):
    images = RANDOM.randint(1, 256, (600, 5, 5, 2)).astype(np.uint8)
    pipeline = ImagePipeline(max_value=1.0, padding=1, padding_mode=mode, flip=True)
    results = pipeline.augment(tf.constant(images), 7).numpy()
    found = [_recognise(*pair, 1, numpy_mode) for pair in zip(images, results, strict=True)]
    assert all(len(matches) == 1 for matches in found)
    assert len({match for (match,) in found}) == 18
    assert 0.4 < np.mean([mirrored for ((_, _, mirrored),) in found]) < 0.6


def test_no_flip_unless_asked():
    images = RANDOM.randint(1, 256, (100, 8, 8, 1)).astype(np.uint8)
    results = ImagePipeline(max_value=16.0, padding=1).augment(tf.constant(images), 0).numpy()
    found = [_recognise(*pair, 1, "constant") for pair in zip(images, results, strict=True)]
    assert not any(mirrored for ((_, _, mirrored),) in found)


def test_scale_uses_each_channel():
    images = RANDOM.randint(0, 256, (3, 2, 2, 3)).astype(np.uint8)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 2.0])
    result = ImagePipeline(max_value=255.0, mean=tuple(mean), std=tuple(std)).scale(images)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, (images / 255.0 - mean) / std, rtol=1e-5, atol=1e-6)


def _training(seed=0, augment=True, count=30, batch_size=10):
    images = np.random.RandomState(1).randint(1, 17, (count, 8, 8, 1)).astype(np.uint8)
    pipeline = ImagePipeline(max_value=16.0, padding=1)
    labels = np.arange(count, dtype=np.int32)
    return pipeline.for_training(images, labels, batch_size=batch_size, seed=seed, augment=augment)


def _epoch(dataset):
    images, labels = zip(*dataset, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_epochs_differ_and_repeat_with_the_seed():
    first, second = _training(), _training()
    epochs = [[_epoch(dataset) for _ in range(2)] for dataset in (first, second)]
    for one, two in zip(*epochs, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(epochs[0][0][1], epochs[0][1][1])
    assert not np.array_equal(_epoch(_training(seed=1))[1], epochs[0][0][1])


def test_augmentation_is_drawn_anew_in_every_epoch():
    """With one image alone, since the order changes what an image gets too."""
    image = RANDOM.randint(1, 256, (1, 8, 8, 1)).astype(np.uint8)
    pipeline = ImagePipeline(max_value=1.0, padding=2)
    options = {"batch_size": 10, "seed": 0, "augment": True}
    dataset = pipeline.for_training(np.repeat(image, 30, 0), np.zeros(30, "int32"), **options)
    assert not np.array_equal(_epoch(dataset)[0], _epoch(dataset)[0])


def test_training_batches_are_full_and_static():
    dataset = _training(count=34)
    assert dataset.cardinality() == 3
    assert dataset.element_spec[0].shape == (10, 8, 8, 1)
    assert dataset.element_spec[1].shape == (10,)
    assert len(set(_epoch(dataset)[1].tolist())) == 30


def test_left_out_images_change_with_the_epoch():
    dataset = _training(count=34)
    assert set(_epoch(dataset)[1].tolist()) != set(_epoch(dataset)[1].tolist())


@pytest.mark.parametrize(("batch_size", "static"), [(10, 10), (7, None)])
def test_evaluation_is_static_where_the_batch_divides(batch_size, static):
    images, labels = np.ones((30, 8, 8, 1), np.uint8), np.zeros(30, np.int32)
    dataset = ImagePipeline(max_value=16.0).for_evaluation(images, labels, batch_size=batch_size)
    assert dataset.element_spec[0].shape[0] == static
    assert len(_epoch(dataset)[1]) == 30


def test_data_is_shared_out_by_element_not_by_file():
    policy = tf.data.experimental.AutoShardPolicy.DATA
    assert _training().options().experimental_distribute.auto_shard_policy == policy
