"""The replicas of a step and the batch that they share, by `tf.distribute`."""

import tensorflow as tf

from keras_mikd.keras_internals import mask_at, with_mask


def count():
    """Returns the number of replicas that take the current step together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def entered_strategy():
    """Returns the strategy in whose scope this is called, or `None`."""
    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def on_several_hosts():
    """Whether the replicas of the current step belong to several processes."""
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(len(cluster.get(job, [])) for job in ("chief", "worker")) > 1


def is_chief():
    """Whether this process is the one that writes files: the first of several, or the only one."""
    if not on_several_hosts():
        return True
    resolver = tf.distribute.get_strategy().cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def scale(loss):
    """Divides a replica's mean loss by their number, as Keras does: their gradients are summed."""
    return loss / count() if count() > 1 else loss


def gather(tensor):
    """Joins the batches of all replicas, in the order of the replicas: `(global batch, ...)`.

    The gradient of an example flows back to the replica that holds it. With one replica this is the
    tensor itself.
    """
    replica = _replica()
    if replica is None:
        return tensor
    if tensor.shape[0]:  # Known, so every replica has examples; a TPU needs known shapes.
        rows = replica.all_gather(tensor, axis=0)
    else:
        size = tf.shape(tensor)[0]
        is_example = tf.cast(tf.range(tf.maximum(size, 1)) < size, tf.int32)
        rows = replica.all_gather(_at_least_one(tensor), axis=0)
        rows = tf.boolean_mask(rows, replica.all_gather(is_example, axis=0) == 1)
    rows.set_shape((None, *tensor.shape[1:]))
    return rows


def sum_over_all(tensors):
    """Returns the sums of tensors, of the same shapes on all replicas, over the replicas."""
    replica = _replica()
    if replica is None or not tensors:
        return tensors
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def run_network(network, x, *, filled=tf.zeros):
    """Runs a network on the batch of a replica, even where the last batch left the replica none.

    `x` is a tensor `(local batch, ...)` or a structure of such tensors, and so is the result.
    Convolutions fail on a batch without rows. Such a replica runs on a row that `filled` makes,
    whose output is dropped, so no gradient flows back. Layers with a state, such as
    BatchNormalization, see that row. Inputs of a user's network are filled with `ones`: zeros would
    be a text of padding alone, whose masked mean is not a number, and neither is 0 times that.
    """
    first, *_ = tf.nest.flatten(x)
    if count() == 1 or first.shape[0]:
        return network(x)
    added = tf.cast(tf.equal(tf.shape(first)[0], 0), tf.int32)
    outputs = network(tf.nest.map_structure(lambda part: _at_least_one(part, filled), x))
    return tf.nest.map_structure(lambda output: _without_last(output, added), outputs)


def own_part(tensor, *, of):
    """Returns the rows of a tensor `(global batch, ...)` that belong to this replica's `of`."""
    first = first_index(of)
    return tensor[first : first + tf.shape(of)[0]]


def first_index(tensor):
    """Returns the index in the global batch of this replica's first example, an int32 scalar."""
    sizes, own = batch_sizes(tensor)
    return tf.reduce_sum(sizes[:own])


def batch_sizes(tensor):
    """Returns the batch sizes of all replicas, an int32 vector, and the index of this replica."""
    size, replica = tf.shape(tensor)[:1], _replica()
    if replica is None:
        return size, 0
    return replica.all_gather(size, axis=0), replica.replica_id_in_sync_group


def _without_last(output, added):
    """Drops the last `added` rows of an output, and of the mask that Keras' losses look for."""
    number = tf.shape(output)[0] - added
    mask = mask_at(output)
    return output[:number] if mask is None else with_mask(output[:number], mask[:number])


def _at_least_one(tensor, filled=tf.zeros):
    """Gives a replica without examples a row, to drop later.

    Neither collectives nor some kernels accept a tensor without rows.
    """
    shape = tf.shape(tensor)
    missing = tf.cast(tf.equal(shape[:1], 0), tf.int32)
    # Not tf.pad: on a CPU, TensorFlow fuses it with the convolution that follows, as if it padded
    # rows and columns.
    return tf.concat([tensor, filled(tf.concat([missing, shape[1:]], 0), tensor.dtype)], axis=0)


def ones(shape, dtype):
    """Returns `tf.ones`, and of texts empty ones."""
    return tf.zeros(shape, dtype) if dtype == tf.string else tf.ones(shape, dtype)


def _replica():
    return tf.distribute.get_replica_context() if count() > 1 else None
