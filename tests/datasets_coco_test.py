import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_mikd.datasets import load_coco

# COCO's own numbers for its categories have gaps; TFDS counts them from 0.
CATEGORIES = [{"id": i, "name": f"thing{i}", "supercategory": "thing"} for i in range(1, 92)]
CATEGORIES = [c for c in CATEGORIES if c["id"] not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)]


def _write_image(path, width, height, level):
    """A gray image whose left half is brighter."""
    image = np.full((height, width, 3), level, np.uint8)
    image[:, : width // 2] += 60
    path.write_bytes(tf.io.encode_jpeg(image, quality=100).numpy())


def _annotation(number, image, box, category=13, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "bbox": box,
        "area": box[2] * box[3] / 2 + 0.5,
        "category_id": category,
        "iscrowd": crowd,
        "segmentation": [],
    }


def _write_split(folder, split, sizes, annotations):
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images = []
    for number, (width, height) in enumerate(sizes, 1):
        name = f"{number:012}.jpg"
        _write_image(folder / split / name, width, height, 10 * number)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    content = {"images": images, "categories": CATEGORIES, "annotations": annotations}
    kind = "image_info" if split.startswith("test") else "instances"
    (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS folder prepared by the real builder from made-up records in COCO's format."""
    raw, prepared = (tmp_path_factory.mktemp(name) for name in ("raw", "tfds"))
    boxes = [_annotation(i, i, [8, 4, 16, 8], category=1 + i % 3) for i in range(1, 11)]
    _write_split(raw, "train2017", [(64, 32)] * 10, boxes)
    test_boxes = [
        _annotation(1, 1, [0, 0, 32, 16]),
        _annotation(2, 1, [32, 16, 32, 16], category=90),
        _annotation(3, 1, [0, 0, 64, 32], crowd=1),
        _annotation(4, 2, [10.5, 20.0, 10.5, 40.0], category=1),
    ]
    _write_split(raw, "val2017", [(64, 32), (42, 84), (30, 30)], test_boxes)
    _write_split(raw, "test2017", [(8, 8)], [])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            tfds.download.DownloadManager,
            "download_and_extract",
            lambda self, urls: dict.fromkeys(urls, str(raw)),
        )
        load_coco(data_dir=str(prepared), download=True, batch_size=1)
    return str(prepared)


def _load(data_dir, **kwargs):
    defaults = {"batch_size": 1, "image_size": 32, "max_boxes": 3, "validation_fraction": 0.2}
    return load_coco(data_dir=data_dir, **{**defaults, **kwargs})


@pytest.fixture(scope="module")
def coco(data_dir):
    return _load(data_dir)


@pytest.fixture(scope="module")
def by_size(coco):
    """Images and targets of the test split, by the number of boxes and then in order."""
    found = [(x[0].numpy(), {k: v[0].numpy() for k, v in y.items()}) for x, y in coco.test]
    return sorted(found, key=lambda pair: -np.sum(pair[1]["classes"] >= 0))


def test_sizes_and_shapes(data_dir):
    coco = _load(data_dir, batch_size=2)
    assert (coco.num_train, coco.num_validation, coco.num_test) == (8, 2, 3)
    assert (coco.num_classes, coco.image_shape) == (80, (32, 32, 3))
    images, targets = next(iter(coco.train))
    assert (images.shape, images.dtype) == ((2, 32, 32, 3), tf.float32)
    assert targets["boxes"].shape == (2, 3, 4)
    assert targets["classes"].shape == (2, 3)
    assert len(list(coco.train)) == 4


def test_a_wide_image_is_scaled_with_its_boxes_and_filled_up_below(by_size):
    image, targets = by_size[0]
    assert targets["boxes"].tolist() == [[0, 0, 16, 8], [16, 8, 32, 16], [-1] * 4]
    assert np.all(image[16:] == 0) and np.all(image[:16] > 0)
    assert image[8, 4].mean() == pytest.approx(70, abs=2)
    assert image[8, 28].mean() == pytest.approx(10, abs=2)


def test_a_tall_image_is_filled_up_at_the_right(by_size):
    image, targets = by_size[1]
    assert np.all(image[:, 16:] == 0) and np.all(image[:, :16] > 0)
    expected = np.float32([4, 20 * 32 / 84, 8, 60 * 32 / 84])
    np.testing.assert_allclose(targets["boxes"][0], expected, rtol=1e-5)


def test_classes_count_from_zero_without_gaps_and_crowds_are_left_out(by_size):
    classes = [targets["classes"].tolist() for _, targets in by_size]
    assert classes == [[11, 79, -1], [0, -1, -1], [-1, -1, -1]]


def test_augmentation_mirrors_images_and_boxes_together(coco):
    seen = {False: 0, True: 0}
    for _ in range(3):
        for image, targets in coco.train:
            mirrored = bool(image[0, 8, 4, 0] < image[0, 8, 28, 0])
            seen[mirrored] += 1
            left = 20 if mirrored else 4
            np.testing.assert_allclose(targets["boxes"][0, 0], [left, 2, left + 8, 6], rtol=1e-5)
    assert min(seen.values()) > 4


def _levels(dataset):
    """Brightness of each image on the right, a tenth of it; fails where one is mirrored."""
    levels = []
    for image, _ in dataset:
        assert image[0, 8, 4, 0] > image[0, 8, 28, 0]
        levels.append(round(float(image[0, 8, 28, 0]) / 10))
    return sorted(levels)


def test_validation_is_held_out_of_the_unaugmented_train_set(coco, data_dir):
    other = _load(data_dir, augment=False, seed=1)
    assert sorted(_levels(other.train) + _levels(other.validation)) == list(range(1, 11))
    assert _levels(coco.validation) == _levels(other.validation)


def test_nothing_is_held_out_unless_asked(data_dir):
    coco = _load(data_dir, validation_fraction=0.0)
    assert (coco.validation, coco.num_train, coco.num_validation) == (None, 10, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_fraction": 1.0}, "Received: validation_fraction=1.0"),
        ({"image_size": 0}, "Received: image_size=0"),
        ({"max_boxes": 2.5}, "Received: max_boxes=2.5"),
        ({"batch_size": 9}, "at most 8, .* Received: batch_size=9"),
    ],
)
def test_bad_arguments(data_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        _load(data_dir, **arguments)


def test_missing_data_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_coco(data_dir=str(tmp_path))
    for part in ("coco/2017", "Pass `download=True`", "25 GB", f"data_dir='{tmp_path}'"):
        assert part in str(caught.value)
