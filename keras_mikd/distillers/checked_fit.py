"""What a distiller looks at in `compile` and `fit`, before the first step and around the steps."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mikd import keras_internals
from keras_mikd.batches import Batch, with_class_weight
from keras_mikd.checkpoints import (
    exact_resume,
    fingerprints,
    run_identity,
    student_checkpoint,
)
from keras_mikd.distillers import optimizers
from keras_mikd.distillers.callbacks import NOT_FINITE, with_own
from keras_mikd.distillers.checks import data_checks, loss_checks, network_checks
from keras_mikd.distillers.checks.first_look import FirstLook
from keras_mikd.distribution.distributed_model import DistributedModel
from keras_mikd.distribution.worker_callbacks import listed

TASK = "task_loss"  # With the regularizers.


class CheckedFit(DistributedModel):
    """A model that trains others, and refuses before a step what would go wrong in it.

    It calls `_labelled`, `_optimizers`, `_shared_names` and `_shared_weights` of `BaseDistiller`,
    and reads its `_networks`, `task_loss_weight`, `distillation_losses` and `readout_turns`.
    """

    _has_looked = _has_looked_at_batch = False
    _look = None
    _validates_terms = True
    _task_alone = _task_alone_in_test_function = False
    """Whether the step that runs or is traced now leaves out what the networks share."""

    def compile(
        self,
        optimizer: str | dict | keras.optimizers.Optimizer = "rmsprop",
        loss: Any = None,
        *args: Any,
        critic_optimizer: str | dict | keras.optimizers.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
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
        optimizers.check_distinct([optimizer, critic_optimizer])
        for model, task_loss, output in self._labelled(loss):
            network_checks.check_task_loss(model, task_loss, output)
            for name in ("metrics", "weighted_metrics"):
                network_checks.warn_of_metrics(model, kwargs.get(name), output, task_loss)
                self._check_names_of(kwargs.get(name))
        keras_internals.forget_loss(self)
        super().compile(optimizer, loss, *args, **kwargs)
        self.critic_optimizer = (
            None if critic_optimizer is None else keras.optimizers.get(critic_optimizer)
        )
        with self.distribute_strategy.scope():
            for each, variables in self._optimizers():
                each.build(variables)
        self._has_looked = self._has_looked_at_batch = False
        self._compiled_for = {id(v) for v in self.trainable_variables}

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | keras.callbacks.CallbackList | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        *args: Any,
        validation_terms: bool = True,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains like `keras.Model.fit`, after checks of the data.

        With `validation_terms=False`, validation runs the student alone, which saves a teacher's
        forward over all of the validation data: `val_loss` is then that of the task.

        Arrays are checked whole before the first step, a `tf.data.Dataset` batch by batch. Of a
        `PyDataset` or a generator the first batch is looked at. The networks run once on the first
        examples before any step, and a warning tells of a teacher that is no better than chance.
        The console shows totals and metrics; pass `keras.callbacks.ProgbarLogger()` to see every
        term.

        Raises:
            ValueError: If the data is empty, holds NaN or infinity, brings integer images to a
                float model, or has labels out of range; a network puts out probabilities where
                logits are expected; or a term of the loss is not finite: before that step's update,
                or after the epoch if XLA compiles the whole step.
        """
        self._check_trained()
        self._validates_terms = validation_terms
        look = self._first_look(x, verbose=verbose, shuffle=shuffle, batch_size=batch_size)
        # First, since a look at it disturbs no training.
        if isinstance(validation_data, list):
            validation_data = tuple(validation_data)
        if validation_data is not None:
            validation_data = self._checked_data("validation_data", validation_data, look)
        x, y, sample_weight = self._checked_data("x", (x, y, sample_weight), look)
        data_checks.check_class_weight(class_weight, x, y, self._labelled(self.loss)[0][2])
        if class_weight and isinstance(getattr(x, "element_spec", None), Batch):
            x, class_weight = with_class_weight(x, class_weight), None
        options = {
            "batch_size": batch_size,
            "steps": steps_per_epoch,
            "verbose": verbose,
            "validation_split": validation_split,
        }
        _, _, output = self._labelled(self.loss)[0]
        given = listed(callbacks)
        look.keeps_first_batch = exact_resume.check(given, x, shuffle)
        validated = validation_data is not None or bool(validation_split)
        student_checkpoint.check(given, validated=validated)
        pairs = self._optimizers() if self.compiled else []
        finalizing = optimizers.finalizing_each(pairs)
        self._look = look
        with self._told_terms(), data_checks.told(output, look), finalizing:
            look.start(x)
            own = self._own_callbacks(x, y, **options)
            ordered = exact_resume.put_last(with_own(given, own))
            history = super().fit(
                x,
                y,
                batch_size,
                epochs,
                verbose,
                ordered,
                validation_split,
                validation_data,
                shuffle,
                class_weight,
                sample_weight,
                initial_epoch,
                steps_per_epoch,
                *args,
                **kwargs,
            )
        self._has_looked = True  # Once after `compile`.
        return history

    def evaluate(self, x: Any = None, *args: Any, terms: bool = True, **kwargs: Any) -> Any:
        """Evaluates like `keras.Model.evaluate`; without `terms`, the task alone, see `fit`.

        Raises:
            ValueError: If the batches come from another teacher's `TeacherCache`.
        """
        if keras_internals.is_validation_in_fit(kwargs):
            terms = self._validates_terms
        else:  # `fit` has checked its own.
            self._networks.check_cache(x)
        if self._task_alone_in_test_function != (not terms):
            self.test_function = None
        self._task_alone = self._task_alone_in_test_function = not terms
        try:
            with self.readout_turns.all():
                return super().evaluate(x, *args, **kwargs)
        finally:
            self._task_alone = False

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes one step, like `keras.Model.train_on_batch`, after a look at the first batch."""
        self._check_trained()
        look = self._first_look(x)
        look.start(x)
        if not self._has_looked_at_batch:  # A later `fit` has more examples to look at.
            look.at(x, args[0] if args else kwargs.get("y"))
            self._has_looked_at_batch = True
        return super().train_on_batch(x, *args, **kwargs)

    def _check_trained(self):
        network_checks.check_entered_scope(self)
        if self.compiled:
            network_checks.check_trained(
                self._networks,
                [v.path for v in self.trainable_variables if id(v) not in self._compiled_for],
                critics_alone=bool(self.critic_optimizer and self.trainable_variables),
            )
            # The task reaches the networks alone, the terms train their own weights too.
            learns = self._has_task() and any(
                self._networks.models[name].trainable_variables for name in self._networks.trained
            )
            weights = [self.task_loss_weight if learns else 0.0]
            loss_checks.warn_of_nothing([*weights, *self._shared_weights()])

    def _check_names_of(self, metrics):
        """Refuses metrics that the logs could not tell from what the losses log."""
        readouts = [metric.name for loss in self.distillation_losses for metric in loss.metrics]
        taken = {"loss", TASK, *(loss.name for loss in self.distillation_losses), *readouts}
        for metric in keras.tree.flatten(metrics):
            name = metric if isinstance(metric, str) else getattr(metric, "name", None)
            if name in taken:
                raise ValueError(
                    f"Expected metrics with names of their own. Received: {name!r}, under which a "
                    "distiller logs its loss, its task or what stands between the networks."
                )

    def _has_task(self):
        """Whether there is a loss besides those that the networks share."""
        return self.loss is not None

    def _first_look(self, x, *, verbose=0, shuffle=True, batch_size=None):
        return FirstLook(
            self._networks,
            self._labelled(self.loss),
            done=self._has_looked,
            batch_size=batch_size,
            shuffled=bool(shuffle) and not isinstance(x, tf.data.Dataset),
            verbose=verbose in (True, "auto", 1, 2),
        )

    def _checked_data(self, argument, data, look):
        self._networks.check_cache(data[0] if isinstance(data, tuple) else data)
        _, loss, output = self._labelled(self.loss)[0]
        return data_checks.checked_data(
            argument, data, taps=self._networks.taps, loss=loss, output=output, look=look
        )

    def trained_networks(self) -> dict[str, keras.Model]:
        """Returns the networks that a step trains, by name: the objects, not copies."""
        return {name: self._networks.models[name] for name in self._networks.trained}

    def all_optimizers(self) -> list[keras.optimizers.Optimizer]:
        return [optimizer for optimizer, _ in self._optimizers()] if self.compiled else []

    def run_identity(self) -> dict[str, Any]:
        networks = self._networks
        kept = {
            "loss": self.loss,
            "task_loss_weight": self.task_loss_weight,
            "combine": networks.combine if len(networks.fixed) > 1 else None,
            "balance": self.balance,
            "balance_every": self.balance_every if self.balance else None,
        }
        for name in networks.fixed:
            kept[name if name == "teacher" else f"teacher {name}"] = networks.fingerprint(name)
        for name in networks.trained:
            kept[f"layers of {name}"] = fingerprints.of_structure(networks.models[name])
        for number, optimizer in enumerate(self.all_optimizers(), start=1):
            kept[f"optimizer {number}"] = optimizer
        found = super().run_identity()
        for name, value in kept.items():
            found |= run_identity.settings(name, value)
        for term in networks.terms:
            found |= run_identity.settings(f"{term.loss.name!r}", term.loss)
        return found

    def first_batch(self) -> str | None:
        """Returns a digest of the first batch of the data set of `fit`, once it was read."""
        return self._look and self._look.first_batch

    def _own_callbacks(self, x, y, **options):
        """Returns callbacks that `fit` runs before those of the caller."""
        return []

    @contextlib.contextmanager
    def _told_terms(self):
        """Raises a `ValueError` that names the term with which a step stopped."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            for name in [*self._shared_names(), TASK]:
                if not_finite(name) in str(error):
                    raise ValueError(not_finite(name)) from None
            raise

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        if config:  # An empty one says that the distiller was never compiled.
            config["critic_optimizer"] = self.critic_optimizer and (
                keras.saving.serialize_keras_object(self.critic_optimizer)
            )
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))


def not_finite(name):
    """Returns what is said of a term that is not finite."""
    return (
        f"{NOT_FINITE} Received: NaN or infinity in `{name}`. The trained weights are those before "
        "this step, only batch statistics have counted it: look at its examples, lower the "
        "learning rate or the weight of the term."
    )
