import numpy as np
import pytest

from keras_mikd.figures import logits_tsne

LABELS = np.repeat([0, 1, 2], 12)
NOISE = np.random.default_rng(0).normal(size=(36, 3), scale=0.1)
LOGITS = 10 * np.eye(3)[LABELS] + NOISE


def _points(axes):
    """Points and labels, in the order of the legend."""
    points = [each.get_offsets() for each in axes.collections]
    return np.concatenate(points), np.repeat(range(len(points)), [len(each) for each in points])


def test_points_of_a_class_are_nearest_to_their_own_class():
    (axes,) = logits_tsne(LOGITS, LABELS, perplexity=5).axes
    points, labels = _points(axes)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(labels[distances.argmin(axis=1)], labels)
    np.testing.assert_array_equal(np.bincount(labels), [12, 12, 12])


def test_the_same_seed_gives_the_same_figure():
    first, second = (_points(logits_tsne(LOGITS, LABELS).axes[0])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_perplexity_is_that_of_the_embedding():
    few, many = (_points(logits_tsne(LOGITS, LABELS, perplexity=p).axes[0])[0] for p in (5, 15))
    assert np.abs(few - many).max() > 0.1


def test_every_class_has_a_colour_of_its_own():
    labels = np.arange(24) % 12
    (axes,) = logits_tsne(np.random.default_rng(0).normal(size=(24, 12)), labels).axes
    assert len({tuple(points.get_facecolor()[0]) for points in axes.collections}) == 12


def test_panels_and_classes_are_named():
    figure = logits_tsne(
        {"MLL": LOGITS, "MCMI": 2 * LOGITS}, LABELS, class_names=["a", "b", "c (dropped)"]
    )
    assert [axes.get_title() for axes in figure.axes] == ["MLL", "MCMI"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c (dropped)"]


def test_many_classes_have_a_colour_bar():
    figure = logits_tsne(np.random.default_rng(0).normal(size=(40, 30)), 1 + np.arange(40) % 25)
    axes, bar = figure.axes
    assert bar.get_ylabel() == "class"
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_array(), 1 + np.arange(40) % 25)
    assert points.get_clim() == (0, 29)  # Of all classes, so that panels have the same colours.


@pytest.mark.parametrize(
    "logits, labels, kwargs, message",
    [
        (np.zeros((0, 3)), [], {}, r"n > 0. Received: logits of shape \(0, 3\)"),
        (LOGITS[:, 0], LABELS, {}, r"\(n, classes\), n > 0. Received: logits of shape \(36,\)"),
        (LOGITS * np.nan, LABELS, {}, "finite"),
        (np.ones((36, 3)), LABELS, {}, "36 times the same logits"),
        (LOGITS, LABELS[:-1], {}, "each of 36 examples. Received: labels of length 35"),
        (LOGITS, LABELS + 1, {}, "below 3. Received: labels from 1 to 3"),
        (LOGITS, LABELS, {"perplexity": 36}, "below 36. Received: perplexity=36"),
        (LOGITS, LABELS, {"perplexity": 0}, "above 0 and below 36. Received: perplexity=0"),
        ({"a": LOGITS, "b": LOGITS[1:]}, LABELS, {}, "the same examples and classes"),
        (LOGITS, LABELS, {"class_names": "ab"}, "one entry for each of 3 classes"),
    ],
)
def test_bad_input_is_refused(logits, labels, kwargs, message):
    with pytest.raises(ValueError, match=message):
        logits_tsne(logits, labels, **kwargs)


if __name__ == "__main__":
    pytest.main([__file__])
