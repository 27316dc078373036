"""A linear map without bias whose matrix stays orthogonal."""

import keras
from keras import ops


class OrthogonalProjection(keras.layers.Layer):
    """Linear map of the last axis, whose matrix has orthonormal rows or columns: the fewer ones.

    The weight is any matrix of full rank, and the map is the orthogonal factor of its QR
    decomposition, signed so that the triangular one has a positive diagonal. So the map is
    orthogonal to rounding after every step of any optimizer, whatever the scale of the weight.

    Args:
        units: Number of channels that it puts out.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        longer, shorter = sorted((self.units, input_shape[-1]), reverse=True)
        self.kernel = self.add_weight(
            shape=(longer, shorter), initializer=keras.initializers.Orthogonal(), name="kernel"
        )

    def call(self, x):
        return ops.matmul(x, self.matrix())

    def matrix(self):
        """Returns the matrix of the map, shape `(input channels, units)`."""
        orthonormal, triangular = ops.qr(self.kernel)
        negative = ops.diagonal(triangular) < 0.0
        ones = ops.ones_like(orthonormal[0])  # Of two numbers alone, Keras would follow `floatx`.
        orthonormal = orthonormal * ops.where(negative, -1.0, ones)
        return ops.transpose(orthonormal) if self.units == self.kernel.shape[0] else orthonormal
