"""Properties that hold for every public loss and distiller."""

import inspect

import cases
import detectors
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from keras_mikd.distillers.base_distiller import BaseDistiller
from keras_mikd.distillers.networks import pick

LOSSES = pytest.mark.parametrize("make", cases.LOSSES.values(), ids=cases.LOSSES.keys())
DISTILLERS = pytest.mark.parametrize("make", cases.DISTILLERS.values(), ids=cases.DISTILLERS.keys())
KINDS = pytest.mark.parametrize("make", cases.KINDS.values(), ids=cases.KINDS.keys())


def _compiled(distiller, **kwargs):
    distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), cases.cross_entropy(), **kwargs)
    return distiller


def _fit(distiller, epochs=1, batch_size=8):
    x, y = cases.data()
    history = distiller.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return history.history


def _weights(distiller):
    return [v.numpy() for v in distiller.trainable_variables]


def _assert_same(first, second, atol):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def _assert_same_histories(first, second):
    """Same values in the same order; automatic names differ from one distiller to the next."""
    for name, a, b in zip(first, first.values(), second.values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4, err_msg=name)


def _spec_pair(loss):
    model = cases.distiller_with(loss)
    return model, model._networks.taps["teacher"], model._networks.taps["student"]


def test_every_public_loss_and_distiller_is_listed():
    listed = {type(make()) for make in cases.LOSSES.values()}
    listed |= {type(make(cases.teacher(), cases.student())) for make in cases.DISTILLERS.values()}
    # Those of detectors have no images with labels; detector_task_test.py has their properties.
    listed |= {type(make()) for make in detectors.DISTILLERS.values()}
    public = {
        value
        for value in vars(mikd).values()
        if inspect.isclass(value) and issubclass(value, (mikd.DistillationLoss, BaseDistiller))
    }
    assert public - {mikd.DistillationLoss} == listed


@LOSSES
def test_config_round_trip(make):
    loss = make()
    twin = type(loss).from_config(loss.get_config())
    assert twin.get_config() == loss.get_config()


@LOSSES
def test_graph_equals_eager_and_the_second_call_does_not_retrace(make):
    loss = make()
    _, teacher_taps, student_taps = _spec_pair(loss)
    traces = []

    def values(x, y):
        traces.append(1)
        t = pick(teacher_taps(x, training=False), loss.teacher_layer)
        s = pick(student_taps(x, training=False), loss.student_layer)
        return loss(t, s, labels=y, training=True)

    x, y = cases.data()
    eager = values(x, y)
    graph = tf.function(values)
    np.testing.assert_allclose(graph(x, y), eager, rtol=1e-5, atol=1e-5)
    graph(x, y)
    assert eager.shape == (16,)
    assert eager.dtype == "float32"
    assert len(traces) == 2


@LOSSES
def test_every_own_weight_gets_a_gradient_and_moves(make):
    distiller = _compiled(cases.distiller_with(make()))
    (loss,) = distiller.distillation_losses
    before = [v.numpy() for v in loss.trainable_variables]
    _fit(distiller)
    for variable, old in zip(loss.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), variable.path


@LOSSES
def test_two_replicas_give_the_update_of_one(make, two_replicas):
    def trained(scope):
        with scope:
            distiller = _compiled(cases.distiller_with(make()))
        history = _fit(distiller, batch_size=8)
        return _weights(distiller), history

    one, one_history = trained(tf.distribute.get_strategy().scope())
    two, two_history = trained(two_replicas.scope())
    _assert_same(one, two, atol=1e-5)
    _assert_same_histories(one_history, two_history)


