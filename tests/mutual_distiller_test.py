"""Peers that learn from one another: what each is taught, and by which optimizer."""

import contextlib

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


def _peers(count=2, **kwargs):
    return [cases.network((3 + i, 5), seed=i, **kwargs) for i in range(count)]


def _dml(peers=None, *losses, **kwargs):
    losses = [mikd.SoftTargets(temperature=1.0, name="dml"), *losses]
    return mikd.MutualDistiller(peers or _peers(), losses, **kwargs)


def _compiled(distiller, optimizer=None, loss="default", *, run_eagerly=True, **kwargs):
    """Compiled to run eagerly, since the trace of a step costs more than the few that it takes."""
    loss = cases.cross_entropy() if loss == "default" else loss
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.1), loss, run_eagerly=run_eagerly, **kwargs
    )
    return distiller


def _fit(distiller, **kwargs):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, **kwargs}
    return distiller.fit(*cases.data(), **options).history


def _evaluate(distiller):
    return distiller.evaluate(*cases.data(), verbose=0, return_dict=True)


def _values(*models):
    return [v.numpy() for model in models for v in model.trainable_variables]


def _assert_close(first, second, **kwargs):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-6, **kwargs})


def _log_softmax(logits):
    logits = logits.astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _kl(teacher, student):
    log_t, log_s = _log_softmax(teacher), _log_softmax(student)
    return (np.exp(log_t) * (log_t - log_s)).sum(-1).mean()


@pytest.mark.parametrize("count", [2, 3])
def test_the_total_is_that_of_deep_mutual_learning(count):
    distiller = _compiled(_dml(_peers(count), task_loss_weight=0.5))
    x, y = cases.data()
    logits = {f"peer{i}": p.predict(x, verbose=0) for i, p in enumerate(distiller.peers, 1)}
    expected = {"loss": 0.0, "task_loss": 0.0}
    for student, own in logits.items():
        cross_entropy = -_log_softmax(own)[np.arange(16), y].mean()
        expected[f"{student}_loss"] = cross_entropy
        expected["task_loss"] += cross_entropy
        expected["loss"] += 0.5 * cross_entropy
        for teacher, other in logits.items():
            if teacher != student:
                expected[f"dml_{teacher}_to_{student}"] = _kl(other, own)
                expected["loss"] += _kl(other, own) / (count - 1)
    seen = _evaluate(distiller)
    assert seen == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}


def test_each_peer_takes_the_step_that_it_would_take_against_a_fixed_teacher():
    distiller = _compiled(_dml())
    alone = []
    for student, teacher in ((0, 1), (1, 0)):
        models = _peers()
        kd = mikd.SoftTargets(temperature=1.0, name="kd")
        alone.append(_compiled(mikd.Distiller(models[teacher], models[student], [kd])))
    for each in (distiller, *alone):
        _fit(each)
    _assert_close(_values(*distiller.peers), _values(*(d.student for d in alone)))


