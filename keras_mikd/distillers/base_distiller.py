"""The step that all distillers share: forward passes, total loss, update, logs, saving."""

import functools
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks, keras_internals
from keras_mikd.batches import take_apart
from keras_mikd.critics.critic import xla_scope
from keras_mikd.critics.negatives import draw_scope
from keras_mikd.distillers import costs, optimizers
from keras_mikd.distillers.checked_fit import TASK, CheckedFit, not_finite
from keras_mikd.distillers.checks import loss_checks, network_checks, task_losses
from keras_mikd.distillers.gradient_balance import (
    BalanceLogs,
    GradientBalance,
    checked_every,
    warn_of_small_shares,
)
from keras_mikd.distillers.readout_turns import ReadoutTurns, TakeReadoutTurns
from keras_mikd.distribution import replicas
from keras_mikd.features.feature_taps import output_at, pick
from keras_mikd.features.places import OUTPUT, is_output
from keras_mikd.losses.parts import schedules
from keras_mikd.losses.parts.memory_bank import index_scope
from keras_mikd.losses.parts.readouts import readout_scope
from keras_mikd.losses.parts.schedules import step_scope


class BaseDistiller(checks.Settled, CheckedFit):
    """A Keras model that trains networks on their task and on what they share.

    `total = task_loss_weight * task loss + sum over terms of factor * weight * mean(loss per
    example) + regularizers and add_loss terms of the networks`.

    A subclass says which networks there are and which losses stand between them. Its constructor
    calls `super().__init__`, sets the trained networks as attributes, so that Keras tracks them,
    and calls `_set_up`. It defines `call` and `get_config`, and overrides `_predictions` and
    `_labelled` if its output is not that of a network called `"student"`.

    Args:
        **kwargs: `name`, `dtype` and other arguments of `keras.Model`.
    """

    arguments_of_step = (
        *("task_loss_weight", "xla_critics", "stop_gradient", "student", "peers"),
        *("distillation_losses", "features", "teacher_features", "student_features"),
        *("balance", "balance_every", "readout_every"),
    )
    """Attributes that a compiled step has taken in, so that nothing may be assigned to them."""

    calls_steps_of_networks = False
    """Whether losses and metrics of the trained networks' own classes are called."""

    def _set_up(
        self,
        networks,
        *,
        task_loss_weight,
        xla_critics,
        balance=None,
        balance_every=1,
        readout_every=1,
    ):
        """Builds the losses of `Networks` and what logs them; the rest is as in `Distiller`."""
        trained = {name: networks.models[name] for name in networks.trained}
        network_checks.check_scope(trained, self)
        if not self.calls_steps_of_networks:
            network_checks.warn_of_own_steps(trained)
        losses = [term.loss for term in networks.terms]
        self.distillation_losses = tuple(losses)  # A change of a list would go unseen.
        self.task_loss_weight = schedules.checked_weight("task_loss_weight", task_loss_weight)
        self.xla_critics = checks.one_of("xla_critics", xla_critics, (True, False, "auto"))
        self.balance, self.balance_every = balance, balance_every
        self.readout_turns = ReadoutTurns(readout_every)
        self.readout_every = readout_every
        self.critic_optimizer = None
        self._networks = networks
        networks.build_losses()
        self.autocast = False  # The networks cast for themselves, as they do alone.
        self._task_tracker = keras.metrics.Mean(name="task_loss")
        self._term_trackers = {loss.name: keras.metrics.Mean(name=loss.name) for loss in losses}
        readouts = [metric.name for loss in losses for metric in loss.metrics]
        loss_checks.check_names([*self._term_trackers, *readouts])
        for term in networks.terms:
            costs.warn_of_large_critics(term.loss, networks.models[term.student])
        every = checked_every(balance, balance_every)
        if every:
            weights = {TASK: self.task_loss_weight} | {x.name: x.weight for x in losses}
            warn_of_small_shares(weights)
        self.gradient_balance = every and GradientBalance([TASK, *self._term_trackers], every)
        for loss in losses:
            loss.join()
        self.settle(self.arguments_of_step)
        self.built = True

    def train_step(self, data: Any) -> dict[str, Any]:
        batch = take_apart(data)
        fixed = self._read_fixed(batch)
        with tf.GradientTape(persistent=self._measures_balance()) as tape:
            features = fixed | self._read(self._networks.trained, batch.x, training=True)
            parts = self._parts(batch, features, training=True)
            total = sum(parts.values())
        self._update(tape, total, parts)
        if self.gradient_balance is not None:
            self.gradient_balance.steps.assign_add(1)
        return self._logs(batch, features)

    def test_step(self, data: Any) -> dict[str, Any]:
        batch = take_apart(data)
        features = self._read(self._networks.trained, batch.x, training=False)
        if not self._task_alone:
            features = self._read_fixed(batch) | features
        self._parts(batch, features, training=False)
        return self._logs(batch, features)

    def predict_step(self, data: Any) -> Any:
        x = take_apart(data).x
        return replicas.run_network(self._predict, x, filled=replicas.ones)

    def batch_to_build_from(self, specs: Any) -> Any:
        batch = take_apart(specs)
        return batch.x, batch.y, batch.sample_weight

    def _predict(self, x):
        """Returns what `predict` gives for inputs."""
        return self(x, training=False)

    def _read_fixed(self, batch):
        """Runs the fixed networks, or takes their tensors from a cache."""
        networks = self._networks
        features = networks.cached(batch.teacher_features)
        if missing := [name for name in networks.fixed if name not in features]:
            features = features | self._read(missing, batch.x, training=False)
        return networks.combined(features, batch.y)

    def _read(self, names, x, training):
        """Runs each of the networks once: `{name: {place: tensor}}`."""
        taps = self._networks.taps

        def read(x):
            return {name: taps[name](x, training=training) for name in names}

        return replicas.run_network(read, x, filled=replicas.ones)

    def _parts(self, batch, features, training):
        """Returns this replica's part of every weighted term of the total, `{name: scalar}`."""
        x, y, sample_weight, *_ = batch
        # Outside of training the draw is always the same: what changes is what was learned.
        step = self.optimizer.iterations if training else 0
        iterations = self.optimizer.iterations
        with (
            xla_scope(self._critics_use_xla()),
            draw_scope(step),
            step_scope(iterations),
            index_scope(batch.index),
            readout_scope(self.readout_turns.due or not training),
        ):
            parts = {} if self._task_alone else self._shared(batch, features, training)
        # After the losses, so that their `add_loss` terms are those of this step.
        y_pred = self._predictions(features)
        parts[TASK] = self.compute_loss(x, y, y_pred, sample_weight, training)
        parts = self._balanced(parts)
        keras_internals.show_loss(self, sum(parts.values()) * replicas.count(), _batch_size(x))
        return parts

    def _balanced(self, parts):
        if self.gradient_balance is None:
            return parts
        factors = self.gradient_balance.factors()
        return {name: factors[name] * part for name, part in parts.items()}

    def _shared(self, batch, features, training):
        """Returns this replica's part of what the networks share, `{name of the loss: scalar}`."""
        parts = {}
        for term in self._networks.terms:
            loss, (teacher, student) = term.loss, self._pair(term, features)
            masks = self._networks.masks(term, features)
            labels, counted = self._classes_for(loss, batch.y)
            values = loss(teacher, student, labels=labels, training=training, **masks)
            _check_shape(loss, values)
            values = values if counted is None else ops.where(counted, values, 0.0)
            value = weighted_mean(values, batch.sample_weight, loss.student_layer)
            self._term_trackers[loss.name].update_state(value, sample_weight=_batch_size(batch.x))
            weight = term.factor * loss.weight_at(self.optimizer.iterations)
            parts[loss.name] = weight * replicas.scale(value)
        return parts

    def _classes_for(self, loss, y):
        """Returns labels for a loss that reads classes, and which examples have one.

        Those whose class the task loss leaves out have a loss of 0; any class stands in for theirs.
        """
        ignored = task_losses.ignored_class(self.loss)
        if ignored is None or not loss.reads_classes or keras.tree.is_nested(y) or y is None:
            return y, None
        if len(y.shape) > 2 or (len(y.shape) == 2 and y.shape[1] != 1):
            return y, None
        counted = ops.not_equal(y, ops.cast(ignored, y.dtype))
        return ops.where(counted, y, ops.zeros_like(y)), ops.reshape(counted, (-1,))

    def _task_weight(self):
        return schedules.value_at(self.task_loss_weight, self.optimizer.iterations)

    def _shared_names(self):
        """Returns the names under which `_shared` returns its parts."""
        return list(self._term_trackers)

    def _shared_weights(self):
        """Returns the weights of what `_shared` returns."""
        return [loss.weight for loss in self.distillation_losses]

    def _shared_metrics(self):
        """Returns the metrics that `_shared` updates, besides the read-outs of losses."""
        return list(self._term_trackers.values())

    def _pair(self, term, features):
        """Returns the teacher's and the student's tensors for the loss of a term."""
        teacher = pick(features[term.teacher], term.loss.teacher_layer)
        if term.stop_gradient and term.teacher not in self._networks.fixed:
            teacher = keras.tree.map_structure(ops.stop_gradient, teacher)
        return teacher, pick(features[term.student], term.loss.student_layer)

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the results of the metrics of a step, see `results_of_epoch`."""
        results = {}
        for metric in self._metrics_now():
            if not getattr(metric, "of_epoch", False):
                result = metric.result()
                results |= result if isinstance(result, dict) else {metric.name: result}
        return results

    def results_of_epoch(self) -> dict[str, Any]:
        """Returns what no step computes: standard errors and limits take many small operations."""
        late = [metric for metric in self._metrics_now() if getattr(metric, "of_epoch", False)]
        return {metric.name: metric.result() for metric in late}

    def _metrics_now(self):
        """Returns the metrics that a step of this kind updates."""
        shared = self._shared_metrics() if self._task_alone else []
        if self._task_alone or not self.readout_turns.logged:
            shared += [metric for loss in self.distillation_losses for metric in loss.metrics]
        return [metric for metric in self.metrics if not any(metric is each for each in shared)]

    def _logs(self, batch, features):
        y_pred = self._predictions(features)
        return self.compute_metrics(batch.x, batch.y, y_pred, batch.sample_weight)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool | None = True,
    ) -> tf.Tensor:
        """Returns the weighted task loss plus the networks' regularizers and `add_loss` terms."""
        total = ops.zeros((), "float32")
        task_loss = keras_internals.compiled_loss(self)
        if task_loss is not None:
            task = ops.cast(task_loss(y, y_pred, sample_weight), "float32")
            self._task_tracker.update_state(task * replicas.count(), _batch_size(x))
            total = self._task_weight() * task
        for penalty in self.losses:
            penalty = keras_internals.scaled_penalty(self, penalty)
            total = total + ops.cast(penalty, "float32")
        return total

    @property
    def output_names(self) -> list[str]:
        """Names by which losses and metrics may be given, as with the network alone."""
        networks = self._networks
        if len(networks.trained) > 1:  # Those of peers go by the name of a peer.
            raise AttributeError("output_names")
        return networks.models[networks.trained[0]].output_names

    def _predictions(self, features):
        """Returns what the compiled loss and metrics compare with the labels."""
        return features["student"][OUTPUT]

    def _labelled(self, loss):
        """Returns `(model, task loss, symbolic output)` of every network that learns the task."""
        networks = self._networks
        return [(networks.models["student"], loss, networks.taps["student"].specs[OUTPUT])]

    def _optimizers(self):
        """Returns pairs of an optimizer and the variables that it trains."""
        if self.critic_optimizer is None:
            return [(self.optimizer, self.trainable_variables)]
        critics = [v for loss in self.distillation_losses for v in loss.trainable_variables]
        known = {id(v) for v in critics}
        rest = [v for v in self.trainable_variables if id(v) not in known]
        return [(self.optimizer, rest), (self.critic_optimizer, critics)]

    def _update(self, tape, total, parts):
        pairs = self._optimizers()
        scales = [optimizer.scale_loss(1.0) for optimizer, _ in pairs]
        dynamic = [
            scale
            for scale, (optimizer, _) in zip(scales, pairs, strict=True)
            if isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        ]
        # The smallest: with a larger one, an optimizer's gradients could overflow however low its
        # own scale is.
        common = functools.reduce(ops.minimum, dynamic) if dynamic else scales[0]
        common_if_finite = self._if_finite(ops.convert_to_tensor(common, total.dtype), parts)
        groups = [variables for _, variables in pairs]
        if self._measures_balance():
            gradients = self._measured_gradients(tape, parts, groups, common_if_finite)
        else:
            gradients = tape.gradient(total, groups, output_gradients=common_if_finite)
        if self.jit_compile:
            finite = ops.isfinite(total)
            gradients = keras.tree.map_structure(
                lambda g: None if g is None else ops.where(finite, g, ops.zeros_like(g)), gradients
            )
        loss_checks.check_reached(self.distillation_losses, pairs, gradients)
        for (optimizer, variables), scale, grads in zip(pairs, scales, gradients, strict=True):
            if scale is not common:
                ratio = scale / common
                grads = [None if g is None else g * ops.cast(ratio, g.dtype) for g in grads]
            if variables:
                grads = optimizers.of_one_dtype(optimizer, grads)
                optimizer.apply_gradients(zip(grads, variables, strict=True))

    def _measured_gradients(self, tape, parts, groups, scale):
        """Returns the gradients of the total, and measures each term's for `balance`."""
        step = self.optimizer.iterations
        weights = {t.loss.name: t.factor * t.loss.weight_at(step) for t in self._networks.terms}
        # Without a task loss there are only penalties, which are no term to compare with.
        weights[TASK] = self._task_weight() if self._has_task() else 0.0
        networks = [self._networks.models[name] for name in self._networks.trained]
        of = {id(v) for network in networks for v in network.trainable_variables}
        return self.gradient_balance.gradients(tape, parts, weights, groups, scale=scale, of=of)

    def _measures_balance(self):
        return self.gradient_balance is not None and self.gradient_balance.measures

    def make_train_function(self, force: bool = False) -> None:
        if self.train_function is not None and not force:
            return
        step = self._made_function()
        if self.gradient_balance is not None:
            step = self.gradient_balance.alternating(
                step, self._made_function(), self.steps_per_execution
            )
        self.train_function = step

    def _made_function(self):
        """Returns the compiled step; where read-outs take turns, one of two."""
        super().make_train_function(force=True)
        with_readouts = self.train_function
        if self.readout_every == 1:
            return with_readouts
        super().make_train_function(force=True)
        without = self.train_function

        def train_function(iterator):
            return (with_readouts if self.readout_turns.due else without)(iterator)

        return train_function

    def _own_callbacks(self, x, y, **options):
        own = super()._own_callbacks(x, y, **options)
        if self.readout_every != 1:
            own = [*own, TakeReadoutTurns()]
        return own if self.gradient_balance is None else [*own, BalanceLogs()]

    def _if_finite(self, scale, parts):
        """Returns `scale`, of which all gradients come, or stops the step before its update.

        XLA compiles no such stop; there, `_update` leaves out the gradient.
        """
        if self.jit_compile:
            return scale
        finite = tf.math.is_finite(tf.stack(list(parts.values())))
        first = tf.argmax(tf.cast(tf.logical_not(finite), tf.int32))
        message = tf.gather([not_finite(name) for name in parts], first)
        # Not tf.debugging.Assert, whose branches cost more than all of this.
        stop = tf.raw_ops.Assert(condition=tf.reduce_all(finite), data=[message])
        with tf.control_dependencies([] if stop is None else [stop]):
            return tf.identity(scale)

    def _critics_use_xla(self):
        if self.jit_compile or self.run_eagerly:
            return False
        if self.xla_critics == "auto":
            # On a CPU, compilation takes seconds and saves a few per cent of a step.
            return any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
        return self.xla_critics

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "task_loss_weight": schedules.serialized(self.task_loss_weight),
            "xla_critics": self.xla_critics,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{key: keras.saving.deserialize_keras_object(v) for key, v in config.items()})


