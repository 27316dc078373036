"""Runs that tests kill and start again: `RUNS[name](folder)` returns arrays by name at its end."""

import functools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

import keras_mikd as mikd

EPOCHS, BATCH, CLASSES = 4, 8, 3
L = keras.layers


def network(width, dropout=False, augment=False):
    inputs = keras.Input((8, 8, 1))
    x = L.RandomFlip()(inputs) if augment else inputs
    x = L.Conv2D(width, 3, activation="relu", name="conv")(x)
    x = L.BatchNormalization()(x)
    x = L.Dropout(0.3)(x) if dropout else x
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)))


def data(number=48):
    rng = np.random.default_rng(0)
    return rng.normal(size=(number, 8, 8, 1)).astype("float32"), np.arange(number) % CLASSES


def shuffled():
    return tf.data.Dataset.from_tensor_slices(data()).shuffle(48).batch(BATCH).prefetch(1)


def distilled(dropout, *others):
    losses = [mikd.SoftTargets(), *others]
    return mikd.Distiller(network(6), network(4, dropout), losses)


def critic():
    return mikd.JSDCritic(teacher_layer="conv", student_layer="conv")


def cache(folder, teacher, number=48, size=BATCH):
    def flipped(image, seed):
        return tf.image.stateless_random_flip_left_right(image, seed)

    return mikd.TeacherCache(
        teacher,
        *data(number),
        augment=flipped,
        views=2,
        folder=pathlib.Path(folder) / "cache",
        batch_size=size,
    )


def cached(folder):
    teacher = network(6)
    distiller = mikd.Distiller(teacher, network(4, True), [mikd.SoftTargets()])
    return distiller, cache(folder, teacher).build(verbose=0).batches(BATCH)


FITS = {
    "plain": lambda folder: (distilled(False, critic()), shuffled()),
    "dropout": lambda folder: (distilled(True), shuffled()),
    "arrays": lambda folder: (distilled(True), *data()),
    "mcmi": lambda folder: (
        mikd.MCMITeacher(network(6, True, True), centroids="epoch"),
        shuffled(),
    ),
    "mutual": lambda folder: (
        mikd.MutualDistiller([network(4, True), network(6)], [critic()]),
        shuffled(),
    ),
    "cached": cached,
}


def fit(kind, folder, callbacks=(), **options):
    """Returns the variables and the history of a run of a kind, as arrays by name."""
    keras.utils.set_random_seed(0)
    model, *data_of_fit = FITS[kind](folder)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    own = {} if kind == "mcmi" else {"loss": loss}
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"], **own)
    others = [keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=0.3, factor=0.7)]
    others += [mikd.LogLikelihoodGuard(-50.0)] if kind == "mcmi" else []
    resume = mikd.ExactResume(pathlib.Path(folder) / "resume", verbose=False, **options)
    arrays = len(data_of_fit) == 2
    history = model.fit(
        *data_of_fit,
        batch_size=BATCH if arrays else None,
        epochs=EPOCHS,
        verbose=0,
        shuffle=arrays,
        validation_data=tf.data.Dataset.from_tensor_slices(data(16)).batch(BATCH),
        callbacks=[resume, *others, *callbacks],
    )
    variables = {f"variable {i}": v.numpy() for i, v in enumerate(model.run_variables())}
    return variables | {name: np.array(values) for name, values in history.history.items()}


def checkpoints(folder):
    """Spends most of its time on writing; what a start before has left must be whole."""
    keras.utils.set_random_seed(0)
    path, student = (pathlib.Path(folder) / f"{name}.keras" for name in ("distiller", "student"))
    for each in (path, student):
        if each.exists():
            keras.saving.load_model(each)
    inputs = keras.Input((8, 8, 1))
    x = L.Dense(1500)(L.Dropout(0.2)(L.Dense(1500)(L.Flatten()(inputs))))
    model = mikd.SelfDistiller(keras.Model(inputs, L.Dense(CLASSES)(x)), [])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss)
    resume = mikd.ExactResume(pathlib.Path(folder) / "resume", verbose=False, save_freq=1)
    saving = [
        keras.callbacks.ModelCheckpoint(path),
        mikd.StudentCheckpoint(student, monitor="loss"),
    ]
    model.fit(shuffled(), epochs=2, verbose=0, shuffle=False, callbacks=[*saving, resume])
    loaded = keras.saving.load_model(path).run_variables()[:-1]
    loaded += keras.saving.load_model(student).weights
    return {str(i): v.numpy() for i, v in enumerate(loaded)}


def build(folder):
    """Returns what a cache of many batches holds."""
    keras.utils.set_random_seed(0)
    built = cache(folder, network(6), number=512, size=4).build(verbose=0)
    batches = list(built.batches(512, shuffle=False).as_numpy_iterator())
    return {f"part {i}": part for i, part in enumerate(keras.tree.flatten(batches))}


def export(folder):
    """Returns the bytes of an exported student."""
    keras.utils.set_random_seed(0)
    path = pathlib.Path(folder) / "student.tflite"
    mikd.export_tflite(network(6), path, overwrite=True)
    return {"bytes": np.frombuffer(path.read_bytes(), "uint8")}


RUNS = {
    **{f"{kind}, by epoch": functools.partial(fit, kind) for kind in FITS},
    **{f"{kind}, by steps": functools.partial(fit, kind, save_freq=2) for kind in FITS},
    "checkpoints": checkpoints,
    "cache": build,
    "export": export,
}