def test_a_step_runs_every_peer_once():
    peers = _peers(3, normalize=True)
    x, _ = cases.data()
    norms = [peer.get_layer("bn1") for peer in peers]
    seen = [
        keras.Model(peer.input, norm.input).predict(x, verbose=0).mean((0, 1, 2))
        for peer, norm in zip(peers, norms, strict=True)
    ]
    _fit(_compiled(_dml(peers)))
    for norm, mean in zip(norms, seen, strict=True):
        np.testing.assert_allclose(norm.moving_mean, 0.01 * mean, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_peers_of_other_architectures_share_features_on_top():
    shape = (12, 12, 3)
    peers = [
        mikd.models.resnet8(num_classes=4, input_shape=shape),
        mikd.models.wide_resnet(depth=10, width=1, num_classes=4, input_shape=shape),
    ]
    distiller = _compiled(_dml(peers, mikd.MUSE(width=8, name="muse")))
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    history = distiller.fit(x, np.arange(4), verbose=0).history
    for pair in ("peer1_to_peer2", "peer2_to_peer1"):
        assert np.isfinite(history[f"muse_{pair}_stage3_mutual_nats"][0])


def test_metrics_are_of_every_peer():
    metric = keras.metrics.SparseCategoricalAccuracy(name="right")
    distiller = _compiled(_dml(), metrics=[metric, "accuracy"], weighted_metrics=["accuracy"])
    x, y = cases.data()
    seen = _evaluate(distiller)
    for i, peer in enumerate(distiller.peers, 1):
        accuracy = np.mean(peer.predict(x, verbose=0).argmax(-1) == y)
        for name in ("right", "accuracy"):
            assert seen[f"peer{i}_{name}"] == pytest.approx(accuracy), name


def test_losses_and_metrics_by_peer():
    """The first learns from labels, the second only from the first."""
    distiller = _compiled(
        _dml(),
        loss={"peer1": cases.cross_entropy(), "peer2": None},
        metrics={"peer2": ["accuracy"]},
    )
    x, y = cases.data()
    cross_entropy = -_log_softmax(distiller.peers[0].predict(x, verbose=0))[np.arange(16), y].mean()
    seen = _evaluate(distiller)
    assert seen["task_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert "peer2_accuracy" in seen and "peer1_accuracy" not in seen


@pytest.mark.parametrize("labelled", ["peer1", "peer2"])
def test_labels_are_what_the_one_peer_that_learns_from_them_takes(labelled):
    """They are checked for it, and a class that it leaves out is none for the losses either."""
    ignoring = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    loss = {"peer1": None, "peer2": None, labelled: ignoring}
    distiller = _compiled(mikd.MutualDistiller(_peers(), [mikd.RLD(name="rld")]), loss=loss)
    x, y = cases.data()
    nothing = distiller.evaluate(x, np.full_like(y, 255), verbose=0, return_dict=True)
    assert nothing["rld_peer1_to_peer2"] == nothing["rld_peer2_to_peer1"] == 0.0
    for labels in (np.where(y == 0, 255, y), np.where(y == 0, 99, y)):
        refused = pytest.raises(ValueError, match="Received: labels from .* to 99")
        with refused if 99 in labels else contextlib.nullcontext():
            distiller.fit(x, labels, verbose=0)


def test_sample_weights_weigh_every_peer_and_term():
    x, y = cases.data()
    weights = np.repeat([1.0, 0.0], 8).astype("float32")
    distiller = _compiled(_dml())
    whole = distiller.evaluate(
        x, y, sample_weight=weights, batch_size=16, verbose=0, return_dict=True
    )
    half = distiller.evaluate(x[:8], y[:8], batch_size=16, verbose=0, return_dict=True)
    for name, value in half.items():
        assert whole[name] == pytest.approx(value / 2, rel=1e-4), name


def test_without_labels_peers_agree():
    distiller = _compiled(_dml(), keras.optimizers.SGD(0.5), loss=None, run_eagerly=False)
    history = distiller.fit(cases.data()[0], epochs=20, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


@pytest.mark.parametrize("critic_optimizer", [None, "sgd"])
def test_one_optimizer_for_each_peer(critic_optimizer, tmp_path):
    def new():
        hint = mikd.Hint(teacher_layer="stage2", student_layer="stage2", name="hint")
        return _dml(None, hint)

    together = _compiled(new())
    rates = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.3)]
    apart = _compiled(new(), rates, critic_optimizer=critic_optimizer)
    before = _values(together.peers[1])
    for distiller in (together, apart):
        _fit(distiller)
    _assert_close(_values(together.peers[0]), _values(apart.peers[0]))
    step, longer = (
        [v - b for v, b in zip(_values(d.peers[1]), before, strict=True)] for d in (together, apart)
    )
    _assert_close(longer, [3 * each for each in step], rtol=1e-3)
    assert apart.optimizer is apart.peer_optimizers[0]


def _of_each(momentum=0.9):
    return [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.05, momentum=momentum)]


def test_optimizers_of_each_peer_give_on_two_replicas_the_update_of_one(two_replicas):
    def trained(scope, run_eagerly):
        with scope:
            hint = mikd.Hint(teacher_layer="stage2", student_layer="stage2", name="hint")
            distiller = _compiled(_dml(None, hint), _of_each(), run_eagerly=run_eagerly)
        return _fit(distiller, epochs=2), _values(*distiller.peers, *distiller.distillation_losses)

    history, values = trained(tf.distribute.get_strategy().scope(), run_eagerly=True)
    two_history, two_values = trained(two_replicas.scope(), run_eagerly=False)
    _assert_close(values, two_values, rtol=0, atol=1e-5)
    for name, value in history.items():
        assert two_history[name] == pytest.approx(value, rel=1e-4), name


def test_optimizers_of_each_peer_in_a_step_that_is_compiled_as_a_whole():
    batches = tf.data.Dataset.from_tensor_slices(cases.data()).batch(8, drop_remainder=True)
    plain, compiled = (
        _compiled(_dml(), _of_each(), **options).fit(batches, shuffle=False, verbose=0)
        for options in ({}, {"run_eagerly": False, "jit_compile": True})
    )
    for name, values in plain.history.items():
        np.testing.assert_allclose(compiled.history[name], values, rtol=1e-4, err_msg=name)


