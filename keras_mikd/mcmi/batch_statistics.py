"""The statistics of BatchNormalization, measured over data instead of followed in training."""

import keras
from keras import ops

from keras_mikd.batches import take_apart
from keras_mikd.distribution import replicas
from keras_mikd.distribution.distributed_model import DistributedModel, as_logs
from keras_mikd.keras_internals import layers_of


def normalizations(model):
    """Returns the layers of BatchNormalization whose statistics move in training."""
    kind = keras.layers.BatchNormalization
    return [layer for layer in layers_of(model) if isinstance(layer, kind) and layer.trainable]


class BatchStatistics(DistributedModel):
    """A model whose `evaluate` sets the statistics of another one to their mean over the data.

    Batches weigh by their examples, and are normalized by their own statistics, as in training.
    """

    def __init__(self, model):
        super().__init__(name="batch_statistics")
        # Keras would track layers and a model that are attributes.
        self._run = lambda x: model(x, training=True)
        self._normalizations = lambda: normalizations(model)
        self.seen = self.add_weight(name="seen", trainable=False, aggregation="only_first_replica")
        self.built = True

    def evaluate(self, *args, **kwargs):
        self.seen.assign(0.0)
        return super().evaluate(*args, **kwargs)

    def test_step(self, data):
        x = take_apart(data).x
        examples = ops.cast(ops.shape(keras.tree.flatten(x)[0])[0], "float32")
        layers = self._normalizations()
        momenta = [layer.momentum for layer in layers]
        try:
            for layer in layers:  # So that what moves is the mean of all batches until now.
                layer.momentum = self.seen / ops.maximum(self.seen + examples, 1.0)
            replicas.run_network(self._run, x)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        self.seen.assign_add(examples)
        return as_logs({"examples": ops.convert_to_tensor(self.seen)})
