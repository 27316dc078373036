"""What `compare` refuses before the first run: students, data and tasks that it cannot compare."""

import inspect

import keras
import numpy as np
import tensorflow as tf

from keras_mikd.distillers.checks import output_rows, task_losses
from keras_mikd.keras_internals import strategy_made_under

_LOOKED_AT = 1024  # Examples, whose labels say of what kind all of them are.


def check_makes_student(make_student):
    """Returns a student, and refuses what makes none or students that share trained weights."""
    try:
        if isinstance(make_student, keras.Model):  # It is a function as well, of images.
            raise TypeError
        inspect.signature(make_student).bind()
    except TypeError:
        raise ValueError(
            "Expected `make_student` to be a function of no arguments that makes an untrained "
            f"student, since every run has its own. Received: make_student={make_student!r}. Pass "
            "`lambda: build(...)`, or the function that built it."
        ) from None
    first, second = make_student(), make_student()
    trained = {id(variable) for variable in first.trainable_variables}
    if shared := [v.path for v in second.variables if id(v) in trained]:
        raise ValueError(
            "Expected `make_student` to make a new student in every call, since a run must not "
            f"start where another one ended. Received: students that share {shared[:3]}"
            f"{' and others' if len(shared) > 3 else ''}. Build the network inside of the "
            "function, a pretrained backbone too: load it there, or freeze it."
        )
    return second


def check_scope(teacher, student):
    """Refuses a teacher of another strategy, under which its accuracy cannot be measured."""
    own, wanted = (strategy_made_under(model) for model in (teacher, student))
    if own is not wanted:
        raise ValueError(
            "Expected the teacher and the students to be made under one strategy, since `compare` "
            "measures the accuracy of all of them. Received: the teacher made under "
            f"{type(own).__name__ if own else 'no strategy'}, the students under "
            f"{type(wanted).__name__ if wanted else 'none'}. Load the teacher inside of "
            "`with strategy.scope():`."
        )


def check_data(argument, data):
    """Refuses data that is neither two arrays nor a data set that ends."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"Expected `{argument}` to end. Received: an endless tf.data.Dataset. Say what an "
                f"epoch is: {argument}.take(steps)."
            )
        return
    pair = isinstance(data, (tuple, list)) and len(data) == 2
    if not pair or not all(isinstance(each, np.ndarray) for each in data):
        received = f"a {type(data).__name__}"
        if isinstance(data, (tuple, list)):
            received += f" of {', '.join(sorted({type(each).__name__ for each in data}))}"
        raise ValueError(
            f"Expected `{argument}` as two arrays (images, labels), or as a tf.data.Dataset of "
            f"batches. Received: {received}"
        )
    if data[1].dtype.kind in "OSU":
        raise ValueError(
            f"Expected numbers as the labels in `{argument}`. Received: dtype={data[1].dtype}. "
            "Number the classes: classes, y = np.unique(labels, return_inverse=True)."
        )


def check_task(loss, student, labels):
    """Refuses tasks whose accuracy says nothing: regression, and several labels for an example.

    Args:
        loss: Task loss.
        student: Network; one that does not know its outputs' shape is not looked at.
        labels: Array of labels, or a data set of batches.
    """
    shape = getattr(student, "output_shape", None)
    if not isinstance(shape, tuple) or not shape or not isinstance(shape[-1], int):
        return
    rule = "Expected a task whose classes exclude each other, since `compare` goes by accuracy. "
    if shape[-1] == 1:
        if not task_losses.is_binary(loss):
            raise ValueError(
                f"{rule}Received: a student of one output and loss={loss!r}. For two classes, use "
                "keras.losses.BinaryCrossentropy or an output for each class; for another task, "
                "pass its `metric`."
            )
        return
    if isinstance(labels, tf.data.Dataset):
        element = next(iter(labels), None)
        labels = element[1] if isinstance(element, tuple) and len(element) > 1 else None
    if labels is None or keras.tree.is_nested(labels):
        return
    rows = np.asarray(labels[:_LOOKED_AT])
    if rows.ndim != len(shape) or rows.shape[-1] != shape[-1]:
        return
    sums = rows.sum(axis=-1)
    shares = rows.min() >= 0 and np.allclose(sums, 1.0, atol=1e-2)
    if output_rows.are_several_labels(rows, len(shape)) or not shares:
        raise ValueError(
            f"{rule}Received: labels of shape {('batch', *rows.shape[1:])} whose rows are no "
            "shares of classes (they sum to "
            f"{sums.min():.3g} to {sums.max():.3g}). For several labels, or a regression, pass "
            "`metric`, such as lambda: keras.metrics.AUC(multi_label=True, from_logits=True)."
        )
