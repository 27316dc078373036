"""Properties that hold for every public loss and distiller.

To compile a step costs far more than to run it. So the steps that others are compared with run
eagerly, and what was compiled once serves several properties: see `_alone` and `_on_two`. Where a
case shares the code that a property is about with other cases, it is slow.
"""

import functools
import inspect
from typing import NamedTuple

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.detection.detector_task import DetectorTask
from keras_mikd.distillers.base_distiller import BaseDistiller
from keras_mikd.features.feature_taps import pick

# The distillers below have most of the losses. These are beside them: pairs that replicas gather in
# other ways, and arithmetic that no distiller has.
REPLICAS = (
    *("jsd_other_classes", "jsd_global_separable_all", "dv_critic", "tokens_dv_local"),
    *("soft_targets_dense", "rkd", "queue_relation"),
)
XLA = ("info_nce_critic", "jsd_other_classes", "tokens_jsd")
# These only combine what others have in another way.
VARIANTS = {
    *("vid_repdistiller_sum", "jsd_local_reverse", "jsd_feature_separable", "nwj_critic"),
    *("smile_critic", "muse_additive", "muse_info_nce", "soft_targets_map", "lwf_dense"),
    *("tokens_vid", "crd_other_classes", "correlation_congruence_paper"),
    *("tokens_soft_targets", "tokens_hint", "tokens_attention_transfer", "tokens_muse"),
}

MAIN = (cases.LOSSES.keys() - VARIANTS) | cases.DISTILLERS.keys()


