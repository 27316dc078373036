"""Self-distillation of a detector."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_mikd.detection.detector_task import DetectorTask, check_detector
from keras_mikd.distillers.self_distiller import SelfDistiller
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class SelfDetectorDistiller(DetectorTask, SelfDistiller):
    """Trains a detector of KerasCV on its own losses and on what its own layers share.

    `total = task_loss_weight * detector's own loss + sum over losses of weight * mean(loss per
    image) + regularizers and add_loss terms of the detector`.

    It is a `SelfDistiller` with task, data and places as in `DetectorDistiller`.

    Args:
        model: `keras_cv.models.RetinaNet` or `YOLOV8Detector`, or a model with their methods.
        distillation_losses: List of `DistillationLoss`.
        **kwargs: Further arguments of `SelfDistiller`.

    Raises:
        ValueError: If the model is not a detector, or its losses are missing in `compile`;
            otherwise as `SelfDistiller`.
    """

    def __init__(
        self,
        model: keras.Model,
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss],
        **kwargs: Any,
    ) -> None:
        check_detector(model)
        super().__init__(model, distillation_losses, **kwargs)
