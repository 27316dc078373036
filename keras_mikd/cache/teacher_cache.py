"""A teacher that runs once: its tensors for every example, kept for any number of epochs."""

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.batches import Batch
from keras_mikd.cache.columns import Columns
from keras_mikd.cache.views import MIXES, Views
from keras_mikd.checkpoints import fingerprints
from keras_mikd.features.feature_taps import OUTPUT, FeatureTaps
from keras_mikd.features.inputs import TeacherInputs


class TeacherCache:
    """Runs a teacher once over a data set and keeps the places that distillation losses read.

    Any number of epochs and students then trains through the same `Distiller` and `fit`:

    ```python
    cache = keras_mikd.TeacherCache(teacher, images, labels, ["stage1", "stage2", "stage3"])
    cache.build()
    distiller = keras_mikd.VIDDistiller(teacher, student)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(cache.batches(64), epochs=100, shuffle=False)
    ```

    With `augment` or `mix`, every example has `views` views, each drawn from a seed of its own: the
    student sees exactly the images that the teacher saw. An epoch shows each example once, in one
    view. A folder holds one memory-mapped `.npy` file per place; an interrupted build continues
    there. If the teacher's weights, the data, views, places or precision differ from those of the
    folder, the folder is refused; so is a damaged one: it is read once, here, for its checksums.
    Training from a float32 cache gives the weights of training without one, up to rounding.

    Args:
        teacher: Trained Keras model of one output.
        images: Array of shape `(n, ...)`, as the networks take them; or a finite `tf.data.Dataset`
            of batches `(images, labels)`, read once, here. For a `folder`, it must give the same
            in every run.
        labels: Integer labels, shape `(n,)` or `(n, 1)`; or rows of numbers, such as several labels
            of an example, `(n, k)`, without a `mix`; or one for every position of a dense output,
            `(n, ...)`; none for a data set. With a dense output, `augment` and `mix` are refused,
            because they leave labels where they are.
        places: Places to keep, see `FeatureTaps`; always with `"output"`.
        augment: Function `(image, seed) -> image` of stateless TensorFlow operations on one image,
            with `seed` an int32 tensor of shape `(2,)`; or `None`. Shape and dtype stay.
        mix: `"mixup"`, `"cutmix"` or `None`. The labels become distributions: train with
            `CategoricalCrossentropy`.
        num_classes: Number of classes of the labels, over which a `mix` makes distributions; `None`
            for those of the teacher.
        mix_alpha: Both parameters of the beta distribution of an image's share, above 0.
        views: Views of every example, at least 1.
        seed: Seed of the views, an integer from 0 to 2**29 - 1.
        dtype: `"float32"` or `"float16"`, the precision of what is kept.
        top_k: Number of largest logits to keep of `"output"`, or `None` for all. The others are
            read back as equal, with their joint probability at temperature 1.
        folder: Folder of the cache, or `None` for memory.
        max_bytes: Largest cache that may be built.
        batch_size: Examples that the teacher sees at once.
        features: Function `(model, x, training) -> {place: tensor}` for a subclassed teacher.
        teacher_inputs: What makes the teacher's input of an image, the same as in the `Distiller`.

    Raises:
        ValueError: If an argument is out of range, a place does not exist, the cache would be
            larger than `max_bytes`, or the folder holds another cache (the difference is named), a
            damaged one, or files of something else.
    """

    def __init__(
        self,
        teacher: keras.Model,
        images: np.ndarray | tf.data.Dataset,
        labels: np.ndarray | None = None,
        places: Iterable[str | None] = (),
        *,
        augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
        mix: str | None = None,
        num_classes: int | None = None,
        mix_alpha: float = 1.0,
        views: int = 1,
        seed: int = 0,
        dtype: str = "float32",
        top_k: int | None = None,
        folder: str | os.PathLike | None = None,
        max_bytes: int = 2**30,
        batch_size: int = 64,
        features: Callable[[keras.Model, Any, bool], dict[str, Any]] | None = None,
        teacher_inputs: Callable | Sequence[Callable] | None = None,
    ) -> None:
        checks.model("teacher", teacher)
        images, labels = _arrays(images, labels)
        _check(images, labels, mix_alpha, views, seed, dtype, batch_size)
        self.batch_size, self._dtype = batch_size, dtype
        symbolic = keras.KerasTensor((None, *images.shape[1:]), dtype=str(images.dtype))
        convert = None if teacher_inputs is None else TeacherInputs(teacher_inputs)
        inputs = None if features is None and convert is None else symbolic
        self._taps = FeatureTaps(teacher, places, features=features, inputs=inputs, convert=convert)
        self.places = self._taps.places
        # With the masks of padded sequences beside them.
        self._specs = {place: _fixed(place, spec) for place, spec in self._taps.specs.items()}
        self._classes = self._specs[OUTPUT].shape[-1]
        labels = _flat(labels, self._specs[OUTPUT])
        _check_labels(labels, images, self._specs[OUTPUT], augment, mix)
        num_classes = checks.integer("num_classes", num_classes, at_least=2, optional=True)
        num_classes = num_classes or self._classes
        _check_mix(mix, images, labels, num_classes)
        self._top_k = checks.integer(
            "top_k", top_k, at_least=1, at_most=self._classes - 1, optional=True
        )
        self._views = Views(
            images,
            labels,
            augment=augment,
            mix=mix,
            mix_alpha=mix_alpha,
            num_classes=num_classes,
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
        self._steps = convert and convert.steps
        self.fingerprint = fingerprints.of_teacher(teacher, self._steps)
        fingerprint = None if folder is None else self._identity(features)
        self._kept = Columns(
            self._columns, self._views.rows, folder=folder, fingerprint=fingerprint
        )

    def build(self, verbose: bool | int = 1) -> Self:
        """Runs the teacher over all rows that it has not seen yet, and returns the cache itself.

        Args:
            verbose: Whether to show the size and a progress bar.

        Raises:
            ValueError: If the teacher has weights that are NaN, or outputs NaN, infinity (logits
                may be -inf) or a number that is too large for float16; if it was trained since the
                cache was made; or if `augment` does not follow from its seed.
            OSError: If the folder's disk has no room for all of the cache.
        """
        checks.without_nan("teacher", self._taps.model)
        found = fingerprints.of_teacher(self._taps.model, self._steps)
        if found != self.fingerprint:
            raise ValueError(
                "Expected the teacher that the cache was made with. Received: the same model with "
                "other weights. Make the cache once the teacher is trained."
            )
        self._views.check_repeats()
        self._kept.open()
        rows, size = self._views.rows, self.batch_size
        if verbose:
            place = self._kept.folder or "memory"
            print(f"TeacherCache: {rows} rows, {_readable(self.nbytes)} in {place}", flush=True)
        progress = keras.utils.Progbar(rows, verbose=int(bool(verbose)), unit_name="row")
        progress.update(self._done)
        forward = tf.function(self._forward)
        while self._done < rows:
            first, last = self._done, min(self._done + size, rows)
            # Batches of one size need one trace and round as in training.
            columns = forward(tf.range(first, first + size, dtype=tf.int64) % rows)
            columns = {name: self._rounded(name, v[: last - first]) for name, v in columns.items()}
            self._kept.write(first, columns)
            self._kept.advance(last)
            progress.update(last)
        return self

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        with_teacher: bool = True,
        first_epoch: int = 0,
        beside: Sequence[Self] = (),
    ) -> tf.data.Dataset:
        """Returns batches for `Distiller.fit`.

        Args:
            batch_size: Examples in a batch; an incomplete last batch is dropped.
            seed: Seed of the order and of the choice among views.
            shuffle: Whether every epoch has a new order and new views; otherwise the examples come
                in their order, in their first view.
            with_teacher: Whether batches carry the teacher's tensors; otherwise the distiller runs
                its teacher on the same batches.
            first_epoch: Epoch that is read first. The order of an epoch follows from `seed` and its
                number, so a run can continue with `first_epoch=resume.epoch`, see `ExactResume`.
            beside: Caches of other teachers of the distiller, over the same views of the same
                images, whose tensors the batches carry too. A teacher without a cache runs.

        Returns:
            `tf.data.Dataset` of one epoch, with static shapes: batches
            `(images, labels, sample_weight, teacher_features, index)`, with `()` for no weights and
            no index; without the teacher, `(images, labels)`.

        Raises:
            ValueError: If a cache is not built, one `beside` is of other views, or the batch is
                larger than the data set.
        """
        examples = self._views.examples
        caches = (self, *beside) if with_teacher else ()
        for cache in caches:
            cache.check_built()
        for cache in caches[1:]:
            self._check_beside(cache)
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

        def read(rows):
            x, y = self._views(rows)
            return Batch(x, y, teacher_features={c.fingerprint: c.tensors(rows) for c in caches})

        return (
            rows.map(read if with_teacher else self._views, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(options)
        )

    @property
    def _done(self):
        return self._kept.done

    def check_built(self) -> None:
        """Refuses a cache whose teacher has yet to see rows.

        Raises:
            ValueError: If there are some.
        """
        if self._done < self._views.rows:
            raise ValueError(
                f"Expected a built cache: call `build()` first. Received: {self._done} of "
                f"{self._views.rows} rows."
            )

    def same_views(self, identity: dict[str, Any]) -> bool:
        """Whether the rows are those of an `identity`, see `Views`."""
        return self._views.identity() == identity

    def _check_beside(self, other):
        if other.fingerprint == self.fingerprint or not other.same_views(self._views.identity()):
            raise ValueError(
                "Expected caches `beside` of other teachers over the same images, labels and "
                "views. Received: one of the same teacher, or with other data, `augment`, `mix`, "
                "`views` or `seed`."
            )

    def tensors(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the teacher's tensors for rows, an int64 tensor: `{place: tensor}`."""
        names = list(self._columns)
        kinds = [tf.as_dtype(self._columns[name][1]) for name in names]
        # TensorFlow keeps the function until the process ends. The data set keeps the cache.
        kept = weakref.ref(self._kept)

        def gather(rows):
            return [kept().arrays[name][rows] for name in names]

        values = tf.numpy_function(gather, [rows], kinds, stateful=False)
        columns = {
            name: tf.ensure_shape(value, (rows.shape[0], *self._columns[name][0]))
            for name, value in zip(names, values, strict=True)
        }
        return self._features(columns)

    def _forward(self, rows):
        """Returns what is kept of the teacher's tensors, `{column: tensor}`."""
        x, _ = self._views(rows)
        features = self._taps(x, training=False)
        columns = {p: _kept(features[p]) for p in self._specs}
        if self._top_k is not None:
            logits = columns.pop(OUTPUT)
            top, classes = tf.math.top_k(logits, self._top_k)
            others = _with(logits, classes, tf.fill(tf.shape(top), -np.inf))
            rest = tf.reduce_logsumexp(others, axis=-1)
            mean_rest = rest - np.log(self._classes - self._top_k)
            columns |= {
                "output/top": top,
                "output/classes": classes,
                "output/rest": mean_rest,
            }
        return columns

    def _rounded(self, name, column):
        """Returns a column as it is kept, unless that would change more than its last digits."""
        values = column.numpy()
        if values.dtype.kind != "f":
            return values
        with np.errstate(over="ignore"):
            kept = values.astype(self._dtype)
        masked = np.isneginf(values) & (name.partition("/")[0] == OUTPUT)
        wrong = values[~np.isfinite(kept) & ~masked]
        if wrong.size and np.isfinite(wrong[0]):
            raise ValueError(
                f"Expected numbers that float16 holds, up to 65504. Received: {wrong[0]:g} at the "
                f'teacher\'s place {name!r}. Build the cache with dtype="float32".'
            )
        if wrong.size:
            raise ValueError(
                f"Expected the teacher to put out finite numbers. Received: {wrong[0]} at its "
                f"place {name!r}. Look for nan and infinity in the images and in its weights."
            )
        return kept

    def _features(self, columns):
        """Returns the teacher's tensors from what is kept."""
        features = {p: columns[p] for p in self._specs if p in columns}
        if self._top_k is not None:
            top, classes, rest = (columns[f"output/{n}"] for n in ("top", "classes", "rest"))
            rest = tf.repeat(rest[..., None], self._classes, axis=-1)
            features[OUTPUT] = _with(rest, classes, top)
        return {p: tf.cast(v, self._specs[p].dtype) for p, v in features.items()}

    def _all_columns(self):
        """Returns `{column: (shape of a row, dtype)}`."""
        columns = {
            p: (spec.shape[1:], "bool" if spec.dtype == "bool" else self._dtype)
            for p, spec in self._specs.items()
        }
        if self._top_k is not None:
            *positions, _ = columns.pop(OUTPUT)[0]
            positions = tuple(positions)
            columns |= {
                "output/top": ((*positions, self._top_k), self._dtype),
                "output/classes": ((*positions, self._top_k), "int32"),
                "output/rest": (positions, self._dtype),
            }
        return columns

    def _identity(self, features):
        """Returns everything that a row depends on, to compare a folder with."""
        return {
            "teacher": [self.fingerprint, fingerprints.of_function(features)],
            **self._views.identity(),
            "columns": {name: [list(s), str(t)] for name, (s, t) in self._columns.items()},
        }


def _with(logits, classes, values):
    """Returns logits `(..., classes)` with other values `(..., k)` at indices `(..., k)`."""
    flat = tf.reshape(logits, (-1, logits.shape[-1]))
    top = classes.shape[-1]
    rows = tf.repeat(tf.range(tf.shape(flat)[0]), top)
    places = tf.stack([rows, tf.reshape(classes, (-1,))], axis=1)
    flat = tf.tensor_scatter_nd_update(flat, places, tf.reshape(values, (-1,)))
    return tf.reshape(flat, tf.shape(logits))


def _kept(tensor):
    return tensor if tensor.dtype == tf.bool else tf.cast(tensor, tf.float32)


def _fixed(place, spec):
    if keras.tree.is_nested(spec) and place == OUTPUT:
        raise ValueError(
            "Expected a teacher of one output, which a cache always keeps. Received: "
            f"{spec}. Distil from a network of one of them, as in keras.Model(teacher.inputs, "
            "teacher.output[...]), or let the teacher run in every step."
        )
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
        if isinstance(images, (dict, tuple)):
            raise ValueError(
                "Expected `images` as one array. Received: "
                f"{type(images).__name__}. A cache takes networks of one input: let the teacher "
                "run in every step."
            )
        return np.asarray(images), np.asarray(labels)
    if images.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("Expected a finite data set. Received: an endless one. Add .take(n).")
    spec = images.element_spec
    pair = isinstance(spec, tuple) and len(spec) == 2
    ranks = [getattr(getattr(s, "shape", None), "rank", 0) for s in spec] if pair else [0]
    if labels is not None or 0 in ranks:
        raise ValueError(
            "Expected a data set of batches (images, labels), and no `labels` beside it. Received: "
            f"batches of {spec}, {labels=}"
        )
    batches = list(images.as_numpy_iterator())
    if not batches:
        raise ValueError("Expected a data set of at least one batch. Received: an empty one.")
    return tuple(np.concatenate(part) for part in zip(*batches, strict=True))


def _check(images, labels, mix_alpha, views, seed, dtype, batch_size):
    if not len(images) or images.ndim < 2 or labels.shape[:1] != (len(images),):
        raise ValueError(
            "Expected `images` of shape (n, ...) and `labels` of shape (n,), or (n, ...) for a "
            f"dense output. Received: images of shape {images.shape} and labels of shape "
            f"{labels.shape}"
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        wrong = np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(axis=1))
        raise ValueError(
            f"Expected finite images. Received: nan or infinity in {len(wrong)} of {len(images)}, "
            f"first in images[{wrong[0]}]. Leave these out."
        )
    checks.integer("seed", seed, at_least=0, at_most=2**29 - 1)
    checks.number("mix_alpha", mix_alpha, above=0)
    checks.integer("views", views, at_least=1)
    checks.integer("batch_size", batch_size, at_least=1)
    checks.one_of("dtype", dtype, ("float32", "float16"))


def _flat(labels, output):
    """Returns the classes of a column `(n, 1)`, the form of Keras' CIFAR, as `(n,)`."""
    column = labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "iu"
    return labels[:, 0] if column and len(output.shape) == 2 and output.shape[1] > 1 else labels


def _check_labels(labels, images, output, augment, mix):
    """Checks that labels are those of the outputs, and of every position only where images stay."""
    if labels.ndim == 1:
        return
    if labels.ndim == 2 and len(output.shape) == 2:
        if labels.shape[1] == 1 < output.shape[1]:
            raise ValueError(
                "Expected `images` of shape (n, ...) and `labels` of shape (n,), since the teacher "
                f"has {output.shape[1]} outputs for each example. Received: images of shape "
                f"{images.shape} and {labels.dtype} labels of shape {labels.shape}. Pass the "
                "column itself, labels[:, 0]."
            )
        if mix is not None:
            raise ValueError(
                f"Expected integer labels of shape (n,) with mix={mix!r}, which makes "
                f"distributions of them. Received: labels of shape {labels.shape}. One-hot labels "
                "become integers with np.argmax(labels, axis=-1)."
            )
        return
    if augment is not None or mix is not None:
        raise ValueError(
            "Expected neither `augment` nor `mix` with labels of every position: they change the "
            f"images, and the labels would stay where they are. Received: labels of shape "
            f"{labels.shape}, augment={augment}, mix={mix!r}. Augment both, and pass the results."
        )


def _check_mix(mix, images, labels, classes):
    if mix is None:
        return
    if mix not in MIXES or images.ndim != 4 or images.dtype.kind != "f":
        raise ValueError(
            f"Expected `mix` to be one of {MIXES} or None, and for a mix float images of shape "
            f"(n, height, width, channels). Received: mix={mix!r}, images of shape {images.shape} "
            f"and dtype {images.dtype}"
        )
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"Expected `labels` to be integers from 0 to {classes - 1}, one for every output of "
            "the teacher, since `mix` makes distributions of them. Received: "
            f"{labels.dtype} labels from {labels.min()} to {labels.max()}. Where the teacher has "
            "other classes, set `num_classes` to those of the labels."
        )


def _readable(nbytes):
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} GiB"
