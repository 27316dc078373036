"""Offline distillation of a detector."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_mikd.detection.detector_task import DetectorTask, check_detector
from keras_mikd.distillers.distiller import Distiller
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class DetectorDistiller(DetectorTask, Distiller):
    """Trains a detector of KerasCV on its own losses and on what it shares with a fixed teacher.

    `total = task_loss_weight * detector's own loss + sum over losses of weight * mean(loss per
    image) + regularizers and add_loss terms of the student`.

    It is a `Distiller` whose student keeps its label encoder, losses, decoder and metrics.
    `compile` takes the losses that the detector's own `compile` takes, `fit` takes batches of
    `(images, {"boxes": ..., "classes": ...})` in the detector's box format, and `predict` returns
    decoded boxes. Under several replicas, losses that KerasCV adds up are averaged over the
    replicas. Places are the backbone's levels, such as `"P3"`, those of a RetinaNet's pyramid,
    `"feature_pyramid/P3"`, and every other layer.

    ```python
    distiller = keras_mikd.DetectorDistiller(
        teacher, student, [keras_mikd.Hint(teacher_layer="P4", student_layer="P4")]
    )
    distiller.compile("adam", box_loss="huber", classification_loss="focal")
    distiller.fit(scenes.train, epochs=30, shuffle=False)
    ```

    Args:
        teacher: Trained Keras model with the same inputs, for instance a larger detector.
        student: `keras_cv.models.RetinaNet` or `YOLOV8Detector`, or a model with their methods.
        distillation_losses: List of `DistillationLoss`.
        **kwargs: Further arguments of `Distiller`.

    Raises:
        ValueError: If the student is not a detector, or its losses are missing in `compile`;
            otherwise as `Distiller`.
    """

    def __init__(
        self,
        teacher: keras.Model | Sequence[keras.Model] | dict[str, keras.Model],
        student: keras.Model,
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss],
        **kwargs: Any,
    ) -> None:
        check_detector(student)
        super().__init__(teacher, student, distillation_losses, **kwargs)
