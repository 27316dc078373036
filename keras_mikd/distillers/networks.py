"""The networks of a step and the losses between them, set up once."""

from typing import NamedTuple

import tensorflow as tf

from keras_mikd.cache.batches import check_teacher
from keras_mikd.distillers import loss_checks, network_checks
from keras_mikd.features.feature_taps import FeatureTaps, pick, pick_masks
from keras_mikd.losses.distillation_loss import DistillationLoss


class Term(NamedTuple):
    """One loss of the total, and the names of the two networks that it compares."""

    loss: DistillationLoss
    teacher: str
    student: str
    factor: float = 1.0
    """Factor beside the weight of the loss."""
    stop_gradient: bool = True
    """Whether the teacher's tensors are targets, into which no gradient flows."""


def masks_of(term, features):
    """Returns the masks that the loss of a term gets, `{argument: mask}`, of those it reads.

    `features` are `{network: {place: tensor}}`. There is none where nothing is padded.
    """
    loss = term.loss
    masks = {
        "teacher_mask": pick_masks(
            features[term.teacher], loss.teacher_layer, loss.teacher_mask_layer
        ),
        "student_mask": pick_masks(
            features[term.student], loss.student_layer, loss.student_mask_layer
        ),
    }
    return {argument: mask for argument, mask in masks.items() if mask is not None}


class Networks:
    """The networks of a step, `{name: model}`, each read once for any number of losses.

    It hides from Keras what must not be tracked: fixed networks are not trained, and taps share
    their layers with the networks. The networks in `fixed` run in inference mode, outside the
    gradient. `features` holds the functions for subclassed models, see `FeatureTaps`.

    Raises:
        ValueError: If a place does not exist, or a loss cannot compare what it is given.
    """

    def __init__(self, models, terms, *, fixed=(), features=None):
        self.models = models
        self.terms = terms
        self.fixed = fixed
        inputs = network_checks.common_inputs(models)
        self.taps = {
            name: FeatureTaps(
                model, self._places(name), features=(features or {}).get(name), inputs=inputs
            )
            for name, model in models.items()
        }
        network_checks.check_maps(models, self.taps, fixed)
        for term in terms:
            loss_checks.check_logits(self.taps[term.teacher], self.taps[term.student], term.loss)

    def build_losses(self):
        """Creates the weights of every loss, from the symbolic tensors."""
        for term in self.terms:
            teacher = pick(self.taps[term.teacher].specs, term.loss.teacher_layer)
            student = pick(self.taps[term.student].specs, term.loss.student_layer)
            image_size = self._image_size(term)
            features = {name: taps.specs for name, taps in self.taps.items()}
            masks = masks_of(term, features)
            loss_checks.build_loss(term.loss, teacher, student, masks, image_size)

    def _image_size(self, term):
        """Returns the size of the images that both networks of a term read, up to its scale."""
        sizes = [self.taps[name].image_size for name in (term.teacher, term.student)]
        if None in sizes or sizes[0][0] * sizes[1][1] != sizes[0][1] * sizes[1][0]:
            return None
        return sizes[1]

    @property
    def trained(self):
        """Names of the networks that are trained."""
        return [name for name in self.models if name not in self.fixed]

    def check_cache(self, data):
        """Refuses the batches of a `TeacherCache` of another network than the fixed one here."""
        if isinstance(data, tf.data.Dataset):
            fixed = next(iter(self.fixed), None)
            places = self.taps[fixed].places if fixed else ()
            check_teacher(data.element_spec, self.models.get(fixed), places)

    def _places(self, name):
        """Places that the losses read in a network."""
        places = []
        for term in self.terms:
            loss = term.loss
            for network, read, mask_layer in (
                (term.teacher, loss.teacher_layer, loss.teacher_mask_layer),
                (term.student, loss.student_layer, loss.student_mask_layer),
            ):
                if network == name:
                    places += read if isinstance(read, list) else [read]
                    places += [] if mask_layer is None else [mask_layer]
        return list(dict.fromkeys(places))
