import builtins

import matplotlib.pyplot
import numpy as np
import pytest

from keras_mikd import figures
from keras_mikd.figures.canvas import as_panels, new_figure

LOGITS = np.random.default_rng(0).normal(size=(12, 3))
LABELS = np.arange(12) % 3
DRAWN = {
    "confusion_matrix": lambda: figures.confusion_matrix(LABELS, LABELS[::-1]),
    "logits_tsne": lambda: figures.logits_tsne(LOGITS, LABELS, perplexity=3),
    "cmi_trajectory": lambda: figures.cmi_trajectory({"cmi": [0.1], "log_likelihood": [-1.0]}),
}


def test_axes_come_as_a_grid_of_the_asked_size():
    figure, axes = new_figure(2, 3, width=2.0, height=1.5)
    assert axes.shape == (2, 3)
    assert tuple(figure.get_size_inches()) == (6.0, 3.0)


def test_a_mapping_is_several_panels_and_anything_else_is_one():
    assert as_panels({"a": 1, 2: 3}, "x") == {"a": 1, "2": 3}
    assert as_panels([1, 2], "x") == {"": [1, 2]}
    with pytest.raises(
        ValueError, match="`predictions` to have at least one entry. Received: predictions={}"
    ):
        as_panels({}, "predictions")


@pytest.mark.parametrize("name", DRAWN)
def test_pyplot_is_left_alone(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pyplot was used")

    for used in ("figure", "subplots", "switch_backend", "new_figure_manager"):
        monkeypatch.setattr(matplotlib.pyplot, used, refuse)
    backend = matplotlib.get_backend(auto_select=False)
    assert isinstance(DRAWN[name](), matplotlib.figure.Figure)
    assert matplotlib.pyplot.get_fignums() == []
    assert matplotlib.get_backend(auto_select=False) == backend


@pytest.mark.parametrize("missing", ["matplotlib", "sklearn", "tensorboard"])
def test_a_missing_package_names_the_extra(missing, monkeypatch, tmp_path):
    figure = DRAWN["confusion_matrix"]()
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    needing = {
        "matplotlib": [*DRAWN.values(), lambda: figures.save_png(figure, tmp_path / "a.png")],
        "sklearn": [DRAWN["confusion_matrix"], DRAWN["logits_tsne"]],
        "tensorboard": [lambda: figures.log_to_tensorboard(figure, tmp_path, "a")],
    }
    for call in needing[missing]:
        with pytest.raises(ImportError, match=rf'`{missing}`.*pip install "keras_mikd\[figures\]"'):
            call()
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    pytest.main([__file__])


def test_a_notebook_shows_figures():
    figure, _ = new_figure(1, 1, width=2.0, height=1.0)
    assert figure._repr_png_().startswith(b"\x89PNG")
