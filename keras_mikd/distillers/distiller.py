"""Offline distillation: a fixed teacher, a student, and a list of what is matched between them."""

import contextlib

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import replicas
from keras_mikd.distillation_loss import checked_weight
from keras_mikd.distillers import data_checks, pair_checks
from keras_mikd.feature_taps import OUTPUT, FeatureTaps


@keras.saving.register_keras_serializable("keras_mikd")
class Distiller(keras.Model):
    """Trains a student on its task and on what it shares with a fixed teacher.

    `total = task_loss_weight * task loss + sum over losses of weight * mean(loss per example)
    + regularizers and add_loss terms of the student`.

    Called, evaluated, predicted with and exported, a distiller is its student. A step runs each
    network once. The teacher always runs in inference mode, receives no gradient and is left as it
    was. A
    `.keras` file of the distiller holds everything needed to go on training; its weight files
    (`save_weights`, `ModelCheckpoint(save_weights_only=True)`, `BackupAndRestore`) leave the
    teacher out.

    Every loss is logged under its name and its read-outs as `<name>_<read-out>`, beside
    `task_loss` and the total, `loss`.

    Args:
        teacher: Trained Keras model; a subclassed one needs `teacher_features`.
        student: Keras model with the same inputs; a subclassed one needs `student_features`.
        distillation_losses: List of `DistillationLoss`; a `keras.distillation` loss is adapted.
        task_loss_weight: Factor of the compiled loss, a finite float of at least 0.
        xla_critics: Whether XLA compiles the arithmetic of the critics by itself, in a step that is
            not compiled as a whole and does not run eagerly: `True`, `False`, or `"auto"`, which
            is `True` on a machine with an accelerator.
        teacher_features: Function `(model, x, training) -> {place: tensor}` for a subclassed
            teacher.
        student_features: Likewise for the student.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: Before any training, if a place is unknown, the networks do not take the same
            inputs, probabilities stand where logits are expected, there are no losses, two share a
            name, or a weight is not a finite number of at least 0.

    Example:
        ```python
        distiller = keras_mikd.Distiller(teacher, student, [keras_mikd.SoftTargets(weight=0.9)])
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(train, validation_data=validation, epochs=60)
        distiller.student.save("student.keras")
        ```
    """

    def __init__(
        self,
        teacher,
        student,
        distillation_losses,
        *,
        task_loss_weight=1.0,
        xla_critics="auto",
        teacher_features=None,
        student_features=None,
        **kwargs,
    ):
        losses = pair_checks.checked_losses(distillation_losses)
        pair_checks.check_networks(teacher, student)
        super().__init__(**{"dtype": student.dtype_policy, **kwargs})
        self.student = student
        self.distillation_losses = losses
        self.task_loss_weight = checked_weight("`task_loss_weight`", task_loss_weight)
        self.xla_critics = pair_checks.checked_xla_critics(xla_critics)
        self.teacher_features = teacher_features
        self.student_features = student_features
        self.critic_optimizer = None
        self._networks = _Networks(teacher, student, losses, teacher_features, student_features)
        pair_checks.check_logits(teacher, student, losses)
        for loss in losses:
            self._build_loss(loss)
        self._task_tracker = keras.metrics.Mean(name="task_loss")
        self._term_trackers = {loss.name: keras.metrics.Mean(name=loss.name) for loss in losses}
        self._readouts = {loss.name: loss.readout_metrics() for loss in losses}
        pair_checks.check_names([*self._term_trackers, *_names(self._readouts)])
        pair_checks.claim(losses)
        self._teacher_hidden = False
        self.built = True

    def _build_loss(self, loss):
        teacher = pick(self._networks.teacher_taps.specs, loss.teacher_layer)
        student = pick(self._networks.student_taps.specs, loss.student_layer)
        try:
            shapes = pair_checks.loss_shapes(loss, teacher, student)
            if loss.built:
                pair_checks.check_built_for(loss, shapes)
            else:
                loss.build(*shapes)
        except ValueError as error:
            raise ValueError(
                f"{loss.name!r} (teacher_layer={loss.teacher_layer!r}, "
                f"student_layer={loss.student_layer!r}) cannot compare these tensors: {error}"
            ) from error

    @property
    def teacher(self):
        """The teacher: the caller's own object."""
        if self._teacher_hidden:
            raise AttributeError("The teacher is left out of weight files.")
        return self._networks.teacher

    def compile(self, optimizer="rmsprop", loss=None, *args, critic_optimizer=None, **kwargs):
        """Configures training, like `keras.Model.compile`.

        Args:
            optimizer: Optimizer of the student, and of the losses' own weights where no
                `critic_optimizer` is given.
            loss: Task loss, or `None` to train without labels.
            *args: Further arguments of `keras.Model.compile`.
            critic_optimizer: Separate optimizer for the losses' own weights (critics, heads,
                regressors).
            **kwargs: Further arguments of `keras.Model.compile`.

        Raises:
            ValueError: If the loss expects logits and the student puts out probabilities, or the
                reverse.
        """
        pair_checks.check_task_loss(self.student, loss)
        super().compile(optimizer, loss, *args, **kwargs)
        self.critic_optimizer = (
            None if critic_optimizer is None else keras.optimizers.get(critic_optimizer)
        )
        with self.distribute_strategy.scope():
            for each, variables in self._optimizers():
                each.build(variables)
        for distillation_loss in self.distillation_losses:
            distillation_loss.xla = self._critics_use_xla()

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """Trains like `keras.Model.fit`, after a look at the data.

        Raises:
            ValueError: If the data is empty, brings integer images to a float model, or labels out
                of range. Arrays are checked whole before the first step, a `tf.data.Dataset` batch
                by batch.
        """
        output = self._networks.student_taps.specs[OUTPUT]
        x, y = data_checks.checked_data(self, output, "x", (x, y))
        if validation_data is not None:
            validation_data = data_checks.checked_data(
                self, output, "validation_data", validation_data
            )
        try:
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            raise data_checks.labels_error(error) or error from None

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self._networks.teacher_taps(x, training=False)
        with tf.GradientTape() as tape:
            student = self._networks.student_taps(x, training=True)
            total = self._total(x, y, sample_weight, teacher, student, training=True)
            scaled = self.optimizer.scale_loss(total)
        self._update(tape, scaled)
        return self.compute_metrics(x, y, student[OUTPUT], sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self._networks.teacher_taps(x, training=False)
        student = self._networks.student_taps(x, training=False)
        self._total(x, y, sample_weight, teacher, student, training=False)
        return self.compute_metrics(x, y, student[OUTPUT], sample_weight)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the weighted task loss plus the student's regularizers and `add_loss` terms."""
        total = ops.zeros(())
        if self._compile_loss is not None:
            task = ops.cast(self._compile_loss(y, y_pred, sample_weight), "float32")
            self._task_tracker.update_state(task * replicas.count(), _batch_size(x))
            total = self.task_loss_weight * task
        for penalty in self.losses:
            total = total + ops.cast(self._aggregate_additional_loss(penalty), "float32")
        return total

    def _total(self, x, y, sample_weight, teacher, student, training):
        total = ops.zeros(())
        for loss in self.distillation_losses:
            values = loss(
                pick(teacher, loss.teacher_layer),
                pick(student, loss.student_layer),
                labels=y,
                training=training,
            )
            value = _weighted_mean(loss, values, sample_weight)
            self._log(loss, value, _batch_size(x))
            total = total + loss.weight_at(self.optimizer.iterations) * replicas.scale(value)
        # After the losses have run, so that what they add with `add_loss` is of this step.
        total = total + self._compute_loss(x, y, student[OUTPUT], sample_weight, training)
        self._loss_tracker.update_state(total * replicas.count(), sample_weight=_batch_size(x))
        return total

    def _log(self, loss, value, batch_size):
        self._term_trackers[loss.name].update_state(value, sample_weight=batch_size)
        for suffix, arguments in loss.take_readouts().items():
            self._readouts[loss.name][suffix].update_state(*arguments)

    def _optimizers(self):
        """Pairs of an optimizer and the variables it trains."""
        if self.critic_optimizer is None:
            return [(self.optimizer, self.trainable_variables)]
        critics = [v for loss in self.distillation_losses for v in loss.trainable_variables]
        return [
            (self.optimizer, self.student.trainable_variables),
            (self.critic_optimizer, critics),
        ]

    def _update(self, tape, scaled_loss):
        pairs = self._optimizers()
        gradients = tape.gradient(scaled_loss, [variables for _, variables in pairs])
        for (optimizer, variables), grads in zip(pairs, gradients, strict=True):
            if optimizer is not self.optimizer:
                rescale = optimizer.scale_loss(1.0) / self.optimizer.scale_loss(1.0)
                grads = [None if g is None else g * ops.cast(rescale, g.dtype) for g in grads]
            if variables:
                optimizer.apply_gradients(zip(grads, variables, strict=True))

    def _critics_use_xla(self):
        if self.jit_compile or self.run_eagerly:
            return False
        if self.xla_critics == "auto":
            # On a CPU, compiling them costs seconds and saves a few per cent of a step.
            return any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
        return self.xla_critics

    def export(self, filepath, *args, **kwargs):
        """Exports the student, like `keras.Model.export`."""
        return self.student.export(filepath, *args, **kwargs)

    def save_weights(self, filepath, *args, **kwargs):
        """Saves the weights of the student, the losses and the optimizers, not the teacher's."""
        with self._without_teacher():
            return super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        """Loads what `save_weights` saved."""
        with self._without_teacher():
            return super().load_weights(filepath, *args, **kwargs)

    @contextlib.contextmanager
    def _without_teacher(self):
        self._teacher_hidden = True
        try:
            yield
        finally:
            self._teacher_hidden = False

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:  # An empty one says that the distiller was never compiled.
            config["critic_optimizer"] = self.critic_optimizer and (
                keras.saving.serialize_keras_object(self.critic_optimizer)
            )
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "teacher": serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": [serialize(loss) for loss in self.distillation_losses],
            "task_loss_weight": self.task_loss_weight,
            "xla_critics": self.xla_critics,
            "teacher_features": serialize(self.teacher_features),
            "student_features": serialize(self.student_features),
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{key: keras.saving.deserialize_keras_object(v) for key, v in config.items()})


