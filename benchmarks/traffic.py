"""What a training step sends from one replica to others, counted in the graph that `fit` runs.

No script by itself: `import traffic` works where one of the benchmarks is started.
"""

import collections
import math
from typing import NamedTuple

import tensorflow as tf

KINDS = REDUCE, GATHER, COPY = "CollectiveReduceV2", "CollectiveGatherV2", "copy"
_SCOPE = "traffic/"


class Sent(NamedTuple):
    """A tensor that leaves a replica in every step."""

    kind: str
    """`REDUCE` or `GATHER`: what the replica puts into a collective; `COPY`: to another device."""
    name: str
    bytes: int
    parts: tuple = ()
    """Sizes of the tensors that were packed into this one, as gradients are."""


class Traffic:
    """Listens to a model's training steps; to be made before `fit` and asked after it."""

    def __init__(self, model):
        self._step = model.train_step
        self._sizes, self._traced, self.graph = {}, 0, None
        model.train_step = self._train_step

    def _train_step(self, data):
        logs = self._step(data)
        self._traced += 1
        # Replicas are traced one after another into one graph, so the last sees the ops of all.
        if self._traced % len(tf.distribute.get_strategy().extended.worker_devices) == 0:
            self.graph = tf.compat.v1.get_default_graph()
            with tf.name_scope(_SCOPE):
                self._note_unknown_sizes()
        return logs

    def _note_unknown_sizes(self):
        """Makes the step tell the sizes that the graph leaves open, as that of a gathered batch."""
        for _, tensor in self._sent():
            if not tensor.shape.is_fully_defined():
                with tf.device(tensor.device):
                    size = tf.size(tensor)
                tf.numpy_function(self._note, [tensor.name, size], [])

    def _note(self, name, size):
        self._sizes[name.decode()] = int(size)

    def by_device(self):
        """Returns `{device: [Sent]}`."""
        result = collections.defaultdict(list)
        for kind, tensor in self._sent():
            # Only what Keras reduces after the step, the logs, is not noted.
            known = tensor.shape.is_fully_defined()
            size = math.prod(tensor.shape) if known else self._sizes[tensor.name]
            sent = Sent(kind, tensor.name, size * tensor.dtype.size, _parts(tensor.op))
            result[tensor.device].append(sent)
        return dict(result)

    def _sent(self):
        """Returns `(kind, tensor)` of all that leaves a device."""
        operations = [op for op in self.graph.get_operations() if _SCOPE not in op.name]
        found = [(op.type, op.inputs[0]) for op in operations if op.type.startswith("Collective")]
        functions = self.graph.as_graph_def().library.function
        nested = {node.op for function in functions for node in function.node_def}
        missed = {kind for kind, _ in found} - {REDUCE, GATHER}
        missed |= {kind for kind in nested if kind.startswith("Collective")}
        if missed:
            raise ValueError(f"Expected {REDUCE} and {GATHER} outside functions only; got {missed}")
        return found + [(COPY, tensor) for tensor in _copied(operations)]


def _copied(operations):
    """Tensors that an operation reads on another device than its own."""
    copies = {}
    for op in operations:
        # TensorFlow puts an operation without a device where its first input is.
        own = next((d for d in (op.device, *(x.device for x in op.inputs)) if d), "")
        for tensor in op.inputs:
            if tensor.device not in ("", own):
                copies[tensor.name, own] = tensor
    return copies.values()


def _parts(operation):
    """Sizes of the tensors that an operation joins, where they are known."""
    parts = [x.shape for x in operation.inputs[:-1]] if operation.type == "ConcatV2" else []
    known = all(shape.is_fully_defined() for shape in parts)
    return tuple(math.prod(shape) for shape in parts) if known else ()
