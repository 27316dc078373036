"""One worker of a cluster: trains what it is told and saves what came out.

No test by itself: multi_worker_test.py starts it once for every worker, with `TF_CONFIG`.

    python tests/cluster_worker.py <folder to write to> <names of runs>
    python tests/cluster_worker.py <folder to write to> two_devices <names of runs>
    python tests/cluster_worker.py <folder to write to> <names of runs> backups <worker to kill>
"""

import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

import detectors
import keras_mikd as mikd

BATCH = 16
EXAMPLES = 48

# Three steps of one device, two replicas, or two workers shall give the same weights. The first one
# has features, read-outs, and a critic whose negatives and labels come from both workers.
RUNS = {
    "distiller": lambda: mikd.Distiller(
        cases.teacher(),
        cases.student(),
        [cases.LOSSES["jsd_other_classes"](), cases.LOSSES["vid_logits"]()],
        xla_critics=False,
    ),
    "kd": lambda: cases.distiller_with(cases.LOSSES["soft_targets"]()),
    "vid": lambda: cases.DISTILLERS["vid"](cases.teacher(), cases.student()),
    "mimkd": lambda: mikd.MIMKDDistiller(cases.teacher(), cases.student(), xla_critics=False),
    "info_nce_in_batch": lambda: cases.distiller_with(cases.LOSSES["info_nce_critic"]()),
    "muse": lambda: cases.DISTILLERS["muse"](None, cases.student()),
    "mutual": lambda: cases.DISTILLERS["mutual"](cases.teacher(), cases.student()),
    "mcmi": lambda: mikd.MCMITeacher(cases.teacher(), centroids="epoch", separation_weight=0.01),
    "task_alone": lambda: mikd.SelfDistiller(cases.student(), []),
    "kd_cached": lambda: cases.distiller_with(cases.LOSSES["soft_targets"]()),
    "detector": lambda: detectors.alone(),
}


def data():
    x, y = cases.data(EXAMPLES)
    y[: cases.NUM_CLASSES] = np.arange(cases.NUM_CLASSES)
    return x, y


def _batches(name, x, y):
    if name == "kd_cached":
        return mikd.TeacherCache(cases.teacher(), x, y).build(verbose=0).batches(BATCH)
    if name == "detector":
        # The same boxes for both workers: each divides by the boxes that it has.
        scenes = detectors.scenes(BATCH // 2)
        x, y = tf.nest.map_structure(lambda array: np.concatenate([array, array]), scenes)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def _compiled(model, name):
    if name == "detector":
        return detectors.compiled(model)
    own_loss = isinstance(model, mikd.MCMITeacher)
    # At 0.05, MIMKD makes 5e-5 of a start that is moved by 1e-7, more than of other sums.
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9)
    model.compile(optimizer, None if own_loss else cases.cross_entropy(), metrics=["accuracy"])
    return model


def run(name, scope, x, y):
    """Returns everything that a run of one epoch leaves, as arrays by name."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    with scope:
        model = _compiled(RUNS[name](), name)
    batches = _batches(name, x, y)
    history = model.fit(
        batches, validation_data=batches, epochs=1, shuffle=False, verbose=0
    ).history
    results = {
        **{f"weights/{i}": v.numpy() for i, v in enumerate(model.trainable_variables)},
        **{f"history/{key}": np.array(values[-1]) for key, values in history.items()},
    }
    if name in ("distiller", "mutual"):  # The others go through the same code.
        evaluated = model.evaluate(batches, verbose=0, return_dict=True)
        results |= {f"evaluate/{key}": np.array(value) for key, value in evaluated.items()}
        # Seven examples in the last batch: one replica has fewer, and all of them some.
        predicted = model.predict(data()[0][:15], batch_size=8, verbose=0)
        results["predict"] = np.concatenate(keras.tree.flatten(predicted))
    return results


class _Kill(keras.callbacks.Callback):
    """Kills this process in the second batch of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def run_with_backups(folder, scope, kill):
    """Returns the epochs and weights of a run of four epochs whose chief writes files."""
    keras.utils.set_random_seed(0)
    with scope:
        model = _compiled(RUNS["kd"](), "kd")
    callbacks = [
        mikd.ExactResume(f"{folder}/backup", save_freq=1, verbose=False),
        keras.callbacks.ModelCheckpoint(f"{folder}/checkpoint.weights.h5", save_weights_only=True),
        mikd.StudentCheckpoint(f"{folder}/student.keras", save_best_only=False),
        keras.callbacks.CSVLogger(f"{folder}/log.csv", append=True),
        keras.callbacks.TensorBoard(f"{folder}/logs", write_graph=False),
    ]
    callbacks += [_Kill()] if kill else []
    batches = _batches("kd", *data())
    history = model.fit(batches, epochs=4, shuffle=False, verbose=0, callbacks=callbacks).history
    weights = {str(i): v.numpy() for i, v in enumerate(model.variables)}
    return {"epochs": len(history["loss"]), **weights}


def take_two_devices():
    """Lets a worker have two CPU devices; of GPUs the strategy takes all, of CPUs only one."""
    device = tf.config.LogicalDeviceConfiguration()
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [device, device])

    def local_devices(self, cluster_resolver, worker_device):
        return tuple(f"{worker_device}/device:CPU:{i}" for i in range(2)), "CPU"

    strategy = collective_all_reduce_strategy.CollectiveAllReduceExtended
    strategy._initialize_local_devices = local_devices


def main(folder, *names):
    if names[:1] == ("two_devices",):
        names = names[1:]
        take_two_devices()
    names, killed = (names[:-2], names[-1]) if "backups" in names else (names, None)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    results = {"replicas": strategy.num_replicas_in_sync}
    for name in names:
        for key, value in run(name, strategy.scope(), *data()).items():
            results[f"{name}/{key}"] = value
        print(name, "done", flush=True)
    np.savez(f"{folder}/worker{index}.npz", **results)
    if killed is not None:
        left = run_with_backups(folder, strategy.scope(), kill=int(killed) == index)
        np.savez(f"{folder}/backups{index}.npz", **left)


if __name__ == "__main__":
    main(*sys.argv[1:])
