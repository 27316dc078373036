"""Where a convolutional network looks: Eigen-CAM."""

import keras
import numpy as np
from keras import ops

from keras_mikd import checks
from keras_mikd.features.feature_taps import FeatureTaps
from keras_mikd.features.layer_graph import has_graph
from keras_mikd.features.stages import POOLED, stages

_BATCH = 64
# A map that varies by less than this fraction of its activations varies by rounding.
_NOISE = 1e-5


def eigen_cam(
    model: keras.Model, images: np.ndarray, place: str | None = None, *, center: bool = False
) -> np.ndarray:
    """Maps where the features of a convolutional network are strongest, by their first direction.

    For each image, the activations `A` of a convolutional layer, one row per location and one
    column per channel, are decomposed as `A = U S V^T`. The map is `A v_1`, the projection of every
    location on the first right singular vector. Negative values become 0, and the map is enlarged
    to the image bilinearly and stretched to [0, 1]. No gradients and no class are involved.

    The sign of `v_1` is arbitrary. It is chosen so that the positive values of `A v_1` hold at
    least half of its energy (sum of squares), or all of it after a ReLU. A map that is constant up
    to rounding has no preferred location and is returned as zeros.

    Args:
        model: Functional or built Sequential model, such as a teacher, with one input.
        images: Floats of shape `(n, height, width, channels)`, scaled as the model expects them;
            any number of channels.
        place: Place of the feature map (see `FeatureTaps`); `None` for the last stage that
            `stages` finds.
        center: Whether to subtract from each channel its mean over the locations of the image, so
            that `v_1` is a principal component. The paper does not; some implementations do.

    Returns:
        Float32 array of shape `(n, height, width)`, in [0, 1].

    Raises:
        ValueError: If the model is subclassed or has no feature map, the place holds none, the
            images do not fit the model, or activations are not finite.

    References:
        Muhammad and Yeasin, Eigen-CAM: Class Activation Map using Principal Components, IJCNN
        2020, arXiv:2008.00299. The stretch to [0, 1] and the choice of the sign are ours.

    Example:
    ```python
    heat = eigen_cam(teacher, images, "stage2")
    ```
    """
    images = np.asarray(images)
    _check_model(model)
    _check_images(model, images)
    place = _last_stage(model) if place is None else place
    taps = FeatureTaps(model, [place])
    _check_feature_map(taps.specs[place], place)
    batches = (images[first : first + _BATCH] for first in range(0, len(images), _BATCH))
    maps = (_first_direction(taps(batch, training=False)[place], center) for batch in batches)
    return np.concatenate([_stretched(*each, images.shape[1:3]) for each in maps])


def _first_direction(features, center):
    """Returns the rectified maps `(n, rows, columns)` and the largest activation of each image."""
    features = np.asarray(ops.cast(features, "float32"), np.float64)
    if not np.isfinite(features).all():
        raise ValueError("Expected finite activations. Received: nan or inf; look at the images.")
    num_images, rows, columns, channels = features.shape
    locations = features.reshape(num_images, rows * columns, channels)
    largest = np.linalg.norm(locations, axis=2).max(axis=1)
    if center:
        locations = locations - locations.mean(axis=1, keepdims=True)
    left, singular, _ = np.linalg.svd(locations, full_matrices=False)
    projected = left[:, :, 0] * singular[:, :1]  # A v_1 = s_1 u_1
    negative = np.sum(projected * np.abs(projected), axis=1, keepdims=True) < 0
    rectified = np.maximum(np.where(negative, -projected, projected), 0.0)
    return rectified.reshape(num_images, rows, columns), largest


def _stretched(maps, largest, size):
    """Enlarges maps to `size` and brings each of them to [0, 1]."""
    maps = ops.convert_to_tensor(maps[..., None], "float32")
    enlarged = ops.image.resize(maps, size, "bilinear", data_format="channels_last")
    enlarged = np.asarray(enlarged)[..., 0]
    lowest = enlarged.min(axis=(1, 2), keepdims=True)
    span = enlarged.max(axis=(1, 2), keepdims=True) - lowest
    varies = span > _NOISE * largest[:, None, None]
    stretched = (enlarged - lowest) / np.where(varies, span, 1.0)
    return np.where(varies, stretched, 0.0).astype("float32")


def _last_stage(model):
    found = stages(model).items()
    places = [place for place, stage in found if place != POOLED and len(stage.shape) == 4]
    if not places:
        raise ValueError(
            f"Expected a convolutional network. Received: model={model.name!r}, on whose way to "
            "the output `stages` finds no feature map. Name one with `place`."
        )
    return places[-1]


def _check_model(model):
    checks.model("model", model)
    if not has_graph(model):
        raise ValueError(
            "Expected a Functional model, or a Sequential one that has an input. Received: "
            f"model={type(model).__name__}."
        )
    if len(model.inputs) != 1:
        raise ValueError(
            f"Expected a model with one input, images. Received: {len(model.inputs)} inputs"
        )


def _check_images(model, images):
    expected = ("n", *model.inputs[0].shape[1:])
    fits = len(expected) == images.ndim == 4 and all(
        size in (None, got) for size, got in zip(expected[1:], images.shape[1:], strict=True)
    )
    if not fits or not images.size:
        raise ValueError(
            f"Expected images of the shape that model={model.name!r} takes, {expected}, n > 0. "
            f"Received: images of shape {images.shape}"
        )


def _check_feature_map(spec, place):
    shape = getattr(spec, "shape", None)
    if shape is None or len(shape) != 4:
        raise ValueError(
            "Expected the place of a feature map, (batch, height, width, channels). "
            f"Received: place={place!r}, of shape {shape}"
        )
