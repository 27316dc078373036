"""Data sets of TFDS by name and folders of pictures, in memory and from disk."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_mikd import Distiller, SoftTargets, models
from keras_mikd.datasets import ImagePipeline, images, load_cifar10, load_images
from keras_mikd.datasets.splits import draw_per_class

PLAIN = ImagePipeline(max_value=1.0)
NUM_TRAIN, NUM_TEST = 30, 12


def _picture(level, height=8, width=8):
    return np.full((height, width, 3), level, np.uint8)


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Pictures of many sizes; the split "unlabelled" has the labels -1, as ImageNet's "test"."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image, label = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel
        features = {"image": image, "label": label(num_classes=3)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        splits = {"train": NUM_TRAIN, "held_out": 9, "test": NUM_TEST, "unlabelled": 3}
        return {name: self._examples(name, count) for name, count in splits.items()}

    def _examples(self, name, count):
        for level in range(count):
            picture = _picture(level, 8 + level % 3, 8 + level % 5)
            label = -1 if name == "unlabelled" else level % 3
            yield level, {"image": picture, "label": label}

    def _generate_examples(self):
        raise NotImplementedError


class TinyTexts(TinyPhotos):
    """No classifier of images."""

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _examples(self, name, count):
        yield name, {"text": str(count)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyPhotos, TinyTexts):
        builder(data_dir=path).download_and_prepare()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for level in range(count):
            place = path / split / f"class{level % 3}"
            place.mkdir(parents=True, exist_ok=True)
            encoded = tf.io.encode_png(_picture(level)).numpy()
            (place / f"{level}.png").write_bytes(encoded)
    return str(path)


@pytest.fixture(params=["folder", "name"])
def source(request, folder, data_dir):
    if request.param == "folder":
        return {"folder": folder}
    return {"name": "tiny_photos", "data_dir": data_dir}


@pytest.fixture(params=["memory", "disk"])
def read_from(request, monkeypatch):
    if request.param == "disk":
        monkeypatch.setattr(images, "_MEMORY_LIMIT", 0)
    return request.param


def _load(source, **options):
    defaults = {"batch_size": 5, "image_size": 8, "pipeline": PLAIN, "augment": False}
    return load_images(**source, **{**defaults, **options})


def _levels(dataset):
    """Returns the level of every picture, and its label."""
    pixels, labels = (np.concatenate(part) for part in zip(*dataset, strict=True))
    assert pixels.dtype == np.float32 and labels.dtype == np.int32
    np.testing.assert_allclose(np.ptp(pixels, axis=(1, 2, 3)), 0, atol=1e-4)
    return np.rint(pixels[:, 0, 0, 0]).astype(int), labels


def test_every_picture_once_with_its_label(source, read_from):
    splits = _load(source, validation_fraction=0.0)
    for dataset, count in ((splits.train, NUM_TRAIN), (splits.test, NUM_TEST)):
        levels, labels = _levels(dataset)
        np.testing.assert_array_equal(np.sort(levels), np.arange(count))
        np.testing.assert_array_equal(labels, levels % 3)
    assert splits.validation is None
    assert (splits.num_train, splits.num_validation, splits.num_test) == (30, 0, 12)
    assert (splits.num_classes, splits.image_shape) == (3, (8, 8, 3))
    assert splits.train.element_spec[0].shape == (5, 8, 8, 3)
    assert len(splits.train) == 6
    first, second = (_levels(splits.train)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(*(_levels(splits.test)[0] for _ in range(2)))


def test_a_fraction_is_held_out_or_another_split_is_named(source, read_from):
    splits = _load(source, validation_fraction=0.2, drop_remainder=False, batch_size=7)
    train, validation = (_levels(x)[0] for x in (splits.train, splits.validation))
    np.testing.assert_array_equal(np.sort([*train, *validation]), np.arange(NUM_TRAIN))
    assert (splits.num_train, splits.num_validation) == (24, 6)
    assert [len(labels) for _, labels in splits.train] == [7, 7, 7, 3]
    if read_from == "memory":
        assert np.bincount(validation % 3).tolist() == [2, 2, 2]
    if "name" in source:
        splits = _load(source, validation_split="held_out")
        assert (splits.num_train, splits.num_validation) == (30, 9)
        np.testing.assert_array_equal(np.sort(_levels(splits.validation)[0]), np.arange(9))


def test_labels_per_class_alone_and_beside_images_without(source, read_from, monkeypatch):
    options = {"labels_per_class": 2, "validation_fraction": 0.0, "seed": 3}
    few = _load(source, **options)
    levels, labels = _levels(few.train)
    assert few.num_train == 6 and len(levels) == 5
    both = _load(source, **options, unlabelled=True)
    all_levels, all_labels = _levels(both.train)
    np.testing.assert_array_equal(np.sort(all_levels), np.arange(NUM_TRAIN))
    assert both.num_train == NUM_TRAIN
    kept = all_labels >= 0
    np.testing.assert_array_equal(all_labels[kept], all_levels[kept] % 3)
    assert np.bincount(all_labels[kept]).tolist() == [2, 2, 2]
    assert set(all_labels[~kept]) == {-1}
    assert set(levels) < set(all_levels[kept])
    np.testing.assert_array_equal(labels, levels % 3)
    # The draw does not depend on how the data is read.
    monkeypatch.setattr(images, "_MEMORY_LIMIT", 0 if read_from == "memory" else 2**32)
    others = _levels(_load(source, **options, drop_remainder=False).train)[0]
    assert set(others) == set(all_levels[kept])
    # A second epoch comes from memory.
    again = _levels(few.train)[0]
    assert set(again) < set(all_levels[kept])


def test_train_fraction_keeps_the_first_in_epochs_of_full_length(source, read_from):
    splits = _load(source, validation_fraction=0.0, train_fraction=0.2)
    levels, labels = _levels(splits.train)
    assert (splits.num_train, len(splits.train)) == (6, 6)
    assert sorted(np.bincount(levels)[np.unique(levels)]) == [5] * 6
    np.testing.assert_array_equal(labels, levels % 3)


def test_unlabelled_images_are_distilled_and_left_out_of_the_task(folder):
    splits = _load({"folder": folder}, labels_per_class=2, unlabelled=True, batch_size=6)
    student, teacher = (models.digits_cnn(3, (8, 8, 3), widths=(2, 2, 2)) for _ in range(2))
    distiller = Distiller(teacher, student, [SoftTargets(temperature=4.0)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    distiller.compile("adam", loss=loss, jit_compile=False)
    history = distiller.fit(splits.train, epochs=1, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    pixels, labels = next(iter(splits.train))
    logits, kept = student(pixels), labels >= 0
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
        labels[kept], logits[kept]
    )
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-4)


def test_batches_and_draws_larger_than_the_data_are_refused(source, read_from):
    for options in ({"batch_size": 31}, {"labels_per_class": 2, "batch_size": 7}):
        with pytest.raises(ValueError, match="Received: batch_size="):
            _load(source, validation_fraction=0.0, **options)
    with pytest.raises(ValueError, match="has only 10 training images"):
        _load(source, validation_fraction=0.0, labels_per_class=11)
    with pytest.raises(ValueError, match="one of 30 training images"):
        _load(source, validation_fraction=0.0, train_fraction=0.01)


def test_parts_are_cut_out_anew_in_every_epoch_and_the_middle_in_evaluation(data_dir):
    pipeline = dataclasses.replace(PLAIN, areas=(0.2, 1.0), flip=True)
    source = {"name": "tiny_photos", "data_dir": data_dir}
    splits = _load(source, pipeline=pipeline, augment=True, validation_fraction=0.0)
    levels, labels = _levels(splits.train)
    np.testing.assert_array_equal(np.sort(levels), np.arange(NUM_TRAIN))
    np.testing.assert_array_equal(labels, levels % 3)
    assert set(_levels(splits.test)[0]) == set(range(NUM_TEST))


def test_a_random_part_has_the_area_and_sides_that_are_asked_for():
    rows, columns = np.meshgrid(np.arange(64), np.arange(48), indexing="ij")
    picture = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    pipeline = ImagePipeline(max_value=1.0, areas=(0.2, 0.3), flip=True)
    parts = [pipeline.prepare(tf.constant(picture), 16, seed).numpy() for seed in range(40)]
    assert {part.shape for part in parts} == {(16, 16, 3)}
    heights = np.array([part[-1, 0, 0] - part[0, 0, 0] for part in parts]) * 16 / 15
    widths = np.array([part[0, -1, 1] - part[0, 0, 1] for part in parts]) * 16 / 15
    assert {*np.sign(widths)} == {-1, 1}
    shares = heights * np.abs(widths) / (64 * 48)
    assert 0.15 < shares.min() < 0.24 and 0.26 < shares.max() < 0.35
    ratios = np.abs(widths) / heights
    assert 0.65 < ratios.min() < 0.9 and 1.1 < ratios.max() < 1.5
    assert len({part[0, 0, 0] for part in parts}) > 20
    np.testing.assert_array_equal(pipeline.prepare(tf.constant(picture), 16, 0), parts[0])


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (16, 16)])
def test_evaluation_cuts_out_seven_eighths_of_the_shorter_side(height, width):
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    picture = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    middle = ImagePipeline(max_value=1.0, areas=(0.1, 1.0)).prepare(tf.constant(picture), 14)
    assert middle.shape == (14, 14, 3)
    top, left = (height - 14) // 2, (width - 14) // 2
    np.testing.assert_allclose(middle, picture[top : top + 14, left : left + 14], atol=1e-4)


def test_whole_pictures_are_resized_and_moved():
    pipeline = ImagePipeline(max_value=2.0, padding=1, mean=(1.0,), std=(3.0,))
    picture = tf.constant(_picture(100, 10, 16))
    np.testing.assert_allclose(pipeline.prepare(picture, 8), (100 / 2 - 1) / 3, rtol=1e-5)
    moved = [pipeline.prepare(picture, 8, seed).numpy() for seed in range(20)]
    # A border of black on at most two sides, of one pixel.
    borders = {int((part < 0).sum()) for part in moved}
    assert borders <= {0, 24, 45} and len(borders) > 1


def test_augmentation_of_pictures_from_disk_and_in_memory(source, read_from):
    pipeline = dataclasses.replace(PLAIN, padding=2)
    splits = _load(source, pipeline=pipeline, augment=True)
    assert max(np.ptp(x, axis=(1, 2, 3)).max() for x, _ in splits.train) > 0
    assert max(np.ptp(x, axis=(1, 2, 3)).max() for x, _ in splits.validation) < 1e-4


def test_the_usual_augmentation_depends_on_size_and_colour():
    small, gray, large = (
        images._usual_pipeline(x) for x in ((32, 32, 3), (28, 28, 1), (224, 224, 3))
    )
    assert (small.padding, small.flip, small.areas) == (4, True, None)
    assert (gray.padding, gray.flip, gray.mean, gray.std) == (3, False, (0.5,), (0.5,))
    assert (large.padding, large.flip, large.areas) == (0, True, (0.08, 1.0))
    assert small.mean == large.mean == (0.485, 0.456, 0.406)


def test_the_papers_loader_is_the_same_by_name(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "keras_mikd.datasets.cifar.load_images", lambda *args, **kwargs: calls.append(kwargs)
    )
    load_cifar10(seed=5, unlabelled=True, labels_per_class=3)
    assert calls[0]["seed"] == 5 and calls[0]["unlabelled"] and calls[0]["labels_per_class"] == 3
    assert calls[0]["validation_fraction"] == 0.2 and calls[0]["batch_size"] == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_split": "val"}, "to be one of .*train.*Received: test_split='val'"),
        ({"test_split": "unlabelled"}, "`test_split` to have labels.*Name another split"),
        ({"image_size": None}, "Expected `image_size`"),
        ({"image_size": 0}, "Received: image_size=0"),
        ({"unlabelled": True}, "Expected `labels_per_class` beside `unlabelled`"),
        ({"validation_fraction": 1.0}, "Received: validation_fraction=1.0"),
        ({"test_fraction": 0.0}, "Received: test_fraction=0.0"),
        ({"test_split": None, "test_fraction": 0.8}, "validation_fraction=0.2, test_fraction=0.8"),
        ({"name": "tiny_texts"}, "images and their classes.*'tiny_texts', which has text"),
        ({"name": "no_such_photos"}, "data set of TensorFlow Datasets.*name='no_such_photos'"),
        ({"name": None}, "Received: name=None, folder=None"),
        ({"folder": "pictures"}, "Received: name='tiny_photos', folder='pictures'"),
        ({"name": None, "folder": "pictures"}, "only beside a `name`"),
    ],
)
def test_what_does_not_fit_is_refused(data_dir, options, message):
    with pytest.raises(ValueError, match=message):
        load_images(**{"name": "tiny_photos", "data_dir": data_dir, "image_size": 8, **options})


def test_a_folder_that_is_missing_or_laid_out_otherwise(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="Received: folder=.*train/<class>"):
        _load({"folder": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="a folder for each split.*train/<class>.*Found in it: 0"):
        _load({"folder": folder + "/train/class0"})
    with pytest.raises(ValueError, match="Received: validation_split='val'"):
        _load({"folder": folder}, validation_split="val")


def test_a_folder_of_classes_is_split(folder, read_from):
    classes = {"folder": folder + "/train"}
    splits = _load(classes, validation_fraction=0.3, test_fraction=0.2)
    assert (splits.num_train, splits.num_validation, splits.num_test) == (15, 9, 6)
    parts = [_levels(each) for each in (splits.train, splits.validation, splits.test)]
    levels = np.concatenate([levels for levels, _ in parts])
    np.testing.assert_array_equal(np.sort(levels), np.arange(NUM_TRAIN))
    for levels, labels in parts:
        np.testing.assert_array_equal(labels, levels % 3)
    if read_from == "memory":
        assert np.bincount(parts[2][1]).tolist() == [2, 2, 2]
    assert splits.class_names == ("class0", "class1", "class2")
    for message, options in (
        ("Received: test_split='val'", {"test_split": "val"}),
        ("Received: validation_split='val'", {"validation_split": "val"}),
        ("hold out an image.*Received: test_fraction=0.01", {"test_fraction": 0.01}),
    ):
        with pytest.raises(ValueError, match=message):
            _load(classes, **options)


def test_the_folder_of_classes_is_not_touched(folder):
    before = sorted(pathlib.Path(folder).rglob("*"))
    _load({"folder": folder + "/train"})
    assert sorted(pathlib.Path(folder).rglob("*")) == before


def test_where_there_is_no_test_split_a_fraction_is_held_out(source, read_from):
    splits = _load(source, test_split=None, test_fraction=0.1, validation_fraction=0.0)
    assert (splits.num_train, splits.num_validation, splits.num_test) == (27, 0, 3)
    levels = np.concatenate([_levels(each)[0] for each in (splits.train, splits.test)])
    assert set(levels) <= set(range(NUM_TRAIN)) and len(set(levels)) == len(levels)


def test_pixels_of_a_split_are_those_of_the_files(folder):
    splits = _load({"folder": folder}, pipeline=ImagePipeline(255.0, mean=(0.4,), std=(0.2,)))
    pixels, labels = _levels(splits.pixels(splits.test))
    np.testing.assert_array_equal(np.sort(pixels), np.arange(NUM_TEST))
    np.testing.assert_array_equal(labels, pixels % 3)


def test_pixels_are_scaled_by_a_layer_as_the_images_are(folder):
    """What a network in a file needs, which is handed pixels."""
    data = _load({"folder": folder})
    pixels = keras.utils.image_dataset_from_directory(
        f"{folder}/test", image_size=(8, 8), batch_size=None, shuffle=False
    )
    pairs = list(pixels.as_numpy_iterator())
    assert list(data.class_names) == pixels.class_names
    scaled = data.rescaling()(np.stack([image for image, _ in pairs]))
    images, labels = map(np.concatenate, zip(*data.test.as_numpy_iterator(), strict=True))
    order = np.argsort(labels, kind="stable")
    for label in np.unique(labels):
        own = np.sort(np.ravel(images[order][labels[order] == label]))
        of_files = np.sort(np.ravel(scaled[np.array([y for _, y in pairs]) == label]))
        np.testing.assert_allclose(of_files, own, atol=0.03)


def test_the_draw_is_that_of_the_other_loaders(folder):
    """Over the labels in the order of the folder."""
    builder = tfds.ImageFolder(folder)
    stored = list(builder.as_dataset(split="train", as_supervised=True))
    levels = np.array([int(image[0, 0, 0]) for image, _ in stored])
    labels = np.array([int(label) for _, label in stored])
    splits = _load({"folder": folder}, labels_per_class=2, validation_fraction=0.0, batch_size=6)
    expected = levels[draw_per_class(labels, 2, seed=0)]
    assert set(_levels(splits.train)[0]) == set(expected)


def test_what_is_read_from_disk_is_augmented_only_if_asked(source, read_from):
    pipeline = dataclasses.replace(PLAIN, padding=2)
    splits = _load(source, pipeline=pipeline, augment=False)
    assert max(np.ptp(x, axis=(1, 2, 3)).max() for x, _ in splits.train) < 1e-4


def test_parts_that_are_cut_out_are_not_padded():
    pipeline = ImagePipeline(max_value=1.0, areas=(0.2, 1.0), padding=4)
    parts = [pipeline.prepare(tf.constant(_picture(100)), 8, seed).numpy() for seed in range(8)]
    np.testing.assert_allclose(parts, 100.0, rtol=1e-5)