def weighted_mean(values, sample_weight, place=OUTPUT):
    """Mean of `(batch,)` values, weighted as Keras does: not divided by the sum of the weights.

    A replica without examples gets 0. With a weight for every output, an output takes its own, and
    an inner place the mean of all.
    """
    if sample_weight is not None:
        if keras.tree.is_nested(sample_weight) and isinstance(place, str) and is_output(place):
            sample_weight = output_at(sample_weight, place)
        # An output may have none.
        weights = [
            1.0 if each is None else _of_examples(each, values)
            for each in keras.tree.flatten(sample_weight)
        ]
        values = values * (sum(weights) / max(1, len(weights)))
    return ops.sum(values) / ops.cast(ops.maximum(ops.shape(values)[0], 1), values.dtype)


def _check_shape(loss, values):
    if len(values.shape) != 1:
        raise ValueError(
            f"Expected {loss.name!r} to return one loss for each example, of shape (batch,). "
            f"Received: shape={tuple(values.shape)}"
        )


def _of_examples(weights, values):
    """Returns sample weights as one number for every example."""
    weights = ops.reshape(ops.cast(weights, values.dtype), (ops.shape(values)[0], -1))
    return ops.mean(weights, axis=-1)


def _batch_size(x):
    return ops.shape(keras.tree.flatten(x)[0])[0]
