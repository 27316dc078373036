"""Replicas of a step: how many, what they share, and where a gradient goes."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mikd.distribution import replicas

BATCHES = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8]])


def on_each(strategy, function, batches=BATCHES):
    """What `function` returns on each replica; it is given that replica's batch."""
    batches = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(batches[context.replica_id_in_sync_group])
    )
    run = tf.function(lambda: strategy.run(function, args=(batches,)))
    return [value.numpy() for value in strategy.experimental_local_results(run())]


def test_without_a_strategy_there_is_one_replica_with_the_whole_batch():
    batch = tf.constant(BATCHES[0])
    assert replicas.count() == 1
    assert replicas.scale(6.0) == 6.0
    assert replicas.gather(batch) is batch
    assert int(replicas.first_index(batch)) == 0


def test_replicas_are_counted_and_share_the_loss(two_replicas):
    losses = on_each(two_replicas, lambda x: replicas.scale(tf.reduce_sum(x)))
    assert losses == [5.0, 13.0]
    with two_replicas.scope():
        assert replicas.count() == 2


def test_every_replica_sees_the_batches_in_the_order_of_the_replicas(two_replicas):
    gathered = on_each(two_replicas, replicas.gather)
    for seen in gathered:
        np.testing.assert_array_equal(seen, np.concatenate(BATCHES))
    assert on_each(two_replicas, replicas.first_index) == [0, 2]


@pytest.mark.parametrize("sizes", [(2, 2), (2, 0), (0, 2)])
def test_a_network_runs_on_the_examples_that_there_are(two_replicas, sizes):
    kernel, images = np.ones((2, 2, 1, 3), "float32"), np.ones((sum(sizes), 4, 4, 1), "float32")
    batches = images[: sizes[0]], images[sizes[0] :]

    def outputs_and_gradient(x):
        x = tf.boolean_mask(x, tf.ones_like(x[:, 0, 0, 0], "bool"))
        weights = tf.constant(kernel)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            outputs = replicas.run_network(lambda x: tf.nn.conv2d(x, weights, 1, "VALID"), x)
            total = tf.reduce_sum(outputs)
        # One tensor of both: the rows, and what the gradient is of.
        return tf.stack(
            [tf.shape(outputs)[0], tf.cast(tape.gradient(total, weights)[0, 0, 0, 0], tf.int32)]
        )

    seen = on_each(two_replicas, outputs_and_gradient, batches)
    np.testing.assert_array_equal(seen, [[size, 9 * size] for size in sizes])


def test_the_gradient_of_an_example_is_the_sum_over_the_replicas_that_used_it(two_replicas):
    factors = tf.constant([[1.0], [10.0], [100.0], [1000.0]])

    def gradient(x):
        own = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group + 1, "float32")
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = own * tf.reduce_sum(factors * replicas.gather(x))
        return tape.gradient(loss, x)

    first, second = on_each(two_replicas, gradient)
    np.testing.assert_array_equal(first, [[3.0, 3.0], [30.0, 30.0]])
    np.testing.assert_array_equal(second, [[300.0, 300.0], [3000.0, 3000.0]])
