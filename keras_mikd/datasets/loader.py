"""Data sets by name, for scripts that take one as a flag."""

import functools
from collections.abc import Callable

from keras_mikd.datasets.cifar import load_cifar10, load_cifar100
from keras_mikd.datasets.digits import load_digits
from keras_mikd.datasets.images import load_images

_OWN = {"digits": load_digits, "cifar10": load_cifar10, "cifar100": load_cifar100}


def loader(name: str) -> Callable:
    """Returns the function that loads a data set of images and labels.

    Args:
        name: `"digits"`, or the name of an image classifier in TFDS.

    Returns:
        `load_digits`, `load_cifar10`, `load_cifar100`, or `load_images` of that name.

    Example:
    ```python
    fashion = loader("fashion_mnist")(labels_per_class=50, download=True)
    ```
    """
    return _OWN.get(name) or functools.partial(load_images, name)
