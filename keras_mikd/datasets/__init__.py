"""tf.data pipelines over TensorFlow Datasets; `load_digits` needs no download."""

from keras_mikd.datasets.cifar import load_cifar10 as load_cifar10
from keras_mikd.datasets.cifar import load_cifar100 as load_cifar100
from keras_mikd.datasets.digits import load_digits as load_digits
from keras_mikd.datasets.splits import Splits as Splits
