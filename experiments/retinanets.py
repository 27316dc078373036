"""A RetinaNet that is small enough to train on a CPU.

No script by itself: `import retinanets` works where one of the experiments is started. A saved one
loads after this import.
"""

import math
import warnings

import keras

from keras_mikd import keras_internals

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Its own imports warn under Keras 3.15.
    import keras_cv

_LEVELS = ("P3", "P4", "P5")
_ANCHORS = 9


# Under the name that older files have.
@keras.saving.register_keras_serializable("examples")
class SmallRetinaNet(keras_cv.models.RetinaNet):
    """KerasCV's RetinaNet with a thin backbone, and a pyramid and heads as thin.

    Args:
        num_classes: Number of classes.
        image_shape: `(height, width, channels)`; sides are multiples of 32.
        width: Channels of the backbone's first stage; it has 1, 2, 4 and 8 times as many,
            pyramid and heads have 4 times as many.
        anchor_sizes: Smallest anchor of each of the five levels, in pixels.
        aspect_ratios: Three widths of the anchors relative to their heights.
        rescale: Whether images in [0, 255] are divided by 255.
        **kwargs: `name`.
    """

    def __init__(
        self, num_classes, image_shape, *, width, anchor_sizes, aspect_ratios, rescale, **kwargs
    ):
        backbone = _backbone(image_shape, width, rescale)
        anchors = keras_cv.layers.AnchorGenerator(
            "xyxy",
            sizes=[float(size) for size in anchor_sizes],
            scales=[2 ** (i / 3) for i in range(3)],
            aspect_ratios=list(aspect_ratios),
            strides=[8, 16, 32, 64, 128],
            clip_boxes=True,
        )
        # A hundredth is the first probability of every class, as in the paper of the focal loss.
        prior = keras.initializers.Constant(-math.log(99.0))
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            bounding_box_format="xyxy",
            anchor_generator=anchors,
            feature_pyramid=_pyramid(backbone, 4 * width),
            box_head=_head("boxes", 4 * width, _ANCHORS * 4),
            classification_head=_head(
                "classes", 4 * width, _ANCHORS * num_classes, bias_initializer=prior
            ),
            prediction_decoder=keras_cv.layers.NonMaxSuppression(
                "xyxy", from_logits=True, confidence_threshold=0.05, max_detections=100
            ),
            **kwargs,
        )
        self._arguments = {
            "num_classes": num_classes,
            "image_shape": tuple(image_shape),
            "width": width,
            "anchor_sizes": tuple(anchor_sizes),
            "aspect_ratios": tuple(aspect_ratios),
            "rescale": rescale,
        }

    def get_config(self):
        # KerasCV saves no pyramid, so a loaded one is built from what this one was built from.
        return {"name": self.name, **self._arguments}


def _backbone(image_shape, width, rescale):
    backbone = keras_cv.models.CSPDarkNetBackbone(
        stackwise_channels=[width, 2 * width, 4 * width, 8 * width],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=rescale,
        input_shape=tuple(image_shape),
        name="backbone",
    )
    for layer in keras_internals.layers_of(backbone):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # Keras' 0.99 lags behind in a run of a thousand steps.
    return backbone


def _pyramid(backbone, channels):
    """Returns a model `{level: map} -> [map of P3, ..., map of P7]`, as in the FPN paper."""

    def convolved(x, name, **kwargs):
        return keras.layers.Conv2D(channels, 3, padding="same", name=name, **kwargs)(x)

    shapes = {p: backbone.get_layer(backbone.pyramid_level_inputs[p]).output.shape for p in _LEVELS}
    inputs = {level: keras.Input(shape[1:], name=level) for level, shape in shapes.items()}
    merged = {}
    for level in _LEVELS[::-1]:
        x = keras.layers.Conv2D(channels, 1, name=f"lateral_{level}")(inputs[level])
        if merged:
            above = merged[f"P{int(level[1]) + 1}"]
            x = keras.layers.Add(name=f"add_{level}")([x, keras.layers.UpSampling2D(2)(above)])
        merged[level] = x
    sixth = convolved(inputs["P5"], "pyramid_P6", strides=2)
    seventh = convolved(keras.layers.ReLU()(sixth), "pyramid_P7", strides=2)
    outputs = [convolved(merged[level], f"pyramid_{level}") for level in _LEVELS]
    return keras.Model(inputs, [*outputs, sixth, seventh], name="feature_pyramid")


def _head(name, channels, filters, **kwargs):
    """Two convolutions and the prediction; the same weights for every level."""
    hidden = [
        keras.layers.Conv2D(
            channels, 3, padding="same", activation="relu", kernel_initializer="he_normal"
        )
        for _ in range(2)
    ]
    small = keras.initializers.RandomNormal(stddev=0.01)
    last = keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=small, **kwargs)
    return keras.Sequential([keras.Input((None, None, channels)), *hidden, last], name=name)
