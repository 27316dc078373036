"""Checks of the networks of a distiller, whatever is matched between them."""

import itertools
import warnings

import keras

from keras_mikd import checks
from keras_mikd.distillers.checks import task_losses
from keras_mikd.distillers.checks.data_checks import accepts_integers
from keras_mikd.distribution import replicas
from keras_mikd.features.inputs import compatible, shapes
from keras_mikd.features.layer_graph import (
    check_channels_last,
    ends,
    has_graph,
    image_augmentations,
)
from keras_mikd.features.places import OUTPUT
from keras_mikd.features.probabilities import ends_linear, holds_probabilities
from keras_mikd.keras_internals import layers_of, strategy_made_under


def check_networks(models, converted=()):
    """Checks that `{name: model}` are different models that take the same inputs.

    Those in `converted` get inputs of their own, see `TeacherInputs`.
    """
    for name, model in models.items():
        checks.model(name, model)
    pairs = list(itertools.combinations(models.items(), 2))
    for (first, model), (second, other_model) in pairs:
        _check_separate(first, model, second, other_model)
    # Those with a student come first: with it all teachers have to fit.
    pairs.sort(key=lambda pair: pair[1][0] != "student")
    for (first, model), (second, other_model) in pairs:
        both = has_graph(model) and has_graph(other_model)
        if both and not {first, second} & set(converted):
            _check_inputs(first, model, second, other_model)


def _check_separate(first, model, second, other_model):
    if model is other_model:
        raise ValueError(
            f"Expected {first} and {second} to be different models. Received: the same object "
            "twice. To copy a model, save it and load the file."
        )
    shared = {id(v) for v in model.variables} & {id(v) for v in other_model.variables}
    if shared:
        raise ValueError(
            f"Expected {first} and {second} to share no weights, since each is trained, or kept as "
            f"it is, by itself. Received: models that share {len(shared)} variables."
        )


def _check_inputs(first, model, second, other_model):
    """Refuses two networks that no batch fits, by shape or since one reads integers only."""
    inputs, other_inputs = ends(model)[0], ends(other_model)[0]
    if not compatible(shapes(inputs), shapes(other_inputs)):
        raise ValueError(
            f"Expected {first} and {second} to take the same inputs. Received: {first} inputs of "
            f"shape {shapes(inputs)}, {second} inputs of shape {shapes(other_inputs)}. Put a "
            "resizing or rescaling layer in front of one of them, in a functional model"
            + (
                f"; or let the distiller make those of {first!r}: teacher_inputs=, a layer such as "
                "keras.layers.Resizing(height, width), or a dict of layers by the names of several "
                "teachers."
                if second == "student"
                else "."
            )
        )
    for a, b in zip(keras.tree.flatten(inputs), keras.tree.flatten(other_inputs), strict=True):
        kinds = {"int" in a.dtype: (first, model), "int" in b.dtype: (second, other_model)}
        if len(kinds) == 2 and len(a.shape) == 4 and not accepts_integers(kinds[False][1]):
            raise ValueError(
                f"Expected {first} and {second} to take the same images. Received: {first} inputs "
                f"of {a.dtype}, {second} inputs of {b.dtype}. No data fits both: Keras casts "
                "floats below 1 to the integer 0. Put keras.layers.Rescaling(1 / 255) in front of "
                f"the {kinds[False][0]}, and train on integer images"
                + (
                    f"; or pass `teacher_inputs`, which makes {a.dtype} for the {first}."
                    if second == "student"
                    else "."
                )
            )


def check_maps(models, taps, fixed):
    """Refuses maps whose channels come first; warns where images change inside of a network.

    Args:
        models: `{name: model}`.
        taps: `{name: FeatureTaps}` of them.
        fixed: Names of those that are not trained, in which images do not change.
    """
    for name, model in models.items():
        if any(len(getattr(spec, "shape", ())) > 2 for spec in taps[name].specs.values()):
            check_channels_last(model)
        random = image_augmentations(model)
        if random and len(models) > 1 and name not in fixed:
            warnings.warn(
                f"The {name} {model.name!r} changes its images at random ({', '.join(random)}), so "
                "that the other network sees other images: turned maps are compared with unturned "
                "ones. Augment the data set instead, which both networks read.",
                stacklevel=2,
            )


