import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


def _distiller(**kwargs):
    distiller = cases.distiller_with(cases.LOSSES["soft_targets"]())
    distiller.compile("sgd", cases.cross_entropy(), metrics=["accuracy"], **kwargs)
    return distiller


def _counted(reads):
    """Batches that write down how often they are read."""

    def count(x, y):
        reads.append(len(x))
        return x, y

    x, y = cases.data()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    return data.map(
        lambda x, y: tf.numpy_function(count, (x, y), (tf.float32, tf.int64)),
        num_parallel_calls=1,
        deterministic=True,
    ).map(
        lambda x, y: (tf.ensure_shape(x, (None, *cases.IMAGE_SHAPE)), tf.ensure_shape(y, (None,)))
    )


def test_no_batch_is_read_before_the_first_step_and_logs_of_one_host_are_scalars(two_replicas):
    """Keras reads a batch to build from, which moves the order of a seeded shuffle."""
    with two_replicas.scope():
        distiller = _distiller()
    reads = []
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    batches = _counted(reads).with_options(options)
    history = distiller.fit(batches, epochs=1, shuffle=False, verbose=0).history
    assert sum(reads) == 16
    assert all(np.shape(values) == (1,) for values in history.values())


@pytest.mark.parametrize("as_data_set", [False, True])
def test_a_batch_smaller_than_the_replicas_is_refused(two_replicas, as_data_set):
    with two_replicas.scope():
        distiller = _distiller()
    x, y = cases.data(4)
    with pytest.raises(ValueError, match="at least 2 examples.*Received: batches of 1. The batch"):
        if as_data_set:
            batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(1, drop_remainder=True)
            distiller.fit(batches, shuffle=False, verbose=0)
        else:
            distiller.fit(x, y, batch_size=1, verbose=0)


def test_on_one_host_a_batch_of_one_is_trained():
    history = _distiller(run_eagerly=True).fit(*cases.data(2), batch_size=1, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_errors_of_one_host_are_tensorflows_own():
    class Unavailable(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise tf.errors.UnavailableError(None, None, "the disk is gone")

    with pytest.raises(tf.errors.UnavailableError, match="the disk is gone"):
        _distiller().fit(*cases.data(), verbose=0, callbacks=[Unavailable()])


def test_the_states_of_more_than_ten_dropouts_keep_their_order(tmp_path):
    inputs = x = keras.Input((4,))
    for _ in range(12):
        x = keras.layers.Dropout(0.5)(x)
    distiller = mikd.SelfDistiller(keras.Model(inputs, keras.layers.Dense(3)(x)), [])
    distiller.compile("sgd", cases.cross_entropy())
    for number, seed in enumerate(distiller._seeds()):
        seed.assign([number, number])
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert [int(seed[0]) for seed in loaded._seeds()] == [*range(12)]
