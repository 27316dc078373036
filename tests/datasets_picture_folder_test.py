"""Folders of pictures as they are found: hidden files, other formats, damaged ones, sub-folders."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.datasets import ImagePipeline, images, load_images, picture_files

PLAIN = ImagePipeline(max_value=1.0)


def _png(level=0, size=8):
    return tf.io.encode_png(np.full((size, size, 3), level, np.uint8)).numpy()


def _jpeg(size=32):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype("uint8")
    return tf.io.encode_jpeg(noise).numpy()


def _write(path, content=b"text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _classes(folder, *names, count=10):
    """Writes pictures whose level is the number of their class times 100, plus their own."""
    for label, name in enumerate(names):
        for number in range(count):
            _write(folder / name / f"{number}.png", _png(100 * label + number))


@pytest.fixture
def pics(tmp_path):
    _classes(tmp_path / "pics", "cat", "dog")
    return tmp_path / "pics"


@pytest.fixture(params=["memory", "disk"])
def read_from(request, monkeypatch):
    if request.param == "disk":
        monkeypatch.setattr(images, "_MEMORY_LIMIT", 0)
    return request.param


def _load(folder, **options):
    defaults = {"batch_size": 2, "image_size": 8, "pipeline": PLAIN, "augment": False}
    return load_images(folder=folder, **{**defaults, **options})


def _levels(*datasets):
    """Returns the level of every picture, and its label."""
    batches = [batch for dataset in datasets for batch in dataset]
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return np.rint(pixels[:, 0, 0, 0]).astype(int), labels


def _all_levels(splits):
    return _levels(*(x for x in (splits.train, splits.validation, splits.test) if x))


@pytest.mark.parametrize("with_splits", [False, True])
def test_hidden_folders_and_files_are_no_classes_and_no_pictures(tmp_path, with_splits, read_from):
    pics = tmp_path / "pics"
    parts = ["train", "test"] if with_splits else [""]
    _write(pics / ".hidden" / "class" / "1.png", _png())
    for part in parts:
        _classes(pics / part, "cat", "dog")
        _write(pics / part / ".ipynb_checkpoints" / "1.png", _png())
        _write(pics / part / ".DS_Store")
        for name in ("._0.png", ".DS_Store", ".trash/1.png"):
            _write(pics / part / "dog" / name)
    splits = _load(pics)
    assert splits.class_names == ("cat", "dog")
    levels, labels = _all_levels(splits)
    assert sorted(levels) == sorted([*range(10), *range(100, 110)] * len(parts))
    np.testing.assert_array_equal(labels, levels // 100)


def test_a_class_without_a_picture_is_named(pics):
    for number in range(8):
        _write(pics / "empty" / f"{number}.webp")
    with pytest.raises(ValueError, match=r"as .jpg, .jpeg or .png. Received: .*empty \(8 .webp\)"):
        _load(pics)
    _write(pics / "empty" / "1.png", _png())
    with pytest.warns(UserWarning, match="8 .webp are left out"):
        assert _load(pics, test_fraction=0.5).num_classes == 3
    (pics / "none").mkdir()
    with pytest.raises(ValueError, match=r"Received: .*none \(empty\).*or remove a folder"):
        _load(pics)


def test_a_class_may_be_missing_in_a_split_but_not_in_another_format(tmp_path):
    for part in ("train", "test"):
        _classes(tmp_path / part, "cat", "dog")
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(ValueError, match=r"Received: .*test/bird \(empty\)"):
        _load(tmp_path)
    _write(tmp_path / "train" / "bird" / "1.png", _png())
    assert _load(tmp_path).class_names == ("bird", "cat", "dog")
    _write(tmp_path / "test" / "bird" / "1.tif")
    with pytest.raises(ValueError, match=r"Received: .*test/bird \(1 .tif\)"):
        _load(tmp_path)


def test_only_pictures_of_other_formats(tmp_path):
    for name in ("a/1.bmp", "a/2.bmp", "b/1.HEIC"):
        _write(tmp_path / name)
    with pytest.raises(ValueError, match=r"other formats are in .*a \(2 .bmp\), .*b \(1 .heic\)"):
        _load(tmp_path)
    for name in ("a/1.png", "b/1.png"):
        _write(tmp_path / "test" / name, _png())
    for name in ("a/1.webp", "b/1.webp"):
        _write(tmp_path / "train" / name)
    with pytest.raises(ValueError, match=r"Received: .*train/a \(1 .webp\), .*train/b"):
        _load(tmp_path)


def test_pictures_of_other_formats_are_counted_and_notes_are_not(pics):
    for name in ("cat/1.webp", "dog/2.webp", "dog/3.BMP", "dog/notes.txt"):
        _write(pics / name)
    with pytest.warns(UserWarning) as told:
        splits = _load(pics)
    (message,) = [str(each.message) for each in told]
    assert f"Of the pictures in {pics}, 1 .bmp, 2 .webp are left out" in message
    assert told[0].filename == __file__
    assert splits.num_train + splits.num_validation + splits.num_test == 20


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("text.png", b"no picture", r"begins with b'no picture'"),
        ("empty.jpg", b"", "empty"),
        ("cut.png", _png(size=64)[:-20], "Invalid PNG data"),
        ("cut.jpg", _jpeg()[:-200], ".*JPEG"),
        ("other.jpg", b"RIFF\x14\x00\x00\x00WEBPVP8L", "begins with b'RIFF.*WEBP"),
    ],
    ids=["text", "empty", "cut png", "cut jpeg", "other format"],
)
def test_a_file_that_holds_no_picture_is_named_at_once(pics, read_from, name, content, said):
    _write(pics / "dog" / name, content)
    with pytest.raises(ValueError, match=rf"Received: [^,]*dog/{name} \({said}.*remove them"):
        _load(pics)


def test_a_preview_in_a_picture_does_not_hide_that_it_is_cut_off(pics):
    preview = _jpeg(8)
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    picture = _jpeg()
    _write(pics / "dog" / "cut.jpg", picture[:2] + segment + picture[2:-200])
    with pytest.raises(ValueError, match=r"Received: [^,]*dog/cut.jpg \("):
        _load(pics)


def test_what_phones_write_behind_a_picture_is_no_fault(pics):
    _write(pics / "dog" / "phone.jpg", _jpeg() + b"made by a phone")
    _write(pics / "dog" / "phone.png", _png(101) + b"made by a phone")
    splits = _load(pics)
    assert splits.num_train + splits.num_validation + splits.num_test == 22


def test_a_picture_with_right_ends_that_is_damaged_is_named_when_it_is_read(pics):
    whole = _png(size=64)
    _write(pics / "dog" / "damaged.png", whole[:40] + b"1234" + whole[44:])
    with pytest.raises(ValueError, match=r"Received: .*dog/damaged.png \(.*PNG.*remove it"):
        _load(pics)


def test_a_folder_in_a_class_is_named(pics):
    _write(pics / "cat" / "sub" / "a.png", _png())
    message = r"no deeper. Received: train_split='train' and pictures in .*pics/cat/sub beside "
    with pytest.raises(ValueError, match=message + r".*pics/cat, .*pics/dog.*/train/<class>/"):
        _load(pics)
    with pytest.raises(ValueError, match="Received: train_split='fit' and pictures in .*cat/sub"):
        _load(pics, train_split="fit")


def test_folders_in_the_classes_of_splits_are_left_out_with_a_warning(tmp_path):
    for part in ("train", "test"):
        _classes(tmp_path / part, "cat", "dog")
    _write(tmp_path / "train" / "cat" / "sub" / "a.png", _png())
    _write(tmp_path / "notes" / "pages" / "1.txt")
    with pytest.warns(UserWarning, match=r"Pictures in .*train/cat/sub are left out"):
        splits = _load(tmp_path)
    assert (splits.num_train + splits.num_validation, splits.num_test) == (20, 20)
    assert splits.class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_for_validation_is_used(tmp_path, name):
    for part, count in (("train", 10), (name, 3), ("test", 4)):
        _classes(tmp_path / part, "cat", "dog", count=count)
    splits = _load(tmp_path)
    assert (splits.num_train, splits.num_validation, splits.num_test) == (20, 6, 8)
    assert sorted(_levels(splits.validation)[0]) == [0, 1, 2, 100, 101, 102]
    # Unless it is the test split, or there is to be none.
    splits = _load(tmp_path, test_split=name)
    assert (splits.num_train, splits.num_validation, splits.num_test) == (16, 4, 6)
    splits = _load(tmp_path, validation_fraction=0.0)
    assert (splits.num_train, splits.num_validation) == (20, 0)


def test_a_look_at_many_files_shows_its_progress(pics, monkeypatch, capsys):
    paths = [str(path) for path in pics.glob("*/*.png")]
    picture_files.check_pictures(paths)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(picture_files, "_MANY", 19)
    picture_files.check_pictures(paths)
    assert "20/20" in capsys.readouterr().out