def policy(models):
    """Returns the dtype policy for a model that trains others; it decides about loss scaling.

    That of the layers counts: a model out of a file has theirs as saved, and for itself the policy
    of the process that loads it.
    """
    layers = [layer for model in models for layer in layers_of(model)]
    inner = [layer.dtype_policy for layer in layers if layer.weights and not _holds_layers(layer)]
    halves = [policy for policy in inner if policy.compute_dtype == "float16"]
    own = models[0].dtype_policy
    if halves or own.compute_dtype != "float16":
        return halves[0] if halves else own
    return inner[0] if inner else own


def _holds_layers(layer):
    return len(list(layers_of(layer))) > 1


def check_trained(networks, thawed, *, critics_alone):
    """Checks that there is something to train, and that the optimizers know all of it.

    Args:
        networks: `Networks`.
        thawed: Paths of variables that no optimizer knows.
        critics_alone: Whether the losses have an optimizer, so that they may be all that learns.
    """
    if thawed:
        raise ValueError(
            "Expected the weights that are trained to be those of `compile`. Received: "
            f"{len(thawed)} more, such as {thawed[0]!r}, since `trainable` was set after it. "
            "Call `compile` again."
        )
    models = [networks.models[name] for name in networks.trained]
    if not critics_alone and not any(model.trainable_variables for model in models):
        raise ValueError(
            f"Expected weights to train in the {networks.trained[0]}. Received: "
            f"{models[0].name!r} without any, so that nothing but the losses would learn. Set "
            "`trainable = True` on it or on its last layers, and compile again; to train the "
            "losses alone, give `compile` a `critic_optimizer`."
        )
    for variable in (v for model in models for v in model.trainable_variables):
        if variable.dtype == "float16":
            raise ValueError(
                "Expected trained weights in float32 or bfloat16. Received: "
                f"{variable.path!r} in float16, in which gradients overflow and small updates are "
                'lost. Build the network with dtype="mixed_float16", whose weights are float32.'
            )


def check_scope(models, distiller):
    """Checks that trained networks `{name: model}` belong to the strategy that trains them."""
    for name, model in models.items():
        # Without a scope Keras has `None` here; its property would return the current scope.
        own, wanted = (strategy_made_under(each) for each in (model, distiller))
        if own is not wanted:
            raise ValueError(
                f"Expected the {name} and the distiller to be made under one strategy: make both, "
                "and call `compile`, in its `with strategy.scope():`. Received: the "
                f"{name} made under {type(own).__name__ if own else 'no strategy'}, the distiller "
                f"under {type(wanted).__name__ if wanted else 'none'}"
            )


def warn_of_own_steps(models):
    """Warns of trained networks `{name: model}` whose own training step or loss is not called."""
    steps = ("train_step", "compute_loss", "test_step", "compute_metrics")
    for name, model in models.items():
        own = [s for s in steps if getattr(type(model), s) is not getattr(keras.Model, s)]
        if own:
            warnings.warn(
                f"The {name} {model.name!r} has its own {', '.join(own)}, which a distiller does "
                "not call: it trains the network by the loss and the metrics of its own `compile`. "
                "Pass what the step adds as a DistillationLoss, as `add_loss`, or as metrics.",
                stacklevel=4,
            )


def check_entered_scope(distiller):
    """Refuses to train inside the scope of another strategy than the distiller's."""
    own, entered = strategy_made_under(distiller), replicas.entered_strategy()
    if entered is not None and own is not entered:
        raise ValueError(
            "Expected `fit` outside of a scope, or in that of the strategy under which the "
            f"distiller was made: {type(own).__name__ if own else 'none'}. Received: the scope of "
            f"a {type(entered).__name__}. Make the networks and the distiller, and call `compile`, "
            "inside of `with strategy.scope():`."
        )


def checked_peers(peers):
    """Returns peers as `{"peer1": model, ...}`, if they are at least two different models."""
    if not isinstance(peers, (list, tuple)) or len(peers) < 2:
        raise ValueError(
            "Expected `peers` to be a list of at least two models; one alone learns from itself in "
            f"a SelfDistiller. Received: peers={peers!r}"
        )
    models = {f"peer{i}": peer for i, peer in enumerate(peers, start=1)}
    check_networks(models)
    return models


def check_outputs(outputs):
    """Checks that peers, `{name: symbolic output}`, learn the same classes."""
    for name, output in outputs.items():
        if keras.tree.is_nested(output):
            raise ValueError(
                f"Expected peers with one output each. Received: {name} with {output}. Wrap it in "
                "a functional model of the output that is to be trained."
            )
    shapes = {name: tuple(output.shape[1:]) for name, output in outputs.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "Expected peers with the same classes, since they learn from the same labels. "
            f"Received: outputs of shape {shapes}"
        )


