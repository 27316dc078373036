"""Random configurations of everything that is public, for `fuzz_test.py`: plain dicts to read."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

import keras_mikd as mikd

CLASSES = 3
L = keras.layers


def _of(*values):
    return st.sampled_from(values)


def _odd(good, bad):
    """Mostly good values: every argument that is wrong hides what comes behind it."""
    return _of(*good * (40 * len(bad) // len(good) + 1), *bad)


WEIGHTS = _odd([1.0, 1.0, 0.5, 0.0, 0.01, 100.0, "schedule"], [-1.0, float("nan"), "1"])
TEMPERATURES = _odd([1.0, 4.0, 1e-3, 1e6, 0.1], [0.0, -1.0, float("inf"), 1e-30])
PLACES = _odd(["stage2", "stage1", "stage2", "pooled", "output"], ["input", "nope", "stage7"])
GRIDS = _odd([None, 1, 2, 8], [0, 2.5, "all"])
NEGATIVES = _odd([1, 2, "all"], [0, -1, "some", 100])
NEGATIVES_FROM = _odd(["batch", "batch", "other_classes"], ["others"])
BOUNDS = _of("jsd", "nwj", "info_nce", "donsker_varadhan", "smile")

NETWORKS = st.fixed_dictionaries(
    {
        "kind": _of(*("plain", "norm", "dropout", "nested") * 3, "subclassed", "outputs"),
        "widths": _of((4, 6), (3, 5), (2, 2), (1, 4)),
        "strides": _of(2, 2, 1),
        "policy": _of(*["float32"] * 5, "mixed_float16", "mixed_bfloat16", "float64", "float16"),
        "frozen": _of(*["none"] * 12, "first", "first", "all but last", "all"),
        "softmax": _of(*[False] * 15, True),
        "regularizer": st.booleans(),
    }
)

CRITICS = st.fixed_dictionaries(
    {"class": _of("ConcatCritic", "SeparableCritic"), "width": _odd([4, 1], [0, "4"])}
)
STAGES = _odd([("stage1", "stage2"), ("stage2",)], [(), ("stage1", "stage1"), ("stage9",)])


def _loss(kind, places=True, **arguments):
    ends = {"teacher_layer": PLACES, "student_layer": PLACES} if places else {}
    return st.fixed_dictionaries({"class": st.just(kind), "weight": WEIGHTS, **ends, **arguments})


LOSSES = st.one_of(
    _loss("SoftTargets", places=False, temperature=TEMPERATURES),
    _loss("LwF", places=False, temperature=TEMPERATURES),
    _loss("Hint"),
    _loss("AttentionTransfer", power=_odd([2.0, 1.0, 4], [0.5, "2"])),
    _loss(
        "GaussianVIDHead",
        variant=_odd(["official", "repdistiller", "wgan"], ["mine"]),
        hidden_channels=_odd([None, 2], [0, 1.5]),
        initial_variance=_odd([None, "auto", 1e-4, 0.3, 1e6], [0.0, "0.3"]),
        reduction=_odd(["mean", "sum"], ["max"]),
    ),
    _loss(
        "JSDCritic",
        critic=CRITICS,
        bound=BOUNDS,
        negatives=NEGATIVES,
        negatives_from=NEGATIVES_FROM,
        grid=GRIDS,
    ),
    _loss(
        "MUSE",
        places=False,
        student_layer=STAGES,
        teacher_layer=_of("pooled", "stage2"),
        combine=_odd(["multiplicative", "additive"], ["both"]),
        bound=_of("jsd", "info_nce", "nwj"),
        negatives=NEGATIVES,
        negatives_from=NEGATIVES_FROM,
        temperature=TEMPERATURES,
        grid=GRIDS,
        width=_of(4, 8),
    ),
    _loss(
        "BeYourOwnTeacher",
        places=False,
        student_layer=_odd([("stage1",), ("stage1", "stage2")], [()]),
        teacher_layer=_of(("stage2", "output")),
        alpha=_odd([0.3, 0.0, 1.0], [2.0]),
        temperature=TEMPERATURES,
    ),
    _loss("KerasLossAdapter", places=False, temperature=_of(1.0, 3.0)),
)

DISTILLERS = st.one_of(
    *[
        st.fixed_dictionaries(
            {
                "class": st.just(name),
                "losses": st.lists(LOSSES, min_size=1, max_size=2),
                "task_loss_weight": WEIGHTS,
            }
        )
        for name in ("Distiller", "Distiller", "SelfDistiller", "MutualDistiller")
    ],
    st.fixed_dictionaries(
        {
            "class": st.just("VIDDistiller"),
            "stage_weight": WEIGHTS,
            "logits_weight": WEIGHTS,
            "initial_variance": _of(None, "auto", 0.3),
        }
    ),
    st.fixed_dictionaries(
        {
            "class": st.just("MIMKDDistiller"),
            "global_weight": WEIGHTS,
            "feature_weight": WEIGHTS,
            "negatives": NEGATIVES,
            "grid": GRIDS,
        }
    ),
    st.fixed_dictionaries({"class": st.just("MUSEDistiller"), "muse_weight": WEIGHTS}),
    st.fixed_dictionaries(
        {
            "class": st.just("MCMITeacher"),
            "weight": _odd([0.25, 0.0, -1.0, 4.0], [float("nan"), "0.25"]),
            "centroids": _odd(["frozen", "epoch", "running"], ["fixed"]),
            "temperature": TEMPERATURES,
            "separation_weight": _odd([0.0, 0.02], [-1.0]),
            "log_likelihood_budget": _odd([0.3, None, 1e-3], [0.0]),
            "batch_norm": _odd(["measured", "running", "frozen"], ["moving"]),
        }
    ),
)

OPTIMIZERS = _of(
    *["sgd", "adam"] * 3,
    *("clipnorm", "clipvalue", "global_clipnorm", "scaled", "ema", "accumulated"),
    *("momentum", "adamw", "schedule"),
)
DATA = st.fixed_dictionaries(
    {
        "source": _of("arrays", "arrays", "dataset", "cache"),
        "batch": _of(4, 4, 5, 1),
        "images": _of(*["float32"] * 8, *("float64", "constant") * 2, "float16", "uint8"),
        "labels": _of(
            *("ints", "column", "uint8") * 4, *("one_hot", "soft", "multi") * 2, "named", "none"
        ),
        "sample_weight": _of(None, None, None, "random", "ones"),
        "class_weight": _of(*[None] * 5, {0: 2.0, 1: 1.0, 2: 0.5}),
    }
)

CONFIGURATIONS = st.fixed_dictionaries(
    {
        "teacher": NETWORKS,
        "student": NETWORKS,
        "distiller": DISTILLERS,
        "optimizer": OPTIMIZERS,
        "critic_optimizer": _of(None, None, None, *("sgd", "adam", "accumulated", "scaled")),
        "task": _of(*["fitting"] * 16, "none", "none", "probabilities"),
        "data": DATA,
        "saved": _of(*[False] * 7, True),
        "graph": _of(*[False] * 39, True),
    }
)


@keras.saving.register_keras_serializable("fuzz")
class Subclassed(keras.Model):
    def __init__(self, widths, strides, **kwargs):
        super().__init__(**kwargs)
        self.widths, self.strides = widths, strides
        policy = self.dtype_policy
        self.convs = [
            L.Conv2D(w, 3, strides=s, padding="same", activation="relu", dtype=policy)
            for w, s in zip(widths, (1, strides), strict=True)
        ]
        self.gap = L.GlobalAveragePooling2D(dtype=policy)
        self.dense = L.Dense(CLASSES, dtype=policy)

    def call(self, x, training=None):
        return features(self, x, training)["output"]

    def get_config(self):
        return {**super().get_config(), "widths": self.widths, "strides": self.strides}


@keras.saving.register_keras_serializable("fuzz")
def features(model, x, training):
    del training
    stage1 = model.convs[0](x)
    stage2 = model.convs[1](stage1)
    pooled = model.gap(stage2)
    read = {"stage1": stage1, "stage2": stage2, "pooled": pooled}
    return {**read, "output": model.dense(pooled)}


def network(spec, name):
    """Returns a network of 6x6 images, with random weights."""
    policy, kind = spec["policy"], spec["kind"]
    if kind == "subclassed":
        model = Subclassed(spec["widths"], spec["strides"], dtype=policy, name=name)
        model(np.zeros((1, 6, 6, 2), "float32"))
        layers = [*model.convs, model.dense]
    else:
        model, layers = _functional(spec, policy, kind, name)
    for layer in {"none": [], "first": layers[:1], "all but last": layers[:-1], "all": layers}[
        spec["frozen"]
    ]:
        layer.trainable = False
    return model


def _functional(spec, policy, kind, name):
    layers, inputs = [], keras.Input((6, 6, 2))
    x = inputs
    penalty = keras.regularizers.L2(1e-3) if spec["regularizer"] else None
    for width, strides in zip(spec["widths"], (1, spec["strides"]), strict=True):
        options = {"padding": "same", "dtype": policy, "kernel_regularizer": penalty}
        layers.append(L.Conv2D(width, 3, strides=strides, **options))
        x = layers[-1](x)
        if kind == "norm":
            x = L.BatchNormalization(dtype=policy)(x)
        x = L.ReLU(dtype=policy)(x)
    if kind == "nested":
        x = keras.Model(inputs, x, name=f"{name}_backbone")(inputs)
    x = L.GlobalAveragePooling2D(dtype=policy)(x)
    if kind == "dropout":
        x = L.Dropout(0.3, dtype=policy)(x)
    layers.append(L.Dense(CLASSES, "softmax" if spec["softmax"] else None, dtype=policy))
    outputs = layers[-1](x)
    if kind == "outputs":
        layers.append(L.Dense(2, dtype=policy))
        outputs = {"classes": outputs, "more": layers[-1](x)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Model(inputs, outputs, name=name)
    model.dtype_policy = policy
    return model, layers


def _weight(value):
    decay = keras.optimizers.schedules.PiecewiseConstantDecay
    return decay([1], [1.0, 0.5]) if value == "schedule" else value


def loss(spec):
    spec = {k: _weight(v) if k == "weight" else v for k, v in spec.items()}
    kind = spec.pop("class")
    if kind == "KerasLossAdapter":
        inner = keras.distillation.LogitsDistillation(spec.pop("temperature"))
        return mikd.KerasLossAdapter(inner, **spec)
    if "bound" in spec:
        spec["bound"] = getattr(mikd.bounds, spec["bound"])
    if "critic" in spec:
        critic = dict(spec["critic"])
        spec["critic"] = getattr(mikd, critic.pop("class"))(**critic)
    for key in ("student_layer", "teacher_layer"):
        if isinstance(spec.get(key), tuple):
            spec[key] = list(spec[key])
    return getattr(mikd, kind)(**spec)


def distiller(config):
    """Returns the distiller and the networks that it trains."""
    spec = {k: _weight(v) if k.endswith("weight") else v for k, v in config["distiller"].items()}
    kind = getattr(mikd, spec.pop("class"))
    teacher, student = (network(config[role], role) for role in ("teacher", "student"))
    if "losses" in spec:
        spec["distillation_losses"] = [loss(each) for each in spec.pop("losses")]
        spec["xla_critics"] = False
    reads = [features if config[role]["kind"] == "subclassed" else None for role in _ROLES]
    if kind is mikd.MCMITeacher:
        return kind(student, **spec)
    if kind in (mikd.SelfDistiller, mikd.MUSEDistiller):
        return kind(student, features=reads[1], **spec)
    if kind is mikd.MutualDistiller:
        return kind([teacher, student], features=reads, **spec)
    return kind(teacher, student, teacher_features=reads[0], student_features=reads[1], **spec)


_ROLES = ("teacher", "student")


def optimizer(name):
    sgd = keras.optimizers.SGD
    make = {
        "sgd": lambda: sgd(0.01),
        "adam": lambda: keras.optimizers.Adam(0.01),
        "adamw": lambda: keras.optimizers.AdamW(0.01),
        "momentum": lambda: sgd(0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
        "clipnorm": lambda: sgd(0.01, clipnorm=1.0),
        "clipvalue": lambda: sgd(0.01, clipvalue=0.5),
        "global_clipnorm": lambda: sgd(0.01, global_clipnorm=1.0),
        "scaled": lambda: keras.optimizers.LossScaleOptimizer(sgd(0.01), initial_scale=128.0),
        "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True),
        "accumulated": lambda: sgd(0.01, gradient_accumulation_steps=2),
        "schedule": lambda: sgd(keras.optimizers.schedules.CosineDecay(0.01, 10)),
    }
    return None if name is None else make[name]()


def task_loss(config):
    """Returns the task loss that fits the labels and the outputs of the student."""
    if config["task"] == "none" or config["data"]["labels"] == "none":
        return None
    softmax = config["student"]["softmax"] and config["student"]["kind"] != "subclassed"
    logits = not (softmax or config["task"] == "probabilities")
    kinds = {"one_hot": keras.losses.CategoricalCrossentropy, "soft": keras.losses.KLDivergence}
    kinds["multi"] = keras.losses.BinaryCrossentropy
    kinds["soft"] = keras.losses.CategoricalCrossentropy
    kind = kinds.get(config["data"]["labels"], keras.losses.SparseCategoricalCrossentropy)
    each = kind(from_logits=logits)
    several = config["student"]["kind"] == "outputs"
    return {"classes": each, "more": None} if several else each


def data(config, teacher):
    """Returns the arguments of `fit`: two batches, the last of which may be short."""
    spec, rng = config["data"], np.random.default_rng(0)
    batch = spec["batch"]
    examples = max(2, 2 * batch - (batch == 5))
    x = rng.uniform(0.0, 1.0, size=(examples, 6, 6, 2))
    x = np.full_like(x, 0.5) if spec["images"] == "constant" else x
    if spec["images"] == "uint8":
        x = (255 * x).astype("uint8")
    else:
        x = x.astype("float32" if spec["images"] == "constant" else spec["images"])
    y = _labels(spec["labels"], rng, examples)
    if config["student"]["kind"] == "outputs" and y is not None and spec["labels"] != "named":
        y = {"classes": y, "more": np.zeros((examples, 2), "float32")}
    weight = {"random": rng.uniform(0.5, 2.0, size=examples), "ones": np.ones(examples)}
    weight = weight.get(spec["sample_weight"])
    class_weight = spec["class_weight"] if weight is None else None  # Keras takes one of them.
    if spec["source"] == "cache" and teacher is not None:
        cache = mikd.TeacherCache(teacher, x, y, places=_places(config)).build(verbose=0)
        return {"x": cache.batches(batch), "class_weight": spec["class_weight"]}
    if spec["source"] == "dataset":
        each = tuple(part for part in (x, y, weight) if part is not None)
        each = (x,) if y is None else each
        dataset = tf.data.Dataset.from_tensor_slices(each).batch(batch)
        return {"x": dataset, "class_weight": class_weight}
    return {
        "x": x,
        "y": y,
        "batch_size": batch,
        "sample_weight": weight,
        "class_weight": class_weight,
    }


def _labels(form, rng, examples):
    y = rng.integers(CLASSES, size=examples)
    y[:CLASSES] = np.arange(CLASSES)[:examples]
    forms = {
        "column": lambda: y[:, None],
        "uint8": lambda: y.astype("uint8"),
        "one_hot": lambda: np.eye(CLASSES, dtype="float32")[y],
        "soft": lambda: rng.dirichlet(np.ones(CLASSES), size=examples).astype("float32"),
        "multi": lambda: rng.integers(2, size=(examples, CLASSES)).astype("float32"),
        "named": lambda: {"classes": y},
        "none": lambda: None,
    }
    return forms.get(form, lambda: y)()


def _places(config):
    read = [each.get("teacher_layer", "output") for each in config["distiller"].get("losses", [])]
    flat = [place for each in read for place in (each if isinstance(each, tuple) else [each])]
    return tuple(dict.fromkeys(place for place in flat if place != "output"))
