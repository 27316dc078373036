"""How often the teachers are right for the first examples, and what that says of them."""

import warnings

import keras

from keras_mikd.distillers.checks import output_rows, task_losses
from keras_mikd.features.places import OUTPUT
from keras_mikd.features.probabilities import holds_probabilities
from keras_mikd.losses.parts import class_map

_NEAR_CHANCE = 0.2  # Share of the way from chance to perfection.


class TeacherAccuracy:
    """Prints how often the teachers are right; warns near chance, and if they look like students.

    Args:
        networks: `Networks` of the distiller.
        loss: Task loss of the student.
        output: Symbolic output of the student.
        dense: Whether every position of an output has a class.
        verbose: Whether to print what is no warning.
    """

    def __init__(self, networks, loss, output, *, dense, verbose):
        self._networks, self._loss, self._output = networks, loss, output
        self._dense, self._verbose = dense, verbose

    def judge(self, features, classes):
        """Judges the teachers by what they say to examples of these `classes`."""
        ignored = task_losses.ignored_class(self._loss)
        own = None if keras.tree.is_nested(self._output) else self._output.shape[-1]
        if own == 1:
            if not task_losses.is_binary(self._loss):
                return  # A regression has no classes.
            features = {name: self._of_two_classes(name, each) for name, each in features.items()}
        student = features.get("student", {}).get(OUTPUT)
        of_student = (
            None if student is None else output_rows.share_of_right(student, classes, ignored)
        )
        for name in self._networks.fixed:
            if keras.tree.is_nested(features[name][OUTPUT]):
                continue
            output = self._in_labels_classes(name, features[name])
            found = output.shape[-1]
            labelled = max(2, own or found)  # One logit is for two classes.
            if found != labelled:
                if self._verbose:
                    print(
                        f"{self._called(name)} has {found} classes and the labels {labelled}, so "
                        "this cannot tell how often it is right.",
                        flush=True,
                    )
                continue
            right = output_rows.share_of_right(output, classes, ignored)
            if right is not None:
                self._judge_teacher(name, right, of_student, len(classes), labelled)

    def _of_two_classes(self, name, tensors):
        """Returns a network's tensors with two columns in place of one logit or probability."""
        output = tensors[OUTPUT]
        if keras.tree.is_nested(output) or output.shape[-1] != 1:
            return tensors
        border = 0.5 if holds_probabilities(self._networks.models[name]) else 0.0
        return {**tensors, OUTPUT: output_rows.in_two_columns(output, border)}

    def _in_labels_classes(self, name, tensors):
        """Returns a teacher's output, as logits of the labels' classes if a loss maps them."""
        losses = [term.loss for term in self._networks.terms if term.teacher == name]
        maps = [(x.teacher_layer, x.teacher_classes) for x in losses if x.teacher_classes]
        place, classes = maps[0] if maps else (OUTPUT, None)
        return class_map.in_students_classes(tensors[place], classes)

    def _called(self, name):
        return f"The teacher {name!r}" if len(self._networks.fixed) > 1 else "The teacher"

    def _judge_teacher(self, name, share, student, examples, classes):
        parts = "positions in the " if self._dense else ""
        said = (
            f"{self._called(name)} is right for {share:.1%} of the {parts}first {examples} examples"
        )
        weights = {n: m.count_params() for n, m in self._networks.models.items()}
        if (share - 1 / classes) / (1 - 1 / classes) < _NEAR_CHANCE:
            warnings.warn(
                f"{said}, near chance for {classes} classes. Does it have its weights, its "
                "statistics of BatchNormalization, the classes of these labels in their order, and "
                "images scaled as it was trained with?",
                stacklevel=2,
            )
        elif student is not None and student > share and weights["student"] > weights[name]:
            warnings.warn(
                f"{said}, the student for {student:.1%}, and the student has more weights. Are "
                "teacher and student swapped?",
                stacklevel=2,
            )
        elif self._verbose:
            print(f"{said}.", flush=True)