def common_inputs(models):
    """Returns symbolic inputs of all models `{name: model}`, in their own structure.

    They are those of a model with a graph. For subclassed models they follow from the shapes that
    one was built with; `None` if Keras does not know these.
    """
    models = list(models.values())[::-1]
    for model in models:
        if has_graph(model):
            return ends(model)[0]
    return next((x for x in map(_inputs_built_for, models) if x is not None), None)


def _inputs_built_for(model):
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        return None
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[1:]), model.input_dtype), shapes
    )


def check_task_loss(model, loss, output=None):
    """Checks that task losses and a network's outputs agree on logits or probabilities.

    `loss` is what `compile` takes; `output` is the symbolic output, or a structure of them.
    """
    for place, each in task_losses.by_place(loss, output):
        logits = task_losses.expects_logits(each)
        if logits is None:
            continue
        probabilities = holds_probabilities(model, place)
        if not probabilities and not ends_linear(model, place):
            continue
        if probabilities == logits:
            raise ValueError(
                f"Expected a loss that fits: the network {model.name!r} puts out "
                f"{'probabilities' if probabilities else 'logits'} at {place!r} and the task loss "
                f"expects {'logits' if logits else 'probabilities'}. "
                f"Received: loss={each!r}. {task_losses.remedy(each, logits)}"
            )


def warn_of_metrics(model, metrics, output, loss=None):
    """Warns of metrics that take the logits of a network for probabilities.

    Of several outputs, all have to be logits. `loss` says whether one output is a logit.
    """
    if not ends_linear(model, OUTPUT) or holds_probabilities(model):
        return
    one_logit = not keras.tree.is_nested(output) and output.shape[-1] == 1
    one_logit = one_logit and task_losses.is_binary(loss)
    for metric in keras.tree.flatten(metrics):
        name = metric if isinstance(metric, str) else getattr(metric, "name", None)
        resolved = _resolved(metric, one_logit, loss)
        if _reads_probabilities(resolved):
            warnings.warn(
                f"The metric {name!r} expects probabilities, and {model.name!r} puts out logits: "
                f"its values mean nothing. {_remedy(resolved)}",
                stacklevel=3,
            )


def _resolved(metric, one_logit, loss):
    """Returns a metric as Keras makes it of its name, as far as it reads probabilities or not."""
    if not isinstance(metric, str):
        return metric
    if metric.lower() in ("accuracy", "acc"):
        return keras.metrics.BinaryAccuracy() if one_logit else None
    if metric.lower() in ("crossentropy", "ce"):
        if one_logit:
            return keras.metrics.BinaryCrossentropy()
        sparse = "sparse" in str(getattr(loss, "name", loss))
        return keras.metrics.get(f"{'sparse_' * sparse}categorical_crossentropy")
    try:
        return keras.metrics.get(metric)
    except ValueError:
        return None  # Keras tells of it.


def _reads_probabilities(metric):
    """Whether a metric takes its predictions for probabilities, as all with thresholds do."""
    if not isinstance(metric, keras.metrics.Metric):
        return task_losses.expects_logits(metric) is False
    if isinstance(metric, keras.metrics.KLDivergence):
        return True
    config = metric.get_config()
    if "from_logits" in config:
        return config["from_logits"] is False
    if "thresholds" in config:  # Keras allows none outside of 0 to 1.
        return config.get("top_k") is None
    # A threshold of 0 parts logits where 0.5 parts probabilities.
    return config.get("threshold") not in (None, 0.0) or "num_thresholds" in config


def _remedy(metric):
    """Returns what to do about a metric that reads probabilities, and meets logits."""
    if isinstance(metric, keras.metrics.BinaryAccuracy):
        return "Use keras.metrics.BinaryAccuracy(threshold=0.0)."
    if isinstance(metric, keras.metrics.Metric):
        name = type(metric).__name__ if "from_logits" in metric.get_config() else None
    else:
        name = task_losses.class_named(keras.metrics, metric)
    if name is None or metric in task_losses.OF_PROBABILITIES:
        return "It takes no logits: build the network with its softmax or sigmoid."
    return f"Use keras.metrics.{name}(from_logits=True)."
