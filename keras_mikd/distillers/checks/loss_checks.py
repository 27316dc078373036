"""Checks of the losses between two networks."""

import collections
import inspect
import types
import warnings

import keras

from keras_mikd.distillers.checks.mask_checks import check_masks
from keras_mikd.features.probabilities import holds_probabilities
from keras_mikd.keras_internals import layers_of
from keras_mikd.losses.distillation_loss import DistillationLoss
from keras_mikd.losses.keras_loss_adapter import KerasLossAdapter

_RESERVED_NAMES = ("loss", "task_loss")


def checked_losses(losses, *, teachers=(), optional=False):
    """Returns the list of distillation losses, with those of `keras.distillation` adapted.

    `teachers` are the names among which a loss may choose its teacher.
    """
    is_list = isinstance(losses, (list, tuple)) and not isinstance(losses, DistillationLoss)
    if not is_list or not (losses or optional):
        number = "" if optional else "at least one "
        raise ValueError(
            f"Expected `distillation_losses` to be a list of {number}DistillationLoss. "
            f"Received: distillation_losses={losses!r}"
        )
    losses = [
        KerasLossAdapter(loss) if isinstance(loss, keras.distillation.DistillationLoss) else loss
        for loss in losses
    ]
    for loss in losses:
        if not isinstance(loss, DistillationLoss):
            raise ValueError(
                "Expected every distillation loss to be a keras_mikd.DistillationLoss or a "
                f"keras.distillation.DistillationLoss. Received: {loss!r}"
            )
        if loss.joined:
            raise ValueError(
                f"Expected new losses for every distiller. Received: {loss.name!r}, which belongs "
                "to another distiller and holds its trained weights. Make new losses."
            )
        if loss.teacher not in (None, *teachers):
            among = f"one of the teachers {list(teachers)}" if teachers else "none by name here"
            raise ValueError(
                f"Expected the `teacher` that a loss reads to be {among}. Received: "
                f"teacher={loss.teacher!r} of {loss.name!r}"
            )
    _check_shared(losses)
    default_names = collections.Counter()
    for loss in losses:
        default_names[loss.name] += 1
        loss.number(default_names[loss.name])
    check_names([loss.name for loss in losses])
    return losses


def _check_shared(losses):
    """Checks that no critic or other layer is in two losses, or one loss twice in the list."""
    owners = {}
    for loss in losses:
        for layer in layers_of(loss):
            other = owners.setdefault(id(layer), loss)
            if other is not loss or losses.count(loss) > 1:
                raise ValueError(
                    f"Expected every loss to have layers of its own. Received: {layer.name!r} in "
                    f"{other.name!r} and in {loss.name!r}, which would train it for two purposes. "
                    "Make a new one for each."
                )


def check_unused(distiller, assembly, losses, arguments):
    """Checks that the caller gives either `losses` or `arguments` that assemble them.

    `assembly` is the class whose constructor has the defaults. A `distiller` of a subclass is
    exempt: it may always pass arguments, and its file loads with losses.
    """
    defaults = inspect.signature(assembly.__init__).parameters
    unused = [name for name, value in arguments.items() if value != defaults[name].default]
    if losses is not None and unused and type(distiller) is assembly:
        raise ValueError(
            f"Expected either `distillation_losses`, which replace those that {assembly.__name__} "
            "assembles, or arguments of these. Received: distillation_losses and "
            f"{', '.join(unused)}. Leave these arguments out, or make losses with them yourself."
        )


def serialized_features(features):
    """Returns a `features` function as a file holds it; warns if it holds the name only."""
    registered = keras.saving.get_registered_name
    # Keras itself explains what a lambda takes; an object is serialized by its own class.
    function = isinstance(features, types.FunctionType) and features.__name__ != "<lambda>"
    if function and not keras.saving.get_registered_object(registered(features)):
        warnings.warn(
            f"The function {features.__name__!r} is saved by its name only, so the distiller loads "
            "only with it in `custom_objects`. To load it without, decorate the function with "
            "@keras.saving.register_keras_serializable().",
            stacklevel=2,
        )
    return keras.saving.serialize_keras_object(features)


