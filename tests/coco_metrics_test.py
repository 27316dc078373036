import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.detection.coco_metrics import coco_metrics

TRUTHS = [
    [((0, 0, 10, 10), 0), ((20, 20, 40, 40), 1)],
    [((5, 5, 15, 25), 0)],
    [],
]


class Oracle:
    """Detects what it is given: for each image a list of (box, class, score)."""

    bounding_box_format = "xyxy"

    def __init__(self, found, most=4):
        self.found, self.most = list(found), most

    def predict(self, images, batch_size, verbose):
        assert batch_size == len(images)
        batch = [self.found.pop(0) for _ in images]
        return {
            "boxes": _padded([[box for box, _, _ in each] for each in batch], (self.most, 4)),
            "classes": _padded([[kind for _, kind, _ in each] for each in batch], (self.most,)),
            "confidence": _padded([[s for _, _, s in each] for each in batch], (self.most,)),
            "num_detections": np.array([len(each) for each in batch], "int32"),
        }


class Distiller:
    """Has no box format of its own."""

    def __init__(self, student):
        self.student, self.predict = student, student.predict


def _padded(rows, shape):
    padded = np.full((len(rows), *shape), -1, "float32")
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values if values else row[:0]
    return padded


def _dataset(truths, batch_size=2):
    targets = {
        "boxes": _padded([[box for box, _ in each] for each in truths], (3, 4)),
        "classes": _padded([[kind for _, kind in each] for each in truths], (3,)),
    }
    images = np.zeros((len(truths), 64, 64, 1), "float32")
    return tf.data.Dataset.from_tensor_slices((images, targets)).batch(batch_size)


def _metrics(found, truths=TRUTHS):
    return coco_metrics(Oracle(found), _dataset(truths))


def _all(truths=TRUTHS):
    return [[(box, kind, 0.9) for box, kind in each] for each in truths]


def test_perfect_detections():
    metrics = _metrics(_all())
    assert len(metrics) == 12
    for name in ("AP", "AP50", "AP75", "AP_small", "AR_10", "AR_100", "AR_small"):
        assert metrics[name] == pytest.approx(1), name
    for name in ("AP_medium", "AP_large", "AR_medium", "AR_large"):
        assert np.isnan(metrics[name]), name


def test_one_detection_in_an_image_finds_so_many():
    """Image 0 has two boxes, one of each class: the recall per class counts each on its own."""
    truths = [[((0, 0, 10, 10), 0), ((20, 20, 40, 40), 0)], [((5, 5, 15, 25), 0)]]
    assert _metrics(_all(truths), truths)["AR_1"] == pytest.approx(2 / 3)


def test_the_overlap_decides():
    truths = [[((0, 0, 10, 10), 2)]]
    # An intersection of 100 in a union of 160: 0.625, above the first three of ten thresholds.
    metrics = _metrics([[((0, 0, 10, 16), 2, 0.5)]], truths)
    assert metrics["AP"] == pytest.approx(0.3)
    assert (metrics["AP50"], metrics["AP75"]) == pytest.approx((1, 0))


def test_a_false_alarm_with_a_higher_score_halves_the_precision():
    truths = [[((0, 0, 10, 10), 2)]]
    found = [((0, 0, 10, 10), 2, 0.5), ((40, 40, 50, 50), 2, 0.9)]
    assert _metrics([found], truths)["AP"] == pytest.approx(0.5)
    worse = [(box, kind, 1 - score) for box, kind, score in found]
    assert _metrics([worse], truths)["AP"] == pytest.approx(1)


def test_images_without_detections_are_misses():
    """Class 0 is found in one of two images: precision 1 at 51 of the 101 recalls."""
    found = [*_all()[:1], [], []]
    assert _metrics(found)["AP"] == pytest.approx((51 / 101 + 1) / 2)


def test_a_false_alarm_in_an_image_without_boxes_counts():
    found = _all()
    found[2] = [((0, 0, 10, 10), 1, 0.95)]
    assert _metrics(found)["AP"] == pytest.approx((1 + 0.5) / 2)


def test_nothing_found_is_zero():
    metrics = _metrics([[], [], []])
    assert (metrics["AP"], metrics["AR_100"]) == (0, 0)


def test_the_right_box_of_the_wrong_class_is_nothing():
    found = [[(box, 1 - kind, score) for box, kind, score in each] for each in _all()]
    assert _metrics(found)["AP"] == 0


def test_nothing_is_printed(capsys):
    _metrics(_all())
    assert capsys.readouterr().out == ""


def test_another_box_format_is_refused():
    oracle = Oracle(_all())
    oracle.bounding_box_format = "xywh"
    distiller = Distiller(oracle)
    for detector in (oracle, distiller):
        with pytest.raises(ValueError, match="'?xyxy.*Received: bounding_box_format='xywh'"):
            coco_metrics(detector, _dataset(TRUTHS))
    oracle.bounding_box_format = "XYXY"
    assert coco_metrics(distiller, _dataset(TRUTHS))["AP"] == pytest.approx(1)


def test_raw_predictions_are_refused():
    class Raw:
        def predict(self, images, batch_size, verbose):
            return {"box": np.zeros((len(images), 5, 4)), "classification": np.zeros((2, 5, 3))}

    with pytest.raises(ValueError, match=r"decoded to .* Received: \['box', 'classification'\]"):
        coco_metrics(Raw(), _dataset(TRUTHS))
    Raw.predict = lambda self, images, batch_size, verbose: np.zeros((len(images), 5, 4))
    with pytest.raises(ValueError, match="decoded to .* Received: ndarray"):
        coco_metrics(Raw(), _dataset(TRUTHS))


def test_data_without_boxes_is_refused():
    with pytest.raises(ValueError, match="Received: 2 images without"):
        _metrics([[], []], [[], []])


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"keras_mikd\[detection\]"):
        _metrics(_all())


if __name__ == "__main__":
    pytest.main([__file__])


def test_sizes_are_those_of_the_boxes():
    truths = [[((0, 0, 50, 50), 0)]]
    metrics = _metrics(_all(truths), truths)
    assert metrics["AP_medium"] == pytest.approx(1) and np.isnan(metrics["AP_small"])