def _for_each(*groups, default=None):
    """A test of each of the cases; those that are not in `default` are slow."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=() if default is None or name in default else pytest.mark.slow)
            for group in groups
            for name in group
        ],
    )


@pytest.mark.parametrize("name", cases.LOSSES)
def test_a_text_is_no_boolean(name):
    loss = cases.LOSSES[name]()
    for argument, parameter in inspect.signature(type(loss)).parameters.items():
        if parameter.annotation is bool:
            with pytest.raises(ValueError, match=f"{argument}='no'"):
                type(loss).from_config({**loss.get_config(), argument: "no"})


def _compiled(distiller, **kwargs):
    options = {"metrics": ["accuracy"], **kwargs}
    distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), cases.cross_entropy(), **options)
    return distiller


def _fit(distiller, examples=16, **kwargs):
    # Of unknown size, so that a short batch does not compile the step again.
    batches = tf.data.Dataset.from_tensor_slices(cases.data_for(distiller, examples)).batch(8)
    return distiller.fit(batches, shuffle=False, verbose=0, **kwargs).history


def _weights(distiller):
    return [v.numpy() for v in distiller.trainable_variables]


class Run(NamedTuple):
    """A distiller, its weights before and after an epoch, and what it logged."""

    distiller: BaseDistiller
    before: list
    after: list
    history: dict
    history_of_few: dict


def _run(distiller, few):
    """Trains for an epoch, and then on a few examples."""
    before = _weights(distiller)
    history = _fit(distiller)
    after = _weights(distiller)
    return Run(distiller, before, after, history, _fit(distiller, few))


@functools.cache
def _alone(name):
    """The case on one device, step by step; then on one example."""
    return _run(_compiled(cases.distiller(name), run_eagerly=True), few=1)


@functools.cache
def _on_two(name, two_replicas):
    """The case on two replicas, compiled; then with a last example for the first of them."""
    with two_replicas.scope():
        distiller = _compiled(cases.distiller(name))
    return _run(distiller, few=9)


def _assert_same(first, second, atol):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def _assert_same_histories(first, second):
    """Same values in the same order; automatic names differ from one distiller to the next."""
    for name, a, b in zip(first, first.values(), second.values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4, err_msg=name)


def _assert_finite(distiller, history):
    assert all(np.all(np.isfinite(values)) for values in history.values()), history
    assert all(np.all(np.isfinite(w)) for w in _weights(distiller))


def test_every_public_loss_and_distiller_is_listed():
    listed = {type(make()) for make in cases.LOSSES.values()}
    listed |= {type(cases.distiller(name)) for name in cases.DISTILLERS}
    public = {
        value
        for value in vars(mikd).values()
        if inspect.isclass(value)
        and issubclass(value, (mikd.DistillationLoss, BaseDistiller))
        # Those of detectors have no images with labels: detector_task_test.py.
        and not issubclass(value, DetectorTask)
    }
    assert public - {mikd.DistillationLoss} == listed


@_for_each(cases.LOSSES)
def test_config_round_trip(name):
    loss = cases.LOSSES[name]()
    twin = type(loss).from_config(loss.get_config())
    assert twin.get_config() == loss.get_config()


@_for_each(cases.LOSSES, default=cases.LOSSES.keys() - VARIANTS)
def test_graph_equals_eager_and_the_second_call_does_not_retrace(name):
    distiller = _alone(name).distiller
    (loss,) = distiller.distillation_losses
    (term,) = distiller._networks.terms
    teacher, student = (distiller._networks.taps[n] for n in ("teacher", "student"))
    traces = []

    def values(x, y):
        traces.append(1)
        features = {"teacher": teacher(x, training=False)}
        t = pick(features["teacher"], loss.teacher_layer)
        with tf.GradientTape() as tape:
            features["student"] = student(x, training=False)
            s = pick(features["student"], loss.student_layer)
            value = loss(t, s, labels=y, training=True, **distiller._networks.masks(term, features))
        return value, tape.gradient(value, [*loss.trainable_weights, student.model.weights[0]])

    x, y = map(tf.constant, cases.data())
    eager = values(x, y)
    specs = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in (x, y)]
    graph = tf.function(values, input_signature=specs)
    for one, other in zip(tf.nest.flatten(graph(x, y)), tf.nest.flatten(eager), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    graph(x, y)
    assert eager[0].shape == (16,)
    assert eager[0].dtype == "float32"
    assert len(traces) == 2


@_for_each(cases.LOSSES, cases.DISTILLERS, default=MAIN)
def test_every_weight_gets_a_gradient_and_moves(name):
    run = _alone(name)
    variables = run.distiller.trainable_variables
    for variable, old, new in zip(variables, run.before, run.after, strict=True):
        # A constant in all scores cancels in the Donsker-Varadhan bound; rounding may move it.
        of_scores = variable.path.endswith(("score/bias", "separable_critic/bias"))
        if "dv_" not in name or not of_scores:
            assert np.any(new != old), variable.path
        else:
            np.testing.assert_allclose(new, old, rtol=0, atol=1e-6)


@_for_each(cases.LOSSES, cases.DISTILLERS, default=MAIN)
def test_history_has_every_term_and_readout(name):
    run = _alone(name)
    for loss in run.distiller.distillation_losses:
        assert loss.name in run.history
        for metric in loss.metrics:
            assert metric.name.startswith(f"{loss.name}_")
            assert metric.name in run.history


@_for_each(cases.LOSSES, cases.DISTILLERS, default=MAIN)
def test_a_batch_of_one_is_harmless(name):
    run = _alone(name)
    _assert_finite(run.distiller, run.history_of_few)


@_for_each(cases.LOSSES, cases.DISTILLERS, default=[*REPLICAS, *cases.KINDS])
def test_two_replicas_give_the_update_of_one(name, two_replicas):
    one, two = _alone(name), _on_two(name, two_replicas)
    _assert_same(one.after, two.after, atol=1e-5)
    _assert_same_histories(one.history, two.history)


@_for_each(cases.LOSSES, cases.DISTILLERS, default=[*REPLICAS, *cases.KINDS])
def test_a_replica_without_examples_is_harmless(name, two_replicas):
    run = _on_two(name, two_replicas)
    _assert_finite(run.distiller, run.history_of_few)


@_for_each(cases.KINDS, default=["distiller"])
def test_evaluation_and_prediction_do_with_a_replica_without_examples(name, two_replicas):
    distiller = _on_two(name, two_replicas).distiller
    x, y = cases.data(9)
    seen = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert all(np.isfinite(value) for value in seen.values()), seen
    predicted = distiller.predict(x, batch_size=8, verbose=0)
    for outputs, all_at_once in zip(
        keras.tree.flatten(predicted), keras.tree.flatten(distiller(x)), strict=True
    ):
        np.testing.assert_allclose(outputs, all_at_once, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda t, s: mikd.MIMKDDistiller(t, s, feature_weight=0.0, gather=False, xla_critics=False),
        pytest.param(
            lambda _, s: mikd.MUSEDistiller(s, muse_weight=1.0, gather=False, xla_critics=False),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mimkd", "muse"],
)
def test_local_negatives_give_the_mean_of_the_updates_of_the_replicas(make, two_replicas):
    x, y = cases.data(8)

    def updates(scope, *parts, **kwargs):
        """The weights after a step on each of the parts, from the same start."""
        with scope:
            distiller = make(cases.teacher(), cases.student())
            distiller.compile(keras.optimizers.SGD(0.05), cases.cross_entropy(), **kwargs)
        start, ends = distiller.get_weights(), []
        for part in parts:
            distiller.set_weights(start)
            distiller.optimizer.iterations.assign(0)  # They draw what the first step does.
            distiller.fit(x[part], y[part], batch_size=8, shuffle=False, verbose=0)
            ends.append(_weights(distiller))
        return ends

    halves = slice(4), slice(4, 8)
    alone = tf.distribute.get_strategy().scope()
    first, second, with_all_negatives = updates(alone, *halves, slice(8), run_eagerly=True)
    (both,) = updates(two_replicas.scope(), slice(8))
    _assert_same([(a + b) / 2 for a, b in zip(first, second, strict=True)], both, atol=1e-6)
    assert any(np.any(abs(a - b) > 1e-5) for a, b in zip(both, with_all_negatives, strict=True))


@_for_each(cases.LOSSES, cases.DISTILLERS, default=[*REPLICAS, *cases.KINDS])
@pytest.mark.parametrize(
    # The narrower range is the harder one.
    "policy",
    ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)],
)
def test_mixed_precision_stays_finite(name, policy):
    """One loss between networks of different precision; distillers of mixed ones."""
    teacher = cases.teacher_of(name) if name in cases.LOSSES else None
    keras.config.set_dtype_policy(policy)
    distiller = _compiled(cases.distiller(name, teacher), run_eagerly=True)
    _assert_finite(distiller, _fit(distiller))


@pytest.fixture
def keras_settings():
    """What Keras' global settings were, again after the test."""
    before = keras.config.floatx(), keras.config.image_data_format()
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_image_data_format(before[1])