def test_losses_are_trained_by_the_optimizer_of_the_peer_they_teach():
    hint = mikd.Hint(teacher_layer="stage2", student_layer="stage2", name="hint")
    distiller = _compiled(_dml(None, hint), [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.0)])
    losses = {loss.name: loss for loss in distiller.distillation_losses}
    before = {name: loss.get_weights() for name, loss in losses.items()}
    _fit(distiller)
    moved = {
        name
        for name, loss in losses.items()
        for a, b in zip(loss.get_weights(), before[name], strict=True)
        if np.any(a != b)
    }
    assert moved == {"hint_peer2_to_peer1"}


def test_optimizers_of_their_own_are_saved_with_their_slots(tmp_path, deterministic_ops):
    def new():
        optimizers = [keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.1, momentum=0.9)]
        return _compiled(_dml(), optimizers, metrics=["accuracy"])

    straight, stopped = new(), new()
    _fit(straight, epochs=2)
    _fit(stopped)
    stopped.save(tmp_path / "distiller.keras")
    resumed = keras.saving.load_model(tmp_path / "distiller.keras")
    assert [type(o).__name__ for o in resumed.peer_optimizers] == ["Adam", "SGD"]
    _fit(resumed)
    _assert_close(_values(*straight.peers), _values(*resumed.peers), rtol=0, atol=0)


@pytest.mark.parametrize("place", ["stage1", "stage2"])  # Widths of 3 and 4, and twice 5.
def test_every_pair_of_peers_has_its_own_critic_out_of_a_file_too(
    place, tmp_path, deterministic_ops
):
    critic = mikd.JSDCritic(teacher_layer=place, student_layer=place, grid=1, name="jsd")
    straight = _compiled(_dml(None, critic), "adam")
    _fit(straight)
    saved = straight
    for generation in range(2):
        saved.save(tmp_path / f"{generation}.keras")
        saved = keras.saving.load_model(tmp_path / f"{generation}.keras")
    critics = [x.critic for x in saved.distillation_losses if x.name.startswith("jsd")]
    assert len({id(each) for each in critics}) == 2
    _fit(straight)
    _fit(_compiled_as(saved))
    _assert_close(_values(straight), _values(saved), rtol=0, atol=0)


def _compiled_as(loaded):
    loaded.run_eagerly = True
    return loaded


def test_a_float16_peer_among_others_is_scaled():
    first, second = _peers()
    keras.config.set_dtype_policy("mixed_float16")
    half = cases.network((3, 5))
    keras.config.set_dtype_policy("float32")
    distiller = _compiled(_dml([first, half, second]), ["sgd", "sgd", "sgd"])
    scaled = keras.optimizers.LossScaleOptimizer
    assert all(isinstance(each, scaled) for each in distiller.peer_optimizers)
    before = _values(*distiller.peers)
    history = _fit(distiller)
    assert all(np.isfinite(value[0]) for value in history.values())
    assert all(np.any(a != b) for a, b in zip(before, _values(*distiller.peers), strict=True))


