"""Online distillation: peers that train together and learn from one another."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import keras
import tensorflow as tf
from keras.optimizers.schedules import LearningRateSchedule

from keras_mikd.distillers import optimizers
from keras_mikd.distillers.base_distiller import BaseDistiller
from keras_mikd.distillers.checks import loss_checks, network_checks
from keras_mikd.distillers.networks import Networks, Term
from keras_mikd.features.feature_taps import OUTPUT
from keras_mikd.keras_internals import unshared
from keras_mikd.losses.distillation_loss import DistillationLoss


@keras.saving.register_keras_serializable("keras_mikd")
class MutualDistiller(BaseDistiller):
    """Trains networks together, each on the task and on what it shares with every other one.

    `total = sum over peers of (task_loss_weight * task loss + mean over the other peers of the sum
    over losses of weight * mean(loss per example)) + regularizers and add_loss terms`.

    Every loss is copied for every ordered pair of peers: one is the teacher, without a gradient,
    the other the student. With `SoftTargets(temperature=1.0)` this is deep mutual learning (Zhang
    et al., arXiv:1706.00384), except that all peers step at the same time instead of taking turns.

    Logs call the peers `peer1`, `peer2`, ...: `peer1_accuracy`, `peer1_loss` (its task loss),
    `<loss>_peer2_to_peer1` (what the first learns from the second). `call` and `predict` return
    `{"peer1": output, ...}`. After training, save, export or evaluate the networks in
    `distiller.peers` on their own.

    Args:
        peers: List of at least two Keras models of any architecture, with the same inputs and one
            output of the same shape.
        distillation_losses: List of `DistillationLoss` without weights yet, whose places exist in
            every peer; a `keras.distillation` loss is adapted.
        task_loss_weight: Factor of the compiled loss, a float of at least 0 or a schedule.
        readout_every: As in `Distiller`.
        xla_critics: As in `Distiller`.
        features: List with a function `(model, x, training) -> {place: tensor}` for every
            subclassed peer and `None` for the others; `None` if there is no such peer.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: Before any training, if there are fewer than two peers, they share weights,
            their inputs or outputs differ, a loss has weights already, or as in `Distiller`.

    Example:
        ```python
        peers = [keras_mikd.models.resnet8(10), keras_mikd.models.wrn_16_1(10)]
        distiller = keras_mikd.MutualDistiller(peers, [keras_mikd.SoftTargets(temperature=1.0)])
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(train, validation_data=validation, epochs=60)
        distiller.peers[0].save("student.keras")
        ```
    """

    def __init__(
        self,
        peers: Sequence[keras.Model],
        distillation_losses: Sequence[DistillationLoss | keras.distillation.DistillationLoss],
        *,
        task_loss_weight: float | LearningRateSchedule = 1.0,
        readout_every: int | None = 1,
        xla_critics: bool | str = "auto",
        features: Sequence[Callable | None] | None = None,
        **kwargs: Any,
    ) -> None:
        if "balance" in kwargs:
            raise ValueError(
                "Expected no `balance`, which measures gradients on one student. Received: "
                f"balance={kwargs['balance']!r} for several peers. Choose weights instead."
            )
        losses = loss_checks.checked_losses(distillation_losses)
        loss_checks.check_copyable(losses)
        models = network_checks.checked_peers(peers)
        features = [None] * len(models) if features is None else list(features)
        if len(features) != len(models):
            raise ValueError(
                "Expected one entry of `features` for every peer. "
                f"Received: {len(features)} for {len(models)} peers"
            )
        super().__init__(**{"dtype": network_checks.policy(peers), **kwargs})
        self.peers = list(peers)
        self.features = features
        self.peer_optimizers = []
        self._loss_configs = [
            unshared(keras.saving.serialize_keras_object(loss)) for loss in losses
        ]
        networks = Networks(
            models, _terms(losses, models), features=dict(zip(models, features, strict=True))
        )
        network_checks.check_outputs(
            {name: taps.specs[OUTPUT] for name, taps in networks.taps.items()}
        )
        self._set_up(
            networks,
            task_loss_weight=task_loss_weight,
            xla_critics=xla_critics,
            readout_every=readout_every,
        )

    def compile(
        self,
        optimizer: str | dict | keras.optimizers.Optimizer | list | tuple = "rmsprop",
        loss: Any = None,
        *,
        metrics: list | tuple | dict | None = None,
        weighted_metrics: list | tuple | dict | None = None,
        critic_optimizer: str | dict | keras.optimizers.Optimizer | None = None,
        auto_scale_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training, like `keras.Model.compile`.

        Args:
            optimizer: One optimizer for all peers, or a list with one for each. Callbacks that
                change the learning rate see the first.
            loss: Task loss of every peer, or `{"peer1": loss, ...}`, or `None`.
            metrics: List of metrics, of which every peer gets its own copies, or
                `{"peer1": list, ...}`.
            weighted_metrics: Likewise, with sample weights.
            critic_optimizer: Separate optimizer for the losses' own weights. Without it, the
                optimizer of the peer that learns from a loss trains them.
            auto_scale_loss: As in `keras.Model.compile`.
            **kwargs: Further arguments of `keras.Model.compile`.

        Raises:
            ValueError: If there are not as many optimizers as peers, one is given twice, a dict
                names an unknown peer, metrics are not a list, or a loss expects logits and a peer
                puts out probabilities, or the reverse.
        """
        loss = self._by_peer("loss", loss)
        metrics = self._by_peer("metrics", metrics, _copies)
        weighted_metrics = self._by_peer("weighted_metrics", weighted_metrics, _copies)
        first, self.peer_optimizers = optimizer, []
        if isinstance(optimizer, (list, tuple)):
            optimizers.check_distinct([*optimizer, critic_optimizer])
            first, self.peer_optimizers = self._one_for_each(optimizer, auto_scale_loss)
        super().compile(
            first,
            loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            critic_optimizer=critic_optimizer,
            auto_scale_loss=auto_scale_loss,
            **kwargs,
        )

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        models = self._networks.models
        return {name: peer(inputs, training=training) for name, peer in models.items()}

    def export(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses: there are several networks to export."""
        raise ValueError(
            "Expected one of the peers to export. Received: the distiller. Export one with "
            f"distiller.peers[0].export({filepath!r})."
        )

    def _by_peer(self, argument, value, copies=lambda _, value, number: [value] * number):
        names = list(self._networks.models)
        if isinstance(value, dict) and not set(value) <= set(names):
            raise ValueError(
                f"Expected the keys of `{argument}` to be among {names}. Received: {list(value)}"
            )
        if value is None or isinstance(value, dict):
            return value
        return dict(zip(names, copies(argument, value, len(names)), strict=True))

    def _one_for_each(self, optimizers, auto_scale_loss):
        if len(optimizers) != len(self.peers):
            raise ValueError(
                "Expected one optimizer, or a list with one for every peer. "
                f"Received: {len(optimizers)} for {len(self.peers)} peers"
            )
        optimizers = [keras.optimizers.get(optimizer) for optimizer in optimizers]
        if self.dtype_policy.compute_dtype == "float16" and auto_scale_loss:
            scaled = keras.optimizers.LossScaleOptimizer
            optimizers = [o if isinstance(o, scaled) else scaled(o) for o in optimizers]
        return optimizers[0], optimizers

    def _optimizers(self):
        if not self.peer_optimizers:
            return super()._optimizers()
        trained = {
            name: list(peer.trainable_variables) for name, peer in self._networks.models.items()
        }
        critics = []
        for term in self._networks.terms:
            own = trained[term.student] if self.critic_optimizer is None else critics
            own += term.loss.trainable_variables
        pairs = list(zip(self.peer_optimizers, trained.values(), strict=True))
        if self.critic_optimizer is not None:
            pairs.append((self.critic_optimizer, critics))
        return pairs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool | None = True,
    ) -> tf.Tensor:
        return super().compute_loss(x, self._for_each(y), y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        return super().compute_metrics(x, self._for_each(y), y_pred, sample_weight)

    def _for_each(self, y):
        return None if y is None else dict.fromkeys(self._networks.models, y)

    def _predictions(self, features):
        return {name: tensors[OUTPUT] for name, tensors in features.items()}

    def _labelled(self, loss):
        networks = self._networks
        losses = self._by_peer("loss", loss) or {}
        labelled = [
            (model, losses.get(name), networks.taps[name].specs[OUTPUT])
            for name, model in networks.models.items()
        ]
        # The labels are checked for the first, and not every peer has to learn from them.
        return sorted(labelled, key=lambda each: each[1] is None)

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if self.peer_optimizers:
            config["optimizer"] = [
                keras.saving.serialize_keras_object(each) for each in self.peer_optimizers
            ]
        return config

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "readout_every": self.readout_every,
            "peers": [serialize(peer) for peer in self.peers],
            "distillation_losses": self._loss_configs,
            "features": [loss_checks.serialized_features(each) for each in self.features],
        }


def _terms(losses, names):
    """Copies every loss for every ordered pair of peers."""
    terms = []
    for teacher, student in itertools.permutations(names, 2):
        for loss in losses:
            config = unshared(loss.get_config())
            config["name"] = f"{loss.name}_{teacher}_to_{student}"
            own = type(loss).from_config(config)
            terms.append(Term(own, teacher, student, factor=1.0 / (len(names) - 1)))
    return terms


def _copies(argument, metrics, number):
    """Copies metrics for `number` peers, since a metric has a state."""
    if not isinstance(metrics, (list, tuple)):
        raise ValueError(
            f"Expected `{argument}` to be a list, or a dict of lists by peer. Received: {metrics!r}"
        )
    return [[_copy(metric) for metric in metrics] for _ in range(number)]


def _copy(metric):
    if not isinstance(metric, keras.metrics.Metric):
        return metric
    if left_out := loss_checks.left_out_of_config(metric):
        raise ValueError(
            "Expected metrics that their configuration rebuilds, since every peer gets its own. "
            f"Received: {metric.name!r}, whose get_config lacks {', '.join(left_out)}. Return them "
            'there, or give every peer its own: metrics={"peer1": [...], "peer2": [...]}.'
        )
    return type(metric).from_config(metric.get_config())
