"""Tuning a trained teacher so that it says more than the label."""

import os
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_mikd import checks
from keras_mikd.distillers.base_distiller import BaseDistiller, weighted_mean
from keras_mikd.distillers.checks import network_checks
from keras_mikd.distillers.networks import Networks
from keras_mikd.distribution import replicas
from keras_mikd.features.places import OUTPUT
from keras_mikd.mcmi import mcmi_checks
from keras_mikd.mcmi.cmi_regularizer import CMIRegularizer
from keras_mikd.mcmi.cmi_report import CMIReport, measure_cmi
from keras_mikd.mcmi.conditional_mutual_information import ConditionalMutualInformation
from keras_mikd.mcmi.mcmi_epochs import MCMIEpochs
from keras_mikd.mcmi.teacher_copy import copied


@keras.saving.register_keras_serializable("keras_mikd")
class MCMITeacher(BaseDistiller):
    """Fine-tunes a copy of a trained classifier for more conditional mutual information.

    `loss = cross entropy - weight * mean KL(P_x || Q^y) - separation_weight * separation
    + regularizers`, in nats, with the `P_x` and the centroids `Q^y` of `CMIRegularizer`. A positive
    weight adds information about the image beyond the label (MCMI), which students learn from; a
    negative one contracts the outputs of a class (CMIC-DL). Large weights reward wrong answers and
    destroy a teacher, so a positive one fades as an example spends its `log_likelihood_budget`:

        effective weight = weight * clip(1 + log P(label | x) / log_likelihood_budget, 0, 1).

    Logs, beside `loss`, `task_loss` and metrics: `log_likelihood`; `cmi`, with the centroids of the
    examples that it covers; `stale_cmi`, the trained term, with the stored centroids;
    `effective_weight`, a mean; and `separation`, where it has a weight. `fit` first measures the
    centroids on its own data, unless `fit_centroids` has measured them. When it is called, used to
    predict or exported, an `MCMITeacher` is the tuned teacher. A `.keras` file of it continues
    training exactly where it stopped.

    Args:
        teacher: Trained classifier: a `keras.Model` with one output of logits, `(batch, C)`. It is
            copied and stays as it is.
        weight: Weight of the divergence, any finite number. The papers use 0.1 to 0.8.
        centroids: `"frozen"`: measured once, as in the released code, which also rewards drift away
            from them; `"epoch"`: measured again before every epoch, in a pass over the data;
            `"running"`: moved towards the outputs of every batch.
        centroids_training: Whether the teacher runs in training mode while centroids are measured,
            which moves the statistics of its BatchNormalization: so does the released code. False
            measures what the teacher outputs when it teaches.
        momentum: For `"running"`, the share of a centroid that a batch leaves, in [0, 1).
        temperature: Temperature of `P_x`, above 0. The papers use 1.
        separation_weight: Weight, at least 0, of the mean cross entropy between outputs of
            different labels in the batch, which CMIC-DL maximises.
        log_likelihood_budget: Nats of an example's log-likelihood at which the divergence stops
            acting on it, above 0; `None` for the published objective. 0.3 leaves the label a
            probability of about 0.74. It does not limit a negative weight.
        batch_norm: Statistics of BatchNormalization: `"measured"`: in `fit`, their mean over the
            data, by a pass after each epoch; `"running"`: the moving averages, as released, which
            lag behind by some hundred steps; `"frozen"`: those of the teacher, with their scales
            and shifts, which needs a far lower learning rate.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: If the teacher outputs probabilities, has several outputs or nothing to train,
            or an argument is out of range; in `fit`, if a class has no examples (its number is
            named), the data can be read only once, `validation_split` is given instead of
            `validation_data`, or a term of the loss is not finite: before the update of that step,
            or after the epoch if XLA compiles the whole step.

    Example:
        ```python
        mcmi = keras_mikd.MCMITeacher(teacher)
        mcmi.compile(keras.optimizers.SGD(0.0125, momentum=0.9))
        mcmi.fit(train, validation_data=validation, epochs=20)
        distiller = keras_mikd.VIDDistiller(mcmi.teacher, student)
        ```

    References:
        Ye, Mohajer Hamidi, Tan, Yang, Bayes Conditional Distribution Estimation for Knowledge
        Distillation Based on Conditional Mutual Information, ICLR 2024 (arXiv:2401.08732). Yang et
        al. (arXiv:2309.09123) for negative weights. The budget is this library's.
    """

    def __init__(
        self,
        teacher: keras.Model,
        *,
        weight: float = 0.25,
        centroids: str = "frozen",
        centroids_training: bool = False,
        momentum: float = 0.99,
        temperature: float = 1.0,
        separation_weight: float = 0.0,
        log_likelihood_budget: float | None = 0.3,
        batch_norm: str = "measured",
        **kwargs: Any,
    ) -> None:
        num_classes = mcmi_checks.num_classes(teacher)
        super().__init__(**{"dtype": network_checks.policy([teacher]), **kwargs})
        self.weight = checks.number("weight", weight)
        self.centroids = checks.one_of("centroids", centroids, ("frozen", "epoch", "running"))
        self.centroids_training = checks.boolean("centroids_training", centroids_training)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.separation_weight = checks.number("separation_weight", separation_weight, at_least=0)
        self.log_likelihood_budget = checks.number(
            "log_likelihood_budget", log_likelihood_budget, above=0, optional=True
        )
        self.batch_norm = checks.one_of("batch_norm", batch_norm, ("measured", "running", "frozen"))
        self.teacher = copied(teacher)
        if self.batch_norm == "frozen":
            mcmi_checks.freeze_normalizations(self.teacher)
        self.regularizer = CMIRegularizer(num_classes, temperature=temperature)
        self._cmi = ConditionalMutualInformation(num_classes, temperature=temperature)
        names = ["log_likelihood", "stale_cmi", "effective_weight"]
        names += ["separation"] if self.separation_weight else []
        self._means = {name: keras.metrics.Mean(name=name) for name in names}
        self.regularizer.settle()
        networks = Networks({"teacher": self.teacher}, [])
        self._set_up(networks, task_loss_weight=1.0, xla_critics=False)

    arguments_of_step = (
        *BaseDistiller.arguments_of_step,
        *("weight", "centroids", "momentum", "separation_weight", "log_likelihood_budget"),
        *("teacher", "regularizer", "batch_norm"),
    )

    def compile(
        self,
        optimizer: str | dict | keras.optimizers.Optimizer = "sgd",
        loss: keras.losses.Loss | None = None,
        *,
        metrics: list | tuple | None = ("accuracy",),
        **kwargs: Any,
    ) -> None:
        """Configures training, like `keras.Model.compile`.

        Args:
            optimizer: Optimizer of the teacher.
            loss: Leave it out: it is `SparseCategoricalCrossentropy(from_logits=True)`.
            metrics: List of metrics, as in `keras.Model.compile`.
            **kwargs: Further arguments of `keras.Model.compile`.

        Raises:
            ValueError: If `loss` is another one, or `metrics` is not a list.
        """
        loss = mcmi_checks.checked_loss(loss)
        super().compile(optimizer, loss, metrics=mcmi_checks.checked_metrics(metrics), **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.teacher(inputs, training=training)

    def fit_centroids(
        self,
        x: tf.data.Dataset | keras.utils.PyDataset | np.ndarray,
        y: np.ndarray | None = None,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        training: bool | None = None,
        verbose: str | int = "auto",
    ) -> CMIReport:
        """Measures the centroids in one pass over data, for a `fit` on other data.

        Args:
            x: `tf.data.Dataset` or `keras.utils.PyDataset` of `(images, labels, ...)`, or images.
            y: Integer labels, where `x` is an array.
            batch_size: Examples in a batch, for arrays.
            steps: Batches to read; needed for endless data.
            training: Whether the teacher runs in training mode, see `measure_cmi`;
                `centroids_training` if `None`.
            verbose: Progress bar as in `keras.Model.evaluate`.

        Returns:
            The `CMIReport` of the pass.
        """
        report = measure_cmi(
            self.teacher,
            x if y is None else (x, y),
            from_logits=True,
            temperature=self.regularizer.temperature,
            num_classes=self.regularizer.num_classes,
            batch_size=batch_size,
            steps=steps,
            training=self.centroids_training if training is None else training,
            verbose=verbose,
        )
        self.regularizer.set_centroids(report.centroids)
        return report

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates like `keras.Model.evaluate`.

        Raises:
            ValueError: If the centroids were not measured yet: `measure_cmi` needs none.
        """
        mcmi_checks.check_centroids(self.regularizer)
        return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step, like `keras.Model.train_on_batch`; `fit_centroids` comes first."""
        mcmi_checks.check_centroids(self.regularizer)
        return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates a batch, like `keras.Model.test_on_batch`; `fit_centroids` comes first."""
        mcmi_checks.check_centroids(self.regularizer)
        return super().test_on_batch(*args, **kwargs)

    def run_identity(self) -> dict[str, Any]:
        config = {k: v for k, v in self.get_config().items() if k not in ("name", "teacher")}
        return {**super().run_identity(), **config}

    def _own_callbacks(self, x, y, *, validation_split, **options):
        mcmi_checks.check_split(validation_split)
        mcmi_checks.check_readable_twice(x)
        own = MCMIEpochs(self, (x, y), options)
        own.start()
        return [own]

    def _shared(self, batch, features, training):
        labels, logits = batch.y, ops.cast(self._predictions(features), "float32")
        log_likelihood = -keras.losses.sparse_categorical_crossentropy(
            checks.class_indices(labels), logits, from_logits=True
        )
        divergence = self.regularizer(logits, labels)
        weight = self._effective_weight(log_likelihood)
        total = -replicas.scale(weighted_mean(weight * divergence, batch.sample_weight))
        if self.separation_weight:
            separation = self.regularizer.separation(logits, labels)
            self._means["separation"].update_state(separation * replicas.count())
            total = total - self.separation_weight * separation
        if training and self.centroids == "running":
            self.regularizer.update_centroids(logits, labels, self.momentum)
        self._means["stale_cmi"].update_state(divergence)
        self._means["log_likelihood"].update_state(log_likelihood)
        self._means["effective_weight"].update_state(weight)
        self._cmi.update_state(labels, logits)
        return {"cmi": total}

    def _shared_names(self):
        return ["cmi"]

    def _shared_weights(self):
        return [self.weight]

    def _shared_metrics(self):
        return [*self._means.values(), self._cmi]

    def _effective_weight(self, log_likelihood):
        if self.log_likelihood_budget is None or self.weight <= 0:
            return ops.full_like(log_likelihood, self.weight)
        left = ops.clip(1.0 + log_likelihood / self.log_likelihood_budget, 0.0, 1.0)
        return self.weight * ops.stop_gradient(left)

    def _predictions(self, features):
        return features["teacher"][OUTPUT]

    def _labelled(self, loss):
        return [(self.teacher, loss, self._networks.taps["teacher"].specs[OUTPUT])]

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "weight": self.weight,
            "centroids": self.centroids,
            "centroids_training": self.centroids_training,
            "momentum": self.momentum,
            "temperature": self.regularizer.temperature,
            "separation_weight": self.separation_weight,
            "log_likelihood_budget": self.log_likelihood_budget,
            "batch_norm": self.batch_norm,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return super().from_config({"batch_norm": "running", **config})  # As before it existed.

    def export(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Exports the tuned teacher, like `keras.Model.export`."""
        return self.teacher.export(filepath, *args, **kwargs)