@_for_each(
    # Those with convolutions of their own.
    [
        *("hint_repdistiller", "activation_boundary", "factor_transfer", "vid_unfolded"),
        *("review_kd", "be_your_own_teacher"),
    ]
)
def test_a_loss_made_where_channels_are_first_by_default_is_the_same(name, keras_settings):
    histories = []
    for data_format in ("channels_last", "channels_first"):
        keras.config.set_image_data_format("channels_last")
        teacher, student = cases.teacher_of(name), cases.student_of(name)
        keras.config.set_image_data_format(data_format)
        distiller = _compiled(
            cases.distiller_with(
                cases.LOSSES[name](), teacher_model=teacher, student_model=student
            ),
            run_eagerly=True,
        )
        histories.append(_fit(distiller, examples=8))
    _assert_same_histories(*histories)


@_for_each(cases.LOSSES, default=cases.LOSSES.keys() - VARIANTS)
def test_networks_of_double_precision_have_losses_of_float32(name, keras_settings):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    distiller = _compiled(cases.distiller(name), run_eagerly=True)
    (loss,) = distiller.distillation_losses
    _assert_finite(distiller, _fit(distiller, examples=8))
    assert distiller.student.dtype == "float64"
    assert {v.dtype for v in loss.trainable_variables} <= {"float32"}


