"""A worker of a cluster that is killed in the middle of an epoch, where it is told so.

No test by itself: multi_worker_test.py starts it once for every worker, with `TF_CONFIG`.

    python tests/killed_worker.py <folder to write to> <worker to kill, or -1>
"""

import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cases
import cluster_worker
import keras
import numpy as np
import tensorflow as tf

EPOCHS = 4


class _Kill(keras.callbacks.Callback):
    """Kills this process in the second batch of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, killed):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    keras.utils.set_random_seed(0)
    with strategy.scope():
        distiller = cases.DISTILLERS["vid"](cases.teacher(), cases.student())
        distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), cases.cross_entropy())
    batches = tf.data.Dataset.from_tensor_slices(cluster_worker.data())
    batches = batches.batch(cluster_worker.BATCH)
    callbacks = [
        keras.callbacks.BackupAndRestore(f"{folder}/backup"),
        keras.callbacks.ModelCheckpoint(f"{folder}/checkpoint.weights.h5", save_weights_only=True),
        keras.callbacks.CSVLogger(f"{folder}/log.csv", append=True),
        keras.callbacks.TensorBoard(f"{folder}/logs", write_graph=False),
    ]
    callbacks += [_Kill()] if int(killed) == index else []
    history = distiller.fit(
        batches, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks
    ).history
    weights = {str(i): v.numpy() for i, v in enumerate(distiller.variables)}
    np.savez(f"{folder}/worker{index}.npz", epochs=len(history["loss"]), **weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
