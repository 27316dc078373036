"""One call that says which method helps a student on a user's own data."""

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_mikd import checks
from keras_mikd.atomic_files import write_whole
from keras_mikd.checkpoints import fingerprints
from keras_mikd.comparison import input_checks
from keras_mikd.comparison.cells import Cells, Progress
from keras_mikd.comparison.methods import BALANCED, DEFAULT, STUDENT, checked_methods
from keras_mikd.comparison.report import Comparison, summarized
from keras_mikd.comparison.runner import Runner, distiller_of
from keras_mikd.comparison.score import ACCURACY, checked_score, written
from keras_mikd.comparison.training_data import TrainingData
from keras_mikd.distillers.checks import loss_checks


def compare(
    teacher: keras.Model,
    make_student: Callable[[], keras.Model],
    train: tf.data.Dataset | tuple[np.ndarray, np.ndarray],
    validation: tf.data.Dataset | tuple[np.ndarray, np.ndarray],
    test: tf.data.Dataset | tuple[np.ndarray, np.ndarray] | None = None,
    *,
    methods: Iterable[str] | dict[str, Callable | None] = DEFAULT,
    weights: Sequence[float] | dict[str, Sequence[float]] | None = None,
    seeds: int = 3,
    trial_seeds: int = 1,
    epochs: int = 50,
    batch_size: int = 64,
    make_optimizer: Callable[[int], keras.optimizers.Optimizer] | None = None,
    loss: keras.losses.Loss | None = None,
    metric: Callable[[], keras.metrics.Metric] | None = None,
    mode: str = "max",
    balance: str | None = None,
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    views: int = 1,
    max_cache_bytes: int = 2**30,
    folder: str | os.PathLike | None = None,
    verbose: bool = True,
) -> Comparison:
    """Trains a student alone and with every method, all alike, and says which method helps.

    Weights are chosen on the validation data, with as many trials for every method. The accuracies,
    or the values of `metric`, of the teacher and of the student alone come first; a teacher of
    other classes has none. With arrays, the teacher runs only once; with data sets, it runs in
    every step. Validation does not run it. Every run sets Keras' global seed. A call that was
    killed continues in its `folder`, and one with more methods, weights or seeds adds to it.

    ```python
    result = keras_mikd.compare(teacher, make_student, (x, y), validation, test, folder="runs/own")
    print(result)
    ```

    A run whose loss is not finite stops there, and its student counts as it is then.

    Args:
        teacher: Trained Keras model.
        make_student: Function of no arguments that makes an untrained student with the same inputs.
        train: Arrays `(images, labels)`, or a `tf.data.Dataset` of batches, read as it is.
        validation: Data to choose weights on, likewise.
        test: Data on which nothing is chosen; without it, the report is about `validation`.
        methods: Names of recipes: `"kd"`, `"lskd"`, `"dkd"`, `"rld"`, `"dist"`, `"wttm"`, `"hint"`,
            `"vkd"`, `"at"`, `"ab"`, `"ft"`, `"review_kd"`, `"nst"`, `"fsp"`, `"sp"`, `"cc"`,
            `"rkd"`, `"pkt"`, `"crd"`, `"queue"`, `"itrd"`, `"vid"`, `"mimkd"`, `"info_nce"`,
            `"muse"`; or a dict `{name: function (teacher, student, weight) -> list of losses}`,
            with `None` for a known name. A function that returns no losses changes the student
            itself, for example by giving it trained weights. A function may also return a distiller
            that trains the student, such as a `SelfDistiller`, or a `MutualDistiller` with the
            student among its peers; a teacher in it runs in every step.
        weights: Weights to try for every method, a list, or `{method: list}`; if `None`, three of
            each method's own, a decade apart, and with `balance` 0.3, 1 and 3.
        seeds: Number of runs of every method at its chosen weight: seeds 0, 1, ...
        trial_seeds: Number of these seeds with which every weight is tried.
        epochs: Epochs of a run.
        batch_size: Images in a batch of arrays; an incomplete last one is dropped.
        make_optimizer: Function `(steps) -> optimizer`; Adam from 1e-2 to 0 as a cosine if `None`.
        loss: Task loss; sparse categorical cross-entropy from logits if `None`. Accuracy needs one
            of classes that exclude each other, or a binary cross-entropy for one output.
        metric: Function of no arguments that makes the Keras metric to compare by, for other tasks;
            accuracy in per cent if `None`, and in per cent too if it is named so.
        mode: `"max"` if more of the metric is better, `"min"` if less is. The errors of Keras need
            `"min"`.
        balance: As in `Distiller`; refused beside a method that makes its own distiller.
        augment: Function `(image, seed) -> image`, see `TeacherCache`; for arrays.
        views: Views of every image with `augment`.
        max_cache_bytes: Largest memory for the teacher's tensors; if they need more, the teacher
            runs in every step.
        folder: Where runs, students and the report are kept, or `None`. A `tf.data.Dataset` is
            compared only by the number and the shapes of its batches: give other data another
            folder.
        verbose: Whether to print every run, the time left, and the report.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: Before any training, if an argument is out of range, a method does not fit the
            networks, or the folder holds other runs; in between, if a method's function differs
            from that of its runs in the folder.
    """
    checks.without_nan("teacher", checks.model("teacher", teacher))
    if balance is not None and weights is None:
        weights = BALANCED  # Published weights are for losses as they are.
    student = input_checks.check_makes_student(make_student)
    for name, data in {"train": train, "validation": validation, "test": test}.items():
        if name != "test" or data is not None:
            input_checks.check_data(name, data)
    chosen = checked_methods(methods, weights)
    checks.integer("seeds", seeds, at_least=1)
    checks.integer("trial_seeds", trial_seeds, at_least=1, at_most=seeds)
    checks.integer("epochs", epochs, at_least=1)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    score = checked_score(metric, mode)
    if metric is None:
        labels = validation if isinstance(validation, tf.data.Dataset) else validation[1]
        input_checks.check_task(loss, student, labels)
    places = _places(chosen, teacher, make_student, balance)
    data = TrainingData(
        teacher, places, train, batch_size, augment, views, max_cache_bytes, verbose
    )
    runner = Runner(
        *(teacher, make_student, data, validation, test, epochs),
        *(make_optimizer, loss, score, balance),
    )
    keras.utils.set_random_seed(0)
    student = make_student()
    cells = Cells(folder, runner.settings(student))
    split = "validation" if test is None else "test"
    of_teacher = _of_teacher(cells, runner, student).get(split)
    if verbose and of_teacher is not None:
        what = "% of the" if score.name == ACCURACY else f"{score.name} on the"
        print(f"teacher: {written(score.name, of_teacher)} {what} {split} data", flush=True)
    found = _Sweep(cells, runner, chosen, seeds, trial_seeds, verbose).found()
    result = Comparison(split, of_teacher, _rows(found, split), score.name, mode)
    if cells.folder is not None:
        content = json.dumps(result.as_dict(), indent=1)
        write_whole(cells.folder / "comparison.json", content.encode())
    if verbose:
        print(f"\n{result}", flush=True)
    return result


