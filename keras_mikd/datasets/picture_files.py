"""Files of pictures, looked at before they are read: what they hold, and whether they are whole."""

import keras
import tensorflow as tf

from keras_mikd import checks

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_SHOWN = 5
_MANY = 20_000  # Files that take some seconds to look at.


def check_pictures(paths):
    """Looks at the ends of every file, and at all of what does not end as it should.

    Raises:
        ValueError: If one is empty, holds no JPEG or PNG, or is cut off; the message names it.
    """
    progress = keras.utils.Progbar(len(paths), verbose=int(len(paths) > _MANY), unit_name="picture")
    wrong = []
    for i, path in enumerate(paths):
        if problem := _problem(path):
            wrong.append(f"{path} ({problem})")
        progress.update(i + 1)
    if wrong:
        raise ValueError(
            "Expected every .jpg, .jpeg and .png to hold a whole JPEG or PNG. Received: "
            f"{checks.listed(wrong, _SHOWN)}. Convert, replace or remove them."
        )


def undecodable(path):
    """Returns an error that names the file of a picture, if it cannot be decoded, or None."""
    reason = _failure(tf.io.read_file(path))
    if reason:
        return ValueError(
            f"Expected pictures that can be decoded. Received: {path} ({reason}). Replace or "
            "remove it."
        )
    return None


def _problem(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        start, size = file.read(12), file.size()
        if not size:
            return "empty"
        if not start.startswith((_PNG, _JPEG)):
            return f"begins with {start!r}"
        file.seek(max(size - 12, 0))
        if _ends(file.read()):
            return None
        file.seek(0)
        content = file.read()
    return None if _is_whole(content) else _failure(content)


def _ends(tail):
    return tail[4:8] == b"IEND" or tail.endswith(b"\xff\xd9")


def _is_whole(content):
    """Whether the end of the picture is there, with something else behind it, as phones write."""
    if content.startswith(_PNG):
        return b"IEND" in content
    # A preview among the first segments has an end of its own; that of the picture comes after.
    at = 2
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return b"\xff\xd9" in content[at:]


def _failure(content):
    """Returns what TensorFlow says against a picture, or None."""
    try:
        tf.io.decode_image(content, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        return error.message.split("}}")[-1].split("[Op:")[0].strip()
    return None