@pytest.mark.parametrize("loud", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_float16_peer_of_large_gradients_learns_beside_a_quiet_one(loud):
    """The loss is scaled once, so by what overflows for neither."""
    keras.config.set_dtype_policy("mixed_float16")
    peers = []
    for i in range(2):
        inputs = keras.Input((6,))
        x = keras.layers.Rescaling(100.0 if i == loud else 1.0)(inputs)
        peers.append(keras.Model(inputs, keras.layers.Dense(4, dtype="float32")(_half(x))))
    distiller = _compiled(
        _dml(peers), [keras.optimizers.SGD(1e-4) for _ in peers], run_eagerly=False
    )
    before = _values(*peers)
    x, y = np.random.default_rng(0).normal(size=(16, 6)).astype("float32"), np.arange(16) % 4
    history = distiller.fit(x, y, epochs=40, batch_size=16, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.any(a != b) for a, b in zip(before, _values(*peers), strict=True))
    quiet, scale = (distiller.peer_optimizers[i].dynamic_scale for i in (1 - loud, loud))
    assert float(quiet) == 2**15 and 1 < float(scale) < 2**15


def _half(x):
    return keras.layers.Dense(8, activation="relu")(x)


def test_float16_without_loss_scaling_if_asked():
    keras.config.set_dtype_policy("mixed_float16")
    distiller = _compiled(_dml(), ["sgd", "sgd"], auto_scale_loss=False)
    scaled = keras.optimizers.LossScaleOptimizer
    assert not any(isinstance(each, scaled) for each in distiller.peer_optimizers)


def test_called_it_is_all_of_its_peers(tmp_path):
    distiller = _dml()
    x, _ = cases.data()
    outputs = distiller.predict(x, verbose=0)
    for i, peer in enumerate(distiller.peers, 1):
        np.testing.assert_allclose(outputs[f"peer{i}"], peer(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"one of the peers.*distiller.peers\[0\].export"):
        distiller.export(tmp_path / "model")


def test_called_in_training_its_peers_are():
    distiller = _dml(_peers(normalize=True))
    x, _ = cases.data()
    plain, training = distiller(x), distiller(x, training=True)
    for i, peer in enumerate(_peers(normalize=True), 1):
        np.testing.assert_allclose(training[f"peer{i}"], peer(x, training=True), atol=1e-6)
        assert np.abs(training[f"peer{i}"] - plain[f"peer{i}"]).max() > 0.01


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(cases.NUM_CLASSES)

    def call(self, x):
        return self.dense(self.pool(x))


def test_a_function_gives_the_places_of_a_subclassed_peer():
    def features(model, x, training):
        pooled = model.pool(x)
        return {"pooled": pooled, "output": model.dense(pooled)}

    x, _ = cases.data()
    own = _Subclassed()
    own(x)
    hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled", name="hint")
    history = _fit(_compiled(_dml([_peers()[0], own], hint, features=[None, features])))
    assert history["hint_peer1_to_peer2"][0] > 0 and history["hint_peer2_to_peer1"][0] > 0


def test_every_peer_is_checked_with_its_own_loss():
    probabilities = keras.losses.SparseCategoricalCrossentropy()
    loss = {"peer1": cases.cross_entropy(), "peer2": probabilities}
    with pytest.raises(ValueError, match="puts out logits at .* and the task loss expects probab"):
        _compiled(_dml(), loss=loss)


def test_two_runs_of_one_seed_are_the_same():
    def history():
        keras.utils.set_random_seed(0)
        return _fit(_compiled(_dml()), epochs=2)

    assert history() == history()


# What cannot be trained together


@pytest.mark.parametrize("peers", [[], None, "models"])
def test_no_list_of_peers_is_refused(peers):
    with pytest.raises(ValueError, match="list of at least two models.*Received: peers="):
        mikd.MutualDistiller(peers, [mikd.SoftTargets()])


def test_one_optimizer_for_two_purposes_is_refused():
    adam = keras.optimizers.Adam()
    for optimizer, critic_optimizer in (
        ([adam, adam], None),
        (["sgd", adam], adam),
        (adam, adam),
        ([keras.optimizers.LossScaleOptimizer(adam), adam], None),
    ):
        with pytest.raises(ValueError, match="different optimizers.* the same Adam twice"):
            _compiled(_dml(), optimizer, critic_optimizer=critic_optimizer)
    distiller = _compiled(_dml(), [adam, "sgd"])
    _fit(distiller)  # A refused `compile` has left the optimizer as it was.


@pytest.mark.parametrize("metrics", ["accuracy", keras.metrics.SparseCategoricalAccuracy()])
def test_metrics_that_are_no_list_are_refused(metrics):
    with pytest.raises(ValueError, match="`metrics` to be a list, or a dict of lists by peer"):
        _compiled(_dml(), metrics=metrics)


@pytest.mark.parametrize("argument", ["loss", "metrics", "weighted_metrics"])
def test_unknown_peers_are_refused(argument):
    message = rf"keys of `{argument}` to be among \['peer1', 'peer2'\]. Received: \['peer3'\]"
    with pytest.raises(ValueError, match=message):
        _compiled(_dml(), **{argument: {"peer3": None}})


def test_a_single_peer_is_refused():
    with pytest.raises(ValueError, match="at least two models; one alone.*SelfDistiller"):
        _dml(_peers(1))


def test_one_model_twice_is_refused():
    peer = cases.student()
    with pytest.raises(ValueError, match="peer1 and peer2 to be different models"):
        _dml([peer, peer])


def test_shared_weights_are_refused():
    first, _ = _peers()
    second = keras.Model(first.input, keras.layers.Dense(4)(first.get_layer("gap").output))
    with pytest.raises(ValueError, match="peer1 and peer2 to share no weights"):
        _dml([first, second])


def test_other_inputs_are_refused():
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    other = keras.Model(inputs, keras.layers.Dense(4)(x))
    with pytest.raises(ValueError, match="peer1 and peer3 to take the same inputs"):
        _dml([*_peers(), other])


def test_other_classes_are_refused():
    first, _ = _peers()
    second = keras.Model(first.input, keras.layers.Dense(7)(cases.student()(first.input)))
    message = r"same classes.*Received: outputs of shape {'peer1': \(4,\), 'peer2': \(7,\)}"
    with pytest.raises(ValueError, match=message):
        mikd.MutualDistiller(
            [cases.teacher(), second],
            [mikd.Hint(teacher_layer="output", student_layer="output")],
        )


def test_several_outputs_are_refused():
    first, second = _peers()
    x = second.get_layer("gap").output
    heads = keras.Model(second.input, {n: keras.layers.Dense(4, name=n)(x) for n in ("a", "b")})
    hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled")
    with pytest.raises(ValueError, match="one output each. Received: peer2"):
        mikd.MutualDistiller([first, heads], [hint])


def test_losses_with_weights_are_refused():
    hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled", name="hint")
    hint.build((None, 5), (None, 5))
    with pytest.raises(ValueError, match="without weights.*Received: 'hint', which is built"):
        mikd.MutualDistiller(_peers(), [hint])


def test_too_few_optimizers_and_functions_are_refused():
    with pytest.raises(ValueError, match="one for every peer. Received: 3 for 2 peers"):
        _compiled(_dml(), ["sgd"] * 3)
    with pytest.raises(ValueError, match="one entry of `features` for every peer"):
        _dml(features=[None])


def test_a_task_loss_that_does_not_fit_a_peer_is_refused():
    first, second = _peers()
    second = keras.Model(second.input, keras.layers.Softmax()(second.output))
    hint = mikd.Hint(teacher_layer="pooled", student_layer="pooled")
    with pytest.raises(
        ValueError, match="puts out probabilities at .* and the task loss expects logits"
    ):
        _compiled(mikd.MutualDistiller([first, second], [hint]))


def test_labels_out_of_range_are_refused():
    x, y = cases.data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y + 1)).batch(8)
    with pytest.raises(ValueError, match="labels in `x` to be integers from 0 to 3"):
        _compiled(_dml()).fit(dataset, shuffle=False, verbose=0)


