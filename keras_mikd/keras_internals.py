"""Keras' private names: every use of one is in this file, with what to do when Keras changes it.

Seen in Keras 3.15. A name that is gone shows as an AttributeError out of this file, or as a failure
in `keras_internals_test.py`.
"""

import weakref
from typing import Any

import keras
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator


def layers_of(model, *, include_self=True, recursive=True):
    """Returns all layers of a model, those inside other layers too, outer ones first.

    With `recursive=False`, only those that the model or layer holds itself.

    `Layer._flatten_layers`. Without it: walk `Model.layers` and the layers that attributes hold.
    """
    return model._flatten_layers(include_self=include_self, recursive=recursive)


def weights_as_saved(model):
    """Returns the weights of a model with LoRA's factors in the kernels that they change.

    Files hold them so. `Dense._kernel`, and `_kernel` or `_embeddings` of the others with
    `enable_lora`. Without it: a teacher with LoRA is another one once it was saved and loaded.
    """
    merged, factors = {}, set()
    for layer in layers_of(model):
        if getattr(layer, "lora_enabled", False):
            name = "embeddings" if hasattr(layer, "lora_embeddings_a") else "kernel"
            factors |= {id(getattr(layer, f"lora_{name}_{end}")) for end in "ab"}
            merged[id(getattr(layer, f"_{name}"))] = getattr(layer, name)
    return [merged.get(id(each), each) for each in model.weights if id(each) not in factors]


def strategy_made_under(model):
    """Returns the strategy in whose scope a model was made; `None` for none.

    `Model._distribute_strategy`. The public `distribute_strategy` gives that of the moment instead
    of `None`; without the private one, keep `tf.distribute.get_strategy()` when a network comes in.
    """
    return model._distribute_strategy


def constant_arguments(node):
    """Returns what a call in a model's graph was made with, beside tensors and `None`.

    `...` stands for a tensor among the arguments of an operation, whose order is that of `1 - x` or
    `x - 1`. `Node.arguments`. Without it: fingerprints of models know no constants of operations,
    and `quantization_aware` takes none.
    """
    given = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    given = [... if isinstance(x, keras.KerasTensor) else x for x in given if x is not None]
    constants = [x for x in given if x is not ...]
    is_layer = isinstance(node.operation, keras.layers.Layer)
    return given if constants and not is_layer else constants


def operation_name(operation):
    """Returns the name of a Keras operation's class, as "Add" of `a + b`; `None` of a layer.

    Classes of `keras.src.ops`. Without them: `quantization_aware` knows no operations.
    """
    is_layer = isinstance(operation, keras.layers.Layer)
    return None if is_layer else type(operation).__name__


def operation_of(tensor):
    """Returns the layer or operation that a symbolic tensor came out of.

    `KerasTensor._keras_history`. Without it: `Function.operations` and their `output`.
    """
    return tensor._keras_history.operation


def nodes_behind(outputs):
    """Returns Keras' records of the calls that lead to symbolic tensors, inputs first.

    `Operation._inbound_nodes`, each with `operation`, `input_tensors`, `outputs` and
    `parent_nodes`. A layer's `.output` will not do: it is that of its first call ever, perhaps in
    another model. Without the records: `Function._nodes`, or a symbolic run of the model.
    """
    history = [tensor._keras_history for tensor in reversed(outputs)]
    stack = [record.operation._inbound_nodes[record.node_index] for record in history]
    ordered = {}
    while stack:
        waiting = [node for node in stack[-1].parent_nodes if node not in ordered]
        if waiting:
            stack.extend(reversed(waiting))
        else:
            ordered[stack.pop()] = None
    return list(ordered)


def has_keras_call(model):
    """Whether a model has no `call` of its own, which need not do what its graph says.

    The module `keras.src.models` is Keras'. Where it moves, no model has a graph any more, and
    `feature_taps_test.py` fails: put the new name here.
    """
    return type(model).call.__module__.startswith("keras.src.models.")


def mask_at(tensor):
    """Returns the mask that layers such as `Embedding(mask_zero=True)` give a tensor, or `None`.

    `_keras_mask`, of symbolic and real tensors. Without it: `Layer.compute_mask` along the graph.
    """
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor, mask):
    """Gives a tensor a mask, as Keras' layers do; compiled losses and metrics look for it there.

    `_keras_mask`. Without it: a mask as a sample weight, which users give in other ways too.
    """
    tensor._keras_mask = mask
    return tensor


def compiled_loss(model):
    """Returns the compiled task loss, a function `(y, y_pred, sample_weight)`, or `None`.

    `Trainer._compile_loss`. `Model.compute_loss` gives it only together with the regularizers.
    """
    return model._compile_loss


def forget_loss(model):
    """Lets `compile` start without the task loss of an earlier `compile`, which Keras keeps.

    `Trainer._compile_loss`, and `loss`, which is public.
    """
    model._compile_loss = model.loss = None


def loss_metrics(model):
    """Returns the names of the metrics that show the parts of the compiled loss."""
    return {metric.name for metric in model._compile_loss.metrics}


def scaled_penalty(model, penalty):
    """Returns a regularizer or `add_loss` term as Keras adds it to the loss of a replica.

    `Trainer._aggregate_additional_loss` sums it and divides it by the number of replicas.
    """
    return model._aggregate_additional_loss(penalty)


