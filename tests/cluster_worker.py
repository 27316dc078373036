"""One worker of a cluster: trains the runs that it is told and saves what came out.

No test by itself: multi_worker_test.py starts it once for every worker, with `TF_CONFIG`.

    python tests/cluster_worker.py <folder to write to> <names of runs>
    python tests/cluster_worker.py <folder to write to> two_devices <names of runs>
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import detectors
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy

import keras_mikd as mikd

BATCH = 16
EXAMPLES = 48


def _with(*losses, **kwargs):
    return mikd.Distiller(cases.teacher(), cases.student(), losses, xla_critics=False, **kwargs)


# Three steps of one device, two replicas, or two workers shall give the same weights.
RUNS = {
    "kd": lambda: cases.distiller_with(cases.LOSSES["soft_targets"]()),
    "vid": lambda: cases.DISTILLERS["vid"](cases.teacher(), cases.student()),
    "mimkd": lambda: mikd.MIMKDDistiller(cases.teacher(), cases.student(), xla_critics=False),
    "info_nce_in_batch": lambda: cases.distiller_with(cases.LOSSES["info_nce_critic"]()),
    "muse": lambda: cases.DISTILLERS["muse"](None, cases.student()),
    "mutual": lambda: cases.DISTILLERS["mutual"](cases.teacher(), cases.student()),
    "mcmi": lambda: mikd.MCMITeacher(cases.teacher(), centroids="epoch", separation_weight=0.01),
}
# Those that send nothing of their own, or what another one sends as well.
SLOW = ("kd", "vid", "info_nce_in_batch", "muse")

SLOW_RUNS = {
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


def run(name, scope, x, y):
    """Returns everything that a run of one epoch leaves, as arrays by name."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    with scope:
        model = {**RUNS, **SLOW_RUNS}[name]()
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        if name == "detector":
            detectors.compiled(model)
        else:
            own = isinstance(model, mikd.MCMITeacher)
            model.compile(optimizer, None if own else cases.cross_entropy(), metrics=["accuracy"])
    batches = _batches(name, x, y)
    history = model.fit(
        batches, validation_data=batches, epochs=1, shuffle=False, verbose=0
    ).history
    results = {
        **{f"weights/{i}": v.numpy() for i, v in enumerate(model.trainable_variables)},
        **{f"history/{key}": np.array(values[-1]) for key, values in history.items()},
    }
    if name in ("vid", "mutual"):  # The others go through the same code.
        evaluated = model.evaluate(batches, verbose=0, return_dict=True)
        results |= {f"evaluate/{key}": np.array(value) for key, value in evaluated.items()}
        # Seven examples in the last batch: one replica has fewer, and all of them some.
        predicted = model.predict(data()[0][:15], batch_size=8, verbose=0)
        results["predict"] = np.concatenate(keras.tree.flatten(predicted))
    return results


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
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x, y = data()
    results = {}
    for name in names:
        for key, value in run(name, strategy.scope(), x, y).items():
            results[f"{name}/{key}"] = value
        print(name, "done", flush=True)
    index = strategy.cluster_resolver.task_id
    np.savez(f"{folder}/worker{index}.npz", replicas=strategy.num_replicas_in_sync, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
