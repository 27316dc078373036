"""The step that all distillers share: forwards, total loss, update, logs, saving."""

import contextlib
import functools
import itertools

import keras
import tensorflow as tf
from keras import ops

from keras_mikd.cache import cached_batches
from keras_mikd.distillers import data_checks, loss_checks, network_checks
from keras_mikd.distribution import replicas
from keras_mikd.distribution.distributed_model import DistributedModel
from keras_mikd.features.places import OUTPUT, is_output, output_at
from keras_mikd.losses.distillation_loss import checked_weight


class BaseDistiller(DistributedModel):
    """A Keras model that trains networks on their task and on what they share.

    `total = task_loss_weight * task loss + sum over terms of factor * weight * mean(loss per
    example) + regularizers and add_loss terms of the networks`.

    A subclass says which networks there are and which losses stand between them. In its
    constructor it calls `super().__init__`, sets the trained networks as attributes, so that Keras
    tracks them, and then calls `_set_up`. It defines `call` and `get_config`, and overrides
    `_predictions` and `_labelled` where its output is not that of a network called `"student"`.

    Args:
        **kwargs: `name`, `dtype` and other arguments of `keras.Model`.
    """

    def _set_up(self, networks, *, task_loss_weight, xla_critics):
        """Builds the losses and what they are logged with.

        Args:
            networks: `Networks`.
            task_loss_weight: Factor of the compiled loss.
            xla_critics: `True`, `False` or `"auto"`, see `Distiller`.
        """
        trained = {n: m for n, m in networks.models.items() if n not in networks.fixed}
        network_checks.check_scope(trained, self)
        losses = [term.loss for term in networks.terms]
        self.distillation_losses = losses
        self.task_loss_weight = checked_weight("`task_loss_weight`", task_loss_weight)
        self.xla_critics = loss_checks.checked_xla_critics(xla_critics)
        self.critic_optimizer = None
        self._networks = networks
        networks.build_losses()
        self._task_tracker = keras.metrics.Mean(name="task_loss")
        self._term_trackers = {loss.name: keras.metrics.Mean(name=loss.name) for loss in losses}
        self._readouts = {loss.name: loss.readout_metrics() for loss in losses}
        readouts = [m.name for metrics in self._readouts.values() for m in metrics.values()]
        loss_checks.check_names([*self._term_trackers, *readouts])
        loss_checks.claim(losses)
        self.built = True

    def compile(self, optimizer="rmsprop", loss=None, *args, critic_optimizer=None, **kwargs):
        """Configures training, like `keras.Model.compile`.

        Args:
            optimizer: Optimizer of the trained networks, and of the losses' own weights where no
                `critic_optimizer` is given.
            loss: Task loss, or `None` to train without labels.
            *args: Further arguments of `keras.Model.compile`.
            critic_optimizer: Separate optimizer for the losses' own weights (critics, heads,
                regressors). Callbacks that change the learning rate do not see it: give it a
                schedule of its own.
            **kwargs: Further arguments of `keras.Model.compile`.

        Raises:
            ValueError: If the loss expects logits and a network puts out probabilities, or the
                reverse, or one optimizer is given for two purposes.
        """
        check_distinct([optimizer, critic_optimizer])
        for model, task_loss, _ in self._labelled(loss):
            network_checks.check_task_loss(model, task_loss)
        super().compile(optimizer, loss, *args, **kwargs)
        self.critic_optimizer = (
            None if critic_optimizer is None else keras.optimizers.get(critic_optimizer)
        )
        with self.distribute_strategy.scope():
            for each, variables in self._optimizers():
                each.build(variables)
        for distillation_loss in self.distillation_losses:
            distillation_loss.xla = self._critics_use_xla()

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """Trains like `keras.Model.fit`, after a look at the data.

        Raises:
            ValueError: If the data is empty, brings integer images to a float model, or labels out
                of range. Arrays are checked whole before the first step, a `tf.data.Dataset` batch
                by batch; a `PyDataset` or a generator is not looked into.
        """
        x, y = self._checked_data("x", (x, y))
        if validation_data is not None:
            validation_data = self._checked_data("validation_data", validation_data)
        try:
            with self._finalizing_each():
                return super().fit(x, y, *args, validation_data=validation_data, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            raise data_checks.labels_error(error) or error from None

    def evaluate(self, x=None, *args, **kwargs):
        """Evaluates like `keras.Model.evaluate`.

        Raises:
            ValueError: If the batches are those of another teacher's `TeacherCache`.
        """
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has looked at its own.
            self._networks.check_cache(x)
        return super().evaluate(x, *args, **kwargs)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, cached = cached_batches.unpack(x)
        fixed = self._networks.read_fixed(x, cached)
        with tf.GradientTape() as tape:
            features = fixed | self._networks.read_trained(x, training=True)
            total = self._total(x, y, sample_weight, features, training=True)
        self._update(tape, total)
        return self.compute_metrics(x, y, self._predictions(features), sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, cached = cached_batches.unpack(x)
        fixed = self._networks.read_fixed(x, cached)
        features = fixed | self._networks.read_trained(x, training=False)
        self._total(x, y, sample_weight, features, training=False)
        return self.compute_metrics(x, y, self._predictions(features), sample_weight)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the weighted task loss plus the networks' regularizers and `add_loss` terms."""
        total = ops.zeros(())
        if self._compile_loss is not None:
            task = ops.cast(self._compile_loss(y, y_pred, sample_weight), "float32")
            self._task_tracker.update_state(task * replicas.count(), _batch_size(x))
            total = self.task_loss_weight * task
        for penalty in self.losses:
            total = total + ops.cast(self._aggregate_additional_loss(penalty), "float32")
        return total

    def _predictions(self, features):
        """Returns what the compiled loss and metrics compare with the labels."""
        return features["student"][OUTPUT]

    def _labelled(self, loss):
        """Returns `(model, task loss, symbolic output)` of every network that learns the task."""
        networks = self._networks
        return [(networks.models["student"], loss, networks.taps["student"].specs[OUTPUT])]

    def _checked_data(self, argument, data):
        self._networks.check_cache(data[0] if isinstance(data, tuple) else data)
        _, loss, output = self._labelled(self.loss)[0]
        return data_checks.checked_data(
            argument, data, models=self._networks.models, loss=loss, output=output
        )

    def _total(self, x, y, sample_weight, features, training):
        total = ops.zeros(())
        for term in self._networks.terms:
            loss, (teacher, student) = term.loss, self._networks.pair(term, features)
            values = loss(teacher, student, labels=y, training=training)
            value = _weighted_mean(loss, values, sample_weight)
            self._log(loss, value, _batch_size(x))
            weight = term.factor * loss.weight_at(self.optimizer.iterations)
            total = total + weight * replicas.scale(value)
        # After the losses have run, so that what they add with `add_loss` is of this step.
        y_pred = self._predictions(features)
        total = total + self._compute_loss(x, y, y_pred, sample_weight, training)
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
        known = {id(v) for v in critics}
        rest = [v for v in self.trainable_variables if id(v) not in known]
        return [(self.optimizer, rest), (self.critic_optimizer, critics)]

    @contextlib.contextmanager
    def _finalizing_each(self):
        """At its end, `fit` lets every optimizer finalize (`use_ema`) the weights that it trains.

        Keras would let the first one finalize all of them.
        """
        pairs = self._optimizers() if self.compiled else []
        if len(pairs) < 2:
            yield
            return
        own = [(optimizer.finalize_variable_values, variables) for optimizer, variables in pairs]

        def finalize_each(_):
            for finalize, variables in own:
                finalize(variables)

        self.optimizer.finalize_variable_values = finalize_each
        try:
            yield
        finally:
            del self.optimizer.finalize_variable_values

    def _update(self, tape, total):
        pairs = self._optimizers()
        scales = [optimizer.scale_loss(1.0) for optimizer, _ in pairs]
        dynamic = [
            scale
            for scale, (optimizer, _) in zip(scales, pairs, strict=True)
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        ]
        # The smallest: with another one, the gradients of an optimizer may overflow whatever it
        # lowers its own scale to.
        common = functools.reduce(ops.minimum, dynamic) if dynamic else scales[0]
        gradients = tape.gradient(
            total,
            [variables for _, variables in pairs],
            output_gradients=ops.convert_to_tensor(common, total.dtype),
        )
        for (optimizer, variables), scale, grads in zip(pairs, scales, gradients, strict=True):
            if scale is not common:
                ratio = scale / common
                grads = [None if g is None else g * ops.cast(ratio, g.dtype) for g in grads]
            if variables:
                optimizer.apply_gradients(zip(grads, variables, strict=True))

    def _critics_use_xla(self):
        if self.jit_compile or self.run_eagerly:
            return False
        if self.xla_critics == "auto":
            # On a CPU, compiling them costs seconds and saves a few per cent of a step.
            return any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
        return self.xla_critics

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
        return {
            "name": self.name,
            "task_loss_weight": self.task_loss_weight,
            "xla_critics": self.xla_critics,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{key: keras.saving.deserialize_keras_object(v) for key, v in config.items()})


def check_distinct(optimizers):
    """Checks that optimizers that train different weights are different objects."""
    own = [getattr(optimizer, "inner_optimizer", optimizer) for optimizer in optimizers]
    for first, second in itertools.combinations(own, 2):
        if isinstance(first, keras.optimizers.Optimizer) and first is second:
            raise ValueError(
                "Expected different optimizers, since each keeps the state of the weights that it "
                f"trains. Received the same {type(first).__name__} twice: make a new one for each."
            )


def _weighted_mean(loss, values, sample_weight):
    """Mean over the batch, sample weights applied as Keras does: not divided by their sum.

    Where there are weights for every output, a loss of an output takes those of this output, one of
    inner places their mean.
    """
    if len(values.shape) != 1:
        raise ValueError(
            f"Expected {loss.name!r} to return one loss for each example, of shape (batch,). "
            f"Received: shape={tuple(values.shape)}"
        )
    if sample_weight is not None:
        place = loss.student_layer
        if keras.tree.is_nested(sample_weight) and isinstance(place, str) and is_output(place):
            sample_weight = output_at(sample_weight, place)
        # An output may have none.
        weights = [
            1.0 if each is None else _of_examples(each, values)
            for each in keras.tree.flatten(sample_weight)
        ]
        values = values * (sum(weights) / max(1, len(weights)))
    # A replica may be left without examples by the last batch.
    return ops.sum(values) / ops.cast(ops.maximum(ops.shape(values)[0], 1), values.dtype)


def _of_examples(weights, values):
    """Sample weights as one number for every example."""
    weights = ops.reshape(ops.cast(weights, values.dtype), (ops.shape(values)[0], -1))
    return ops.mean(weights, axis=-1)


def _batch_size(x):
    return ops.shape(keras.tree.flatten(x)[0])[0]
