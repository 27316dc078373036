import types

import numpy as np
import tensorflow as tf

from keras_mikd.datasets import box_pipeline, streams


def _objects(boxes, labels):
    return {
        "bbox": tf.constant(boxes, tf.float32, shape=(len(boxes), 4)),
        "label": tf.constant(labels, tf.int64, shape=(len(labels),)),
    }


def test_boxes_are_in_pixels_left_top_right_bottom():
    objects = _objects([[0.25, 0.5, 0.75, 1.0]], [7])
    targets = box_pipeline.targets(objects, (40, 10), 1)
    assert targets["boxes"].numpy().tolist() == [[5, 10, 10, 30]]
    assert targets["classes"].numpy().tolist() == [7]
    assert targets["boxes"].dtype == targets["classes"].dtype == tf.float32


def test_fewer_boxes_are_filled_up_with_minus_one():
    targets = box_pipeline.targets(_objects([[0, 0, 1, 1]], [0]), (8, 8), 3)
    assert targets["boxes"].numpy().tolist() == [[0, 0, 8, 8], [-1] * 4, [-1] * 4]
    assert targets["classes"].numpy().tolist() == [0, -1, -1]


def test_an_image_without_boxes():
    targets = box_pipeline.targets(_objects([], []), (8, 8), 2)
    assert targets["boxes"].numpy().tolist() == [[-1] * 4] * 2
    assert targets["classes"].numpy().tolist() == [-1, -1]


def test_of_more_boxes_the_first_are_kept():
    boxes = [[0, 0, i / 4, 1] for i in range(1, 5)]
    targets = box_pipeline.targets(_objects(boxes, [3, 2, 1, 0]), (4, 4), 2)
    assert targets["boxes"].numpy().tolist() == [[0, 0, 4, 1], [0, 0, 4, 2]]
    assert targets["classes"].numpy().tolist() == [3, 2]


def _numbers(count):
    return tf.data.Dataset.from_tensor_slices((tf.range(count), tf.range(count)))


def test_training_batches_are_full_and_in_a_new_order_every_epoch():
    batches = streams.for_training(
        _numbers(10), lambda x, y, seed: (x, y), batch_size=4, seed=0, shuffle_buffer=10
    )
    first, second = ([x.numpy() for x, _ in batches] for _ in range(2))
    assert [x.shape for x in first] == [(4,), (4,)]
    assert batches.element_spec[0].shape == (4,)
    assert len(set(np.concatenate(first))) == 8
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()


def test_every_example_and_epoch_draws_with_a_seed_of_its_own():
    batches = streams.for_training(
        _numbers(8), lambda x, y, seed: (seed, y), batch_size=4, seed=0, shuffle_buffer=8
    )
    seeds = [int(seed) for _ in range(2) for x, _ in batches for seed in x]
    assert len(set(seeds)) == 16


def test_evaluation_keeps_the_order_and_the_rest():
    for count in (8, 10):
        batches = streams.for_evaluation(_numbers(count), lambda x, y: (x, y), batch_size=4)
        assert np.concatenate([x for x, _ in batches]).tolist() == list(range(count))
        assert batches.element_spec[0].shape.as_list() == [4 if count == 8 else None]


def _order(seed, shuffle_buffer):
    classes = types.SimpleNamespace(num_classes=7)
    features = {"objects": {"label": classes}}
    splits = box_pipeline.build_splits(
        types.SimpleNamespace(info=types.SimpleNamespace(features=features)),
        *(_numbers(12), None, _numbers(5)),
        prepare=lambda x, y, seed=None: (x, y),
        image_shape=(),
        **{"batch_size": 4, "seed": seed, "shuffle_buffer": shuffle_buffer},
    )
    assert (splits.num_train, splits.num_test, splits.num_classes) == (12, 5, 7)
    assert splits.validation is None and splits.num_validation == 0
    return np.concatenate([x for x, _ in splits.train]).tolist()


def test_the_order_is_that_of_the_seed_and_the_buffer():
    assert _order(seed=0, shuffle_buffer=12) == _order(seed=0, shuffle_buffer=12)
    assert _order(seed=0, shuffle_buffer=12) != _order(seed=1, shuffle_buffer=12)
    assert _order(seed=0, shuffle_buffer=1) == list(range(12))


def test_the_number_of_rows_is_known_before_an_image_is_read():
    images = tf.data.Dataset.from_generator(
        lambda: iter([_objects([[0, 0, 1, 1]], [0])]),
        output_signature={
            "bbox": tf.TensorSpec((None, 4)),
            "label": tf.TensorSpec((None,), tf.int64),
        },
    )
    padded = images.map(lambda objects: box_pipeline.targets(objects, (8, 8), 3))
    assert padded.element_spec["boxes"].shape == (3, 4)
    assert padded.element_spec["classes"].shape == (3,)
