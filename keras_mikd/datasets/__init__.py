"""tf.data pipelines over TensorFlow Datasets; the digits and their scenes need no download."""

from keras_mikd.datasets.cifar import load_cifar10 as load_cifar10
from keras_mikd.datasets.cifar import load_cifar100 as load_cifar100
from keras_mikd.datasets.coco import load_coco as load_coco
from keras_mikd.datasets.digit_scenes import load_digit_scenes as load_digit_scenes
from keras_mikd.datasets.digits import load_digits as load_digits
from keras_mikd.datasets.image_pipeline import ImagePipeline as ImagePipeline
from keras_mikd.datasets.images import load_images as load_images
from keras_mikd.datasets.loader import loader as loader
from keras_mikd.datasets.splits import Splits as Splits