@pytest.mark.parametrize(
    "make",
    [
        lambda t, s: mikd.MIMKDDistiller(
            t, s, critic=mikd.SeparableCritic, gather=False, xla_critics=False
        ),
        pytest.param(
            lambda _, s: mikd.MUSEDistiller(s, gather=False, xla_critics=False),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mimkd", "muse"],
)
def test_local_negatives_give_the_mean_of_the_updates_of_the_replicas(make, two_replicas):
    x, y = cases.data(8)

    def trained(scope, part):
        with scope:
            distiller = make(cases.teacher(), cases.student())
            distiller.compile(keras.optimizers.SGD(0.05), cases.cross_entropy())
        distiller.fit(x[part], y[part], batch_size=8, shuffle=False, verbose=0)
        return _weights(distiller)

    alone = tf.distribute.get_strategy()
    first, second = (trained(alone.scope(), part) for part in (slice(4), slice(4, 8)))
    both = trained(two_replicas.scope(), slice(8))
    _assert_same([(a + b) / 2 for a, b in zip(first, second, strict=True)], both, atol=1e-6)
    with_global_negatives = trained(alone.scope(), slice(8))
    assert any(np.any(abs(a - b) > 1e-5) for a, b in zip(both, with_global_negatives, strict=True))


def _slow_but(names, cases_by_name):
    """Parameters of a test, all slow but those that go through code of their own."""
    return [
        pytest.param(make, id=name, marks=() if name in names else pytest.mark.slow)
        for name, make in cases_by_name.items()
    ]


OWN_CODE_FOR_NO_EXAMPLES = {
    *("soft_targets", "hint", "attention_transfer", "be_your_own_teacher", "vid_official"),
    *("jsd_local", "jsd_other_classes", "jsd_global_separable_all", "dv_critic"),
    "muse_multiplicative",
}


@pytest.mark.parametrize("make", _slow_but(OWN_CODE_FOR_NO_EXAMPLES, cases.LOSSES))
def test_a_replica_without_examples_is_harmless(make, two_replicas):
    with two_replicas.scope():
        distiller = _compiled(cases.distiller_with(make()))
    x, y = cases.data(9)
    history = distiller.fit(x, y, batch_size=8, verbose=0).history
    assert all(np.all(np.isfinite(values)) for values in history.values()), history
    assert all(np.all(np.isfinite(w)) for w in _weights(distiller))


@pytest.mark.parametrize("make", _slow_but({"distiller"}, cases.KINDS))
def test_a_replica_without_examples_is_harmless_in_every_kind_of_step(make, two_replicas):
    with two_replicas.scope():
        distiller = _compiled(make(cases.teacher(), cases.student()))
    x, y = cases.data(9)
    history = distiller.fit(x, y, batch_size=8, verbose=0, validation_data=(x, y)).history
    assert all(np.all(np.isfinite(values)) for values in history.values()), history
    assert all(np.all(np.isfinite(w)) for w in _weights(distiller))
    predicted = distiller.predict(x, batch_size=8, verbose=0)
    for outputs, all_at_once in zip(
        keras.tree.flatten(predicted), keras.tree.flatten(distiller(x)), strict=True
    ):
        np.testing.assert_allclose(outputs, all_at_once, atol=1e-5)


@LOSSES
@pytest.mark.parametrize(
    # The narrower range is the harder one; both have every kind of step below.
    "policy",
    ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)],
)
def test_mixed_precision_students_stay_finite(make, policy):
    teacher = cases.teacher()
    keras.config.set_dtype_policy(policy)
    distiller = _compiled(
        cases.distiller_with(make(), teacher_model=teacher, student_model=cases.student())
    )
    history = _fit(distiller)
    assert np.all(np.isfinite(history["loss"]))
    assert all(np.all(np.isfinite(w)) for w in _weights(distiller))


