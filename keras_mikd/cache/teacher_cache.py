"""A teacher that runs once: its tensors for every example, kept for any number of epochs."""

import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.atomic_files import write_whole
from keras_mikd.cache import fingerprints
from keras_mikd.cache.batches import Batch
from keras_mikd.cache.views import MIXES, Views
from keras_mikd.features.feature_taps import OUTPUT, FeatureTaps

_MANIFEST = "manifest.json"
_PROBES = 16


class TeacherCache:
    """Runs a teacher once over a data set and keeps the places that distillation losses read.

    Any number of epochs and students then trains through the same `Distiller` and `fit`:

    ```python
    cache = keras_mikd.TeacherCache(teacher, images, labels, places=["stage2", "output"])
    cache.build()
    distiller = keras_mikd.VIDDistiller(teacher, student)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(cache.batches(64), epochs=100, shuffle=False)
    ```

    With `augment` or `mix`, every example has `views` views, each drawn from a seed of its own: the
    student sees exactly the images that the teacher saw. An epoch shows each example once, in one
    view. A folder holds one memory-mapped `.npy` file per place; an interrupted build continues
    there. Other weights of the teacher, data, views, places or precision than those of the folder
    are refused. Training from a float32 cache gives the weights of training without one, up to
    rounding.

    Args:
        teacher: Trained Keras model.
        images: Array of shape `(n, ...)`, as the networks take them; or a finite `tf.data.Dataset`
            of batches `(images, labels)`, read once, here. For a `directory`, it must give the same
            in every run.
        labels: Integer labels, shape `(n,)`; none for a data set.
        places: Places to keep, see `FeatureTaps`; always with `"output"`.
        augment: Function `(image, seed) -> image` of stateless TensorFlow operations on one image,
            with `seed` an int32 tensor of shape `(2,)`; or `None`.
        mix: `"mixup"`, `"cutmix"` or `None`. The labels become distributions: train with
            `CategoricalCrossentropy`.
        mix_alpha: Both parameters of the beta distribution of an image's share, above 0.
        views: Views of every example, at least 1.
        seed: Seed of the views, an integer from 0 to 2**29 - 1.
        dtype: `"float32"` or `"float16"`, the precision of what is kept.
        top_k: Number of largest logits to keep of `"output"`, or `None` for all. The others are
            read back as equal, with their joint probability at temperature 1.
        directory: Folder of the cache, or `None` for memory.
        max_bytes: Largest cache that may be built.
        batch_size: Examples that the teacher sees at once.
        features: Function `(model, x, training) -> {place: tensor}` for a subclassed teacher.

    Raises:
        ValueError: If an argument is out of range, a place does not exist, the cache would be
            larger than `max_bytes`, or the folder holds another cache (the difference is named).
    """

    def __init__(
        self,
        teacher,
        images,
        labels=None,
        places=(),
        *,
        augment=None,
        mix=None,
        mix_alpha=1.0,
        views=1,
        seed=0,
        dtype="float32",
        top_k=None,
        directory=None,
        max_bytes=2**30,
        batch_size=64,
        features=None,
    ):
        images, labels = _arrays(images, labels)
        _check(images, labels, mix, mix_alpha, views, seed, dtype, batch_size)
        self.batch_size, self._dtype = batch_size, dtype
        symbolic = keras.KerasTensor((None, *images.shape[1:]), dtype=str(images.dtype))
        inputs = None if features is None else symbolic
        self._taps = FeatureTaps(teacher, places, features=features, inputs=inputs)
        self.places = self._taps.places
        self._specs = {place: _fixed(place, self._taps.specs[place]) for place in self.places}
        self._classes = self._specs[OUTPUT].shape[-1]
        self._top_k = checks.integer(
            "top_k", top_k, at_least=1, at_most=self._classes - 1, optional=True
        )
        self._views = Views(
            images,
            labels,
            augment=augment,
            mix=mix,
            mix_alpha=mix_alpha,
            num_classes=self._classes,
            views=views,
            seed=seed,
        )
        self.views = views
        self._columns = self._all_columns()
        sizes = [np.dtype(t).itemsize * int(np.prod(s)) for s, t in self._columns.values()]
        self.nbytes = self._views.rows * sum(sizes)
        if self.nbytes > max_bytes:
            raise ValueError(
                f"Expected a cache of at most {_readable(max_bytes)} (max_bytes={max_bytes}). "
                f"Received: {self._views.rows} rows of {_readable(sum(sizes))}, together "
                f"{_readable(self.nbytes)}. Keep fewer places or views, float16, top_k logits, or "
                "raise `max_bytes`."
            )
        self._key = fingerprints.of_model(teacher)
        self._directory = None if directory is None else pathlib.Path(directory)
        self._fingerprint = (
            None if directory is None else self._identity(features, seed, mix, mix_alpha)
        )
        self._arrays, self._done = None, 0
        self._check_directory()

    def build(self, verbose=1):
        """Runs the teacher over all rows that it has not seen yet, and returns the cache itself.

        Args:
            verbose: Whether to show the size and a progress bar.
        """
        if self._arrays is None:
            self._open()
        rows, size = self._views.rows, self.batch_size
        if verbose:
            place = "memory" if self._directory is None else str(self._directory)
            print(f"TeacherCache: {rows} rows, {_readable(self.nbytes)} in {place}", flush=True)
        progress = keras.utils.Progbar(rows, verbose=int(bool(verbose)), unit_name="row")
        progress.update(self._done)
        forward = tf.function(self._forward)
        while self._done < rows:
            first, last = self._done, min(self._done + size, rows)
            # Batches of one size need one trace and round as in training.
            columns = forward(tf.range(first, first + size, dtype=tf.int64) % rows)
            for name, array in self._arrays.items():
                array[first:last] = columns[name][: last - first].numpy()
            self._advance(last)
            progress.update(last)
        return self

    def batches(self, batch_size, *, seed=0, shuffle=True, with_teacher=True, first_epoch=0):
        """Returns batches for `Distiller.fit`.

        Args:
            batch_size: Examples in a batch; an incomplete last batch is dropped.
            seed: Seed of the order and of the choice among views.
            shuffle: Whether every epoch has a new order and new views; otherwise the examples come
                in their order, in their first view.
            with_teacher: Whether batches carry the teacher's tensors; otherwise the distiller runs
                its teacher on the same batches.
            first_epoch: Epoch that is read first. The order of an epoch follows from `seed` and
                its number, so a run can go on with `first_epoch=resume.epoch`, see `ExactResume`.

        Returns:
            `tf.data.Dataset` of one epoch, with static shapes: batches
            `(images, labels, sample_weight, teacher_features)`, with `()` for no weights; without
            the teacher, `(images, labels)`.

        Raises:
            ValueError: If the cache is not built, or the batch is larger than the data set.
        """
        examples = self._views.examples
        if with_teacher and self._done < self._views.rows:
            raise ValueError(
                f"Expected a built cache: call `build()` first. Received: {self._done} of "
                f"{self._views.rows} rows."
            )
        checks.integer("batch_size", batch_size, at_least=1, at_most=examples)
        checks.integer("first_epoch", first_epoch, at_least=0)
        rows = tf.data.Dataset.range(examples)
        if shuffle:
            rows = self._views.orders(seed, first_epoch)
        rows = rows.batch(batch_size, drop_remainder=True)
        options = tf.data.Options()
        # There are no files to distribute among workers; saying so avoids a warning.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        read = self._read if with_teacher else self._views
        return (
            rows.map(read, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(options)
        )

    def _read(self, rows):
        """Returns the batch of rows: images, labels and the teacher's tensors."""
        x, y = self._views(rows)
        names = list(self._arrays)
        kinds = [tf.as_dtype(self._columns[name][1]) for name in names]

        def gather(rows):
            return [self._arrays[name][rows] for name in names]

        values = tf.numpy_function(gather, [rows], kinds, stateful=False)
        columns = {
            name: tf.ensure_shape(value, (rows.shape[0], *self._columns[name][0]))
            for name, value in zip(names, values, strict=True)
        }
        return Batch(x, y, teacher_features={self._key: self._features(columns)})

    def _forward(self, rows):
        """Returns what is kept of the teacher's tensors, `{column: tensor}`."""
        x, _ = self._views(rows)
        features = self._taps(x, training=False)
        columns = {p: tf.cast(features[p], self._dtype) for p in self.places}
        if self._top_k is not None:
            logits = tf.cast(columns.pop(OUTPUT), tf.float32)
            top, classes = tf.math.top_k(logits, self._top_k)
            largest = tf.reduce_sum(tf.one_hot(classes, self._classes), axis=1)
            rest = tf.reduce_logsumexp(tf.where(largest > 0, -np.inf, logits), axis=-1)
            mean_rest = rest - np.log(self._classes - self._top_k)
            columns |= {
                "output/top": tf.cast(top, self._dtype),
                "output/classes": classes,
                "output/rest": tf.cast(mean_rest, self._dtype),
            }
        return columns

    def _features(self, columns):
        """Returns the teacher's tensors from what is kept."""
        features = {p: columns[p] for p in self.places if p in columns}
        if self._top_k is not None:
            top, classes, rest = (columns[f"output/{n}"] for n in ("top", "classes", "rest"))
            chosen = tf.one_hot(classes, self._classes, dtype=top.dtype)
            logits = tf.einsum("bk,bkc->bc", top, chosen)
            features[OUTPUT] = tf.where(tf.reduce_sum(chosen, 1) > 0, logits, rest[:, None])
        return {p: tf.cast(v, self._specs[p].dtype) for p, v in features.items()}

    def _all_columns(self):
        """Returns `{column: (shape of a row, dtype)}`."""
        columns = {p: (spec.shape[1:], self._dtype) for p, spec in self._specs.items()}
        if self._top_k is not None:
            del columns[OUTPUT]
            columns |= {
                "output/top": ((self._top_k,), self._dtype),
                "output/classes": ((self._top_k,), "int32"),
                "output/rest": ((), self._dtype),
            }
        return columns

    def _identity(self, features, seed, mix, mix_alpha):
        """Returns everything that a row depends on, to compare a folder with."""
        views = self._views
        probes = np.linspace(0, views.rows - 1, min(_PROBES, views.rows)).astype("int64")
        shown = [part.numpy() for part in views(tf.constant(probes))]
        return {
            "teacher": [self._key, fingerprints.of_function(features)],
            "data": fingerprints.of_bytes(views.images.numpy(), views.labels.numpy()),
            # An augmentation is known by its code and by its results for some of the images.
            "views": {
                "views": self.views,
                "seed": seed,
                "mix": mix and [mix, mix_alpha],
                "augment": fingerprints.of_function(views.augment),
                "augmented": fingerprints.of_bytes(*shown),
            },
            "columns": {name: [list(s), str(t)] for name, (s, t) in self._columns.items()},
        }

    def _check_directory(self):
        if self._directory is None or not (self._directory / _MANIFEST).exists():
            return
        manifest = json.loads((self._directory / _MANIFEST).read_text())
        found = manifest["fingerprint"]
        differ = [part for part, value in self._fingerprint.items() if found.get(part) != value]
        if differ:
            raise ValueError(
                f"Expected a cache of this teacher, data, views and columns in "
                f"{str(self._directory)!r}. Received: one with other {', '.join(differ)}. Name "
                "another `directory`, or remove this one. A data set that shuffles is another one "
                "each time: pass arrays, or one that does not."
            )
        self._done = manifest["done"]
        self._open()

    def _open(self):
        rows = self._views.rows
        if self._directory is None:
            self._arrays = {n: np.empty((rows, *s), t) for n, (s, t) in self._columns.items()}
            return
        exists = (self._directory / _MANIFEST).exists()
        mode = ("r" if self._done == rows else "r+") if exists else "w+"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._arrays = {
            name: np.lib.format.open_memmap(
                self._directory / f"column{number}.npy",
                mode=mode,
                **({} if exists else {"dtype": dtype, "shape": (rows, *shape)}),
            )
            for number, (name, (shape, dtype)) in enumerate(self._columns.items())
        }
        if not exists:
            self._advance(0)

    def _advance(self, done):
        self._done = done
        if self._directory is not None:
            for array in self._arrays.values():
                array.flush()
            manifest = {"fingerprint": self._fingerprint, "done": done}
            write_whole(self._directory / _MANIFEST, json.dumps(manifest, indent=1).encode())


def _fixed(place, spec):
    if keras.tree.is_nested(spec) or None in spec.shape[1:]:
        raise ValueError(
            f"Expected one tensor of a known shape at every place. Received: {place!r} is {spec}"
        )
    return spec


def _arrays(images, labels):
    """Returns images and labels as arrays."""
    if not isinstance(images, tf.data.Dataset):
        if labels is None:
            raise ValueError("Expected labels beside the images. Received: labels=None")
        return np.asarray(images), np.asarray(labels)
    if images.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("Expected a finite data set. Received: an endless one. Add .take(n).")
    spec = images.element_spec
    pair = isinstance(spec, tuple) and len(spec) == 2
    ranks = [getattr(getattr(s, "shape", None), "rank", 0) for s in spec] if pair else [0]
    if labels is not None or 0 in ranks or ranks[1] not in (1, None):
        raise ValueError(
            "Expected a data set of batches (images, labels), and no `labels` beside it. Received: "
            f"batches of {spec}, {labels=}"
        )
    batches = list(images.as_numpy_iterator())
    if not batches:
        raise ValueError("Expected a data set of at least one batch. Received: an empty one.")
    return tuple(np.concatenate(part) for part in zip(*batches, strict=True))


def _check(images, labels, mix, mix_alpha, views, seed, dtype, batch_size):
    if not len(images) or images.ndim < 2 or labels.shape != (len(images),):
        raise ValueError(
            "Expected `images` of shape (n, ...) and `labels` of shape (n,). Received: images of "
            f"shape {images.shape} and labels of shape {labels.shape}"
        )
    if mix is not None and (mix not in MIXES or images.ndim != 4 or images.dtype.kind != "f"):
        raise ValueError(
            f"Expected `mix` to be one of {MIXES} or None, and for a mix float images of shape "
            f"(n, height, width, channels). Received: mix={mix!r}, images of shape {images.shape} "
            f"and dtype {images.dtype}"
        )
    checks.integer("seed", seed, at_least=0, at_most=2**29 - 1)
    checks.number("mix_alpha", mix_alpha, above=0)
    checks.integer("views", views, at_least=1)
    checks.integer("batch_size", batch_size, at_least=1)
    checks.one_of("dtype", dtype, ("float32", "float16"))


def _readable(nbytes):
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} GiB"
