"""One run of a comparison: a student is trained by a method, and scored."""

import time

import keras
import tensorflow as tf

from keras_mikd.checkpoints import fingerprints
from keras_mikd.comparison.step_time import StepTime
from keras_mikd.comparison.training_data import fingerprint
from keras_mikd.distillers.base_distiller import BaseDistiller
from keras_mikd.distillers.callbacks import NOT_FINITE
from keras_mikd.distillers.distiller import Distiller
from keras_mikd.distillers.self_distiller import SelfDistiller


class Runner:
    """Trains one student after another, all alike."""

    def __init__(
        self, teacher, make_student, data, validation, test, epochs, optimizer, loss, score, balance
    ):
        self.teacher, self.make_student, self.data = teacher, make_student, data
        self.validation, self.test, self.epochs = validation, test, epochs
        self.optimizer, self.loss, self.score, self.balance = optimizer, loss, score, balance

    def settings(self, student):
        """Returns what all runs share, by names that other settings do not have."""
        config = repr(self.loss.get_config()).encode()
        settings = {
            "teacher": fingerprints.of_model(self.teacher),
            "student": fingerprints.of_model(student),
            **self.data.settings,
            "validation": fingerprint(self.validation),
            "test": fingerprint(self.test),
            "epochs": self.epochs,
            "balance": self.balance,
            "loss": [type(self.loss).__name__, fingerprints.of_bytes(config)],
            "optimizer": fingerprints.of_function(self.optimizer),
        }
        if self.score.make is not None:
            made = fingerprints.of_function(self.score.make)  # One for all classes.
            settings["metric"] = [self.score.mode, self.score.name, made]
        return settings

    def run(self, method, weight, seed):
        """Returns the student of a method (`None`: alone), a weight and a seed, and its numbers."""
        keras.utils.set_random_seed(seed)
        student = self.make_student()
        made = method.losses(self.teacher, student, weight) if method else []
        model = distiller_of(made, self.teacher, student, self.balance)
        # A distiller of the user's own may read the teacher in another way than its tensors say.
        batches = self.data.batches(seed, with_teacher=bool(made) and model is not made)
        steps = self.epochs * len(batches)
        model.compile((self.optimizer or _adam)(steps), self.loss)
        time_of_steps = StepTime()
        start = time.perf_counter()
        options = {"epochs": self.epochs, "shuffle": False, "verbose": 0}
        stopped = None
        try:
            model.fit(batches, callbacks=[time_of_steps], **options)
        except ValueError as error:
            # A weight that is too large is a result of the trial, and no reason to end all others.
            if not str(error).startswith(NOT_FINITE):
                raise
            stopped = str(error)
        seconds = time.perf_counter() - start
        run = {
            **({} if stopped is None else {"stopped": stopped}),
            **self.scores(student),
            "seconds": seconds,
            "milliseconds": time_of_steps.median(),
            "training_only_weights": _training_only(model, student),
        }
        return student, run

    def scores(self, network):
        """Returns `{split: value}` of a network, which is left as it was compiled."""
        meter = SelfDistiller(network, [])
        metric = self.score.metric(self.loss)
        meter.compile(keras.optimizers.SGD(), self.loss, metrics=[metric])
        found = {}
        for split, data in (("validation", self.validation), ("test", self.test)):
            if data is not None:
                arrays = not isinstance(data, tf.data.Dataset)
                x, y = data if arrays else (data, None)
                options = {"batch_size": self.data.batch_size} if arrays else {}
                values = meter.evaluate(x, y, verbose=0, return_dict=True, **options)
                if not isinstance(metric, str):  # Keras numbers names, as in "auc_1".
                    values[self.score.name] = values.pop(metric.name)
                found[split] = self.score.of(values)
        return found


def distiller_of(made, teacher, student, balance):
    """Returns what trains the student, from the losses or the distiller of a method."""
    if isinstance(made, BaseDistiller):
        if balance is not None:
            raise ValueError(
                "Expected no `balance` beside a method that makes its own distiller: it would not "
                f"apply there. Received: balance={balance!r}. Balance the distiller itself."
            )
        if not any(each is student for each in made.trained_networks().values()):
            raise ValueError(
                "Expected a distiller of the student that the function of a method is given, since "
                f"that one is evaluated. Received: a {type(made).__name__} of another network."
            )
        return made
    if made:
        return Distiller(teacher, student, made, balance=balance)
    return SelfDistiller(student, [])


def _training_only(model, student):
    """Returns how many weights the training of a student adds, without the measures of balance."""
    measures = 0 if model.gradient_balance is None else model.gradient_balance.count_params()
    return model.count_params() - student.count_params() - measures


def _adam(steps):
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps))
