"""What must hold between a teacher, a student and their losses before a distiller is built."""

import keras

from keras_mikd.baselines.keras_loss_adapter import KerasLossAdapter
from keras_mikd.distillation_loss import DistillationLoss
from keras_mikd.feature_taps import OUTPUT, output_is_probability
from keras_mikd.layer_graph import ends, has_graph

_RESERVED_NAMES = ("loss", "task_loss")
_CROSS_ENTROPIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)


def checked_losses(losses):
    """Returns the list of distillation losses, those of `keras.distillation` adapted."""
    if isinstance(losses, DistillationLoss) or not isinstance(losses, (list, tuple)) or not losses:
        raise ValueError(
            "Expected `distillation_losses` to be a list of at least one DistillationLoss. "
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
        if loss.claimed:
            raise ValueError(
                f"{loss.name!r} belongs to another distiller, whose trained weights it holds. "
                "Expected new losses for every distiller."
            )
    check_names([loss.name for loss in losses])
    return losses


def check_names(names):
    """Checks that nothing is logged twice under one name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                "Expected the distillation losses and their read-outs to have different names, "
                f"since they are logged under them. Received {names.count(name)} named {name!r}: "
                "set `name=` in each."
            )
        if name in _RESERVED_NAMES:
            raise ValueError(
                f"The name {name!r} is taken by the distiller's own logs. Received: name={name!r}; "
                "set another `name=`."
            )


def checked_xla_critics(xla_critics):
    """Returns `xla_critics`, if it is one of the three values."""
    if xla_critics not in (True, False, "auto"):
        raise ValueError(
            f'Expected `xla_critics` to be True, False or "auto". Received: {xla_critics=}'
        )
    return xla_critics


def check_networks(teacher, student):
    """Checks that teacher and student are two models that take the same inputs."""
    for name, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model):
            raise ValueError(f"Expected `{name}` to be a keras.Model. Received: {name}={model!r}")
    if teacher is student:
        raise ValueError(
            "Expected teacher and student to be different models. Received the same object twice: "
            "a copy is made by keras.models.clone_model, its weights set with set_weights."
        )
    shared = {id(v) for v in teacher.variables} & {id(v) for v in student.variables}
    if shared:
        raise ValueError(
            f"Expected teacher and student to share no weights, since only the student is trained. "
            f"Received models that share {len(shared)} variables."
        )
    inputs = [_input_shapes(model) for model in (teacher, student)]
    if None not in inputs and not _compatible(*inputs):
        raise ValueError(
            "Expected teacher and student to take the same inputs. Received: teacher inputs of "
            f"shape {inputs[0]}, student inputs of shape {inputs[1]}. Put a resizing or rescaling "
            "layer in front of one of them, in a functional model."
        )


def common_inputs(teacher, student):
    """Returns symbolic inputs of both models in their own structure.

    They are those of a model with a graph. Of two subclassed models, they follow from the shapes
    that one was built with; `None` if Keras does not know these.
    """
    for model in (student, teacher):
        if has_graph(model):
            return ends(model)[0]
    for model in (student, teacher):
        if (inputs := _inputs_built_for(model)) is not None:
            return inputs
    return None


def _inputs_built_for(model):
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        return None
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), model.input_dtype), shapes
    )


def _input_shapes(model):
    """Input shapes by name of a dict, by position otherwise; `None` for a subclassed model."""
    if not has_graph(model):
        return None
    inputs = ends(model)[0]
    if isinstance(inputs, dict):
        return {name: tuple(tensor.shape) for name, tensor in sorted(inputs.items())}
    return [tuple(tensor.shape) for tensor in keras.tree.flatten(inputs)]


def _compatible(first, second):
    if type(first) is not type(second) or len(first) != len(second):
        return False
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return False
        first, second = list(first.values()), list(second.values())
    return all(
        len(a) == len(b)
        and all(None in pair or pair[0] == pair[1] for pair in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def check_logits(teacher, student, losses):
    """Checks that losses of logits are not given probabilities, where the graph tells."""
    for loss in losses:
        if not loss.expects_logits:
            continue
        for name, model, place in (
            ("teacher", teacher, loss.teacher_layer),
            ("student", student, loss.student_layer),
        ):
            if _is_probability(model, place):
                raise ValueError(
                    f"{loss.name!r} compares logits, and the {name} {model.name!r} puts out "
                    "probabilities: its last operation is a softmax or sigmoid. Expected logits: "
                    f"build the {name} without the final activation, or name the layer before it "
                    f"as `{name}_layer`. Received: {name}_layer={place!r}"
                )


def _is_probability(model, place):
    if str(place).split("/")[0] == OUTPUT:
        return output_is_probability(model, place)
    if not has_graph(model) or place not in {layer.name for layer in model.layers}:
        return False
    layer = model.get_layer(place)
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    return isinstance(layer, keras.layers.Softmax) or activation in ("softmax", "sigmoid")


def claim(losses):
    """Marks losses as a distiller's own, since a second one would go on with trained critics."""
    for loss in losses:
        loss.claimed = True


def check_task_loss(student, loss):
    """Checks that a cross-entropy and the student's output agree on logits or probabilities."""
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(loss, _CROSS_ENTROPIES):
        from_logits = loss.get_config()["from_logits"]
    elif loss in _CROSS_ENTROPY_FUNCTIONS:
        from_logits = False
    else:
        return
    probabilities = output_is_probability(student)
    if not probabilities and not _ends_in_linear_layer(student):
        return
    if probabilities == from_logits:
        raise ValueError(
            f"The student {student.name!r} puts out "
            f"{'probabilities' if probabilities else 'logits'} and the task loss expects "
            f"{'logits' if from_logits else 'probabilities'}. "
            f"Received: loss={loss!r}; use from_logits={not from_logits} in it."
        )


def _ends_in_linear_layer(model):
    """Whether every output is a linear layer's, so that it is certain to be logits."""
    if not has_graph(model):
        return False
    layers = [t._keras_history.operation for t in keras.tree.flatten(ends(model)[1])]
    linear = keras.activations.linear
    return all(isinstance(x, _KERNEL_LAYERS) and x.activation is linear for x in layers)


_KERNEL_LAYERS = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv2D)

_CROSS_ENTROPY_FUNCTIONS = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.binary_crossentropy,
)


def loss_shapes(loss, teacher, student):
    """Returns the shapes to build `loss` with, from the symbolic tensors at its places."""
    shapes = []
    for name, places, specs in (
        ("teacher", loss.teacher_layer, teacher),
        ("student", loss.student_layer, student),
    ):
        if not isinstance(places, list) and keras.tree.is_nested(specs):
            raise ValueError(
                f"{loss.name!r} compares single tensors, and the {name} has several outputs. "
                f'Expected one of them, such as {name}_layer="output/<name>". '
                f"Received: {name}_layer={places!r}"
            )
        shapes.append(keras.tree.map_structure(lambda spec: tuple(spec.shape), specs))
    return shapes


def check_built_for(loss, shapes):
    """Checks that a loss with weights, of a file or of another distiller, fits these shapes."""
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
