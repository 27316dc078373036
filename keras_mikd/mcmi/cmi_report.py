"""How much a classifier says beyond the label, measured in one pass."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.batches import take_apart
from keras_mikd.distribution import replicas
from keras_mikd.distribution.distributed_model import DistributedModel
from keras_mikd.features.probabilities import holds_probabilities
from keras_mikd.mcmi.conditional_mutual_information import ConditionalMutualInformation
from keras_mikd.mcmi.output_tally import OutputTally


@dataclasses.dataclass(frozen=True)
class CMIReport:
    """What `measure_cmi` found. Information is in nats.

    Attributes:
        cmi: Conditional mutual information `I(X; Yhat | Y)`: the mean of `KL(P_x || Q^y)`.
        separation: Mean cross entropy `H(P_x, P_u)` over pairs of examples with different labels;
            `inf` if an output is exactly 0 where another is not, `nan` if there is one class.
        ncmi: `cmi / separation`: the concentration of the classes relative to their distance.
        accuracy: Fraction of the examples, in [0, 1], whose largest output is that of their label.
        log_likelihood: Mean of `log P_x[y]`, at most 0.
        counts: Examples of each class, shape `(C,)`.
        cmi_per_class: Mean of `KL(P_x || Q^y)` within each class, shape `(C,)`; `nan` for a class
            without examples, here and below.
        separation_per_class: Mean `H(P_x, P_u)` over x of this class and u of another, `(C,)`.
        ncmi_per_class: `cmi_per_class / separation_per_class`, `(C,)`.
        accuracy_per_class: Accuracy within each class, shape `(C,)`.
        centroids: `Q^y`, the mean of `P_x` over the examples of class y, in row y, `(C, C)`.
        temperature: Temperature of `P_x`.
    """

    cmi: float
    separation: float
    ncmi: float
    accuracy: float
    log_likelihood: float
    counts: np.ndarray
    cmi_per_class: np.ndarray
    separation_per_class: np.ndarray
    accuracy_per_class: np.ndarray
    centroids: np.ndarray
    temperature: float

    @property
    def ncmi_per_class(self) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.cmi_per_class / self.separation_per_class

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.counts.sum())

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as numbers and lists, ready for JSON except for `nan` and `inf`."""
        values = {
            "examples": self.examples,
            **dataclasses.asdict(self),
            "ncmi_per_class": self.ncmi_per_class,
        }
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}

    def __str__(self):
        rows = [
            ("class", "examples", "CMI", "separation", "NCMI", "accuracy"),
            *(
                (str(y), str(n), f"{cmi:.4f}", f"{gap:.3f}", f"{ncmi:.5f}", f"{accuracy:.2%}")
                for y, (n, cmi, gap, ncmi, accuracy) in enumerate(
                    zip(
                        self.counts,
                        self.cmi_per_class,
                        self.separation_per_class,
                        self.ncmi_per_class,
                        self.accuracy_per_class,
                        strict=True,
                    )
                )
            ),
            (
                "all",
                str(self.examples),
                f"{self.cmi:.4f}",
                f"{self.separation:.3f}",
                f"{self.ncmi:.5f}",
                f"{self.accuracy:.2%}",
            ),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(v.rjust(w) for v, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(
            [
                *lines,
                f"log-likelihood {self.log_likelihood:.4f} (nats, temperature "
                f"{self.temperature:g})",
            ]
        )


def measure_cmi(
    model: keras.Model,
    data: tf.data.Dataset | keras.utils.PyDataset | tuple[np.ndarray, np.ndarray],
    *,
    from_logits: bool | None = None,
    temperature: float = 1.0,
    num_classes: int | None = None,
    empty_classes: str = "error",
    batch_size: int | None = None,
    steps: int | None = None,
    training: bool = False,
    verbose: str | int = "auto",
) -> CMIReport:
    """Measures the conditional mutual information of a classifier in one pass over data.

    The result is exact for the data, whatever its order, its batches and the replicas of the
    model's strategy. The model, and how it was compiled, stay as they are.

    ```python
    report = keras_mikd.measure_cmi(teacher, digits.test)
    print(report)
    ```

    Args:
        model: Classifier, a `keras.Model` with one output of shape `(batch, C)`.
        data: `tf.data.Dataset` or `keras.utils.PyDataset` of `(images, labels, ...)`, or a tuple of
            arrays `(images, labels)`. Labels are integers from 0 to C - 1.
        from_logits: Whether the model outputs logits. `None` looks at its last layer; a subclassed
            model, which hides its layers, needs `True` or `False`.
        temperature: Temperature of the outputs, above 0.
        num_classes: Number of classes C; only a subclassed model needs it.
        empty_classes: `"error"` refuses a class without examples; `"omit"` leaves it out of every
            mean.
        batch_size: Examples in a batch, for arrays.
        steps: Batches to read; needed for endless data.
        training: Whether the model runs in training mode, which moves the statistics of
            BatchNormalization, as the released MCMI code does when it fits centroids.
        verbose: Progress bar as in `keras.Model.evaluate`: `"auto"`, 0, 1 or 2.

    Returns:
        A `CMIReport`.

    Raises:
        ValueError: If a class has no examples and `empty_classes="error"` (its number is named),
            labels are missing, soft or out of range, a weight is NaN, outputs have another shape,
            are not finite, are not the probabilities or logits that they are said to be, or it is
            unknown which; or the data is empty.
    """
    checks.without_nan("model", checks.model("model", model))
    checks.one_of("empty_classes", empty_classes, ("error", "omit"))
    from_logits = found_from_logits(model, from_logits)
    num_classes = found_num_classes(model) if num_classes is None else num_classes
    meter = new_meter(
        model,
        num_classes,
        from_logits=from_logits,
        temperature=temperature,
        training=training,
    )
    x, y = data if isinstance(data, tuple) else (data, None)
    meter.evaluate(x, y, batch_size=batch_size, steps=steps, verbose=verbose)
    return meter.report(empty_classes)


def new_meter(model, num_classes, *, from_logits, temperature, training=False):
    """Returns a model whose `evaluate` reads data, any number of times, before its `report`."""
    with model.distribute_strategy.scope():
        cmi = ConditionalMutualInformation(
            num_classes, from_logits=from_logits, temperature=temperature
        )
        meter = _Meter(model, cmi, training)
        meter.compile(run_eagerly=model.run_eagerly, jit_compile=False)
    return meter


def found_from_logits(model, from_logits=None):
    """Returns whether a classifier puts out logits.

    Raises:
        ValueError: If `from_logits` is `None` and the model hides its layers.
    """
    if from_logits is not None:
        return bool(from_logits)
    probability = holds_probabilities(model)
    if probability is None:
        raise ValueError(
            "Expected `from_logits` to be True or False for the subclassed model "
            f"{model.name!r}, which hides its layers. Received: from_logits=None"
        )
    return not probability


def found_num_classes(model):
    """Returns the number of classes of a classifier.

    Raises:
        ValueError: If the model has not one output of shape `(batch, C)`, or hides it.
    """
    shape = getattr(model, "output_shape", None)
    if shape is None:
        raise ValueError(
            f"Expected `num_classes` for the subclassed model {model.name!r}, which hides its "
            "output. Received: num_classes=None"
        )
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise ValueError(
            "Expected a classifier with one output of shape (batch, classes): what is measured is "
            f"for one class for each example. Received: {model.name!r} with outputs of shape "
            f"{shape}. For dense outputs, update a ConditionalMutualInformation yourself."
        )
    return shape[1]


class _Meter(DistributedModel):
    """Lets Keras' own loop read the data: progress, replicas, every kind of data."""

    def __init__(self, model, cmi, training):
        super().__init__(name="measure_cmi")
        # Keras would track a model that is an attribute, and reset its metrics.
        self._classifier = lambda x: model(x, training=training)
        self._cmi = cmi
        self._tally = OutputTally(cmi.num_classes, cmi.from_logits)
        self.built = True

    @property
    def metrics(self):
        return [self._tally, self._cmi]  # Without `loss`: there is none.

    def test_step(self, data):
        x, y, *_ = take_apart(data)
        if y is None:
            raise ValueError("Expected data with labels: (images, labels). Received: images alone.")
        outputs = replicas.run_network(self._classifier, x)
        self._cmi.update_state(y, outputs)
        self._tally.update_state(y, outputs)
        return self.compute_metrics(x, y, outputs)

    def report(self, empty_classes="error"):
        self._tally.check()
        readout = self._cmi.readout()
        empty = np.flatnonzero(readout["counts"] == 0)
        if not readout["counts"].sum():
            raise ValueError("Expected at least one example. Received: empty data.")
        if len(empty) and empty_classes == "error":
            raise ValueError(
                f"Expected examples of every class from 0 to {len(readout['counts']) - 1}. "
                f"Received: none of {empty.tolist()}. A report leaves them out with "
                'measure_cmi(..., empty_classes="omit"); a teacher is tuned on all of its classes.'
            )
        correct = self._tally.correct_per_class()
        with np.errstate(invalid="ignore"):
            accuracy_per_class = correct / readout["counts"]
        scalars = {k: float(v) for k, v in readout.items() if np.ndim(v) == 0}
        return CMIReport(
            **{**readout, **scalars, "counts": readout["counts"].astype("int64")},
            accuracy=float(correct.sum() / readout["counts"].sum()),
            accuracy_per_class=accuracy_per_class,
            temperature=self._cmi.temperature,
        )