@LOSSES
def test_a_batch_of_one_is_harmless(make):
    distiller = _compiled(cases.distiller_with(make()))
    x, y = cases.data(1)
    history = distiller.fit(x, y, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert all(np.all(np.isfinite(w)) for w in _weights(distiller))


@LOSSES
def test_whole_step_xla_gives_the_same_history(make):
    plain = _fit(_compiled(cases.distiller_with(make()), jit_compile=False))
    compiled = _fit(_compiled(cases.distiller_with(make()), jit_compile=True))
    _assert_same_histories(plain, compiled)


@pytest.mark.parametrize(
    "name",
    # One of the cases of MUSE: critic and bound are compiled in the same way in all of them.
    [n for n in cases.LOSSES if "jsd" in n or "critic" in n or n == "muse_multiplicative"],
)
def test_compiled_critics_give_what_plain_ones_give(name):
    def trained(xla):
        distiller = _compiled(cases.distiller_with(cases.LOSSES[name](), xla_critics=xla))
        _fit(distiller)
        return _weights(distiller)

    _assert_same(trained(True), trained(False), atol=1e-5)


@KINDS
def test_two_replicas_give_the_update_of_one_for_every_kind_of_step(make, two_replicas):
    def trained(scope):
        with scope:
            distiller = _compiled(make(cases.teacher(), cases.student()), metrics=["accuracy"])
        history = _fit(distiller, batch_size=8)
        return _weights(distiller), history

    one, one_history = trained(tf.distribute.get_strategy().scope())
    two, two_history = trained(two_replicas.scope())
    _assert_same(one, two, atol=1e-5)
    _assert_same_histories(one_history, two_history)


@DISTILLERS
def test_whole_step_of_static_shapes_compiles_and_gives_the_same_history(make):
    """What can be checked of a TPU without one: there the step is compiled in the same way."""
    batches = tf.data.Dataset.from_tensor_slices(cases.data(20)).batch(8, drop_remainder=True)
    plain, compiled = (
        _compiled(make(cases.teacher(), cases.student()), jit_compile=jit)
        .fit(batches, shuffle=False, verbose=0)
        .history
        for jit in (False, True)
    )
    _assert_same_histories(plain, compiled)


@KINDS
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stays_finite_for_every_kind_of_step(make, policy):
    keras.config.set_dtype_policy(policy)
    distiller = _compiled(make(cases.teacher(), cases.student()))
    assert all(np.all(np.isfinite(values)) for values in _fit(distiller).values())
    assert all(np.all(np.isfinite(w)) for w in _weights(distiller))


@KINDS
def test_a_batch_of_one_is_harmless_for_every_kind_of_step(make):
    distiller = _compiled(make(cases.teacher(), cases.student()))
    history = distiller.fit(*cases.data(1), verbose=0).history
    assert all(np.all(np.isfinite(values)) for values in history.values())
    assert all(np.all(np.isfinite(w)) for w in _weights(distiller))


@DISTILLERS
def test_the_networks_alone_are_the_plain_architecture(make, tmp_path):
    plain = [cases.teacher(), cases.student()]
    networks = [cases.teacher(), cases.student()]
    _fit(_compiled(make(*networks)))
    x, _ = cases.data()
    for model, untouched in zip(networks, plain, strict=True):
        assert [(v.path, v.shape) for v in model.variables] == [
            (v.path, v.shape) for v in untouched.variables
        ]
        model.save(tmp_path / "model.keras")
        alone = keras.saving.load_model(tmp_path / "model.keras")
        untouched.set_weights(model.get_weights())
        np.testing.assert_array_equal(alone(x), model(x))
        np.testing.assert_array_equal(untouched(x), model(x))


@DISTILLERS
def test_save_load_and_go_on_equals_never_having_stopped(make, tmp_path, deterministic_ops):
    def new():
        return _compiled(make(cases.teacher(normalize=True), cases.student(normalize=True)))

    straight = new()
    _fit(straight, epochs=4)
    stopped = new()
    _fit(stopped, epochs=2)
    stopped.save(tmp_path / "distiller.keras")
    resumed = keras.saving.load_model(tmp_path / "distiller.keras")
    _fit(resumed, epochs=2)
    assert type(resumed) is type(straight)
    for a, b in zip(straight.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_fit_leaves_the_order_of_a_shuffled_data_set_alone(deterministic_ops):
    def final_kernel(wrap):
        keras.utils.set_random_seed(0)
        x, y = cases.data()
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(16, seed=1).batch(4)
        model = wrap(cases.student())
        model.compile("sgd", cases.cross_entropy())
        model.fit(dataset, epochs=2, shuffle=False, verbose=0)
        return (
            model.layers[-1].get_weights() if wrap is _plain else model.student.get_weights()[-2:]
        )

    def untouched(student):
        loss = mikd.Hint(teacher_layer="pooled", student_layer="pooled", weight=0.0)
        return cases.distiller_with(loss, student_model=student)

    _assert_same(final_kernel(_plain), final_kernel(untouched), atol=0)


def _plain(student):
    return student


@DISTILLERS
def test_backup_and_restore_needs_no_manual_build(make, tmp_path, deterministic_ops):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    def new():
        return _compiled(make(cases.teacher(), cases.student()), critic_optimizer="adam")

    x, y = cases.data()
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": 3}
    with pytest.raises(KeyboardInterrupt):
        new().fit(x, y, callbacks=[backup(), Interrupt()], **options)
    resumed, straight = new(), new()
    resumed.fit(x, y, callbacks=[backup()], **options)
    straight.fit(x, y, **options)
    _assert_same(_weights(straight), _weights(resumed), atol=0)


@DISTILLERS
def test_history_has_every_term_and_readout(make):
    distiller = _compiled(make(cases.teacher(), cases.student()))
    history = _fit(distiller)
    for loss in distiller.distillation_losses:
        assert loss.name in history
        for suffix in loss.readout_metrics():
            assert f"{loss.name}_{suffix}" in history


if __name__ == "__main__":
    pytest.main([__file__])
