import numpy as np
import pytest

from keras_mikd.datasets.image_pipeline import ImagePipeline
from keras_mikd.datasets.splits import (
    LabelledImages,
    Training,
    build_splits,
    draw_per_class,
    partition_per_class,
)

LABELS = np.array([0] * 10 + [1] * 7 + [2] * 20)


def _numbered(labels):
    """Images that hold their own position, so that a pipeline's output can be traced back."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones(
        (1, 4, 4, 1), np.uint8
    )
    return LabelledImages(images, labels.astype(np.int32))


TRAINING = {
    "batch_size": 5,
    "seed": 0,
    "augment": False,
    "labels_per_class": None,
    "train_fraction": None,
}


def _build(validation=True, **changes):
    data = _numbered(LABELS)
    return build_splits(
        data,
        data if validation else None,
        data,
        num_classes=3,
        pipeline=ImagePipeline(max_value=1.0),
        training=Training(**(TRAINING | changes)),
    )


def _positions(dataset):
    return np.concatenate([images.numpy()[:, 0, 0, 0] for images, _ in dataset]).astype(int)


def test_partition_holds_every_example_once():
    parts = partition_per_class(LABELS, [0.5, 0.2, 0.3], seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


def test_partition_has_the_fractions_of_every_class():
    parts = partition_per_class(LABELS, [0.5, 0.2, 0.3], seed=0)
    counts = [np.bincount(LABELS[part]).tolist() for part in parts]
    assert counts == [[5, 4, 10], [2, 1, 4], [3, 2, 6]]


def test_draw_is_pinned_across_machines():
    np.testing.assert_array_equal(draw_per_class(LABELS, 2, seed=0), [2, 8, 11, 13, 18, 28])


def test_draw_has_the_count_of_every_class():
    assert np.bincount(LABELS[draw_per_class(LABELS, 7, seed=3)]).tolist() == [7, 7, 7]


def test_smaller_draw_is_subset_and_other_seed_differs():
    small, large = (set(draw_per_class(LABELS, count, seed=1)) for count in (2, 6))
    assert small < large
    assert small != set(draw_per_class(LABELS, 2, seed=2))


def test_draw_larger_than_class_names_the_class_and_its_size():
    message = "at most 7: class 1 has only 7 training images. Received: labels_per_class=8"
    with pytest.raises(ValueError, match=message):
        draw_per_class(LABELS, 8, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be an int of at least 1. Received: batch_size=0"),
        ({"batch_size": 2.5}, "Received: batch_size=2.5"),
        ({"labels_per_class": 0}, "`labels_per_class` to be .* Received: labels_per_class=0"),
        ({"labels_per_class": -1}, "Received: labels_per_class=-1"),
        ({"train_fraction": 0}, "above 0 and of at most 1 or None. Received: train_fraction=0"),
        ({"train_fraction": 1.1}, "Received: train_fraction=1.1"),
        ({"train_fraction": "half"}, "Received: train_fraction='half'"),
        ({"train_fraction": 0.5, "labels_per_class": 3}, "not both.*labels_per_class=3, train"),
        ({"seed": -1}, "`seed` to be .* Received: seed=-1"),
        ({"seed": None}, "Received: seed=None"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        Training(**(TRAINING | changes))


def test_batch_larger_than_training_set():
    with pytest.raises(ValueError, match="at most 6, .* Received: batch_size=7"):
        _build(labels_per_class=2, batch_size=7)


def test_training_set_is_the_draw_and_keeps_its_labels():
    splits = _build(labels_per_class=5)
    expected = draw_per_class(LABELS, 5, seed=0)
    np.testing.assert_array_equal(np.sort(_positions(splits.train)), expected)
    for images, labels in splits.train:
        np.testing.assert_array_equal(labels, LABELS[images.numpy()[:, 0, 0, 0].astype(int)])


def test_a_fraction_is_the_first_images_in_epochs_of_the_full_length():
    """A quarter of 37 images, cut to 9: each comes up four times, but for what fills no batch."""
    splits = _build(train_fraction=0.25, batch_size=6)
    assert (splits.num_train, len(splits.train)) == (9, 6)
    first, second = (_positions(splits.train) for _ in range(2))
    for epoch in (first, second):
        counts = np.bincount(epoch, minlength=9)
        assert len(epoch) == 36 and len(counts) == 9
        assert set(counts) <= {3, 4, 5} and counts[1:].max() == 4
    assert not np.array_equal(first, second)
    for images, labels in splits.train:
        np.testing.assert_array_equal(labels, LABELS[images.numpy()[:, 0, 0, 0].astype(int)])


def test_the_whole_fraction_is_the_whole_set():
    splits = _build(train_fraction=1.0)
    assert len(set(_positions(splits.train))) == 35 and splits.num_train == 37


def test_a_fraction_of_nothing_is_refused():
    with pytest.raises(ValueError, match="one of 37 training images.*train_fraction=0.02"):
        _build(train_fraction=0.02)


def test_numbers_of_splits():
    splits = _build(labels_per_class=5)
    assert (splits.num_train, splits.num_validation, splits.num_test) == (15, 37, 37)
    assert (splits.num_classes, splits.image_shape) == (3, (4, 4, 1))


def test_evaluation_has_every_image_in_order():
    splits = _build()
    for dataset in (splits.validation, splits.test):
        np.testing.assert_array_equal(_positions(dataset), np.arange(37))


def test_no_validation_split():
    splits = _build(validation=False)
    assert splits.validation is None
    assert splits.num_validation == 0
