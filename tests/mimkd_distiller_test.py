"""Which critics a MIMKDDistiller puts where, and for which pairs of networks."""

import math

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd

LEVELS = ("global_weight", "local_weight", "feature_weight")


def _mimkd(teacher=None, student=None, **kwargs):
    teacher, student = teacher or cases.teacher(), student or cases.student()
    return mikd.MIMKDDistiller(teacher, student, **{"make_critic": _critic, **kwargs})


def _critic():
    return mikd.SeparableCritic(width=8)


def _layout(distiller):
    return [
        (loss.name, loss.teacher_layer, loss.student_layer, loss.weight)
        for loss in distiller.distillation_losses
    ]


def _step(distiller, image_shape=cases.IMAGE_SHAPE):
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(4, *image_shape)).astype("float32")
    history = distiller.fit(x, np.arange(4), verbose=0).history
    assert all(np.isfinite(values[0]) for values in history.values())
    return history


GLOBAL = ("jsd_global", "pooled", "pooled", 3.0)
LOCAL = ("jsd_local", "pooled", "stage2", 3.0)
FEATURE = [("jsd_stage1", "stage1", "stage1", 3.0), ("jsd_stage2", "stage2", "stage2", 3.0)]


def test_three_levels_by_default():
    distiller = mikd.MIMKDDistiller(cases.teacher(), cases.student())
    assert _layout(distiller) == [GLOBAL, LOCAL, *FEATURE]
    losses = distiller.distillation_losses
    assert all(type(loss.critic) is mikd.SeparableCritic for loss in losses)
    assert len({id(loss.critic) for loss in losses}) == 4
    assert all(loss.bound is mikd.bounds.jsd and loss.negatives == 1 for loss in losses)
    assert all(loss.gather for loss in losses)


def test_critics_negatives_and_grid_of_the_callers_choice():
    options = {"negatives": 3, "grid": 2, "gather": False, "bound": mikd.bounds.info_nce}
    distiller = _mimkd(make_critic=lambda: mikd.ConcatCritic(width=6), **options)
    for loss in distiller.distillation_losses:
        assert (type(loss.critic), loss.critic.width) == (mikd.ConcatCritic, 6)
        assert (loss.negatives, loss.grid, loss.gather) == (3, 2, False)
        assert loss.bound is mikd.bounds.info_nce


def test_one_critic_for_all_levels_is_refused():
    with pytest.raises(
        ValueError, match="`make_critic` to be a function.*Received: make_critic=<Concat"
    ):
        _mimkd(make_critic=mikd.ConcatCritic())


@pytest.mark.parametrize(
    "left_out, rest",
    [
        ("global_weight", [LOCAL, *FEATURE]),
        ("local_weight", [GLOBAL, *FEATURE]),
        ("feature_weight", [GLOBAL, LOCAL]),
    ],
)
def test_a_weight_of_zero_leaves_a_level_out(left_out, rest):
    assert _layout(_mimkd(**{left_out: 0.0})) == rest


def test_no_level_at_all_is_refused():
    with pytest.raises(ValueError, match="list of at least one DistillationLoss"):
        _mimkd(**dict.fromkeys(LEVELS, 0))


@pytest.mark.parametrize("argument", LEVELS)
@pytest.mark.parametrize("weight", [-1.0, float("nan"), "1"])
def test_bad_weights_are_refused(argument, weight):
    with pytest.raises(
        ValueError, match="`weight` to be a finite number of at least 0. Received: weight="
    ):
        _mimkd(**{argument: weight})


@pytest.mark.parametrize("argument", ["negatives", "grid"])
def test_bad_numbers_are_refused(argument):
    with pytest.raises(ValueError, match=f"Received: {argument}=0"):
        _mimkd(**{argument: 0})


def test_soft_targets_may_be_added():
    distiller = _mimkd(soft_targets=mikd.SoftTargets(weight=0.9, name="kd"), local_weight=0)
    assert _layout(distiller) == [("kd", "output", "output", 0.9), GLOBAL, *FEATURE]


def test_losses_of_the_callers_own_take_the_place_of_the_critics():
    kd = mikd.SoftTargets()
    distiller = mikd.MIMKDDistiller(cases.teacher(), cases.student(), [kd])
    assert distiller.distillation_losses == (kd,)


def test_the_total_is_the_sum_that_the_docstring_gives():
    kd = mikd.SoftTargets(weight=0.9, name="kd")
    weights = {"global_weight": 0.3, "local_weight": 0.5, "feature_weight": 0.7}
    distiller = _mimkd(soft_targets=kd, task_loss_weight=0.5, **weights)
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    seen = distiller.evaluate(*cases.data(), verbose=0, return_dict=True)
    expected = 0.5 * seen["task_loss"] + 0.9 * seen["kd"] + 0.3 * seen["jsd_global"]
    expected += 0.5 * seen["jsd_local"] + 0.7 * (seen["jsd_stage1"] + seen["jsd_stage2"])
    assert seen["loss"] == pytest.approx(expected, rel=1e-5)


def test_validation_draws_the_same_negatives_however_long_the_training():
    distiller = _mimkd()
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    first = distiller.evaluate(*cases.data(), verbose=0, return_dict=True)
    distiller.optimizer.iterations.assign(1000)
    assert distiller.evaluate(*cases.data(), verbose=0, return_dict=True) == first