class _Networks:
    """What Keras must not track: the teacher is not trained, and the taps share their layers."""

    def __init__(self, teacher, student, losses, teacher_features, student_features):
        inputs = pair_checks.common_inputs(teacher, student)
        self.teacher = teacher
        self.teacher_taps = FeatureTaps(
            teacher,
            _all_places(loss.teacher_layer for loss in losses),
            features=teacher_features,
            inputs=inputs,
        )
        self.student_taps = FeatureTaps(
            student,
            _all_places(loss.student_layer for loss in losses),
            features=student_features,
            inputs=inputs,
        )


def _all_places(places):
    flat = [p for place in places for p in (place if isinstance(place, list) else [place])]
    return list(dict.fromkeys(flat))


def pick(tensors, places):
    """Returns the tensor at a place, or the list of tensors at a list of places."""
    return [tensors[p] for p in places] if isinstance(places, list) else tensors[places]


def _weighted_mean(loss, values, sample_weight):
    """Mean over the batch, sample weights applied as Keras does: not divided by their sum."""
    if len(values.shape) != 1:
        raise ValueError(
            f"Expected {loss.name!r} to return one loss for each example, of shape (batch,). "
            f"Received: shape={tuple(values.shape)}"
        )
    if sample_weight is not None and not keras.tree.is_nested(sample_weight):
        weights = ops.reshape(ops.cast(sample_weight, values.dtype), (ops.shape(values)[0], -1))
        values = values * ops.mean(weights, axis=-1)
    # A replica may be left without examples by the last batch.
    return ops.sum(values) / ops.cast(ops.maximum(ops.shape(values)[0], 1), values.dtype)


def _names(readouts):
    return [metric.name for metrics in readouts.values() for metric in metrics.values()]


def _batch_size(x):
    return ops.shape(keras.tree.flatten(x)[0])[0]
