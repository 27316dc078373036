"""The detector of the experiments, experiments/retinanets.py."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest

import detectors
import keras_mikd as mikd

SCRIPT = pathlib.Path(__file__).parents[1] / "experiments" / "retinanets.py"


@pytest.fixture(scope="module")
def detector():
    detectors.keras_cv()
    spec = importlib.util.spec_from_file_location("retinanets", SCRIPT)
    retinanets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(retinanets)
    return retinanets.SmallRetinaNet(
        3,
        (64, 64, 1),
        width=2,
        anchor_sizes=(14, 18, 24, 32, 48),
        aspect_ratios=(0.5, 0.75, 1.0),
        rescale=False,
    )


def _outputs(model):
    images = np.random.default_rng(0).uniform(size=(2, 64, 64, 1)).astype("float32")
    return model({"images": images})


def test_it_is_saved_and_loaded_whole(detector, tmp_path):
    detector.save(tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    assert loaded.count_params() == detector.count_params()
    for name, output in _outputs(detector).items():
        np.testing.assert_array_equal(_outputs(loaded)[name], output)
    batch_norms = [x for x in loaded._flatten_layers() if hasattr(x, "moving_mean")]
    assert batch_norms and {x.momentum for x in batch_norms} == {0.9}


def test_every_anchor_has_its_predictions(detector):
    # 9 anchors at every location of the levels: 8x8, 4x4, 2x2, 1x1, 1x1.
    anchors = 9 * (64 + 16 + 4 + 1 + 1)
    assert sum(map(len, detector.anchor_generator(image_shape=(64, 64, 1)).values())) == anchors
    shapes = {name: tuple(output.shape) for name, output in _outputs(detector).items()}
    assert shapes == {"box": (2, anchors, 4), "classification": (2, anchors, 3)}


def test_it_starts_with_a_hundredth_for_every_class(detector):
    scores = keras.ops.sigmoid(_outputs(detector)["classification"])
    assert float(keras.ops.max(keras.ops.abs(scores - 0.01))) < 0.005


def test_the_levels_can_be_read(detector):
    levels = [f"{at}P{i}" for at in ("", "feature_pyramid/") for i in (3, 4, 5)]
    specs = mikd.FeatureTaps(detector, levels).specs
    assert [tuple(specs[place].shape[1:]) for place in levels] == [
        *((8, 8, 4), (4, 4, 8), (2, 2, 16)),
        *((8, 8, 8), (4, 4, 8), (2, 2, 8)),
    ]


if __name__ == "__main__":
    pytest.main([__file__])
