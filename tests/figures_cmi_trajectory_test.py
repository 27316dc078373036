import keras
import numpy as np
import pytest

from keras_mikd.figures import cmi_trajectory

CMI, LIKELIHOOD = [0.01, 0.02, 0.04], [-0.10, -0.12, -0.20]
RUN = {"cmi": CMI, "log_likelihood": LIKELIHOOD}
KEYS = {"cmi": "val_loss", "log_likelihood": "loss"}


def _lines(figure):
    """`{title: points of the line}`; the rings and discs at its ends have no title."""
    (axes,) = figure.axes
    return {
        line.get_label(): line.get_xydata().tolist()
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def _only_line(figure):
    return figure.axes[0].lines[0].get_xydata().tolist()


def test_each_run_is_a_line_from_its_first_epoch_to_its_last():
    teacher = {"cmi": [0.001], "log_likelihood": [-0.05]}
    figure = cmi_trajectory({"weight 0.25": RUN, "MLL teacher": teacher})
    assert _lines(figure) == {
        "weight 0.25": [list(pair) for pair in zip(LIKELIHOOD, CMI, strict=True)],
        "MLL teacher": [[-0.05, 0.001]],
    }
    (axes,) = figure.axes
    line, ring, disc = axes.lines[:3]
    assert ring.get_markerfacecolor() == "none"
    assert ring.get_xydata().tolist() == [[-0.10, 0.01]]
    assert disc.get_xydata().tolist() == [[-0.20, 0.04]]
    assert axes.get_xlabel() == "log-likelihood, nats"
    assert axes.get_ylabel() == "conditional mutual information, nats"
    of_teacher = axes.lines[3]
    assert line.get_color() == ring.get_color() == disc.get_color() != of_teacher.get_color()
    titles = [text.get_text() for text in axes.get_legend().get_texts()]
    assert titles == ["weight 0.25", "MLL teacher"]


def test_one_history_needs_no_title():
    figure = cmi_trajectory(RUN)
    assert _only_line(figure) == [list(pair) for pair in zip(LIKELIHOOD, CMI, strict=True)]
    assert figure.axes[0].get_legend() is None


def test_what_fit_returns_and_what_a_csv_logger_writes_are_the_same(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = np.ones((4, 2)), np.zeros((4, 1))
    path = tmp_path / "log.csv"
    history = model.fit(
        x,
        y,
        validation_data=(x, y),
        epochs=3,
        verbose=0,
        callbacks=[keras.callbacks.CSVLogger(path)],
    )
    lines = _lines(cmi_trajectory({"fit": history, "csv": str(path)}, **KEYS))
    expected = np.transpose([history.history["loss"], history.history["val_loss"]])
    np.testing.assert_allclose(lines["fit"], expected)
    np.testing.assert_allclose(lines["csv"], expected, rtol=1e-6)


def test_epochs_without_validation_are_left_out_of_a_csv(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss,val_loss\n0,1.0,NA\n1,0.5,0.25\n2,0.4,\n")
    assert _only_line(cmi_trajectory(path, **KEYS)) == [[0.5, 0.25]]


def test_an_epoch_that_is_not_finite_is_left_out():
    run = {"cmi": [0.1, np.nan, 0.3], "log_likelihood": [-1.0, -2.0, -np.inf]}
    assert _only_line(cmi_trajectory(run)) == [[-1.0, 0.1]]


@pytest.mark.parametrize(
    "runs, message",
    [
        ({}, "at least one entry"),
        ({"a": {"cmi": [1.0]}}, r"Received: \['cmi'\], without \['log_likelihood'\]"),
        ({"a": {"cmi": [1.0], "log_likelihood": [1.0, 2.0]}}, "run 'a'.*a number per epoch"),
        ({"a": {"cmi": 1.0, "log_likelihood": 1.0}}, "run 'a'.*a number per epoch"),
        ({"a": {"cmi": [], "log_likelihood": []}}, "Received: none of 0"),
        ({"a": {"cmi": [np.nan], "log_likelihood": [1.0]}}, "Received: none of 1"),
        ({"a": [1.0, 2.0]}, "what `fit` returned.*Received: list"),
    ],
)
def test_bad_input_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        cmi_trajectory(runs)


def test_an_empty_or_missing_csv_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        cmi_trajectory(tmp_path / "missing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="without"):
        cmi_trajectory(tmp_path / "empty.csv")


if __name__ == "__main__":
    pytest.main([__file__])
