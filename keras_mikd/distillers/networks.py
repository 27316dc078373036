"""The networks of a step and the losses between them, set up once."""

import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_mikd.batches import check_teachers
from keras_mikd.checkpoints import fingerprints
from keras_mikd.distillers import combined_logits
from keras_mikd.distillers.checks import loss_checks, network_checks
from keras_mikd.features.feature_taps import FeatureTaps, pick, pick_masks
from keras_mikd.losses.distillation_loss import DistillationLoss

ALL = "teachers"
"""Stands for the teacher of a term that compares with all fixed networks together."""


class Term(NamedTuple):
    """One loss of the total, and the names of the two networks that it compares."""

    loss: DistillationLoss
    teacher: str
    """Name of a network, or `ALL`."""
    student: str
    factor: float = 1.0
    """Factor beside the weight of the loss."""
    stop_gradient: bool = True
    """Whether the teacher's tensors are targets, into which no gradient flows."""


class Networks:
    """The networks of a step, `{name: model}`, each read once for any number of losses.

    It hides from Keras what must not be tracked: fixed networks are not trained, and taps share
    their layers with the networks. The networks in `fixed` run in inference mode, outside the
    gradient. `features` holds the functions for subclassed models and `converts` the
    `TeacherInputs` of networks that do not read the batch as it is, see `FeatureTaps`. `combine` is
    how the logits of all fixed networks become one target, see `combined_logits`.

    Raises:
        ValueError: If a place does not exist, or a loss cannot compare what it is given.
    """

    def __init__(self, models, terms, *, fixed=(), features=None, converts=None, combine="mean"):
        self.models = models
        self.terms = terms
        self.fixed = fixed
        self.combine = combine
        features, converts = features or {}, converts or {}
        read = {name: model for name, model in models.items() if name not in converts}
        inputs = network_checks.common_inputs(read)
        self.taps = {
            name: FeatureTaps(
                model,
                self._places(name),
                features=features.get(name),
                inputs=inputs,
                convert=converts.get(name),
            )
            for name, model in models.items()
        }
        self._cached_as = {}
        network_checks.check_maps(models, self.taps, fixed)
        for term in terms:
            teachers = [self.taps[name] for name in self._teachers(term)]
            for teacher in teachers:
                loss_checks.check_logits(teacher, self.taps[term.student], term.loss)
            loss_checks.check_same_classes(teachers, term.loss)

    def build_losses(self):
        """Creates the weights of every loss, from the symbolic tensors."""
        for term in self.terms:
            first, *_ = self._teachers(term)
            teacher = pick(self.taps[first].specs, term.loss.teacher_layer)
            student = pick(self.taps[term.student].specs, term.loss.student_layer)
            masks = self.masks(term, {name: taps.specs for name, taps in self.taps.items()})
            loss_checks.build_loss(term.loss, teacher, student, masks, self._image_size(term))

    def masks(self, term, features):
        """Returns the masks that the loss of a term gets, `{argument: mask}`, of those it reads.

        `features` are `{network: {place: tensor}}`. There is none where nothing is padded. Where
        several teachers are one target, a token has to be real in all of them.
        """
        loss = term.loss
        of_teachers = [
            pick_masks(features[name], loss.teacher_layer, loss.teacher_mask_layer)
            for name in self._teachers(term)
        ]
        known = [mask for mask in of_teachers if mask is not None]
        masks = {
            "teacher_mask": functools.reduce(_both, known) if known else None,
            "student_mask": pick_masks(
                features[term.student], loss.student_layer, loss.student_mask_layer
            ),
        }
        return {argument: mask for argument, mask in masks.items() if mask is not None}

    def _image_size(self, term):
        """Returns the size of the images that both networks of a term read, up to its scale."""
        first, *_ = self._teachers(term)
        sizes = [self.taps[name].image_size for name in (first, term.student)]
        if None in sizes or sizes[0][0] * sizes[1][1] != sizes[0][1] * sizes[1][0]:
            return None
        return sizes[1]

    @property
    def trained(self):
        """Names of the networks that are trained."""
        return [name for name in self.models if name not in self.fixed]

    def fingerprint(self, name):
        """Returns a name of a network with its weights and with what makes its inputs."""
        convert = self.taps[name].convert
        return fingerprints.of_teacher(self.models[name], convert and convert.steps)

    def combined(self, features, labels):
        """Adds, under `ALL`, what all fixed networks say together, to `{name: {place: tensor}}`."""
        places = [term.loss.teacher_layer for term in self.terms if term.teacher == ALL]
        tensors = {
            place: combined_logits.combined(
                [features[name][place] for name in self.fixed], labels, self.combine
            )
            for place in loss_checks.listed(places)
        }
        return {**features, ALL: tensors} if tensors else features

    def check_cache(self, data):
        """Refuses the batches of a `TeacherCache` of another network than the fixed ones here."""
        if isinstance(data, tf.data.Dataset):
            teachers = {name: (self.models[name], self.taps[name].places) for name in self.fixed}
            found = check_teachers(data.element_spec, teachers, self.fingerprint)
            self._cached_as = found or self._cached_as

    def cached(self, teacher_features):
        """Returns `{name: {place: tensor}}` of the fixed networks that a cache stands for."""
        if teacher_features is None:
            return {}
        if len(self.fixed) == 1:
            return dict(zip(self.fixed, teacher_features.values(), strict=True))
        return {
            name: teacher_features[key]
            for name, key in self._cached_as.items()
            if key in teacher_features
        }

    def _teachers(self, term):
        """Returns the names of the networks that are the teacher of a term."""
        return self.fixed if term.teacher == ALL else [term.teacher]

    def _places(self, name):
        """Places that the losses read in a network."""
        read = []
        for term in self.terms:
            loss = term.loss
            if name in self._teachers(term):
                read += [loss.teacher_layer, loss.teacher_mask_layer]
            if name == term.student:
                read += [loss.student_layer, loss.student_mask_layer]
        return loss_checks.listed(place for place in read if place is not None)


def _both(first, second):
    """Returns where two masks are true, or those of every place of two dicts."""
    return keras.tree.map_structure(keras.ops.logical_and, first, second)
