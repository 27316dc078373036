"""Small networks of the usual architectures, to read places of."""

import functools

import keras
import numpy as np
from keras import layers


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def conv(x, channels, strides=1, **kwargs):
    return layers.Conv2D(channels, 3, strides=strides, padding="same", **kwargs)(x)


def residual(x, channels, strides, name):
    """A post-activation block: `<name>_relu` is its output."""
    y = layers.ReLU()(layers.BatchNormalization()(conv(x, channels, strides)))
    y = layers.BatchNormalization()(conv(y, channels))
    short = x if strides == 1 else layers.Conv2D(channels, 1, strides=strides)(x)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([short, y]))


@functools.cache
def resnet(size=16, channels=4, strides=(1, 2, 2), blocks=1):
    """Made once: the first stride is that of the stem, and block 0 does not stride."""
    inputs = keras.Input((size, size, 3))
    x = layers.ReLU()(conv(inputs, channels, strides[0], name="stem"))
    for k, stride in enumerate(strides):
        for block in range(blocks):
            x = residual(x, channels * 2**k, stride if k and not block else 1, f"block{k}_{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def backbone(size=16):
    inputs = keras.Input((size, size, 3))
    x = conv(inputs, 4, name="conv1", kernel_regularizer="l2")
    x = layers.ReLU(name="relu1", activity_regularizer="l2")(
        layers.BatchNormalization(name="bn")(x)
    )
    x = layers.Dropout(0.5)(conv(x, 6, strides=2, name="conv2"))
    return keras.Model(inputs, x, name="backbone")


def classifier(backbone, size=16, **kwargs):
    inputs = keras.Input((size, size, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(
        backbone(layers.Rescaling(0.5)(inputs), **kwargs)
    )
    return keras.Model(inputs, layers.Dense(3, name="logits", kernel_regularizer="l2")(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, activation="relu")
        self.logits = layers.Dense(2)

    def call(self, x, training=None):
        return self.logits(self.hidden(x))


def resnet_body():
    inputs = keras.Input((None, None, 3))
    x = residual(conv(inputs, 2, name="conv1"), 4, 2, "block")
    return keras.Model(inputs, x, name="body")
