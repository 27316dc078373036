import matplotlib.figure
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keras_mikd.figures import log_to_tensorboard, save_png


@pytest.fixture
def figure():
    figure = matplotlib.figure.Figure(figsize=(3, 2), facecolor="red")
    figure.subplots().set_position([0.5, 0, 0.5, 1])  # The left half stays red.
    return figure


def _pixels(content):
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return tf.io.decode_png(content, channels=4).numpy()


def test_a_png_has_the_size_and_the_picture(figure, tmp_path):
    path = save_png(figure, str(tmp_path / "new" / "a.png"), dpi=50)
    assert path == tmp_path / "new" / "a.png"
    pixels = _pixels(path.read_bytes())
    assert pixels.shape == (100, 150, 4)
    np.testing.assert_array_equal(pixels[50, 20], [255, 0, 0, 255])
    np.testing.assert_array_equal(pixels[50, 120], [255, 255, 255, 255])


def test_a_png_has_120_pixels_per_inch(figure, tmp_path):
    assert _pixels(save_png(figure, tmp_path / "a.png").read_bytes()).shape == (240, 360, 4)


def test_an_old_file_is_kept_unless_asked(figure, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_png(figure, path)
    assert path.read_bytes() == b"old"
    save_png(figure, path, overwrite=True)
    _pixels(path.read_bytes())


def test_a_drawing_that_fails_leaves_the_old_file(figure, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise RuntimeError("no font")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="no font"):
        save_png(figure, path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_tensorboard_holds_the_image_of_every_step(figure, tmp_path):
    tf.summary.experimental.set_step(0)
    with tf.summary.record_if(False):
        for step in (0, 3):
            log_to_tensorboard(figure, tmp_path, "a", step=step, dpi=50)
    # Without room for all, the accumulator draws a sample of them.
    log = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    events = log.Tensors("a")
    assert [event.step for event in events] == [0, 3]
    for event in events:
        width, height, content = event.tensor_proto.string_val
        assert (width, height) == (b"150", b"100")
        np.testing.assert_array_equal(_pixels(content)[50, 20], [255, 0, 0, 255])
    assert log.SummaryMetadata("a").plugin_data.plugin_name == "images"


@pytest.mark.parametrize("write", [save_png, lambda f, p, **k: log_to_tensorboard(f, p, "a", **k)])
def test_bad_input_writes_nothing(figure, tmp_path, write):
    path = tmp_path / "a.png"
    with pytest.raises(TypeError, match="matplotlib.figure.Figure. Received: figure=Axes"):
        write(figure.axes[0], path)
    with pytest.raises(ValueError, match="`dpi` to be a finite number above 0. Received: dpi=0"):
        write(figure, path, dpi=0)
    assert list(tmp_path.iterdir()) == []


def test_a_png_is_called_png(figure, tmp_path):
    with pytest.raises(ValueError, match=r"ends in '\.png'"):
        save_png(figure, tmp_path / "a.pdf")


if __name__ == "__main__":
    pytest.main([__file__])
