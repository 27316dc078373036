"""Every public loss and distiller, listed once for the conformance tests."""

import warnings

import keras
import numpy as np
import pytest

import keras_mikd as mikd

NUM_CLASSES = 4
IMAGE_SHAPE = (8, 8, 2)
_REVIEWED = ["stage1", "stage2", "pooled"]


def network(
    widths,
    *,
    normalize=False,
    dropout=0.0,
    dense=False,
    classes=NUM_CLASSES,
    seed=0,
    shape=IMAGE_SHAPE,
):
    """A small convolutional network with two stages, putting out logits.

    A classifier; or, if it is dense, a segmenter with logits at 4 x 4 positions.
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    x = inputs
    for stage, width in enumerate(widths, 1):
        x = keras.layers.Conv2D(width, 3, strides=stage, padding="same", name=f"conv{stage}")(x)
        if normalize:
            x = keras.layers.BatchNormalization(name=f"bn{stage}")(x)
        x = keras.layers.ReLU(name=f"relu{stage}")(x)
    if dense:
        return keras.Model(inputs, keras.layers.Conv2D(classes, 1, name="logits")(x))
    x = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x))


def teacher(**kwargs):
    return network((6, 8), seed=1, **kwargs)


def student(**kwargs):
    return network((3, 5), seed=2, **kwargs)


def token_network(width, seed):
    """A classifier of sequences: patches of an image, those without a positive value padded."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(IMAGE_SHAPE)
    x = keras.layers.AveragePooling2D(2)(inputs)
    x = keras.layers.Masking()(keras.layers.ReLU()(keras.layers.Reshape((16, 2))(x)))
    x = keras.layers.Dense(width, activation="tanh", name="tokens")(x)
    logits = keras.layers.Dense(NUM_CLASSES, name="token_logits")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling1D(name="mean")(logits))


def data(examples=16, seed=0, dense=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, *IMAGE_SHAPE)).astype("float32")
    return x, rng.integers(NUM_CLASSES, size=(examples, 4, 4) if dense else examples)


def data_for(distiller, examples=16):
    """Images with labels for the outputs of the network that a distiller trains."""
    _, _, output = distiller._labelled(None)[0]
    return data(examples, dense=len(output.shape) > 2)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _jsd(teacher_layer="pooled", student_layer="pooled", critic=mikd.ConcatCritic, **kwargs):
    return mikd.JSDCritic(
        teacher_layer=teacher_layer, student_layer=student_layer, critic=critic(width=8), **kwargs
    )


def _vid(place="stage2", variant="repdistiller", **kwargs):
    return mikd.GaussianVIDHead(teacher_layer=place, student_layer=place, variant=variant, **kwargs)


def _vid_within():
    return mikd.GaussianVIDHead(teacher_layer="stage2", student_layer="stage1")


def _muse(**kwargs):
    # At a lower temperature, steps of this size magnify what rounding tells apart.
    options = {"student_layer": ["stage1", "stage2"], "width": 8, "temperature": 1.0}
    return mikd.MUSE(**{**options, **kwargs})


def _be_your_own_teacher():
    return mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])


def _between_tokens(make, place="tokens", **kwargs):
    return make(teacher_layer=place, student_layer=place, **kwargs)


# Losses of padded sequences, between networks of `token_network`.
TOKEN_LOSSES = {
    "tokens_soft_targets": lambda: _between_tokens(mikd.SoftTargets, "token_logits"),
    "tokens_hint": lambda: _between_tokens(mikd.Hint),
    "tokens_attention_transfer": lambda: _between_tokens(mikd.AttentionTransfer),
    "tokens_vid": lambda: _between_tokens(mikd.GaussianVIDHead, variant="repdistiller"),
    "tokens_jsd": lambda: _jsd("tokens", "tokens", negatives=2),
    "tokens_dv_local": lambda: _jsd(
        "mean", "tokens", bound=mikd.bounds.donsker_varadhan, critic=mikd.SeparableCritic
    ),
    "tokens_muse": lambda: _muse(teacher_layer="mean", student_layer=["tokens"]),
}

