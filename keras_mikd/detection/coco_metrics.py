"""COCO's metrics of a detector, by pycocotools."""

import contextlib
import io
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_mikd import checks

_BOX_FORMAT = "xyxy"
_NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def coco_metrics(
    detector: keras.Model, dataset: Iterable[tuple[Any, dict[str, Any]]]
) -> dict[str, float]:
    """Evaluates a detector as COCO does: average precision and recall over all classes.

    Every image counts, even without boxes or detections, and so does every class that has boxes.
    COCO's own evaluation ignores detections in crowd regions. `load_coco` has no such regions, so
    the numbers differ a little from published ones.

    Args:
        detector: Model whose `predict` returns decoded detections, `{"boxes": (batch, most, 4),
            "classes": (batch, most), "confidence": (batch, most), "num_detections": (batch,)}`,
            with boxes in "xyxy" (left, top, right, bottom in pixels): a detector of KerasCV, or a
            distiller around one.
        dataset: Iterable of batches
            `(images, {"boxes": (batch, boxes, 4), "classes": (batch, boxes)})` with boxes likewise;
            rows of class -1 are padding. It is read once.

    Returns:
        The 12 numbers of COCO's summary as a dict of floats in [0, 1]: `"AP"` (the mean over the
        overlaps 0.50, 0.55, ..., 0.95), `"AP50"`, `"AP75"`; `"AP_small"` (below 32x32 pixels),
        `"AP_medium"`, `"AP_large"` (from 96x96); `"AR_1"`, `"AR_10"`, `"AR_100"` (recall with that
        many detections in an image) and `"AR_small"`, `"AR_medium"`, `"AR_large"`. NaN without
        boxes of that size.

    Raises:
        ValueError: If the detector has another box format, does not decode its predictions, or the
            data set has no boxes.
        ImportError: If pycocotools is not installed.

    References:
        https://cocodataset.org/#detection-eval
    """
    with checks.extra("detection"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    _check_format(detector)
    # Not KerasCV's own evaluation: its PyCOCOCallback takes class 0 for padding, and both it and
    # BoxCOCOMetrics leave out images without detections, which are misses.
    truths, found = [], []
    for images, targets in dataset:
        detections = detector.predict(images, batch_size=len(images), verbose=0)
        _check_detections(detections)
        targets, detections = keras.tree.map_structure(np.asarray, (targets, detections))
        for i in range(len(images)):
            truths += _truths(len(found), targets["boxes"][i], targets["classes"][i])
            found.append(_found(len(found), {key: v[i] for key, v in detections.items()}))
    if not truths:
        raise ValueError(f"Expected a data set with boxes. Received: {len(found)} images without")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does.
        summary = _summary(COCO, COCOeval, truths, found)
    # COCO's code marks undefined numbers with -1.
    values = (math.nan if value < 0 else float(value) for value in summary)
    return dict(zip(_NAMES, values, strict=True))


def _summary(make_coco, make_evaluation, truths, found):
    """Returns the 12 numbers; `found` has rows (image, left, top, width, height, score, class)."""
    truth = make_coco()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(found))],
        "categories": [{"id": c} for c in sorted({each["category_id"] for each in truths})],
        "annotations": [{"id": i, **each} for i, each in enumerate(truths, 1)],
    }
    truth.createIndex()
    rows = np.concatenate(found)
    results = truth.loadRes(rows) if len(rows) else make_coco()
    evaluated = make_evaluation(truth, results, "bbox")
    evaluated.evaluate()
    evaluated.accumulate()
    evaluated.summarize()
    return evaluated.stats


def _truths(image, boxes, classes):
    return [
        {
            "image_id": image,
            "category_id": int(each),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for box, each in zip(_with_sizes(boxes), classes, strict=True)
        if each >= 0
    ]


def _found(image, detections):
    count = int(detections["num_detections"])
    return np.column_stack(
        [
            np.full(count, image, "float64"),
            _with_sizes(detections["boxes"][:count]),
            detections["confidence"][:count],
            detections["classes"][:count],
        ]
    )


def _with_sizes(boxes):
    """Returns (left, top, width, height) of (left, top, right, bottom)."""
    boxes = boxes.astype("float64")
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _check_format(detector):
    detector = getattr(detector, "student", detector)
    box_format = getattr(detector, "bounding_box_format", _BOX_FORMAT)
    if str(box_format).lower() != _BOX_FORMAT:
        raise ValueError(
            f'Expected a detector with bounding_box_format="{_BOX_FORMAT}". '
            f"Received: bounding_box_format={box_format!r}"
        )


def _check_detections(detections):
    expected = {"boxes", "classes", "confidence", "num_detections"}
    if not isinstance(detections, dict) or not expected <= set(detections):
        received = sorted(detections) if isinstance(detections, dict) else type(detections).__name__
        raise ValueError(
            f"Expected a detector whose predictions are decoded to {sorted(expected)}. "
            f"Received: {received}"
        )