def left_out_of_config(made):
    """Returns the arguments of an object's class that its `get_config` does not have."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(type(made).__init__).parameters.values()
    names = [p.name for p in parameters if p.kind not in kinds][1:]
    return sorted(set(names) - set(made.get_config()))


def serialized_losses(losses):
    """Returns losses as a file holds them; warns of arguments that it would lose."""
    for loss in losses:
        if left_out := left_out_of_config(loss):
            warnings.warn(
                f"The get_config of {type(loss).__name__} lacks {', '.join(left_out)}. "
                f"{loss.name!r} will load with the defaults of these.",
                stacklevel=3,
            )
    return [keras.saving.serialize_keras_object(loss) for loss in losses]


def check_copyable(losses):
    """Checks that losses can be copied: with all arguments, and without weights."""
    for loss in losses:
        if left_out := left_out_of_config(loss):
            raise ValueError(
                "Expected losses that their configuration rebuilds, since every pair of peers gets "
                f"a copy. Received: {loss.name!r}, whose get_config lacks {', '.join(left_out)}. "
                "Return them beside super().get_config()."
            )
        if loss.built:
            raise ValueError(
                "Expected losses without weights, since every pair of peers gets a copy. "
                f"Received: {loss.name!r}, which is built."
            )


def check_different_tensors(loss, specs):
    """Checks that a loss within one network, `{place: symbolic tensor}`, compares two tensors."""
    ends = [loss.teacher_layer], [loss.student_layer]
    first, second = ([id(specs[place]) for place in keras.tree.flatten(end)] for end in ends)
    if first == second:
        raise ValueError(
            "Expected a `teacher_layer` and a `student_layer` that differ, since there is one "
            f"network: {loss.name!r} would compare {loss.teacher_layer!r} with itself. Received: "
            f"teacher_layer={loss.teacher_layer!r}, student_layer={loss.student_layer!r}"
        )


def check_names(names):
    """Checks that nothing is logged twice under one name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                "Expected the distillation losses and their read-outs to have different names, "
                f"since they are logged under them. Received: {names.count(name)} named {name!r}. "
                "Set `name=` in each."
            )
        if name in _RESERVED_NAMES:
            raise ValueError(
                f"Expected another name than {_RESERVED_NAMES}, which the distiller logs itself. "
                f"Received: name={name!r}. Set another `name=`."
            )


def check_logits(teacher, student, loss):
    """Checks that a loss of logits does not get probabilities, as far as the graph shows.

    `teacher` and `student` are `FeatureTaps`.
    """
    for name, place in logit_places(loss):
        taps = {"teacher": teacher, "student": student}[name]
        if taps.features is None and holds_probabilities(taps.model, place):
            raise ValueError(
                f"Expected logits, since {loss.name!r} compares logits. Received: "
                f"{name}_layer={place!r}, where the {name} {taps.model.name!r} puts out "
                "probabilities: its last operation is a softmax or sigmoid. Build it without "
                f"the final activation, or name the layer before it as `{name}_layer`."
            )


def logit_places(loss):
    """Returns `[("teacher" or "student", place)]` of the places where a loss expects logits."""
    read = {"teacher": loss.teacher_layer, "student": loss.student_layer}
    if loss.expects_logits is True:
        return [(role, place) for role, places in read.items() for place in listed([places])]
    if loss.expects_logits == "teacher":
        return [("teacher", listed([loss.teacher_layer])[-1])]
    return []


def check_same_classes(teachers, loss):
    """Checks that the logits of several teachers, `FeatureTaps`, are of one shape."""
    for place in listed([loss.teacher_layer]):
        shapes = {
            taps.model.name: keras.tree.map_structure(lambda t: tuple(t.shape), taps.specs[place])
            for taps in teachers
        }
        if len({repr(shape) for shape in shapes.values()}) > 1:
            raise ValueError(
                "Expected teachers with the same classes and positions, whose logits become one "
                "target for "
                f"{loss.name!r}. Received: {place!r} of shape {shapes}. Name one of them as "
                "`teacher=`, and make such a loss for every teacher."
            )


