"""MS COCO 2017 as ready-made pipelines for detectors."""

import tensorflow as tf

from keras_mikd import checks
from keras_mikd.datasets import box_pipeline
from keras_mikd.datasets.splits import Splits, check_seed
from keras_mikd.datasets.tfds_arrays import downloaded_builder, import_tfds

_SHUFFLE_BUFFER = 2048


def load_coco(
    *,
    batch_size: int = 16,
    image_size: int = 512,
    max_boxes: int = 100,
    seed: int = 0,
    data_dir: str | None = None,
    augment: bool = True,
    validation_fraction: float = 0.02,
    download: bool = False,
) -> Splits:
    """Loads MS COCO 2017 for object detection.

    An image is scaled, keeping its proportions, until its longer side has `image_size` pixels. The
    rest, at the right or at the bottom, is black. Augmentation mirrors half of the images.

    The pipelines yield `(images, {"boxes": boxes, "classes": classes})`. Images are float32
    `(batch, image_size, image_size, 3)` in [0, 255], for a backbone that rescales
    (`include_rescaling=True`). Boxes are float32 `(batch, max_boxes, 4)` in KerasCV's format "xyxy"
    (left, top, right, bottom in pixels). Classes are float32 `(batch, max_boxes)` from 0 to 79, in
    the order of TFDS. Boxes and classes that an image does not have are -1.

    Regions that COCO marks as crowds are left out. COCO's own evaluation ignores detections there,
    so numbers are comparable with published ones only with its annotation files.

    Args:
        batch_size: Images in a batch, at least 1.
        image_size: Height and width of the images in pixels.
        max_boxes: Boxes to keep of an image; no image of COCO has more than 100.
        seed: Seed of the order of each epoch and of the augmentation. The splits do not depend on
            it.
        data_dir: Folder of the TFDS data sets. None is TFDS' default, `~/tensorflow_datasets`.
        augment: Whether to augment the training images.
        validation_fraction: Fraction of the 118,287 images of `train2017` that becomes the
            validation split, in [0, 1). With 0 there is no validation split, and
            `Splits.validation` is None. The 5,000 images of `val2017` are the test split.
        download: Whether to download the data, about 25 GB, if it is not in `data_dir`. Without a
            network, TFDS gives up after some three minutes.

    Returns:
        A `Splits`. Images are read from disk in every epoch.

    Raises:
        ValueError: If an argument is out of range.
        FileNotFoundError: If the data is not in `data_dir` and `download` is False.
        RuntimeError: If the download fails.
        ImportError: If tensorflow-datasets is not installed.

    References:
        Lin et al., Microsoft COCO: Common Objects in Context, arXiv 1405.0312.

    Example:
    ```python
    coco = load_coco(data_dir="/data/tfds")
    detector.fit(coco.train, validation_data=coco.validation, epochs=12, shuffle=False)
    ```
    """
    checks.integer("batch_size", batch_size, at_least=1)
    checks.integer("image_size", image_size, at_least=1)
    checks.integer("max_boxes", max_boxes, at_least=1)
    check_seed(seed)
    checks.number("validation_fraction", validation_fraction, at_least=0, below=1)
    builder = downloaded_builder(
        "coco/2017", size="about 25 GB", data_dir=data_dir, download=download
    )
    available = builder.info.splits["train"].num_examples
    num_train = available - round(validation_fraction * available)
    return box_pipeline.build_splits(
        builder,
        _encoded(builder, f"train[:{num_train}]", shuffle_seed=seed),
        _encoded(builder, f"train[{num_train}:]") if num_train < available else None,
        _encoded(builder, "validation"),
        prepare=_Prepare(builder, image_size, max_boxes, augment),
        image_shape=(image_size, image_size, 3),
        batch_size=batch_size,
        seed=seed,
        shuffle_buffer=_SHUFFLE_BUFFER,
    )


def _encoded(builder, split, shuffle_seed=None):
    """Returns `(JPEG, objects)` of each image: a shuffle buffer of decoded images is large."""
    tfds = import_tfds()
    examples = builder.as_dataset(
        split=split,
        shuffle_files=shuffle_seed is not None,
        read_config=tfds.ReadConfig(shuffle_seed=shuffle_seed),
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    return examples.map(lambda example: (example["image"], example["objects"]))


class _Prepare:
    """Decodes, mirrors and scales one image, and its boxes with it."""

    def __init__(self, builder, image_size, max_boxes, augment):
        self.decode = builder.info.features["image"].decode_example
        self.image_size = image_size
        self.max_boxes = max_boxes
        self.augment = augment

    def __call__(self, jpeg, objects, seed=None):
        image = self.decode(jpeg)
        each = tf.logical_not(objects["is_crowd"])
        objects = {key: tf.boolean_mask(objects[key], each) for key in ("bbox", "label")}
        if self.augment and seed is not None:
            mirrored = tf.random.stateless_uniform((), [seed, 0]) < 0.5
            image = tf.where(mirrored, image[:, ::-1], image)
            objects["bbox"] = tf.where(mirrored, _mirrored(objects["bbox"]), objects["bbox"])
        size = self.image_size
        image = tf.image.resize(image, (size, size), preserve_aspect_ratio=True)
        shape = tf.shape(image)
        image = tf.image.pad_to_bounding_box(image, 0, 0, size, size)
        return image, box_pipeline.targets(objects, shape, self.max_boxes)


def _mirrored(boxes):
    top, left, bottom, right = tf.unstack(boxes, axis=-1)
    return tf.stack([top, 1.0 - right, bottom, 1.0 - left], axis=-1)
