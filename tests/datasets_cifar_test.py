import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_mikd.datasets import images, load_cifar10, load_cifar100

MEAN = {10: [0.4914, 0.4822, 0.4465], 100: [0.5071, 0.4867, 0.4408]}
STD = {10: [0.247, 0.243, 0.261], 100: [0.2675, 0.2565, 0.2761]}


def _records(count, num_classes):
    """Binary CIFAR records. Every pixel of image i is i, its label is i % num_classes."""
    for index in range(count):
        label = index % num_classes
        header = [label] if num_classes == 10 else [label // 5, label]
        yield bytes(header) + bytes([index]) * 3072


def _write_cifar10(folder):
    folder = folder / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    records = list(_records(200, 10))
    for batch in range(5):
        part = records[40 * batch : 40 * (batch + 1)]
        (folder / f"data_batch_{batch + 1}.bin").write_bytes(b"".join(part))
    (folder / "test_batch.bin").write_bytes(b"".join(_records(30, 10)))


def _write_cifar100(folder):
    folder = folder / "cifar-100-binary"
    folder.mkdir(parents=True)
    for name, count in (("coarse", 20), ("fine", 100)):
        names = "\n".join(f"{name}{i}" for i in range(count))
        (folder / f"{name}_label_names.txt").write_text(names)
    (folder / "train.bin").write_bytes(b"".join(_records(200, 100)))
    (folder / "test.bin").write_bytes(b"".join(_records(100, 100)))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS folder with both data sets, prepared by the real builders from made-up records."""
    raw, prepared = (tmp_path_factory.mktemp(name) for name in ("raw", "tfds"))
    _write_cifar10(raw)
    _write_cifar100(raw)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(raw)
        )
        for load in (load_cifar10, load_cifar100):
            load(data_dir=str(prepared), download=True, batch_size=10)
    return str(prepared)


def _pixels_and_labels(dataset, num_classes):
    """Undoes the scaling of images that hold one value, with the papers' constants."""
    images, labels = (np.concatenate(part) for part in zip(*dataset, strict=True))
    pixels = (images * STD[num_classes] + MEAN[num_classes]) * 255
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
    assert np.ptp(np.rint(pixels), axis=(1, 2, 3)).max() == 0
    return np.rint(pixels[:, 0, 0, 0]).astype(int), labels


@pytest.mark.parametrize(("load", "num_classes"), [(load_cifar10, 10), (load_cifar100, 100)])
def test_all_images_normalised_with_their_labels(data_dir, load, num_classes):
    splits = load(data_dir=data_dir, batch_size=10, validation_fraction=0.0, augment=False)
    pixels, labels = _pixels_and_labels(splits.train, num_classes)
    np.testing.assert_array_equal(np.sort(pixels), np.arange(200))
    np.testing.assert_array_equal(labels, pixels % num_classes)
    assert splits.validation is None
    assert (splits.num_classes, splits.image_shape) == (num_classes, (32, 32, 3))


def test_validation_is_held_out_of_the_train_set(data_dir):
    splits = load_cifar10(data_dir=data_dir, batch_size=10, augment=False)
    train, _ = _pixels_and_labels(splits.train, 10)
    validation, labels = _pixels_and_labels(splits.validation, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(200))
    assert np.bincount(labels).tolist() == [4] * 10
    assert (splits.num_train, splits.num_validation, splits.num_test) == (160, 40, 30)


@pytest.mark.parametrize(("load", "num_classes"), [(load_cifar10, 10), (load_cifar100, 100)])
@pytest.mark.parametrize("augment", [True, False])
def test_the_last_batch_is_kept_if_asked(data_dir, load, num_classes, augment):
    options = {"data_dir": data_dir, "batch_size": 64, "validation_fraction": 0.0}
    kept = load(**options, drop_remainder=False, augment=augment)
    assert (len(kept.train), len(load(**options).train)) == (4, 3)
    batches = list(kept.train)
    assert [len(labels) for _, labels in batches] == [64, 64, 64, 8]
    assert batches[-1][0].shape == (8, 32, 32, 3)
    if not augment:
        pixels, _ = _pixels_and_labels(kept.train, num_classes)
        np.testing.assert_array_equal(np.sort(pixels), np.arange(200))
    (images, labels), *_ = load(**options | {"batch_size": 300}, drop_remainder=False).train
    assert images.shape[0] == labels.shape[0] == 200


def test_validation_does_not_depend_on_the_seed(data_dir):
    first, second = (
        _pixels_and_labels(load_cifar10(data_dir=data_dir, seed=s).validation, 10)[0]
        for s in (0, 1)
    )
    np.testing.assert_array_equal(first, second)


def test_labels_per_class(data_dir):
    splits = load_cifar10(data_dir=data_dir, batch_size=10, labels_per_class=3, augment=False)
    assert np.bincount(_pixels_and_labels(splits.train, 10)[1]).tolist() == [3] * 10
    with pytest.raises(ValueError, match="has only 16 training images"):
        load_cifar10(data_dir=data_dir, labels_per_class=17)


def test_train_fraction(data_dir):
    arguments = {"data_dir": data_dir, "batch_size": 10, "augment": False}
    splits = load_cifar100(**arguments, validation_fraction=0.0, train_fraction=0.05)
    pixels, labels = _pixels_and_labels(splits.train, 100)
    assert (splits.num_train, len(pixels), len(set(pixels))) == (10, 200, 10)
    np.testing.assert_array_equal(np.bincount(pixels)[np.unique(pixels)], [20] * 10)
    np.testing.assert_array_equal(labels, pixels % 100)


def test_augmentation_pads_with_black_for_cifar100_only(data_dir):
    for load, pads in ((load_cifar10, False), (load_cifar100, True)):
        splits = load(data_dir=data_dir, batch_size=100)
        images, _ = next(iter(splits.train))
        assert (np.ptp(images, axis=(1, 2)).max() > 0) == pads


def test_augmentation_of_the_papers():
    for pipeline, border in (
        (images._PIPELINES["cifar10"], "REFLECT"),
        (images._PIPELINES["cifar100"], "CONSTANT"),
    ):
        assert (pipeline.padding, pipeline.padding_mode, pipeline.flip) == (4, border, True)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_validation_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=f"Received: validation_fraction={fraction}"):
        load_cifar10(validation_fraction=fraction)


def test_missing_data_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_cifar100(data_dir=str(tmp_path))
    for part in ("cifar100", "Pass `download=True`", f"data_dir='{tmp_path}'"):
        assert part in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionError("offline"), tfds.download.DownloadError("403")])
def test_failed_download_says_what_to_do(tmp_path, monkeypatch, error):
    def fail(self, url):
        raise error

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    with pytest.raises(RuntimeError, match="Expected to download .*network access") as caught:
        load_cifar10(data_dir=str(tmp_path), download=True)
    assert caught.value.__cause__ is error