def test_a_schedule_is_a_weight():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)
    history = _step(_mimkd(**dict.fromkeys(LEVELS, schedule)))
    assert history["loss"] == pytest.approx(history["task_loss"])


def test_the_critics_are_saved(tmp_path):
    distiller = _mimkd()
    _step(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert type(loaded) is mikd.MIMKDDistiller
    assert _layout(loaded) == _layout(distiller)
    for a, b in zip(loaded.variables, distiller.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_critics_learn_to_tell_pairs():
    distiller = _mimkd()
    distiller.compile(keras.optimizers.Adam(0.01), cases.cross_entropy())
    history = distiller.fit(*cases.data(), batch_size=8, epochs=25, verbose=0).history
    for name, *_ in [GLOBAL, LOCAL, *FEATURE]:
        assert history[name][-1] < history[name][0], name
    of_a_constant_critic = 2 * math.log(2)
    assert history["jsd_stage1"][-1] < of_a_constant_critic
    assert history["jsd_stage1_mi_nats"][-1] > 0.1


def _dark_images(examples=64):
    """Every fourth image is black: features of zeros, which have no direction."""
    x, y = cases.data(examples)
    x[::4] = 0.0
    return x, y


@pytest.mark.parametrize(
    "make",
    [
        lambda: mikd.MIMKDDistiller(cases.teacher(), cases.student(), xla_critics=False),
        pytest.param(
            lambda: mikd.MUSEDistiller(cases.student(), muse_weight=1.0, xla_critics=False),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mimkd", "muse"],
)
def test_in_half_precision_nearly_all_updates_are_made(make):
    """The loss scale starts too high for any network; it must not have to fall for long.

    Rounding decides between five and six halvings here; without a bound on the gradient of short
    embeddings there were sixteen.
    """
    keras.config.set_dtype_policy("mixed_float16")
    distiller = make()
    distiller.compile(keras.optimizers.SGD(0.05), cases.cross_entropy())
    distiller.fit(*_dark_images(), batch_size=8, epochs=3, verbose=0)
    assert int(distiller.optimizer.inner_optimizer.iterations) >= 24 - 7


def test_networks_of_other_families_depths_and_widths():
    shape = (12, 12, 3)
    teacher = mikd.models.wide_resnet(depth=10, width=2, num_classes=5, input_shape=shape)
    student = mikd.models.resnet8(num_classes=4, input_shape=shape)
    distiller = _mimkd(teacher, student)
    _step(distiller, shape)
    assert [where[:3] for where in _layout(distiller)] == [
        ("jsd_global", "pooled", "pooled"),
        ("jsd_local", "pooled", "stage3"),
        ("jsd_stage1", "stage1", "stage1"),
        ("jsd_stage2", "stage2", "stage2"),
        ("jsd_stage3", "stage3", "stage3"),
    ]


def test_networks_of_other_resolutions_with_more_stages():
    shape = (16, 16, 3)
    teacher = mikd.models.resnet8(num_classes=4, input_shape=shape)  # 16, 8 and 4 pixels
    inputs = x = keras.Input(shape)
    for width in (4, 6):  # 8 and 4 pixels
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    student = keras.Model(inputs, keras.layers.Dense(4)(x))
    distiller = _mimkd(teacher, student, grid=8)
    assert [where[1:3] for where in _layout(distiller)] == [
        ("pooled", "pooled"),
        ("pooled", "stage2"),
        ("stage2", "stage1"),
        ("stage3", "stage2"),
    ]
    _step(distiller, shape)


def test_networks_without_stages_are_refused():
    inputs = keras.Input((6,))
    dense = keras.Model(inputs, keras.layers.Dense(4)(inputs), name="dense")
    with pytest.raises(ValueError, match="Expected a teacher with stages.*Functional 'dense'"):
        _mimkd(dense, keras.models.clone_model(dense))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_keras_cv_backbone(role):
    small = mikd.models.resnet8(num_classes=4, input_shape=(32, 32, 3))
    distiller = _mimkd(**{"teacher": small, "student": small, role: cases.keras_cv_classifier()})
    assert len(distiller.distillation_losses) == 5
    before = [v.numpy() for v in distiller.student.trainable_variables]
    _step(distiller, (32, 32, 3))
    after = distiller.student.trainable_variables
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "unused", [{"local_weight": 0.0}, {"make_critic": mikd.ConcatCritic}, {"grid": None}]
)
def test_arguments_that_losses_of_the_callers_own_leave_unused_are_refused(unused):
    with pytest.raises(ValueError, match=f"Received: distillation_losses and {[*unused][0]}"):
        mikd.MIMKDDistiller(cases.teacher(), cases.student(), [mikd.SoftTargets()], **unused)


@keras.saving.register_keras_serializable("mimkd_distiller_test")
class _Coarse(mikd.MIMKDDistiller):
    def __init__(self, teacher, student, distillation_losses=None, **kwargs):
        super().__init__(
            teacher, student, distillation_losses, grid=4, make_critic=_critic, **kwargs
        )


def test_a_subclass_with_arguments_of_its_own_is_saved_and_loaded(tmp_path):
    distiller = _Coarse(cases.teacher(), cases.student())
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert [loss.grid for loss in loaded.distillation_losses] == [
        loss.grid for loss in distiller.distillation_losses
    ]
