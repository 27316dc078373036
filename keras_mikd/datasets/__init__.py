"""tf.data pipelines over TensorFlow Datasets; the digits and their scenes need no download."""

from keras_mikd.datasets.cifar import load_cifar10, load_cifar100
from keras_mikd.datasets.coco import load_coco
from keras_mikd.datasets.digit_scenes import load_digit_scenes
from keras_mikd.datasets.digits import load_digits
from keras_mikd.datasets.image_pipeline import ImagePipeline
from keras_mikd.datasets.images import load_images
from keras_mikd.datasets.loader import loader
from keras_mikd.datasets.splits import Splits

__all__ = [
    "load_cifar10",
    "load_cifar100",
    "load_coco",
    "load_digit_scenes",
    "load_digits",
    "ImagePipeline",
    "load_images",
    "loader",
    "Splits",
]
