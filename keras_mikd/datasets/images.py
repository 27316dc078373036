"""Any image classifier of TensorFlow Datasets, and folders of pictures, as ready-made pipelines."""

import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.datasets import streams
from keras_mikd.datasets.image_pipeline import ImagePipeline
from keras_mikd.datasets.picture_folder import folder_builder, validation_of
from keras_mikd.datasets.splits import (
    Splits,
    Training,
    build_splits,
    check_batch_size,
    draw_per_class,
    only_at,
    partition_per_class,
)
from keras_mikd.datasets.tfds_arrays import (
    downloaded_builder,
    encoded_split,
    import_tfds,
    read_resized,
    read_split,
)

_MEMORY_LIMIT = 2 * 2**30
_SHUFFLE_BUFFER = 4096
# Up to here the papers pad and crop; larger pictures have parts cut out, as those of ImageNet.
_SMALL = 64

_PIPELINES = {
    # VID's code (amzn/xfer, var_info_distil).
    "cifar10": ImagePipeline(
        max_value=255.0,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        padding=4,
        padding_mode="REFLECT",
        flip=True,
    ),
    # The CRD benchmark (HobbitLong/RepDistiller, dataset/cifar100.py).
    "cifar100": ImagePipeline(
        max_value=255.0,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        padding=4,
        padding_mode="CONSTANT",
        flip=True,
    ),
    # Random erasing (Zhong et al., arXiv 1708.04896); mean and deviation of the training images.
    "fashion_mnist": ImagePipeline(
        max_value=255.0, mean=(0.286,), std=(0.353,), padding=4, flip=True
    ),
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_images(
    name: str | None = None,
    *,
    folder: str | None = None,
    batch_size: int = 128,
    image_size: int | None = None,
    pipeline: ImagePipeline | None = None,
    labels_per_class: int | None = None,
    unlabelled: bool = False,
    train_fraction: float | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    augment: bool = True,
    train_split: str = "train",
    test_split: str | None = "test",
    validation_split: str | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    drop_remainder: bool = True,
    download: bool = False,
) -> Splits:
    """Loads an image classification data set of TFDS by its name, or a folder of pictures.

    Data whose pixels fill at most 2 GiB is read into memory once. Larger data, and pictures of
    which parts are cut out (`pipeline.areas`), are read from disk in every epoch and drawn among
    the next 4,096. Then the validation split is the end of the training split, whatever the
    classes; and for `labels_per_class` the training split is read once more, for its labels, and
    the files of the images that are kept stay in memory.

    Args:
        name: Name in TFDS: `"fashion_mnist"`, `"imagenet2012"`, `"caltech_birds2011"`.
        folder: Instead of a name, a folder of pictures, `folder/train/<class>/<picture>.png`; or
            `folder/<class>/<picture>.png`, of which `test_fraction` is held out. Pictures are .jpg,
            .jpeg or .png; others are left out with a warning. Names with a dot first are hidden.
        batch_size: Images in a batch, at least 1.
        image_size: Height and width of the images in pixels; None keeps theirs, if all are alike.
        pipeline: Scaling and augmentation. None takes those of the papers for CIFAR and
            Fashion-MNIST. For others, pixels are scaled by ImageNet's mean and standard deviation
            (gray ones by 0.5), and half of the images in colour are mirrored, which changes digits
            and letters. Up to 64 pixels, an eighth of the size is padded with black and a window
            cropped; of larger pictures, parts of 8 % to 100 % of the area are cut out.
        labels_per_class: Training images to keep of each class, drawn at random with `seed`; None
            keeps them all. A smaller draw is a subset of a larger one.
        unlabelled: Whether the other training images stay, with the label -1, as in VID's
            experiment on unlabelled images. `SparseCategoricalCrossentropy(from_logits=True,
            ignore_class=-1)` leaves them out of the task; distillation losses take all images.
        train_fraction: Fraction of the training images to keep, the first ones, in epochs as long
            as with all of them; see `load_cifar10`.
        seed: Seed of the draw and, mixed with TensorFlow's global seed, of the order of each
            epoch and of the augmentation. The three splits do not depend on it.
        data_dir: Folder of the TFDS data sets. None is TFDS' default, `~/tensorflow_datasets`.
        augment: Whether to augment the training images.
        train_split: Name of the split to train on.
        test_split: Name of the split to test on; that of ImageNet has no labels, its "validation"
            has. None takes `test_fraction` of the training images, where there is no other split.
        validation_split: Name of the validation split. None takes `validation`, `val` or `valid`
            of a folder that has one, and otherwise `validation_fraction` of the training images.
        validation_fraction: Fraction of the training images of each class that becomes the
            validation split, in [0, 1). With 0 there is none, and `Splits.validation` is None.
        test_fraction: Fraction of the training images of each class that becomes the test split if
            there is none, above 0. With `validation_fraction` it adds up to less than 1.
        drop_remainder: Whether an epoch leaves out the images that do not fill the last batch.
        download: Whether to download the data if it is not in `data_dir`.

    Returns:
        A `Splits`. Images are float32.

    Raises:
        ValueError: If an argument is out of range or does not fit the data, a class of a folder has
            no picture, or one of its files is no whole JPEG or PNG.
        FileNotFoundError: If the data is not there and `download` is False.
        RuntimeError: If the download fails.
        ImportError: If tensorflow-datasets is not installed.

    Example:
    ```python
    birds = load_images("caltech_birds2011", image_size=224, labels_per_class=20, download=True)
    own = load_images(folder="pictures", image_size=64)
    ```
    """
    training = Training(
        batch_size, seed, augment, labels_per_class, train_fraction, drop_remainder, unlabelled
    )
    checks.integer("image_size", image_size, at_least=1, optional=True)
    checks.number("validation_fraction", validation_fraction, at_least=0, below=1)
    checks.number("test_fraction", test_fraction, above=0, below=1)
    builder, has_splits = _builder(name, folder, data_dir, download, train_split)
    if not has_splits and test_split == "test":
        test_split = None
    if folder is not None and has_splits and validation_split is None and validation_fraction:
        validation_split = validation_of(builder, taken=(train_split, test_split))
    names = {"train": train_split, "validation": validation_split, "test": test_split}
    held_out = _held_out(names, validation_fraction, test_fraction)
    shape = _checked_shape(builder, names, image_size)
    pipeline = pipeline or _PIPELINES.get(builder.name) or _usual_pipeline(shape)
    pixels = sum(builder.info.splits[x].num_examples for x in names.values() if x) * np.prod(shape)
    if pipeline.areas or pixels > _MEMORY_LIMIT:
        return _streamed(builder, names, shape, pipeline, training, held_out)

    def read(split):
        stored = tuple(builder.info.features[builder.info.supervised_keys[0]].shape)
        read = read_split(builder, split) if stored == shape else None
        return read or read_resized(builder, split, shape[0])

    train = read(train_split)
    parts = {role: read(split) for role, split in names.items() if split and role != "train"}
    if held_out:
        fractions = [1 - sum(held_out.values()), *held_out.values()]
        kept, *others = partition_per_class(train.labels, fractions, seed=0)
        parts |= {role: train.take(part) for role, part in zip(held_out, others, strict=True)}
        train = train.take(kept)
    _check_test(len(parts["test"].labels), test_fraction)
    return build_splits(
        train,
        parts.get("validation"),
        parts["test"],
        num_classes=_num_classes(builder),
        class_names=_class_names(builder),
        pipeline=pipeline,
        training=training,
    )


def _held_out(names, validation_fraction, test_fraction):
    """Returns the fraction of the training images for each split that has none of its own."""
    held_out = {"validation": validation_fraction, "test": test_fraction}
    held_out = {role: each for role, each in held_out.items() if names[role] is None and each}
    if sum(held_out.values()) >= 1:
        raise ValueError(
            "Expected `validation_fraction` and `test_fraction` to leave images for training. "
            f"Received: validation_fraction={validation_fraction}, test_fraction={test_fraction}"
        )
    return held_out


def _check_test(count, test_fraction):
    if not count:
        raise ValueError(
            "Expected `test_fraction` to hold out an image of a class at least. Received: "
            f"test_fraction={test_fraction}"
        )


def _builder(name, folder, data_dir, download, train_split):
    """Returns the builder, and whether it has splits."""
    if (name is None) == (folder is None):
        raise ValueError(
            "Expected either the `name` of a data set or a `folder` of pictures. "
            f"Received: name={name!r}, folder={folder!r}"
        )
    if folder is not None and (download or data_dir is not None):
        raise ValueError(
            "Expected `data_dir` and `download` only beside a `name`. "
            f"Received: folder={folder!r}, data_dir={data_dir!r}, download={download}"
        )
    if folder is None:
        return downloaded_builder(name, data_dir=data_dir, download=download), True
    return folder_builder(folder, train_split)


def _checked_shape(builder, names, image_size):
    """Returns the shape of the images, if the builder is that of an image classifier."""
    tfds = import_tfds()
    features, keys = builder.info.features, builder.info.supervised_keys
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if len(keys or ()) != 2 or not all(map(isinstance, (features[k] for k in keys), kinds)):
        raise ValueError(
            "Expected a data set of images and their classes, with TFDS' `supervised_keys`. "
            f"Received: {builder.name!r}, which has {', '.join(features)}"
        )
    for role, split in names.items():
        if split is not None and split not in builder.info.splits:
            advice = ". None holds out `test_fraction` of the training images" * (role == "test")
            raise ValueError(
                f"Expected `{role}_split` to be one of {', '.join(builder.info.splits)}. "
                f"Received: {role}_split={split!r}{advice}"
            )
    for role, split in names.items():
        if split is not None and not builder.info.splits[split].num_examples:
            raise ValueError(
                f"Expected `{role}_split` to hold images. Received: {role}_split={split!r} of "
                f"{builder.name!r}, which is empty"
            )
        if split is not None and _first_label(builder, split) < 0:
            raise ValueError(
                f"Expected `{role}_split` to have labels. Received: {role}_split={split!r} of "
                f"{builder.name!r}, whose labels are -1. Name another split."
            )
    height, width, channels = features[keys[0]].shape
    if image_size is not None:
        return image_size, image_size, channels
    if None in (height, width):
        raise ValueError(
            f"Expected `image_size`, as the images of {builder.name!r} may have any. "
            "Received: image_size=None"
        )
    return height, width, channels


def _first_label(builder, split):
    return int(next(iter(encoded_split(builder, split, stop=1)))[1])


def _num_classes(builder):
    return builder.info.features[builder.info.supervised_keys[1]].num_classes


def _class_names(builder):
    return tuple(builder.info.features[builder.info.supervised_keys[1]].names)


def _usual_pipeline(shape):
    size, channels = max(shape[:2]), shape[-1]
    colour = channels == 3
    small = size <= _SMALL
    return ImagePipeline(
        max_value=255.0,
        mean=_IMAGENET_MEAN if colour else (0.5,),
        std=_IMAGENET_STD if colour else (0.5,),
        padding=size // 8 if small else 0,
        flip=colour,
        areas=None if small else (0.08, 1.0),
    )


def _streamed(builder, names, shape, pipeline, training, held_out):
    """Returns `Splits` that read and decode files in every epoch."""
    if shape[0] != shape[1]:
        raise ValueError(
            f"Expected `image_size`, as images that are read in every epoch are square. "
            f"Received: image_size=None for images of shape {shape}"
        )
    image = builder.info.features[builder.info.supervised_keys[0]]

    def prepare(encoded, label, seed=None):
        picture = image.decode_example(encoded)
        picture = tf.ensure_shape(picture, (None, None, shape[-1]))
        return pipeline.prepare(picture, shape[0], seed if training.augment else None), label

    def evaluated(examples):
        return streams.for_evaluation(examples, prepare, batch_size=training.batch_size)

    stop = builder.info.splits[names["train"]].num_examples
    parts = {r: encoded_split(builder, name) for r, name in names.items() if name and r != "train"}
    counts = {role: round(fraction * stop) for role, fraction in held_out.items()}
    for role, count in counts.items():
        parts[role] = encoded_split(builder, names["train"], start=stop - count, stop=stop)
        stop -= count
    _check_test(len(parts["test"]), held_out.get("test"))
    train, num_train = _chosen(builder, names["train"], stop, training)
    validation, test = parts.get("validation"), parts["test"]
    return Splits(
        train=streams.for_training(
            train,
            prepare,
            batch_size=training.batch_size,
            seed=training.seed,
            shuffle_buffer=_SHUFFLE_BUFFER,
            drop_remainder=training.drop_remainder,
        ),
        validation=evaluated(validation) if validation else None,
        test=evaluated(test),
        num_classes=_num_classes(builder),
        image_shape=shape,
        num_train=num_train,
        num_validation=len(validation) if validation else 0,
        num_test=len(test),
        class_names=_class_names(builder),
        pipeline=pipeline,
    )


def _chosen(builder, split, available, training):
    """Returns the training images of an epoch, encoded, and how many different ones they are."""
    options = {"stop": available}
    if training.labels_per_class is None and training.train_fraction is None:
        if training.drop_remainder:
            check_batch_size(training.batch_size, available)
        return encoded_split(builder, split, shuffle_seed=training.seed, **options), available
    examples = encoded_split(builder, split, **options)
    count = epoch_size = available
    if training.labels_per_class is not None:
        labels = np.fromiter(examples.map(lambda _, label: label).as_numpy_iterator(), np.int32)
        drawn = draw_per_class(labels, training.labels_per_class, seed=training.seed)
        if training.unlabelled:
            examples = _labelled(examples, only_at(drawn, labels))
        else:
            examples = _only(examples, drawn).cache()
            count = epoch_size = len(drawn)
    else:
        count = training.first_of(available)
        examples = examples.take(count).cache().repeat().take(epoch_size)
    if training.drop_remainder:
        check_batch_size(training.batch_size, epoch_size)
    return examples.apply(tf.data.experimental.assert_cardinality(epoch_size)), count


def _labelled(examples, labels):
    with tf.device("CPU"):
        labels = tf.data.Dataset.from_tensor_slices(labels)
    return tf.data.Dataset.zip((examples, labels)).map(lambda example, label: (example[0], label))


def _only(examples, indices):
    with tf.device("CPU"):
        kept = tf.constant(np.isin(np.arange(len(examples)), indices))
    numbered = examples.enumerate().filter(lambda index, _: tf.gather(kept, index))
    return numbered.map(lambda _, example: example)
