"""The read-out of a critic: mutual information in nats."""

import keras
from keras import ops

_LARGEST_SCORE = 70.0  # exp(70) times a million examples fits into a float32.


@keras.saving.register_keras_serializable("keras_mikd")
class MutualInformation(keras.metrics.Metric):
    """Donsker-Varadhan lower bound on mutual information, over all pairs since the last reset.

    `I(t; s) >= mean f(joint pairs) - log mean exp f(product pairs)`, in nats, for any score
    function f. The logarithm is taken once, of the sums since the last reset: a mean of batchwise
    logarithms would be biased upwards.

    Trust it on pairs that the critic was not trained on, `val_..._mi_nats`: a critic over-fits a
    few hundred training examples and overstates. The bound cannot tell much more than the logarithm
    of the number of product pairs. Scores above 70 count as 70 in the second term.

    Args:
        name: Name of the metric.
        dtype: Precision of the sums.

    Example:
        >>> metric = keras_mikd.MutualInformation()
        >>> metric.update_state(joint=[1.0, 1.0], product=[[0.0], [0.0]])
        >>> float(metric.result())
        1.0

    References:
        Donsker and Varadhan (1983); Belghazi et al., MINE (arXiv:1801.04062), eq. 6.
    """

    def __init__(self, name="mi_nats", dtype="float32"):
        super().__init__(name=name, dtype=dtype)
        self.joint_sum = self.add_variable((), "zeros", name="joint_sum")
        self.joint_count = self.add_variable((), "zeros", name="joint_count")
        self.product_sum = self.add_variable((), "zeros", name="product_sum")
        self.product_count = self.add_variable((), "zeros", name="product_count")

    def update_state(self, joint, product):
        """Adds the scores of true pairs and of pairs of different examples, each of any shape.

        A batch without the latter, such as a batch of one, is skipped.
        """
        joint = ops.cast(joint, self.dtype)
        product = ops.cast(product, self.dtype)
        joint_count = ops.cast(ops.size(joint), self.dtype)
        product_count = ops.cast(ops.size(product), self.dtype)
        counts = ops.cast(product_count > 0, self.dtype)
        self.joint_sum.assign_add(counts * ops.sum(joint))
        self.joint_count.assign_add(counts * joint_count)
        self.product_sum.assign_add(ops.sum(ops.exp(ops.minimum(product, _LARGEST_SCORE))))
        self.product_count.assign_add(product_count)

    def result(self):
        """Returns the bound in nats, a scalar; 0 before any pair."""
        seen = self.product_count > 0
        mean_exp = ops.where(seen, self.product_sum / ops.maximum(self.product_count, 1.0), 1.0)
        smallest = ops.cast(1e-37, self.dtype)
        return ops.divide_no_nan(self.joint_sum, self.joint_count) - ops.log(
            ops.maximum(mean_exp, smallest)
        )
