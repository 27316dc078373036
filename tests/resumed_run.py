"""A run that tests kill: `python resumed_run.py <kind> <folder>` writes its weights at its end.

Started again with the same arguments, it goes on.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

import keras_mikd as mikd

EPOCHS, BATCH, CLASSES = 4, 8, 3
L = keras.layers


def network(width, dropout=False):
    inputs = keras.Input((8, 8, 1))
    x = L.RandomFlip(seed=1)(inputs) if dropout else inputs
    x = L.Conv2D(width, 3, activation="relu", name="conv")(x)
    x = L.BatchNormalization()(x)
    x = L.Dropout(0.3)(x) if dropout else x
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))


def data(number=48):
    rng = np.random.default_rng(0)
    return rng.normal(size=(number, 8, 8, 1)).astype("float32"), np.arange(number) % CLASSES


def shuffled():
    return tf.data.Dataset.from_tensor_slices(data()).shuffle(48).batch(BATCH).prefetch(1)


def distilled(dropout=False, **kwargs):
    losses = [
        mikd.SoftTargets(),
        mikd.JSDCritic(teacher_layer="conv", student_layer="conv", **kwargs),
    ]
    return mikd.Distiller(network(6), network(4, dropout), losses)


def mutual():
    critic = mikd.JSDCritic(teacher_layer="conv", student_layer="conv")
    return mikd.MutualDistiller([network(4, True), network(6)], [critic])


def cached(folder):
    teacher = network(6)
    student = network(4, True)
    losses = [mikd.SoftTargets()]
    cache = mikd.TeacherCache(
        teacher,
        *data(),
        augment=lambda image, seed: tf.image.stateless_random_flip_left_right(image, seed),
        views=2,
        directory=folder / "cache",
        batch_size=BATCH,
    )
    return mikd.Distiller(teacher, student, losses), cache.build(verbose=0).batches(BATCH)


def run(kind, folder, callbacks=(), epochs=EPOCHS):
    """Returns the history and the weights of a run of a kind."""
    folder = pathlib.Path(folder)
    keras.utils.set_random_seed(0)
    steps = {"save_freq": 2} if kind.endswith("steps") else {}
    x, y = shuffled(), None
    if kind.startswith("dropout"):
        model = distilled(dropout=True)
    elif kind.startswith("arrays"):
        model, (x, y) = distilled(dropout=True), data()
    elif kind.startswith("mcmi"):
        model = mikd.MCMITeacher(network(6, True), centroids="epoch")
    elif kind.startswith("mutual"):
        model = mutual()
    elif kind.startswith("cached"):
        model, x = cached(folder)
    else:
        model = distilled()
    own = {} if kind.startswith("mcmi") else {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    }
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"], **own)
    others = [keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=0.3, factor=0.7)]
    if kind.startswith("mcmi"):
        others.append(mikd.LogLikelihoodGuard(-50.0))
    resume = mikd.ExactResume(folder / "resume", verbose=False, **steps)
    history = model.fit(
        x,
        y,
        batch_size=BATCH if y is not None else None,
        epochs=epochs,
        verbose=0,
        shuffle=y is not None,
        validation_data=tf.data.Dataset.from_tensor_slices(data(16)).batch(BATCH),
        callbacks=[resume, *others, *callbacks],
    )
    weights = {f"w{i}": v.numpy() for i, v in enumerate(model.run_variables())}
    logs = {f"log_{name}": np.array(values) for name, values in history.history.items()}
    return {**weights, **logs}


if __name__ == "__main__":
    kind, folder = sys.argv[1:]
    tf.config.experimental.enable_op_determinism()
    np.savez(pathlib.Path(folder) / "ended.npz", **run(kind, folder))