@_for_each(cases.LOSSES, default=XLA)
def test_a_step_that_xla_compiles_as_a_whole_gives_the_same_history(name):
    distiller = _compiled(cases.distiller(name), jit_compile=True)
    _assert_same_histories(_alone(name).history, _fit(distiller))


@_for_each(cases.DISTILLERS, default=["distiller", "mcmi"])
def test_whole_step_of_static_shapes_compiles_and_gives_the_same_history(name):
    """What can be checked of a TPU without one: there the step is compiled in the same way."""
    batches = tf.data.Dataset.from_tensor_slices(cases.data()).batch(8, drop_remainder=True)
    distiller = _compiled(cases.distiller(name), jit_compile=True)
    history = distiller.fit(batches, shuffle=False, verbose=0).history
    _assert_same_histories(_alone(name).history, history)


@_for_each(
    # One of the cases of MUSE: critic and bound are compiled in the same way in all of them.
    [n for n in cases.LOSSES if "jsd" in n or "critic" in n or n == "muse_multiplicative"],
    default=["jsd_other_classes"],
)
def test_compiled_critics_give_what_plain_ones_give(name):
    distiller = _compiled(cases.distiller(name, xla_critics=True))
    _fit(distiller)
    _assert_same(_alone(name).after, _weights(distiller), atol=1e-5)


@_for_each(cases.DISTILLERS)
def test_the_networks_alone_are_the_plain_architecture(name, tmp_path):
    x, _ = cases.data()
    plain = {
        model.get_layer("conv1").filters: model
        for model in (cases.teacher(), cases.student(), cases.network((4, 7)))
    }
    for model in _alone(name).distiller._networks.models.values():
        untouched = plain[model.get_layer("conv1").filters]
        assert [(v.path, v.shape) for v in model.variables] == [
            (v.path, v.shape) for v in untouched.variables
        ]
        model.save(tmp_path / "model.keras")
        alone = keras.saving.load_model(tmp_path / "model.keras")
        untouched.set_weights(model.get_weights())
        np.testing.assert_array_equal(alone(x), model(x))
        np.testing.assert_array_equal(untouched(x), model(x))


class _Interrupt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@_for_each(cases.DISTILLERS, default=cases.KINDS)
def test_training_goes_on_from_a_file_and_from_a_backup(name, tmp_path, deterministic_ops):
    """To the weights that it reaches in memory; a backup needs no manual build."""

    def new():
        networks = cases.teacher(normalize=True), cases.student(normalize=True)
        distiller = cases.DISTILLERS[name](*networks)
        return _compiled(distiller, critic_optimizer="adam", run_eagerly=True)

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    in_memory, from_backup = new(), new()
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(KeyboardInterrupt):
        _fit(in_memory, 8, epochs=3, callbacks=[saving, backup(), _Interrupt()])
    from_file = keras.saving.load_model(tmp_path / "2.keras")
    assert type(from_file) is type(in_memory)
    _fit(in_memory, 8)
    _fit(from_file, 8)
    _fit(from_backup, 8, epochs=3, callbacks=[backup()])
    for each in (from_file, from_backup):
        for a, b in zip(in_memory.variables, each.variables, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_fit_leaves_the_order_of_a_shuffled_data_set_alone(deterministic_ops):
    def final_kernel(wrap):
        keras.utils.set_random_seed(0)
        dataset = tf.data.Dataset.from_tensor_slices(cases.data()).shuffle(16, seed=1).batch(4)
        student = cases.student()
        model = wrap(student)
        model.compile("sgd", cases.cross_entropy())
        model.fit(dataset, epochs=2, shuffle=False, verbose=0)
        return student.layers[-1].get_weights()

    def untouched(student):
        loss = mikd.Hint(teacher_layer="pooled", student_layer="pooled", weight=0.0)
        return cases.distiller_with(loss, student_model=student)

    _assert_same(final_kernel(lambda student: student), final_kernel(untouched), atol=0)
