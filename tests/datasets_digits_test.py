import socket
import sys

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils

from keras_mikd.datasets import load_digits
from keras_mikd.datasets.digits_builder import MikdDigits
from keras_mikd.datasets.tfds_arrays import is_prepared, prepared_builder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    load_digits(data_dir=path)
    return path


@pytest.fixture(scope="module")
def digits(data_dir):
    return load_digits(data_dir=data_dir)


def _arrays(dataset):
    images, labels = zip(*dataset, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_splits_have_the_promised_sizes(digits):
    assert (digits.num_train, digits.num_validation, digits.num_test) == (898, 360, 539)
    assert (digits.num_classes, digits.image_shape) == (10, (8, 8, 1))


def test_splits_are_stratified(digits):
    totals = np.bincount(sklearn.datasets.load_digits().target)
    for dataset, fraction in ((digits.validation, 0.2), (digits.test, 0.3)):
        counts = np.bincount(_arrays(dataset)[1])
        np.testing.assert_allclose(counts, fraction * totals, atol=1)


def test_splits_together_are_the_images_of_scikit_learn(data_dir):
    builder = MikdDigits(data_dir=data_dir)
    stored = [
        (example["image"].tobytes(), int(example["label"]))
        for split in ("train", "validation", "test")
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    ]
    digits = sklearn.datasets.load_digits()
    original = [
        (image.astype(np.uint8).tobytes(), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    assert sorted(stored) == sorted(original)


def test_split_is_pinned_across_machines(digits):
    labels = _arrays(digits.test)[1]
    assert labels[:12].tolist() == [0, 1, 4, 5, 8, 5, 6, 5, 9, 9, 1, 3]


def test_images_are_counts_over_sixteen(digits):
    images, labels = _arrays(digits.test)
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    assert (images.min(), images.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(images * 16, np.rint(images * 16))


def test_labels_per_class(data_dir):
    digits = load_digits(data_dir=data_dir, labels_per_class=10)
    assert digits.num_train == 100
    assert np.bincount(_arrays(digits.train)[1]).tolist() == [10] * 10
    assert digits.num_test == 539


def test_more_labels_than_a_class_has(data_dir):
    with pytest.raises(ValueError, match="class 8 has only 87 .* Received: labels_per_class=88"):
        load_digits(data_dir=data_dir, labels_per_class=88)


def test_bad_argument_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="Received: batch_size=0"):
        load_digits(batch_size=0, data_dir=str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_preparing_contacts_nobody_and_prints_nothing(tmp_path, monkeypatch, capfd, caplog):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(gcs_utils, "exists", refuse)
    load_digits(data_dir=str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_second_call_writes_nothing(data_dir, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("prepared again")

    monkeypatch.setattr(MikdDigits, "download_and_prepare", refuse)
    load_digits(data_dir=data_dir)


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    make_builder = lambda: MikdDigits(data_dir=str(tmp_path))  # noqa: E731
    generate = MikdDigits._split_generators

    def overtaken(self, dl_manager):
        monkeypatch.setattr(MikdDigits, "_split_generators", generate)
        make_builder().download_and_prepare()
        return generate(self, dl_manager)

    monkeypatch.setattr(MikdDigits, "_split_generators", overtaken)
    builder = prepared_builder(make_builder, quiet=True)
    assert builder.info.splits["train"].num_examples == 898
    assert [path.name for path in (tmp_path / "mikd_digits").iterdir()] == ["1.0.0"]


def test_interrupted_preparation_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    def interrupted(self, images, labels, indices):
        yield int(indices[0]), {"image": images[indices[0]], "label": int(labels[indices[0]])}
        raise OSError("disk full")

    make_builder = lambda: MikdDigits(data_dir=str(tmp_path))  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(MikdDigits, "_generate_examples", interrupted)
        with pytest.raises(OSError, match="disk full"):
            prepared_builder(make_builder, quiet=True)
    assert not is_prepared(make_builder())
    assert load_digits(data_dir=str(tmp_path)).num_train == 898


def test_builder_is_registered_with_tfds(data_dir):
    assert len(tfds.load("mikd_digits", split="train", data_dir=data_dir)) == 898


@pytest.mark.parametrize("package", ["tensorflow_datasets", "importlib_resources"])
def test_missing_package_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'`{package}`.*pip install "keras_mikd\[data\]"'):
        load_digits()


def test_missing_scikit_learn_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'`sklearn.*pip install "keras_mikd\[data\]"'):
        load_digits(data_dir=str(tmp_path))