@pytest.mark.parametrize("kind", ["peer", pytest.param("muse", marks=pytest.mark.slow)])
def test_a_trained_network_leaves_as_the_plain_one(kind, tmp_path):
    """In a SavedModel and in a TFLite file, whose answers are those of Keras."""
    if kind == "peer":
        distiller = _compiled(_dml(None, mikd.MUSE(student_layer=["stage1"], width=4, name="m")))
        network = distiller.peers[1]
    else:
        byot = mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])
        distiller = _compiled(mikd.MUSEDistiller(cases.student(), deep_supervision=byot))
        network = distiller.student
    _fit(distiller)
    x, _ = cases.data()
    network.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(x), network(x), rtol=1e-4, atol=1e-5)
    assert mikd.export_tflite(network, tmp_path / "student.tflite", check_on=x).ok
    if kind == "peer":
        with pytest.raises(ValueError, match=r"Pass its network: `distiller.peers\[0\]`"):
            mikd.export_tflite(distiller, tmp_path / "distiller.tflite")


class _Times(mikd.DistillationLoss):
    """Has an argument that its configuration lacks."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, teacher, student, labels=None, training=None):
        return self.factor * keras.ops.mean(keras.ops.square(teacher - student), axis=-1)


class _Above(keras.metrics.Mean):
    def __init__(self, threshold=0.0, name="above", **kwargs):
        super().__init__(name=name, **kwargs)


def test_what_its_configuration_does_not_rebuild_is_not_copied():
    with pytest.raises(ValueError, match="every pair of peers gets a copy.*lacks factor"):
        _dml(None, _Times(factor=2.0))
    distiller = _dml()
    with pytest.raises(ValueError, match="every peer gets its own.*'above'.*lacks threshold"):
        distiller.compile("sgd", cases.cross_entropy(), metrics=[_Above(2.0)])
    own = {"peer1": [_Above(2.0)], "peer2": [_Above(2.0)]}
    distiller.compile("sgd", cases.cross_entropy(), metrics=own)


def test_a_file_that_would_lose_an_argument_of_a_loss_is_told(tmp_path):
    distiller = cases.distiller_with(_Times(factor=2.0))
    with pytest.warns(UserWarning, match="get_config of _Times lacks factor"):
        distiller.save(tmp_path / "distiller.keras")