# name -> a function that makes a new loss; every public DistillationLoss is here.
LOSSES = {
    **TOKEN_LOSSES,
    "soft_targets": lambda: mikd.SoftTargets(temperature=4.0),
    "soft_targets_dense": lambda: mikd.SoftTargets(temperature=2.0),
    "soft_targets_map": lambda: mikd.SoftTargets(teacher_classes=[3, 1, 0, 2]),
    "lwf": lambda: mikd.LwF(),
    "lwf_dense": lambda: mikd.LwF(student_layer="stage1"),
    "soft_targets_binary": lambda: mikd.SoftTargets(binary=True),
    "soft_targets_standardized": lambda: mikd.SoftTargets(temperature=2.0, standardize=True),
    "dkd": lambda: mikd.DKD(),
    "dist": lambda: mikd.DIST(),
    "wttm": lambda: mikd.WTTM(),
    "rld": lambda: mikd.RLD(),
    "hint": lambda: mikd.Hint(teacher_layer="stage2", student_layer="stage2"),
    "hint_repdistiller": lambda: mikd.Hint(
        teacher_layer="stage2", student_layer="stage1", regressor="repdistiller"
    ),
    "hint_orthogonal": lambda: mikd.Hint(
        teacher_layer="stage2", student_layer="stage1", regressor="orthogonal"
    ),
    "hint_orthogonal_batch": lambda: mikd.Hint(
        teacher_layer="pooled",
        student_layer="pooled",
        regressor="orthogonal",
        normalization="batch",
    ),
    "activation_boundary": lambda: mikd.ActivationBoundary(
        teacher_layer="conv2", student_layer="conv1"
    ),
    "factor_transfer": lambda: mikd.FactorTransfer(
        teacher_layer="stage2", student_layer="stage1", paraphraser_steps=5
    ),
    "factor_transfer_official": lambda: mikd.FactorTransfer(
        teacher_layer="stage2", student_layer="stage2", variant="official", paraphraser_steps=5
    ),
    "review_kd": lambda: mikd.ReviewKD(teacher_layer=_REVIEWED, student_layer=_REVIEWED),
    "attention_transfer": lambda: mikd.AttentionTransfer(
        teacher_layer="stage1", student_layer="stage1"
    ),
    "keras_loss_adapter": lambda: mikd.KerasLossAdapter(
        keras.distillation.LogitsDistillation(2.0, loss=keras.losses.KLDivergence())
    ),
    "vid_official": lambda: _vid(variant="official"),
    "vid_repdistiller_sum": lambda: _vid(reduction="sum"),
    "vid_wgan": lambda: _vid(variant="wgan"),
    "vid_unfolded": lambda: mikd.GaussianVIDHead(
        teacher_layer="stage1", student_layer="pooled", variant="repdistiller"
    ),
    "vid_logits": lambda: mikd.GaussianVIDHead(student_layer="pooled"),
    "jsd_global": lambda: _jsd(),
    "jsd_global_separable_all": lambda: _jsd(critic=mikd.SeparableCritic, negatives="all"),
    "jsd_local": lambda: _jsd(student_layer="stage2", negatives=2),
    "jsd_local_reverse": lambda: _jsd(teacher_layer="stage1", critic=mikd.SeparableCritic, grid=4),
    "jsd_feature": lambda: _jsd("stage2", "stage2", grid=2),
    "jsd_feature_separable": lambda: _jsd(
        "stage1", "stage2", critic=mikd.SeparableCritic, negatives="all"
    ),
    "nwj_critic": lambda: _jsd(bound=mikd.bounds.nwj),
    "dv_critic": lambda: _jsd(bound=mikd.bounds.donsker_varadhan, negatives=3),
    "smile_critic": lambda: _jsd(bound=mikd.bounds.smile, negatives="all"),
    "info_nce_critic": lambda: _jsd(
        bound=mikd.bounds.info_nce, critic=mikd.SeparableCritic, negatives="all"
    ),
    "jsd_other_classes": lambda: _jsd(negatives_from="other_classes", negatives=2),
    "muse_additive": lambda: _muse(teacher_layer="stage2", combine="additive"),
    "muse_multiplicative": lambda: _muse(negatives_from="other_classes"),
    "muse_info_nce": lambda: _muse(
        student_layer="pooled", bound=mikd.bounds.info_nce, negatives="all"
    ),
    "muse_input": lambda: _muse(teacher_layer=["pooled", "input"], self_information="input"),
    "be_your_own_teacher": _be_your_own_teacher,
    "similarity_preserving": lambda: mikd.SimilarityPreserving(
        teacher_layer="stage2", student_layer="stage1"
    ),
    "rkd": lambda: mikd.RKD(teacher_layer="pooled", student_layer="pooled"),
    "pkt": lambda: mikd.PKT(teacher_layer="pooled", student_layer="pooled", weight=100.0),
    "correlation_congruence": lambda: mikd.CorrelationCongruence(
        teacher_layer="pooled", student_layer="pooled", width=8
    ),
    "correlation_congruence_paper": lambda: mikd.CorrelationCongruence(
        teacher_layer="pooled", student_layer="stage2", variant="paper"
    ),
    # At a lower temperature, steps of this size magnify what rounding tells apart.
    "crd": lambda: mikd.CRD(
        teacher_layer="pooled", student_layer="pooled", width=8, temperature=0.5
    ),
    "crd_other_classes": lambda: mikd.CRD(
        teacher_layer="pooled", student_layer="stage2", width=8, negatives_from="other_classes"
    ),
    # Of fewer examples than two batches, so that the batch before counts and one alone does not.
    "queue_relation": lambda: mikd.QueueRelation(
        teacher_layer="pooled", student_layer="pooled", size=12
    ),
    "itrd": lambda: mikd.ITRD(teacher_layer="pooled", student_layer="pooled"),
    "fsp": mikd.FSP,
    "nst": lambda: mikd.NST(teacher_layer="stage1", student_layer="stage2"),
}
DENSE = ("soft_targets_dense", "lwf_dense")  # Of networks with dense outputs.


