"""Curves of a run: every number in its panel, training and validation."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd

HISTORY = {
    "loss": [3.0, 2.0],
    "val_loss": [3.5, 2.5],
    "task_loss": [1.0, 0.5],
    "val_task_loss": [1.2, 0.9],
    "accuracy": [0.5, 0.8],
    "val_accuracy": [0.4, 0.7],
    "kd": [2.0, 1.0],
    "critic_mi_nats": [0.5, 1.5],
    "critic_mi_nats_se": [0.1, 0.2],
    "critic_mi_nats_limit": [3.0, 3.0],
    "vid_gaussian_nats": [0.1, 0.2],
    "kd_weight": [1.0, 0.5],
    "kd_share": [0.6, 0.4],
    "learning_rate": [0.1, 0.01],
}


def _labels(figure):
    """Returns `{title of a panel: labels of its lines}`."""
    return {
        axes.get_title(): [
            line.get_label() for line in axes.lines if not line.get_label().startswith("_")
        ]
        for axes in figure.axes
    }


def test_every_number_has_its_panel():
    assert _labels(mikd.figures.learning_curves(HISTORY)) == {
        "the labels' loss": ["task_loss", "val_task_loss"],
        "metrics": ["accuracy", "val_accuracy"],
        "terms, unweighted": ["kd"],
        "mutual information, nats": ["critic_mi_nats, limit 3.0"],
        "explained, nats per channel": ["vid_gaussian_nats"],
        "weights in the total": ["kd_weight"],
        "shares of the gradient": ["kd_share"],
    }


def test_lines_bands_and_limits_are_the_numbers():
    figure = mikd.figures.learning_curves(HISTORY)
    (axes,) = [axes for axes in figure.axes if "mutual" in axes.get_title()]
    line, limit = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 0.5], [2, 1.5]])
    np.testing.assert_array_equal(limit.get_ydata(), [3.0, 3.0])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.4, 1.7))


def test_training_and_validation_are_one_colour_and_validation_is_thicker():
    figure = mikd.figures.learning_curves(HISTORY)
    (axes,) = [axes for axes in figure.axes if axes.get_title() == "metrics"]
    training, validation = axes.lines
    assert training.get_color() == validation.get_color()
    assert training.get_linewidth() < validation.get_linewidth()


def test_ticks_are_whole_epochs():
    for axes in mikd.figures.learning_curves(HISTORY).axes:
        ticks = axes.get_xticks()
        np.testing.assert_array_equal(ticks, np.round(ticks))


def test_panels_fill_rows_of_three():
    figure = mikd.figures.learning_curves(HISTORY)
    assert len(figure.axes) == 7
    assert figure.axes[0].get_gridspec().get_geometry() == (3, 3)
    two = {key: HISTORY[key] for key in ("loss", "accuracy")}
    assert mikd.figures.learning_curves(two).axes[0].get_gridspec().get_geometry() == (1, 2)


def test_the_limit_is_that_of_the_last_epoch_and_metrics_may_have_longer_names():
    history = {**HISTORY, "critic_mi_nats_limit": [3.0, 2.5], "top5_accuracy": [0.9, 1.0]}
    labels = _labels(mikd.figures.learning_curves(history))
    assert labels["mutual information, nats"] == ["critic_mi_nats, limit 2.5"]
    assert labels["metrics"] == ["accuracy", "val_accuracy", "top5_accuracy"]


def _as_csv(path, history):
    rows = zip(*history.values(), strict=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in (history, *rows)))
    return path


def test_a_file_without_validation_has_no_curves_of_it(tmp_path):
    """Its columns are there all the same."""
    training = {key: values for key, values in HISTORY.items() if not key.startswith("val_")}
    validation = {f"val_{key}": ["NA", "NA"] for key in training}
    path = _as_csv(tmp_path / "log.csv", training | validation)
    drawn = _labels(mikd.figures.learning_curves(path))
    assert drawn == _labels(mikd.figures.learning_curves(training))


def test_validation_of_some_epochs_is_drawn_at_these(tmp_path):
    plain = {"loss": [4.0, 3.0, 2.0, 1.0], "c_mi_nats": [1.0, 1.5, 2.0, 2.5]}
    some = {
        "val_loss": ["NA", 5.0, "NA", 6.0],
        "val_c_mi_nats": ["NA", 2.0, "NA", 1.0],
        "val_c_mi_nats_se": ["NA", 0.5, "NA", 0.25],
        "val_c_mi_nats_limit": ["NA", 3.0, "NA", 2.9],
    }
    file = _as_csv(tmp_path / "log.csv", plain | some)
    loss, information = mikd.figures.learning_curves(file).axes
    np.testing.assert_array_equal(loss.lines[1].get_xydata(), [[2, 5.0], [4, 6.0]])
    _, line, limit = information.lines
    assert line.get_label() == "val_c_mi_nats, limit 2.9"
    np.testing.assert_array_equal(limit.get_xydata(), [[2, 3.0], [4, 2.9]])
    (band,) = information.collections
    vertices = band.get_paths()[0].vertices
    assert vertices[:, 0].min() == 2 and vertices[:, 1].max() == 2.5
    # What `fit` returns has two numbers, and says nothing of their epochs.
    with pytest.warns(UserWarning, match=r"Left out \['val_loss'\].*which of the 4 .*CSVLogger"):
        figure = mikd.figures.learning_curves({**plain, "val_loss": [5.0, 6.0]})
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]


def test_a_band_of_validation_is_its_own():
    validation = {"val_critic_mi_nats": [0.4, 1.0], "val_critic_mi_nats_se": [0.3, 0.3]}
    figure = mikd.figures.learning_curves(HISTORY | validation)
    (axes,) = [axes for axes in figure.axes if "mutual" in axes.get_title()]
    _, band = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.1, 1.3))


def test_a_limit_far_above_is_named_and_not_drawn():
    figure = mikd.figures.learning_curves({**HISTORY, "critic_mi_nats_limit": [9.21, 9.21]})
    (axes,) = [axes for axes in figure.axes if "mutual" in axes.get_title()]
    (line,) = axes.lines
    assert line.get_label() == "critic_mi_nats, limit 9.2"
    assert axes.get_ylim()[1] < 2.0


def test_legends_cover_no_curve():
    figure = mikd.figures.learning_curves(HISTORY)
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert not legend.overlaps(axes.get_window_extent()), axes.get_title()
        assert not legend.overlaps(axes.xaxis.label.get_window_extent()), axes.get_title()


def test_metrics_may_be_named_and_a_plain_fit_is_drawn():
    plain = {"loss": [1.0], "val_loss": [2.0], "mean_io_u": [0.3]}
    assert _labels(mikd.figures.learning_curves(plain, metrics=["mean_io_u"])) == {
        "the labels' loss": ["loss", "val_loss"],
        "metrics": ["mean_io_u"],
    }
    with pytest.raises(ValueError, match="`metrics` to be among .*Received: .*'iou'"):
        mikd.figures.learning_curves(plain, metrics=["iou"])
    with pytest.raises(ValueError, match="with numbers of epochs"):
        mikd.figures.learning_curves({})


def test_a_real_run_and_its_csv_are_drawn_alike(tmp_path):
    distiller = mikd.VIDDistiller(cases.teacher(), cases.student())
    distiller.compile("sgd", cases.cross_entropy(), metrics=["accuracy"], run_eagerly=True)
    x, y = cases.data()
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    run = distiller.fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=[log])
    drawn = _labels(mikd.figures.learning_curves(run))
    of_file = _labels(mikd.figures.learning_curves(tmp_path / "log.csv"))
    assert {k: sorted(v) for k, v in drawn.items()} == {k: sorted(v) for k, v in of_file.items()}
    assert "explained, nats per channel" in drawn
