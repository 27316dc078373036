"""What changes in a distiller whose student is a detector with a task of its own."""

import types
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_mikd.batches import take_apart
from keras_mikd.distribution import replicas
from keras_mikd.distribution.distributed_model import as_logs
from keras_mikd.features.feature_taps import as_called
from keras_mikd.features.layer_graph import sized
from keras_mikd.keras_internals import loss_metrics, scaled_penalty
from keras_mikd.losses.parts import schedules

_KERAS_ARGUMENTS = ("loss", "loss_weights", "metrics", "weighted_metrics")


class DetectorTask:
    """Lets the detector encode boxes, compute its losses, decode its predictions and report.

    It is a base class to name before the distiller's. It calls the detector's `compile`,
    `compute_loss`, `compute_metrics` and `decode_predictions`, as `keras_cv.models.RetinaNet` and
    `YOLOV8Detector` have them; KerasCV is not imported.
    """

    calls_steps_of_networks = True

    def compile(
        self,
        optimizer: str | dict | keras.optimizers.Optimizer = "rmsprop",
        *,
        critic_optimizer: str | dict | keras.optimizers.Optimizer | None = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        **detector_arguments: Any,
    ) -> None:
        """Configures training, and compiles the detector with its own losses.

        Args:
            optimizer: Optimizer of the detector, and of the losses' own weights unless there is a
                `critic_optimizer`.
            critic_optimizer: Separate optimizer for the losses' own weights (critics, heads,
                regressors).
            run_eagerly: As in `keras.Model.compile`.
            steps_per_execution: As in `keras.Model.compile`.
            jit_compile: As in `keras.Model.compile`.
            auto_scale_loss: As in `keras.Model.compile`.
            **detector_arguments: Arguments of the detector's own `compile`: `box_loss` and
                `classification_loss`.

        Raises:
            ValueError: If the detector's losses are missing, or sums and means are mixed under
                several replicas.
        """
        missing = [
            name
            for name in ("box_loss", "classification_loss")
            if detector_arguments.get(name) is None
        ]
        if missing:
            raise ValueError(
                f"Expected the losses with which {type(self.student).__name__} is to be compiled, "
                'such as box_loss="huber", classification_loss="focal" for a RetinaNet. '
                f"Received: no {' and no '.join(missing)}"
            )
        self.student.compile(optimizer="sgd", **detector_arguments)
        # Keras would track what is in a dict, metrics among it, as the distiller's own.
        self._detector_arguments = types.MappingProxyType(detector_arguments)
        self._sums = _are_sums(self.student.loss, self.distribute_strategy.num_replicas_in_sync)
        with self.distribute_strategy.scope():
            self._build_task()
        super().compile(
            optimizer,
            critic_optimizer=critic_optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )

    def _build_task(self):
        """Lets the detector create its metrics: under replicas, a step is too late for that."""
        boxes = {
            "boxes": keras.KerasTensor((None, None, 4)),
            "classes": keras.KerasTensor((None, None)),
        }
        _Loss(self.student).compute_output_spec(sized(self.student.inputs[0]), boxes)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(as_called(self.student, inputs), training=training)

    def _predict(self, x):
        return self.student.decode_predictions(self(x, training=False), x)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool | None = True,
    ) -> tf.Tensor:
        """Returns the detector's own weighted loss plus all regularizers and `add_loss` terms."""
        if sample_weight is not None:
            raise ValueError(
                "Expected batches (images, boxes): detectors do not weight images. Received: "
                f"sample_weight={sample_weight}"
            )
        task = self.student.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=None, training=training
        )
        # The detector has added its regularizers, which are not part of the weighted task.
        penalties = [scaled_penalty(self, each) for each in self.student.losses]
        task = ops.cast(task - sum(penalties), "float32")
        if self._sums:
            task = replicas.scale(task)
        self._task_tracker.update_state(task * replicas.count(), ops.shape(x)[0])
        weight = schedules.value_at(self.task_loss_weight, self.optimizer.iterations)
        return weight * task + super().compute_loss(x, y, y_pred)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        logs = self.student.compute_metrics(x, y, y_pred, sample_weight)
        if self._sums:
            # Keras multiplies the losses that it shows by the replicas, as if it had divided them.
            shown = loss_metrics(self.student)
            logs = {k: v / replicas.count() if k in shown else v for k, v in logs.items()}
        logs = as_logs(logs)
        # The detector takes no step, so its `loss` means nothing.
        return {**logs, **super().compute_metrics(x, y, y_pred, sample_weight)}

    def reset_metrics(self) -> None:
        super().reset_metrics()
        self.student.reset_metrics()

    def _has_task(self):
        return True

    def _checked_data(self, argument, data, look):
        y = _targets(data)
        if y is not None and not (isinstance(y, dict) and {"boxes", "classes"} <= set(y)):
            received = sorted(y) if isinstance(y, dict) else type(y).__name__
            raise ValueError(
                f"Expected `{argument}` to bring images and a dict of their boxes, (images, "
                f'{{"boxes": ..., "classes": ...}}). Received: {received} beside the images'
            )
        return super()._checked_data(argument, data, look)

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if config:
            own = {key: value for key, value in config.items() if key not in _KERAS_ARGUMENTS}
            detector = keras.saving.serialize_keras_object(dict(self._detector_arguments))
            config = {**own, **detector}
        return config

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        several = [part for part in config.values() if isinstance(part, dict)]
        for network in [*several, *(each for part in several for each in part.values())]:
            # Keras warns that it cannot compile a detector; the distiller does that.
            if isinstance(network, dict):
                network.pop("compile_config", None)
        return config


class _Loss(keras.Operation):
    """Lets Keras run a detector and its loss on symbolic tensors.

    The detector's own symbolic output will not do: KerasCV's pyramid reports wrong shapes for P6
    and P7, and with them a wrong number of boxes.
    """

    def __init__(self, detector):
        super().__init__(name="loss")
        self.detector = detector

    def call(self, x, y):
        y_pred = self.detector(as_called(self.detector, x), training=False)
        return self.detector.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=None)


def check_detector(detector):
    """Checks that a model has the methods that `DetectorTask` calls."""
    own_loss = type(detector).compute_loss is not keras.Model.compute_loss
    if not own_loss or not hasattr(detector, "decode_predictions"):
        raise ValueError(
            "Expected a detector of KerasCV, such as keras_cv.models.RetinaNet: a model with its "
            "own `compute_loss` and `decode_predictions`. Received: "
            f"{type(detector).__name__} {detector.name!r}"
        )


def _are_sums(losses, num_replicas):
    """Whether the losses are sums over the batch, which Keras does not divide by replicas."""
    reductions = [getattr(loss, "reduction", None) for loss in keras.tree.flatten(losses)]
    sums = [reduction == "sum" for reduction in reductions]
    if num_replicas > 1 and any(sums) and not all(sums):
        raise ValueError(
            "Expected the detector's losses to be all sums or all means under several replicas, "
            f"since Keras divides means only by their number. Received: reductions {reductions}"
        )
    return all(sums)


def _targets(data):
    """Returns what comes with the images, or `None` if it is missing or cannot be seen."""
    x, y = (*data, None)[:2] if isinstance(data, tuple) else (data, None)
    if isinstance(x, tf.data.Dataset):
        spec = x.element_spec
        return spec if isinstance(spec, dict) else take_apart(spec).y
    return y