def listed(places):
    """Returns the names in a list of places, of which some are lists, each once."""
    flat = [place if isinstance(place, list) else [place] for place in places]
    return list(dict.fromkeys(name for names in flat for name in names))


def build_loss(loss, teacher, student, masks, image_size):
    """Creates the weights of `loss` for the symbolic tensors at its places.

    `masks` are those that its `call` will get, `image_size` is that of the images that both read.
    """
    try:
        shapes = _loss_shapes(loss, teacher, student)
        check_masks(loss, shapes, masks)
        if loss.built:
            _check_built_for(loss, shapes)
        else:
            # Tokens of which some are padded do not form the grid of an image.
            loss.image_size = None if masks else image_size
            loss.build(*shapes)
            _check_layers(loss)
    except ValueError as error:
        raise ValueError(
            f"Expected tensors that {loss.name!r} (teacher_layer={loss.teacher_layer!r}, "
            f"student_layer={loss.student_layer!r}) can compare: {error}"
        ) from error


def _check_layers(loss):
    """Checks that layers inside a loss have their weights, which no optimizer would know later."""
    for layer in layers_of(loss, include_self=False):
        builds = type(layer).build is not keras.layers.Layer.build
        if builds and not layer.built:
            raise ValueError(
                f"Expected every layer of {loss.name!r} to have its weights after its `build`. "
                f"Received: {layer.name!r} without. Call `self.<layer>.build(shape)` in `build` of "
                "the loss."
            )


def _loss_shapes(loss, teacher, student):
    shapes = []
    for name, places, specs in (
        ("teacher", loss.teacher_layer, teacher),
        ("student", loss.student_layer, student),
    ):
        many = isinstance(places, list)
        for place, spec in zip(places, specs, strict=True) if many else [(places, specs)]:
            if keras.tree.is_nested(spec):
                among = f", one of {places}" if many else ""
                raise ValueError(
                    f"Expected a single tensor for {loss.name!r}, and the {name} has several "
                    f"outputs. Received: {name}_layer={place!r}{among}. Choose one of them, such "
                    f'as {name}_layer="output/<name>".'
                )
        shapes.append(keras.tree.map_structure(lambda spec: tuple(spec.shape), specs))
    return shapes


def _check_built_for(loss, shapes):
    """Checks that a loss with weights, from a file or another distiller, fits these shapes."""
    built, wanted = (
        keras.tree.map_shape_structure(lambda shape: tuple(shape[1:]), list(each))
        for each in (loss.get_build_config()["shapes_dict"].values(), shapes)
    )
    if built != wanted:
        raise ValueError(
            "Expected a loss without weights, or with weights for these tensors. Received: one "
            f"built for {built[0]} and {built[1]}, to compare {wanted[0]} and {wanted[1]}. Make a "
            "new loss for every distiller."
        )


def check_reached(losses, pairs, gradients):
    """Checks, while the first step is traced, that something is trained.

    `pairs` are optimizers and their variables; `gradients` has a list for every pair. A network
    with trainable weights needs a gradient of its own; that of a loss's weights does not do.
    """
    own = {id(variable) for loss in losses for variable in loss.trainable_variables}
    found = [
        (id(variable) in own, gradient)
        for (_, variables), group in zip(pairs, gradients, strict=True)
        for variable, gradient in zip(variables, group, strict=True)
    ]
    weights = [gradient for of_loss, gradient in found if not of_loss]
    if all(gradient is None for gradient in weights or [g for _, g in found]):
        raise ValueError(
            "Expected a loss that trains at least one weight of the network. Received: a gradient "
            f"for none of its {len(weights)} trainable weights. Set `trainable = True` on layers "
            "in front of the places that the losses read, let none of these stop the gradient, or "
            "give `compile` a task loss."
        )


def warn_of_nothing(weights):
    """Warns if all weights, of the task and of what is shared, are 0."""
    if all(weight == 0.0 for weight in weights):
        warnings.warn(
            "Nothing is learned: the weight of every loss is 0, and there is no task loss, "
            "`task_loss_weight` is 0, or the networks have no weights to train.",
            stacklevel=4,
        )
