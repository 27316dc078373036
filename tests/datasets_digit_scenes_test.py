import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_mikd.datasets import digit_scenes, digit_scenes_builder, load_digit_scenes
from keras_mikd.datasets.digits_builder import digits_by_split

# Preparing 3,000 scenes takes ten seconds; the first scenes of each split are the same.
FEW = {"train": 40, "validation": 12, "test": 12}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(digit_scenes_builder, "_SCENES", FEW)
        load_digit_scenes(data_dir=path)
    return path


@pytest.fixture(scope="module")
def scenes(data_dir):
    return load_digit_scenes(data_dir=data_dir, batch_size=8)


@pytest.fixture(scope="module")
def of_test(scenes):
    """Images, boxes and classes of the test split."""
    return _arrays(scenes.test)


def _arrays(dataset):
    parts = [(x, y["boxes"], y["classes"]) for x, y in dataset]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def test_the_real_size_is_that_of_the_docstrings():
    assert digit_scenes_builder._SCENES == {"train": 2000, "validation": 400, "test": 600}


def test_batches_are_what_keras_cv_trains_on(scenes):
    images, boxes, classes = _arrays(scenes.train)
    assert (images.shape, images.dtype) == ((40, 64, 64, 1), np.float32)
    assert (boxes.shape, boxes.dtype) == ((40, 5, 4), np.float32)
    assert (classes.shape, classes.dtype) == ((40, 5), np.float32)
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert (scenes.num_train, scenes.num_validation, scenes.num_test) == (40, 12, 12)
    assert (scenes.num_classes, scenes.image_shape) == (10, (64, 64, 1))


def test_padding_is_at_the_end_and_minus_one(of_test):
    _, boxes, classes = of_test
    counts = (classes >= 0).sum(axis=1)
    assert counts.min() >= 1 and counts.max() > 1
    for count, its_boxes, its_classes in zip(counts, boxes, classes, strict=True):
        assert set(its_classes[:count]) <= set(range(10))
        assert np.all(its_classes[count:] == -1) and np.all(its_boxes[count:] == -1)


def test_boxes_lie_inside_and_apart_and_hold_all_the_ink(of_test):
    images, boxes, classes = of_test
    for image, its_boxes, its_classes in zip(images, boxes, classes, strict=True):
        covered = np.zeros((64, 64), int)
        for left, top, right, bottom in its_boxes[its_classes >= 0].astype(int):
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            assert 12 <= bottom - top <= 28
            inside = image[top:bottom, left:right, 0]
            # Tight: there is ink at each of the four edges.
            assert all(
                edge.max() > 0 for edge in (inside[0], inside[-1], inside.T[0], inside.T[-1])
            )
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert not np.any(image[..., 0][covered == 0])


def test_digits_are_those_of_the_matching_split(scenes):
    """Shrunk to its first size, a digit of a scene is nearest to one of its own split."""

    def crops(images, boxes, classes):
        for image, its_boxes, its_classes in zip(images, boxes, classes, strict=True):
            for (left, top, right, bottom), label in zip(
                its_boxes.astype(int), its_classes, strict=True
            ):
                if label >= 0:
                    yield image[top:bottom, left:right], label

    def distance(crop, label, split):
        images, labels = digits_by_split()[split]
        inks = [digit_scenes_builder._ink(image[..., 0]) for image in images[labels == label]]
        found = []
        for ink in inks:
            enlarged = tf.image.resize(ink[..., None] / 16, crop.shape[:2], method="bilinear")
            found.append(np.abs(np.clip(enlarged, 0, 1) - crop).max())
        return min(found)

    for split, dataset in (("validation", scenes.validation), ("test", scenes.test)):
        for (crop, label), _ in zip(crops(*_arrays(dataset)), range(2), strict=False):
            assert distance(crop, label, split) < 0.01
            assert distance(crop, label, "train") > 0.1


def test_scenes_are_pinned_across_machines(of_test):
    _, boxes, classes = of_test
    assert [row[row >= 0].tolist() for row in classes[:3]] == [[3], [1, 6, 1], [4, 9, 1]]
    assert boxes[[0, 2], 0].tolist() == [[43, 22, 52, 34], [17, 8, 32, 28]]


def test_fewer_scenes_are_a_subset_of_more(scenes, data_dir):
    small, large = (set(digit_scenes._drawn(40, count, 0)) for count in (4, 8))
    assert small < large and small != set(digit_scenes._drawn(40, 4, 1))
    fewer = load_digit_scenes(data_dir=data_dir, batch_size=4, num_scenes=8)
    few, all_of_them = (
        {image.tobytes() for image in _arrays(each.train)[0]} for each in (fewer, scenes)
    )
    assert few < all_of_them and (len(few), len(all_of_them)) == (8, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 0}, "int of at least 1 or None. Received: num_scenes=0"),
        ({"num_scenes": 41}, "at most 40 or None. Received: num_scenes=41"),
        ({"num_scenes": 8}, "at most 8, .* Received: batch_size=16"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"seed": -1}, "Received: seed=-1"),
    ],
)
def test_bad_arguments(data_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_digit_scenes(data_dir=data_dir, **arguments)


def test_builder_is_registered_with_tfds(data_dir):
    train = tfds.load("mikd_digit_scenes", split="train", data_dir=data_dir)
    assert len(train) == 40
    assert set(next(iter(train))["objects"]) == {"bbox", "label"}


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "keras_mikd\[data\]"'):
        load_digit_scenes()