def _online(first, second):
    muse = _muse(student_layer=["stage2"], name="muse")
    losses = [mikd.SoftTargets(temperature=1.0, name="dml"), muse]
    return mikd.MutualDistiller([first, second], losses, xla_critics=False)


def _of_two_teachers(teacher, student):
    """The second one sees larger images, and is as deep as the first one and not as wide."""
    small = network((4, 7), seed=3, shape=(None, None, 2))
    return mikd.Distiller(
        {"teacher": teacher, "of_larger": small},
        student,
        [
            mikd.SoftTargets(weight=0.9),
            _vid(teacher="teacher"),
            _jsd(teacher="of_larger"),
            mikd.SoftTargets(temperature=1.0, teacher="of_larger", name="kd_of_larger"),
        ],
        teacher_inputs={"of_larger": keras.layers.Resizing(12, 12)},
        combine="confidence",
        xla_critics=False,
    )


# name -> a function (network, network) -> distiller; every public distiller is here.
DISTILLERS = {
    "distiller": lambda t, s: mikd.Distiller(
        t,
        s,
        [mikd.SoftTargets(weight=0.9), _vid(), _jsd()],
        task_loss_weight=0.5,
        xla_critics=False,
    ),
    "two_teachers": _of_two_teachers,
    "vid": lambda t, s: mikd.VIDDistiller(t, s, logits_weight=0.5),
    "mimkd": mikd.MIMKDDistiller,
    "self": lambda _, s: mikd.SelfDistiller(
        s, [_be_your_own_teacher(), _jsd(student_layer="stage1"), _vid_within()], xla_critics=False
    ),
    "muse": lambda _, s: mikd.MUSEDistiller(s, muse_weight=1.0, xla_critics=False),
    "mutual": _online,
    "balanced": lambda t, s: mikd.Distiller(
        t,
        s,
        [mikd.SoftTargets(weight=0.5), _vid(), _jsd()],
        xla_critics=False,
        balance="gradient",
        balance_every=2,
    ),
    "mcmi": lambda _, s: mikd.MCMITeacher(
        s, centroids="running", momentum=0.9, separation_weight=0.01, log_likelihood_budget=0.2
    ),
}
# Those that take a step of their own kind; the others differ from these in their losses only.
KINDS = {
    name: DISTILLERS[name]
    for name in ("distiller", "balanced", "two_teachers", "self", "mutual", "mcmi")
}


def distiller(name, teacher_model=None, **kwargs):
    """A new distiller with the loss of that name, or the public one of that name."""
    if name in LOSSES:
        return distiller_with(
            LOSSES[name](),
            teacher_model=teacher_model or teacher_of(name),
            student_model=student_of(name),
            **kwargs,
        )
    return DISTILLERS[name](teacher_model or teacher(), student())


def teacher_of(name):
    """A teacher for the loss of that name."""
    return token_network(5, seed=1) if name in TOKEN_LOSSES else teacher(dense=name in DENSE)


def student_of(name):
    """A student for the loss of that name."""
    if name == "fsp":  # Of the teacher's width, since channel is compared with channel.
        return network((6, 8), seed=2)
    return token_network(3, seed=2) if name in TOKEN_LOSSES else student(dense=name in DENSE)


def distiller_with(loss, *, teacher_model=None, student_model=None, xla_critics=False, **kwargs):
    """One loss, with plain critics: compiling them is slow on a CPU and has a test of its own."""
    return mikd.Distiller(
        teacher_model or teacher(),
        student_model or student(),
        [loss],
        xla_critics=xla_critics,
        **kwargs,
    )


def keras_cv_classifier(image_shape=(32, 32, 3)):
    """A KerasCV backbone with three stages, inside a classifier that puts out logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("keras_cv", exc_type=ImportError).models
    backbone = models.ResNetV2Backbone(
        stackwise_filters=[64, 8],
        stackwise_blocks=[2, 2],
        stackwise_strides=[1, 2],
        include_rescaling=False,
        input_shape=image_shape,
        block_type="basic_block",
        name="backbone",
    )
    inputs = keras.Input(image_shape)
    x = keras.layers.GlobalAveragePooling2D()(backbone(inputs))
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(x))
