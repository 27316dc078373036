"""Data sets by name."""

import functools

import pytest

from keras_mikd import datasets


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_data_sets_with_a_function_of_their_own_have_its_defaults(name):
    assert datasets.loader(name) is getattr(datasets, f"load_{name}")


def test_others_are_loaded_by_their_name(tmp_path):
    load = datasets.loader("fashion_mnist")
    assert isinstance(load, functools.partial)
    with pytest.raises(FileNotFoundError, match="fashion_mnist"):
        load(data_dir=tmp_path)
