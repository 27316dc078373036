"""The training data that all runs of a comparison share."""

import numpy as np
import tensorflow as tf

from keras_mikd.cache.teacher_cache import TeacherCache
from keras_mikd.checkpoints import fingerprints


class TrainingData:
    """The training data of all runs: batches with the teacher's tensors, if they are kept.

    `settings` says what the runs share by it.
    """

    def __init__(
        self, teacher, places, train, batch_size, augment, views, max_cache_bytes, verbose
    ):
        self.batch_size, self.cache, self.verbose = batch_size, None, verbose
        self._is_kept = self._has_run = False
        self.settings = {
            "batch_size": batch_size,
            "views": views,
            "augment": fingerprints.of_function(augment),
        }
        if isinstance(train, tf.data.Dataset):
            if augment is not None or views != 1:
                raise ValueError(
                    "Expected arrays (images, labels) as `train` with `augment` or `views`. "
                    "Received: a tf.data.Dataset, which augments its images itself."
                )
            self._train = _of_known_size(train)
            self.settings["data"] = fingerprint(self._train)
            return
        images, labels = train
        self.settings["data"] = fingerprint(train)
        self.cache = TeacherCache(
            teacher, images, labels, places, augment=augment, views=views, max_bytes=2**62
        )
        self._is_kept = self.cache.nbytes <= max_cache_bytes

    def batches(self, seed, *, with_teacher):
        """Returns the batches of a seed, the same for every method."""
        if self.cache is None:
            return self._train
        if with_teacher and not self._has_run:
            self._run_teacher()
        kept = with_teacher and self._is_kept
        return self.cache.batches(self.batch_size, seed=seed, with_teacher=kept)

    def _run_teacher(self):
        """Runs the teacher once over the arrays, if there is room for what it says."""
        self._has_run = True
        if self._is_kept:
            self.cache.build(verbose=self.verbose)
        elif self.verbose:
            print(
                f"The teacher's tensors need {self.cache.nbytes:,} bytes, more than "
                "`max_cache_bytes`: the teacher runs in every step.",
                flush=True,
            )


def fingerprint(data):
    """Returns a name of data; that of a data set says its size and the kind of its batches only."""
    if data is None:
        return None
    if isinstance(data, tf.data.Dataset):
        return f"{int(data.cardinality())} batches of {data.element_spec}"
    return fingerprints.of_bytes(*map(np.ascontiguousarray, data))


def _of_known_size(batches):
    """Returns a data set that knows its length, on which the schedule of a rate depends."""
    if batches.cardinality() >= 0:
        return batches
    count = sum(1 for _ in batches)
    return batches.apply(tf.data.experimental.assert_cardinality(count))
