"""The step that all distillers share: forward passes, total loss, update, logs, saving."""

import contextlib
import functools
import itertools
import warnings

import keras
import tensorflow as tf
from keras import ops

from keras_mikd import checks, keras_internals
from keras_mikd.cache.batches import Batch, take_apart, with_class_weight
from keras_mikd.critics.critic import xla_scope
from keras_mikd.distillers import data_checks, loss_checks, network_checks
from keras_mikd.distillers.first_look import FirstLook
from keras_mikd.distribution import replicas
from keras_mikd.distribution.distributed_model import DistributedModel
from keras_mikd.features.feature_taps import output_at, pick
from keras_mikd.features.places import OUTPUT, is_output
from keras_mikd.losses.distillation_loss import checked_weight, factor_at, serialized_weight

_TASK = "task_loss"  # With the regularizers.


class BaseDistiller(checks.Settled, DistributedModel):
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

    arguments_of_step = ("task_loss_weight", "xla_critics")
    """Attributes that a compiled step has taken in, so that nothing may be assigned to them."""

    def _set_up(self, networks, *, task_loss_weight, xla_critics):
        """Builds the losses of `Networks` and what logs them; the rest is as in `Distiller`."""
        network_checks.check_scope({n: networks.models[n] for n in networks.trained}, self)
        losses = [term.loss for term in networks.terms]
        self.distillation_losses = losses
        self.task_loss_weight = checked_weight("task_loss_weight", task_loss_weight)
        self.xla_critics = checks.one_of("xla_critics", xla_critics, (True, False, "auto"))
        self.critic_optimizer = None
        self._networks = networks
        networks.build_losses()
        self._task_tracker = keras.metrics.Mean(name="task_loss")
        self._term_trackers = {loss.name: keras.metrics.Mean(name=loss.name) for loss in losses}
        readouts = [metric.name for loss in losses for metric in loss.metrics]
        loss_checks.check_names([*self._term_trackers, *readouts])
        for loss in losses:
            loss.join()
        self.settle(self.arguments_of_step)
        self.built = True

    def compile(self, optimizer="rmsprop", loss=None, *args, critic_optimizer=None, **kwargs):
        """Configures training, like `keras.Model.compile`.

        Args:
            optimizer: Optimizer of the trained networks, and of the losses' own weights unless
                there is a `critic_optimizer`.
            loss: Task loss, or `None` to train without labels.
            *args: Further arguments of `keras.Model.compile`.
            critic_optimizer: Separate optimizer for the losses' own weights (critics, heads,
                regressors). Callbacks that change the learning rate do not see it: give it a
                schedule of its own.
            **kwargs: Further arguments of `keras.Model.compile`.

        Raises:
            ValueError: If the loss expects logits and a network puts out probabilities, or the
                reverse, or one optimizer has two purposes.
        """
        check_distinct([optimizer, critic_optimizer])
        for model, task_loss, output in self._labelled(loss):
            network_checks.check_task_loss(model, task_loss, output)
        super().compile(optimizer, loss, *args, **kwargs)
        self.critic_optimizer = (
            None if critic_optimizer is None else keras.optimizers.get(critic_optimizer)
        )
        with self.distribute_strategy.scope():
            for each, variables in self._optimizers():
                each.build(variables)
        self._trained_as_compiled = {id(v) for v in self.trainable_variables}

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        **kwargs,
    ):
        """Trains like `keras.Model.fit`, after checks of the data.

        Arrays are checked whole before the first step, a `tf.data.Dataset` batch by batch. A
        `PyDataset` or a generator is not checked.

        Raises:
            ValueError: If the data is empty, brings integer images to a float model, or has labels
                out of range.
        """
        self._check_trained()
        look = self._first_look(x, verbose=verbose, shuffle=shuffle, batch_size=batch_size)
        # First, since a look at it disturbs no training.
        if validation_data is not None:
            validation_data = self._checked_data("validation_data", validation_data, look)
        sample_weight = kwargs.pop("sample_weight", None)
        x, y, sample_weight = self._checked_data("x", (x, y, sample_weight), look)
        if class_weight and isinstance(getattr(x, "element_spec", None), Batch):
            x, class_weight = with_class_weight(x, class_weight), None
        options = {
            "batch_size": batch_size,
            "steps": kwargs.get("steps_per_epoch"),
            "verbose": verbose,
            "validation_split": validation_split,
        }
        _, _, output = self._labelled(self.loss)[0]
        with self._told_terms(), data_checks.told(output, look), self._finalizing_each():
            look.start(x)
            own = self._own_callbacks(x, y, **options)
            return super().fit(
                x,
                y,
                batch_size,
                epochs,
                verbose,
                [*own, *_listed(callbacks)] if own else callbacks,
                validation_split,
                validation_data,
                shuffle,
                class_weight,
                sample_weight,
                **kwargs,
            )

    def evaluate(self, x=None, *args, **kwargs):
        """Evaluates like `keras.Model.evaluate`.

        Raises:
            ValueError: If the batches come from another teacher's `TeacherCache`.
        """
        if not keras_internals.is_validation_in_fit(kwargs):  # `fit` has checked its own.
            self._networks.check_cache(x)
        return super().evaluate(x, *args, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        """Takes one step, like `keras.Model.train_on_batch`."""
        self._check_trained()
        self._first_look(x).start(x)
        return super().train_on_batch(x, *args, **kwargs)

    def train_step(self, data):
        batch = take_apart(data)
        fixed = self._read_fixed(batch)
        with tf.GradientTape() as tape:
            features = fixed | self._read(self._networks.trained, batch.x, training=True)
            parts = self._parts(batch, features, training=True)
            total = sum(parts.values())
        self._update(tape, total, parts)
        return self._logs(batch, features)

    def test_step(self, data):
        batch = take_apart(data)
        trained = self._read(self._networks.trained, batch.x, training=False)
        features = self._read_fixed(batch) | trained
        self._parts(batch, features, training=False)
        return self._logs(batch, features)

    def predict_step(self, data):
        return replicas.run_network(self._predict, take_apart(data).x)

    def batch_to_build_from(self, specs):
        batch = take_apart(specs)
        return batch.x, batch.y, batch.sample_weight

    def _predict(self, x):
        """Returns what `predict` gives for inputs."""
        return self(x, training=False)

    def _read_fixed(self, batch):
        """Runs the fixed networks, or takes their tensors from a cache."""
        if batch.teacher_features is not None:
            return dict.fromkeys(self._networks.fixed, batch.teacher_features)
        return self._read(self._networks.fixed, batch.x, training=False)

    def _read(self, names, x, training):
        """Runs each of the networks once: `{name: {place: tensor}}`."""
        taps = self._networks.taps

        def read(x):
            return {name: taps[name](x, training=training) for name in names}

        return replicas.run_network(read, x)

    def _parts(self, batch, features, training):
        """Returns this replica's part of every weighted term of the total, `{name: scalar}`."""
        x, y, sample_weight, _ = batch
        with xla_scope(self._critics_use_xla()):
            parts = self._shared(batch, features, training)
        # After the losses, so that their `add_loss` terms are those of this step.
        y_pred = self._predictions(features)
        parts[_TASK] = self.compute_loss(x, y, y_pred, sample_weight, training)
        keras_internals.show_loss(self, sum(parts.values()) * replicas.count(), _batch_size(x))
        return parts

    def _shared(self, batch, features, training):
        """Returns this replica's part of what the networks share, `{name of the loss: scalar}`."""
        parts = {}
        for term in self._networks.terms:
            loss, (teacher, student) = term.loss, self._pair(term, features)
            values = loss(teacher, student, labels=batch.y, training=training)
            _check_shape(loss, values)
            value = weighted_mean(values, batch.sample_weight, loss.student_layer)
            self._term_trackers[loss.name].update_state(value, sample_weight=_batch_size(batch.x))
            weight = term.factor * loss.weight_at(self.optimizer.iterations)
            parts[loss.name] = weight * replicas.scale(value)
        return parts

    def _shared_names(self):
        """Returns the names under which `_shared` returns its parts."""
        return list(self._term_trackers)

    def _shared_weights(self):
        """Returns the weights of what `_shared` returns."""
        return [loss.weight for loss in self.distillation_losses]

    def _pair(self, term, features):
        """Returns the teacher's and the student's tensors for the loss of a term."""
        teacher = pick(features[term.teacher], term.loss.teacher_layer)
        if term.stop_gradient and term.teacher not in self._networks.fixed:
            teacher = keras.tree.map_structure(ops.stop_gradient, teacher)
        return teacher, pick(features[term.student], term.loss.student_layer)

    def _logs(self, batch, features):
        y_pred = self._predictions(features)
        return self.compute_metrics(batch.x, batch.y, y_pred, batch.sample_weight)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the weighted task loss plus the networks' regularizers and `add_loss` terms."""
        total = ops.zeros((), "float32")
        task_loss = keras_internals.compiled_loss(self)
        if task_loss is not None:
            task = ops.cast(task_loss(y, y_pred, sample_weight), "float32")
            self._task_tracker.update_state(task * replicas.count(), _batch_size(x))
            total = factor_at(self.task_loss_weight, self.optimizer.iterations) * task
        for penalty in self.losses:
            penalty = keras_internals.scaled_penalty(self, penalty)
            total = total + ops.cast(penalty, "float32")
        return total

    def _predictions(self, features):
        """Returns what the compiled loss and metrics compare with the labels."""
        return features["student"][OUTPUT]

    def _labelled(self, loss):
        """Returns `(model, task loss, symbolic output)` of every network that learns the task."""
        networks = self._networks
        return [(networks.models["student"], loss, networks.taps["student"].specs[OUTPUT])]

    def _check_trained(self):
        """Checks that the optimizers know every weight that is to be trained."""
        known = self._trained_as_compiled if self.compiled else set()
        thawed = [v.path for v in self.trainable_variables if id(v) not in known]
        if self.compiled and thawed:
            raise ValueError(
                "Expected the weights that are trained to be those of `compile`. Received: "
                f"{len(thawed)} more, such as {thawed[0]!r}, since `trainable` was set after it. "
                "Call `compile` again."
            )
        models = self._networks.models
        frozen = [n for n in self._networks.trained if not models[n].trainable_variables]
        # With an optimizer of their own, critics alone can be what is wanted.
        if frozen and not (self.critic_optimizer and self.trainable_variables):
            raise ValueError(
                f"Expected weights to train in the {frozen[0]}. Received: "
                f"{models[frozen[0]].name!r} without any, so that nothing but the losses would "
                "learn. Set `trainable = True` on it or on its last layers, and compile again; to "
                "train the losses alone, give `compile` a `critic_optimizer`."
            )
        zero = 0.0 in (self.task_loss_weight, float(self.loss is not None))
        if zero and not any(weight != 0.0 for weight in self._shared_weights()):
            warnings.warn(
                "Nothing is learned: the weight of every loss is 0, and there is no task loss or "
                "`task_loss_weight` is 0.",
                stacklevel=3,
            )

    def _first_look(self, x, *, verbose=0, shuffle=True, batch_size=None):
        return FirstLook(
            self._networks,
            self._labelled(self.loss),
            batch_size=batch_size,
            shuffled=bool(shuffle) and not isinstance(x, tf.data.Dataset),
            verbose=verbose in (True, "auto", 1, 2),
        )

    def _checked_data(self, argument, data, look):
        self._networks.check_cache(data[0] if isinstance(data, tuple) else data)
        _, loss, output = self._labelled(self.loss)[0]
        return data_checks.checked_data(
            argument, data, models=self._networks.models, loss=loss, output=output, look=look
        )

    def _own_callbacks(self, x, y, **options):
        """Returns callbacks that `fit` runs before those of the caller."""
        return []

    def _optimizers(self):
        """Returns pairs of an optimizer and the variables that it trains."""
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
        gradients = tape.gradient(
            total,
            [variables for _, variables in pairs],
            output_gradients=self._if_finite(ops.convert_to_tensor(common, total.dtype), parts),
        )
        if self.jit_compile:
            finite = ops.isfinite(total)
            gradients = keras.tree.map_structure(
                lambda g: None if g is None else ops.where(finite, g, ops.zeros_like(g)), gradients
            )
        self._check_reached(pairs, gradients)
        for (optimizer, variables), scale, grads in zip(pairs, scales, gradients, strict=True):
            if scale is not common:
                ratio = scale / common
                grads = [None if g is None else g * ops.cast(ratio, g.dtype) for g in grads]
            if variables:
                optimizer.apply_gradients(zip(grads, variables, strict=True))

    def _check_reached(self, pairs, gradients):
        """Refuses a step in which no loss depends on the weights of a network, in its trace."""
        reached = {
            id(variable)
            for (_, variables), grads in zip(pairs, gradients, strict=True)
            for variable, gradient in zip(variables, grads, strict=True)
            if gradient is not None
        }
        for name in self._networks.trained:
            model = self._networks.models[name]
            if model.trainable_variables and reached.isdisjoint(map(id, model.trainable_variables)):
                raise ValueError(
                    f"Expected a loss that depends on a weight of the {name}. Received: places "
                    f"in front of all that is trained in {model.name!r}, and no task loss. Name "
                    "later places, give `compile` a loss, or train more layers."
                )

    def _if_finite(self, scale, parts):
        """Returns `scale`, of which all gradients come, or stops the step before its update.

        XLA compiles no such stop; there, `_update` leaves out the gradient.
        """
        if self.jit_compile:
            return scale

        def stop():
            for name, value in parts.items():
                tf.debugging.Assert(tf.math.is_finite(value), [_not_finite(name)])
            return scale

        return tf.cond(tf.math.is_finite(sum(parts.values())), lambda: scale, stop)

    @contextlib.contextmanager
    def _told_terms(self):
        """Raises a `ValueError` that names the term with which a step stopped."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            said = str(error).replace("\\'", "'")  # A graph escapes quotes.
            for name in [*self._shared_names(), _TASK]:
                if _not_finite(name) in said:
                    raise ValueError(_not_finite(name)) from None
            raise

    def _critics_use_xla(self):
        if self.jit_compile or self.run_eagerly:
            return False
        if self.xla_critics == "auto":
            # On a CPU, compilation takes seconds and saves a few per cent of a step.
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
            "task_loss_weight": serialized_weight(self.task_loss_weight),
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
                f"trains. Received: the same {type(first).__name__} twice. Make a new one for each."
            )


def _not_finite(name):
    return (
        f"Expected finite losses. Received: NaN or infinity in {name!r}. The weights are those "
        "before this step: look at its examples, lower the learning rate or this term's weight."
    )


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


def _listed(callbacks):
    """Returns the callbacks of `fit` as a list."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks.callbacks
    return [] if callbacks is None else keras.tree.flatten(callbacks)
