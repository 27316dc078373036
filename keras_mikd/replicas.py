"""The only module that knows `tf.distribute`: the replicas of a step and the batch they share."""

import tensorflow as tf
from keras import ops


def count():
    """Returns the number of replicas that take the current step together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def scale(loss):
    """Divides a replica's mean loss by the number of replicas, because their gradients are summed.

    Keras does the same with its own losses.
    """
    return loss / count() if count() > 1 else loss


def gather(tensor):
    """Joins the batches of all replicas, in the order of the replicas.

    The gradient of an example flows back to the replica that holds it.

    Args:
        tensor: Tensor of shape `(local batch, ...)`.

    Returns:
        Tensor of shape `(global batch, ...)`; the tensor itself where there is one replica.
    """
    replica = _replica()
    return tensor if replica is None else replica.all_gather(tensor, axis=0)


def first_index(tensor):
    """Returns the index in the global batch of this replica's first example, an int32 scalar."""
    replica = _replica()
    if replica is None:
        return ops.zeros((), "int32")
    sizes = replica.all_gather(tf.shape(tensor)[:1], axis=0)
    return tf.reduce_sum(sizes[: replica.replica_id_in_sync_group])


def _replica():
    return tf.distribute.get_replica_context() if count() > 1 else None