def show_loss(model, loss, batch_size):
    """Adds the loss of a batch to what Keras logs as `loss`.

    `Trainer._loss_tracker`. Without it: a `keras.metrics.Mean(name="loss")` of the model's own.
    """
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def is_validation_in_fit(arguments):
    """Whether `evaluate` was called with these keyword arguments by `fit`, for its validation data.

    `_use_cached_eval_dataset`. Without it the data is looked at once more: harmless.
    """
    return bool(arguments.get("_use_cached_eval_dataset"))


class Restore(keras.callbacks.BackupAndRestore):
    """Starts from a backup that another process writes, and writes none.

    `BackupAndRestore._save_model` writes. Where it is renamed, workers write over the chief's
    backup, and `worker_callbacks_test.py` fails.
    """

    def __init__(self, backup_dir):
        super().__init__(backup_dir, delete_checkpoint=False)

    def _save_model(self):
        pass


def global_seed():
    """Returns the variable with the state of what `keras.random` draws without a seed of its own.

    `keras.src.random.seed_generator`. Without it, such draws go on from another state after a
    restart.
    """
    return global_seed_generator().state


def unshared(config):
    """Returns a configuration without marks of shared objects, which it has while Keras saves.

    `shared_object_id`. While Keras loads a file, it makes one object of those with the same mark,
    such as one critic for all pairs of peers; and in each process marks are others. Where it is
    renamed, `mutual_distiller_test.py` and `save_teacher_test.py` fail.
    """
    if isinstance(config, dict):
        return {k: unshared(v) for k, v in config.items() if k != "shared_object_id"}
    if isinstance(config, (list, tuple)):
        return type(config)(map(unshared, config))
    return config


def begin_at(model, epoch):
    """Makes the `fit` that is running begin at an epoch.

    `Trainer._initial_epoch`, which `BackupAndRestore` sets too.
    """
    model._initial_epoch = epoch


def unseeded_draws(dataset):
    """Returns the kind of data set that draws without a seed in a pipeline, or `None`.

    `_inputs`, `_seed` and `_seed2` are TensorFlow's; two zeros stand for no seed. Without them,
    nothing is found, and `exact_resume_test.py` fails.
    """
    seeds = [getattr(dataset, name, None) for name in ("_seed", "_seed2")]
    if None not in seeds and not any(int(seed) for seed in seeds):
        return type(dataset).__name__.strip("_")
    return next(filter(None, map(unseeded_draws, dataset._inputs())), None)


class ModelBuiltFromSpecs(keras.Model):
    """A model that `fit` builds from the shapes of its batches, and not from one that it reads.

    Under a strategy, Keras reads a batch to build what `compile` made. That moves a seeded shuffle
    on, and on several hosts Keras averages the batch over them and fails. `_maybe_symbolic_build`,
    `_symbolic_build` and the iterator's `_distributed_dataset` are Keras'. Where they change,
    `distributed_model_test.py` and `multi_worker_test.py` fail.

    The data of the `fit` that is running can be read without training, by `read_epoch` and
    `skip_batches`. The iterator over epochs, its `_enumerate_iterator` and the trainer's
    `_get_metrics_result_or_logs` are Keras'. Where they change, `exact_resume_test.py` fails.
    """

    _epochs = None

    def batch_to_build_from(self, specs: Any) -> Any:
        """Returns `(x, y, sample_weight)` of the specs of a batch."""
        return specs

    def read_epoch(self) -> None:
        """Reads the next epoch of the data, as `fit` does, and drops it."""
        epochs = self._epochs()
        with epochs.catch_stop_iteration():
            for _, _, batches in epochs:
                _drop(batches, epochs.steps_per_execution)

    def skip_batches(self, number: int) -> None:
        """Makes the next epoch begin at batch `number`, after those before it were read.

        Builds the metrics, so that what they had counted can be restored.
        """
        epochs = self._epochs()
        self._build_from(epochs)
        whole = epochs._enumerate_iterator

        def rest():
            del epochs._enumerate_iterator
            for first, last, batches in whole():
                if first >= number:
                    yield first, last, batches
                else:
                    _drop_all(batches, epochs.steps_per_execution)

        epochs._enumerate_iterator = rest

    def forget_fit(self) -> None:
        """Forgets the data of a `fit`, and with which epoch it was told to begin."""
        self._epochs = self._initial_epoch = None

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self._epochs is None:  # Not that of an `evaluate` inside.
            self._epochs = weakref.ref(iterator)
        if self._distribute_strategy is None or iterator is None:
            return super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        self._build_from(iterator)

    def _build_from(self, epochs):
        specs = tf.nest.map_structure(_of_one_replica, epochs._distributed_dataset.element_spec)
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=self.batch_to_build_from(specs))

    def _get_metrics_result_or_logs(self, logs):
        # An epoch of which no batch was left after `skip_batches` has no logs of a last step.
        logs = super()._get_metrics_result_or_logs(logs or self.get_metrics_result())
        return logs | self.results_of_epoch()

    def results_of_epoch(self) -> dict[str, Any]:
        """Returns what the logs of an epoch have and those of a step do not."""
        return {}


def _drop(batches, steps):
    """Reads up to `steps` batches; raises `StopIteration` if there is none, as a step does."""
    next(batches)
    for _ in range(steps - 1):
        next(batches, None)


def _drop_all(batches, steps):
    try:
        _drop(batches, steps)
    except StopIteration:
        raise ValueError(
            "Expected the data that the run began with, to go on in the middle of an epoch. "
            "Received: data with fewer batches. Remove the folder of ExactResume to begin anew."
        ) from None


def _of_one_replica(spec):
    return tf.nest.flatten(spec, expand_composites=True)[0]
