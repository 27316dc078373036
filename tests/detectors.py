"""A very small RetinaNet of KerasCV, and scenes that it trains on in a second."""

import functools
import warnings

import keras
import numpy as np
import pytest

import keras_mikd as mikd

SIZE = 32
NUM_CLASSES = 3
LOSSES = {"box_loss": "huber", "classification_loss": "focal"}


def keras_cv():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras_cv", exc_type=ImportError)


def backbone(width, layer=None):
    """Levels P3 to P5 with strides of 8 to 32."""
    x = inputs = keras.Input((SIZE, SIZE, 1))
    for level, stride in (("P3", 8), ("P4", 2), ("P5", 2)):
        x = keras.layers.Conv2D(width, 3, strides=stride, padding="same", name=f"conv_{level}")(x)
        x = keras.layers.ReLU(name=level)(x)
    model = keras.Model(inputs, layer(x) if layer else x)
    model.pyramid_level_inputs = {level: level for level in ("P3", "P4", "P5")}
    if layer:
        model.pyramid_level_inputs["P5"] = layer.name
    return model


def _pyramid(body, width):
    shapes = {p: body.get_layer(n).output.shape for p, n in body.pyramid_level_inputs.items()}
    levels = {p: keras.Input(shape[1:], name=p) for p, shape in shapes.items()}
    outputs = [keras.layers.Conv2D(width, 1, name=f"lateral_{p}")(x) for p, x in levels.items()]
    top = keras.layers.MaxPooling2D(1, strides=2, name="top")(outputs[-1])
    return keras.Model(levels, [*outputs, top, keras.layers.ReLU(name="last")(top)])


def _head(name, filters, **kwargs):
    return keras.layers.Conv2D(filters, 3, padding="same", name=name, **kwargs)


@functools.cache
def _tiny_class():
    """The class, which KerasCV is needed for."""
    cv = keras_cv()

    @keras.saving.register_keras_serializable("tests")
    class TinyRetinaNet(cv.models.RetinaNet):
        """Saved as its arguments: KerasCV does not save a pyramid of the caller's."""

        def __init__(self, width, layer=None, regularizer=None, **kwargs):
            body = backbone(width, layer)
            anchors = cv.layers.AnchorGenerator(
                "xyxy",
                sizes=[8.0, 12.0, 16.0, 20.0, 24.0],
                scales=[1.0, 1.25, 1.5],
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
            )
            bias = keras.initializers.Constant(-2)
            # With KerasCV's own threshold of 0.5 an untrained detector would find nothing.
            decoder = cv.layers.NonMaxSuppression(
                "xyxy", from_logits=True, confidence_threshold=0.05, max_detections=20
            )
            super().__init__(
                backbone=body,
                num_classes=NUM_CLASSES,
                bounding_box_format="xyxy",
                anchor_generator=anchors,
                feature_pyramid=_pyramid(body, width),
                box_head=_head("boxes", 9 * 4, kernel_regularizer=regularizer),
                classification_head=_head("classes", 9 * NUM_CLASSES, bias_initializer=bias),
                prediction_decoder=decoder,
                **kwargs,
            )
            self.width = width

        def get_config(self):
            return {"name": self.name, "width": self.width}

    return TinyRetinaNet


def retinanet(width=3, *, seed=0, **kwargs):
    """A RetinaNet with anchors of 8 to 24 pixels."""
    keras.utils.set_random_seed(seed)
    return _tiny_class()(width, **kwargs)


def stock_retinanet(sides):
    """A RetinaNet of KerasCV's own parts, for images of a size or, with `None`, of any."""
    cv = keras_cv()
    body = cv.models.CSPDarkNetBackbone(
        stackwise_channels=[2, 2, 2, 2],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=False,
        input_shape=(sides, sides, 1),
    )
    return cv.models.RetinaNet(backbone=body, num_classes=NUM_CLASSES, bounding_box_format="xyxy")


def hint(place="P4", *, name="hint", **kwargs):
    return mikd.Hint(teacher_layer=place, student_layer=place, name=name, **kwargs)


def muse(**kwargs):
    options = {"teacher_layer": "P5", "student_layer": ["P3", "P4"], "width": 4, "weight": 0.1}
    return mikd.MUSE(**{**options, "name": "muse", **kwargs})


def offline(student=None, losses=None, **kwargs):
    student = student or retinanet()
    teacher = retinanet(5, seed=1)
    return mikd.DetectorDistiller(
        teacher, student, losses or [hint(weight=2.0)], xla_critics=False, **kwargs
    )


def alone(student=None, losses=None, **kwargs):
    return mikd.SelfDetectorDistiller(
        student or retinanet(), losses or [muse(temperature=1.0)], xla_critics=False, **kwargs
    )


# name -> a function that makes a new distiller; every public distiller of detectors is here.
DISTILLERS = {"offline": offline, "self": alone}


def compiled(model, **kwargs):
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), **LOSSES, **kwargs)
    return model


def eager(model, **kwargs):
    """Compiled to run eagerly: the trace of a step costs more than the few that a test takes."""
    return compiled(model, run_eagerly=True, **kwargs)


def fit(model, count=8, **kwargs):
    x, y = scenes(count)
    return model.fit(x, y, **{"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}).history


def scenes(count=8, seed=0):
    """Bright rectangles, the class by the shape, one or two in an image."""
    rng = np.random.default_rng(seed)
    images = rng.normal(scale=0.1, size=(count, SIZE, SIZE, 1)).astype("float32")
    boxes = np.full((count, 2, 4), -1, "float32")
    classes = np.full((count, 2), -1, "float32")
    for i in range(count):
        for j in range(1 + i % 2):
            kind = rng.integers(NUM_CLASSES)
            width, height = ((8, 8), (8, 14), (14, 8))[kind]
            left, top = rng.integers(0, 2, 2) + (0, 16 * j)
            images[i, top : top + height, left : left + width] += 1
            boxes[i, j] = left, top, left + width, top + height
            classes[i, j] = kind
    return images, {"boxes": boxes, "classes": classes}