class _Found(NamedTuple):
    """The weight that validation chooses, its runs, and the mean of every weight that was tried."""

    weight: float | None
    runs: list
    trials: dict


class _Sweep:
    """Runs the student alone and every method, in the order in which they say most."""

    def __init__(self, cells, runner, methods, seeds, trial_seeds, verbose):
        self.cells, self.runner, self.methods = cells, runner, methods
        self.seeds, self.trial_seeds = seeds, trial_seeds
        trials = len(next(iter(methods.values())).weights)
        each = trials * trial_seeds + seeds - trial_seeds
        self.progress = Progress(seeds + len(methods) * each, verbose, runner.score.name)

    def found(self):
        """Returns `{method: _Found}`, the student alone first."""
        alone = [self._run(STUDENT, None, seed) for seed in range(self.seeds)]
        return {STUDENT: _Found(None, alone, {})} | {
            name: self._best(name, method.weights) for name, method in self.methods.items()
        }

    def _best(self, name, weights):
        tried = {w: [self._run(name, w, seed) for seed in range(self.trial_seeds)] for w in weights}
        means = {w: statistics.mean(r["validation"] for r in runs) for w, runs in tried.items()}
        best = max(means, key=lambda weight: self.runner.score.worth(means[weight]))
        rest = [self._run(name, best, seed) for seed in range(self.trial_seeds, self.seeds)]
        return _Found(best, tried[best] + rest, means)

    def _run(self, name, weight, seed):
        key = {"method": name} | ({} if weight is None else {"weight": weight}) | {"seed": seed}
        run, is_new = self.cells.get(key), False
        method = self.methods.get(name)
        losses = fingerprints.of_function(method and method.losses)
        if run is not None and run["losses"] != losses:
            raise ValueError(
                f"Expected the losses of {name!r} as they were in {str(self.cells.folder)!r}. "
                "Received: another function. Give it another name, or name another folder."
            )
        if run is None:
            student, run = self.runner.run(method, weight, seed)
            run["losses"], is_new = losses, True
            if self.cells.folder is not None:
                student.save(self.cells.path(key, ".keras"))
            self.cells.keep(key, run)
        self.progress.ran(key, run, is_new)
        return run


def _rows(found, split):
    """Returns the rows of the table, from `{method: _Found}`."""
    references = {
        name: [run[split] for run in found[name].runs] for name in (STUDENT, "kd") if name in found
    }
    step = statistics.median(run["milliseconds"] for run in found[STUDENT].runs)
    return [
        summarized(name, *each, references=references, split=split, step=step)
        for name, each in found.items()
    ]


def _of_teacher(cells, runner, student):
    """Returns the scores of the teacher, measured once; none of one with other outputs."""
    shapes = [getattr(each, "output_shape", None) for each in (student, runner.teacher)]
    if None not in shapes and shapes[0] != shapes[1]:
        return {}
    input_checks.check_scope(runner.teacher, student)
    key = {"method": "teacher"}
    found = cells.get(key)
    if found is None:
        found = runner.scores(runner.teacher)
        cells.keep(key, found)
    return found


def _places(methods, teacher, make_student, balance):
    """Returns the places of the teacher that the methods read, which must all fit the networks."""
    read = []
    for method in methods.values():
        student = make_student()
        made = method.losses(teacher, student, method.weights[0])
        # What does not fit is refused here.
        if distiller_of(made, teacher, student, balance) is not made:
            read += [loss.teacher_layer for loss in made]
    return loss_checks.listed(read)
