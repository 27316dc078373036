"""What a distiller computes, trains, logs, saves and hands over."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import keras_mikd as mikd

SIDES = pytest.mark.parametrize("subclassed", ["teacher", "student", "both"])


def _compiled(distiller, optimizer=None, loss="default", *, run_eagerly=True, **kwargs):
    """Compiled to run eagerly, since the trace of a step costs more than the few that it takes."""
    loss = cases.cross_entropy() if loss == "default" else loss
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.1), loss, run_eagerly=run_eagerly, **kwargs
    )
    return distiller


def _new(*losses, teacher=None, student=None, **kwargs):
    losses = list(losses) or [mikd.SoftTargets(name="kd")]
    teacher, student = teacher or cases.teacher(), student or cases.student()
    return mikd.Distiller(teacher, student, losses, xla_critics=False, **kwargs)


def _hint(place="stage2", **kwargs):
    return mikd.Hint(teacher_layer=place, student_layer=place, **{"name": "hint", **kwargs})


def _jsd(**kwargs):
    return mikd.JSDCritic(critic=mikd.ConcatCritic(width=8), name="jsd", **kwargs)


def _fit(distiller, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    if "x" not in kwargs:
        kwargs["x"], kwargs["y"] = cases.data()
    if isinstance(kwargs["x"], tf.data.Dataset):
        del kwargs["batch_size"]
    return distiller.fit(**kwargs).history


def _evaluate(distiller, *data, **kwargs):
    return distiller.evaluate(*(data or cases.data()), verbose=0, return_dict=True, **kwargs)


def _values(*models):
    return [v.numpy() for model in models for v in model.trainable_variables]


def _assert_close(first, second, **kwargs):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-6, **kwargs})


def _log_softmax(logits):
    logits = logits.astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _cross_entropy(logits, labels):
    return -_log_softmax(logits)[np.arange(len(labels)), labels]


def _kd(teacher, student, temperature):
    log_t, log_s = _log_softmax(teacher / temperature), _log_softmax(student / temperature)
    return temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(-1)


def _read(model, layer, x):
    return keras.Model(model.inputs, model.get_layer(layer).output).predict(x, verbose=0)


# The objective


@pytest.mark.parametrize("batch_size", [16, 6])
def test_the_total_is_the_weighted_sum_of_its_terms(batch_size):
    teacher, student = cases.teacher(), cases.student()
    regularized = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.3))
    student = keras.Model(student.inputs, regularized(student.get_layer("gap").output))
    hint = _hint("gap", weight=0.25)
    kd = mikd.SoftTargets(temperature=2.0, weight=0.7, name="kd")
    distiller = _compiled(_new(kd, hint, teacher=teacher, student=student, task_loss_weight=0.4))
    x, y = cases.data()
    logits, targets = student.predict(x, verbose=0), teacher.predict(x, verbose=0)
    kernel, bias = (v.numpy() for v in hint.regressor.weights)
    regression = _read(student, "gap", x) @ kernel + bias
    expected = {
        "task_loss": _cross_entropy(logits, y).mean(),
        "kd": _kd(targets, logits, 2.0).mean(),
        "hint": np.mean((_read(teacher, "gap", x) - regression) ** 2),
    }
    penalty = 0.3 * np.sum(regularized.kernel.numpy() ** 2)
    total = 0.4 * expected["task_loss"] + 0.7 * expected["kd"] + 0.25 * expected["hint"]
    expected["loss"] = total + penalty
    seen = _evaluate(distiller, x, y, batch_size=batch_size)
    assert seen == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    distiller.optimizer.learning_rate = 0.0
    history = _fit(distiller, batch_size=batch_size, epochs=2)
    for name, value in expected.items():
        assert history[name] == [pytest.approx(value, rel=1e-4)] * 2, name


def test_the_update_is_the_gradient_of_the_total():
    distiller = _compiled(_new(_hint(weight=0.5), mikd.SoftTargets(name="kd")))
    hint, kd = distiller.distillation_losses
    x, y = cases.data()
    teacher = distiller.teacher(x), _read(distiller.teacher, "relu2", x)
    reader = keras.Model(
        distiller.student.input,
        [distiller.student.output, distiller.student.get_layer("relu2").output],
    )
    variables = distiller.trainable_variables
    with tf.GradientTape() as tape:
        logits, features = reader(x, training=True)
        task = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        terms = 0.5 * hint(teacher[1], features) + kd(teacher[0], logits)
        total = tf.reduce_mean(task + terms)
    gradients = tape.gradient(total, variables)
    expected = [v.numpy() - 0.1 * g.numpy() for v, g in zip(variables, gradients, strict=True)]
    _fit(distiller, batch_size=16)
    _assert_close(_values(distiller), expected)


def test_a_scheduled_weight_follows_the_iterations_also_after_loading(tmp_path):
    weight = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 1.0)  # w(step) = step / 4
    kd = mikd.SoftTargets(weight=weight, name="kd")
    distiller = _compiled(_new(kd), keras.optimizers.SGD(0.0))
    values = _evaluate(distiller)
    assert values["loss"] == pytest.approx(values["task_loss"])
    history = _fit(distiller, batch_size=16, epochs=2)
    assert history["kd"] == [pytest.approx(values["kd"])] * 2
    expected = [values["task_loss"] + w * values["kd"] for w in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]
    assert history["loss"] == [pytest.approx(value) for value in expected[:2]]
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    history = _fit(loaded, batch_size=16, epochs=4)
    assert history["loss"] == [pytest.approx(value) for value in expected[2:]]


def test_without_labels_or_task_weight_the_student_learns_the_same():
    x, y = cases.data()
    label_free = _compiled(_new(), loss=None)
    history = _fit(label_free, x=x, epochs=3)
    unweighted = _compiled(_new(task_loss_weight=0))
    labelled = _fit(unweighted, epochs=3)
    _assert_close(_values(label_free), _values(unweighted))
    assert history["loss"] == history["kd"]
    assert labelled["loss"] == pytest.approx(history["loss"])
    assert labelled["task_loss"][0] > 1.0
    assert history["kd"][2] < history["kd"][0]
    assert label_free.evaluate(x, verbose=0, return_dict=True)["kd"] < history["kd"][2]


@pytest.mark.parametrize("task_loss_weight", [0.0, 0.5])
def test_the_task_weight_does_not_weigh_the_regularizers(task_loss_weight):
    inputs = keras.Input(cases.IMAGE_SHAPE)
    dense = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(2.0))
    student = keras.Model(inputs, dense(keras.layers.GlobalAveragePooling2D()(inputs)))
    distiller = _new(student=student, task_loss_weight=task_loss_weight)
    seen = _evaluate(_compiled(distiller))
    rest = task_loss_weight * seen["task_loss"] + seen["kd"]
    assert seen["loss"] - rest == pytest.approx(2.0 * np.sum(dense.kernel.numpy() ** 2), rel=1e-4)


def test_sample_weights_in_a_dataset_weigh_every_term():
    x, y = cases.data()
    weights = np.repeat([1.0, 0.0], 8).astype("float32")
    triples = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(16)
    distiller = _compiled(_new(mikd.SoftTargets(name="kd"), _hint()))
    whole, half = _evaluate(distiller, triples), _evaluate(distiller, x[:8], y[:8])
    for name, value in half.items():
        assert whole[name] == pytest.approx(value / 2, rel=1e-4), name
    weighted, alone = _compiled(_new()), _compiled(_new(), keras.optimizers.SGD(0.05))
    _fit(weighted, x=triples)
    _fit(alone, x=x[:8], y=y[:8])
    _assert_close(_values(weighted), _values(alone))


def _two_headed(seed):
    body = cases.network((3, 5), seed=seed)
    score = keras.layers.Dense(1, name="score")(body.get_layer("gap").output)
    return keras.Model(body.input, {"classes": body.output, "score": score})


def test_sample_weights_of_several_outputs_weigh_what_they_are_for():
    x, y = cases.data()
    y = {"classes": y, "score": np.ones((16, 1), "float32")}
    kd = {"teacher_layer": "output/classes", "student_layer": "output/classes", "name": "kd"}
    distiller = _new(
        mikd.SoftTargets(**kd), _hint(), teacher=_two_headed(0), student=_two_headed(1)
    )
    _compiled(distiller, loss={"classes": cases.cross_entropy(), "score": "mse"})
    whole = _evaluate(distiller, x, y)
    for weights, kd_share, hint_share in (
        (np.zeros(16), 0, 0),
        (np.full(16, 3.0), 3, 3),
        ({"classes": np.zeros(16), "score": np.ones(16)}, 0, 0.5),
        ({"classes": np.full(16, 2.0), "score": np.zeros(16)}, 2, 1),
    ):
        seen = _evaluate(distiller, x, y, sample_weight=weights)
        assert seen["kd"] == pytest.approx(kd_share * whole["kd"], rel=1e-4)
        assert seen["hint"] == pytest.approx(hint_share * whole["hint"], rel=1e-4)


# Optimizers


def test_averages_of_weights_are_taken_over_from_every_optimizer():
    def averaging():
        return keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9)

    distiller = _compiled(_new(_jsd()), averaging(), critic_optimizer=averaging())
    _fit(distiller, epochs=2)
    (critic,) = distiller.distillation_losses
    pairs = (
        (distiller.optimizer, distiller.student.trainable_variables),
        (distiller.critic_optimizer, critic.trainable_variables),
    )
    for optimizer, variables in pairs:
        for variable, average in zip(
            variables, optimizer._model_variables_moving_average, strict=True
        ):
            np.testing.assert_array_equal(variable.numpy(), average.numpy())
    assert "finalize_variable_values" not in vars(distiller.optimizer)


def test_critics_have_their_own_optimizer_and_its_slots_are_saved(tmp_path):
    def new():
        adam = keras.optimizers.Adam(0.01)
        return _compiled(_new(_jsd()), keras.optimizers.SGD(0.1, 0.9), critic_optimizer=adam)

    straight, stopped = new(), new()
    (loss,) = stopped.distillation_losses
    critics = sum(v.shape.num_elements() for v in loss.trainable_weights)
    slots = sum(v.shape.num_elements() for v in stopped.critic_optimizer.variables)
    assert slots == 2 * critics + 2
    _fit(straight, epochs=2)
    _fit(stopped)
    stopped.save(tmp_path / "distiller.keras")
    resumed = keras.saving.load_model(tmp_path / "distiller.keras")
    assert isinstance(resumed.critic_optimizer, keras.optimizers.Adam)
    _assert_close(
        [v.numpy() for v in resumed.critic_optimizer.variables],
        [v.numpy() for v in stopped.critic_optimizer.variables],
        rtol=0,
        atol=0,
    )
    _fit(resumed)
    _assert_close(_values(straight), _values(resumed), rtol=0, atol=0)


def test_each_optimizer_trains_its_own_part():
    together = _compiled(_new(_jsd()))
    apart = _compiled(_new(_jsd()), critic_optimizer=keras.optimizers.SGD(0.3))
    before = _values(apart.distillation_losses[0])
    for distiller in (together, apart):
        _fit(distiller, batch_size=16)
    _assert_close(_values(apart.student), _values(together.student))
    moved = [v - b for v, b in zip(_values(apart.distillation_losses[0]), before, strict=True)]
    expected = [
        v - b for v, b in zip(_values(together.distillation_losses[0]), before, strict=True)
    ]
    _assert_close(moved, [3.0 * step for step in expected], rtol=1e-3)


def test_a_critic_optimizer_without_critics_is_harmless():
    distiller = _compiled(_new(), critic_optimizer="sgd")
    plain = _compiled(_new())
    for each in (distiller, plain):
        _fit(each)
    _assert_close(_values(distiller), _values(plain))


def test_critics_train_beside_a_frozen_student():
    student = cases.student()
    student.trainable = False
    distiller = _compiled(_new(_hint(), student=student), critic_optimizer="sgd")
    before = [v.numpy() for v in student.variables]
    history = _fit(distiller, epochs=2)
    _assert_close([v.numpy() for v in student.variables], before, rtol=0, atol=0)
    assert history["hint"][1] < history["hint"][0]


def test_a_float16_student_gives_its_critic_the_unscaled_gradient():
    def critic_step(policy):
        teacher = cases.teacher()
        keras.config.set_dtype_policy(policy)
        student = cases.student()
        keras.config.set_dtype_policy("float32")
        distiller = _compiled(
            _new(_hint(), teacher=teacher, student=student),
            critic_optimizer=keras.optimizers.SGD(0.1),
        )
        before = _values(distiller.distillation_losses[0])
        _fit(distiller, batch_size=16)
        after = _values(distiller.distillation_losses[0])
        return distiller.optimizer, [a - b for a, b in zip(after, before, strict=True)]

    plain, expected = critic_step("float32")
    scaling, moved = critic_step("mixed_float16")
    assert isinstance(scaling, keras.optimizers.LossScaleOptimizer)
    assert not isinstance(plain, keras.optimizers.LossScaleOptimizer)
    _assert_close(moved, expected, rtol=0.02, atol=1e-4)
    assert all(np.any(step) for step in moved)


@pytest.mark.parametrize("separate", [False, True])
def test_accumulated_gradients_of_two_halves_are_those_of_the_whole(separate):
    def trained(batch_size, **kwargs):
        def sgd():
            return keras.optimizers.SGD(0.1, **kwargs)

        distiller = _new(mikd.SoftTargets(name="kd"), _hint())
        _compiled(distiller, sgd(), critic_optimizer=sgd() if separate else None)
        before = _values(distiller)
        _fit(distiller, batch_size=batch_size)
        assert all(np.any(a != b) for a, b in zip(before, _values(distiller), strict=True))
        return _values(distiller)

    _assert_close(trained(8, gradient_accumulation_steps=2), trained(16))


# Ways to run


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_ways_to_execute_give_one_history(steps_per_execution):
    step_by_step = _compiled(_new(_jsd()))
    graph = _compiled(_new(_jsd()), steps_per_execution=steps_per_execution, run_eagerly=False)
    expected, history = _fit(step_by_step, epochs=2), _fit(graph, epochs=2)
    assert history == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    _assert_close(_values(step_by_step), _values(graph))


def test_who_compiles_the_critics():
    def compiled_critics(xla_critics, *, run_eagerly=False, **kwargs):
        distiller = mikd.Distiller(
            cases.teacher(), cases.student(), [_jsd()], xla_critics=xla_critics
        )
        return _compiled(distiller, run_eagerly=run_eagerly, **kwargs)._critics_use_xla()

    accelerated = any(d.device_type != "CPU" for d in tf.config.list_physical_devices())
    assert compiled_critics("auto", jit_compile=False) is accelerated
    assert compiled_critics(True, jit_compile=False) is True
    assert compiled_critics(False, jit_compile=False) is False
    assert compiled_critics(True, run_eagerly=True) is False


class _Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return tuple(array[part] for array in cases.data())


@pytest.mark.parametrize("kind", ["generator", "PyDataset", "Dataset"])
def test_data_comes_in_any_form_that_keras_takes(kind):
    batches = _Batches()
    x = {
        "generator": lambda: (batches[i] for i in range(2)),
        "PyDataset": _Batches,
        "Dataset": lambda: tf.data.Dataset.from_tensor_slices(cases.data()).batch(8),
    }[kind]()
    distiller, expected = _compiled(_new()), _compiled(_new())
    distiller.fit(x, steps_per_epoch=2, shuffle=False, verbose=0)
    assert distiller.optimizer.iterations == 2
    _fit(expected)
    _assert_close(_values(distiller), _values(expected))


def test_dict_inputs(tmp_path):
    def network(width):
        inputs = {
            "image": keras.Input(cases.IMAGE_SHAPE, name="image"),
            "extra": keras.Input((3,), name="extra"),
        }
        x = keras.layers.Conv2D(width, 3, name="conv")(inputs["image"])
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Concatenate()([x, inputs["extra"]])
        return keras.Model(inputs, keras.layers.Dense(cases.NUM_CLASSES)(x))

    images, y = cases.data()
    x = {"image": images, "extra": np.linspace(0, 1, 48, dtype="float32").reshape(16, 3)}
    distiller = _compiled(_new(_hint("conv"), teacher=network(6), student=network(3)))
    history = _fit(distiller, x=x, y=y, validation_data=(x, y), epochs=3)
    assert history["val_loss"][2] < history["val_loss"][0]
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    _assert_close(loaded.predict(x, verbose=0), distiller.student.predict(x, verbose=0))
    _fit(loaded, x=x, y=y)


# Subclassed networks


@keras.saving.register_keras_serializable("distiller_test")
class Subclassed(keras.Model):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.conv = keras.layers.Conv2D(width, 3, activation="relu")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dropout = keras.layers.Dropout(0.5)
        self.dense = keras.layers.Dense(cases.NUM_CLASSES)

    def features(self, x, training):
        feature_map = self.conv(x)
        vector = self.dropout(self.pool(feature_map), training=training)
        return {"relu1": feature_map, "vector": vector, "output": self.dense(vector)}

    def call(self, x, training=False):
        return self.features(x, training)["output"]

    def get_config(self):
        return {"name": self.name, "width": self.width}


@keras.saving.register_keras_serializable("distiller_test")
def features(model, x, training):
    return model.features(x, training)


def _with_subclassed(which, *losses):
    models = {"teacher": cases.teacher(), "student": cases.student()}
    kwargs = {}
    for side, width in (("teacher", 6), ("student", 3)):
        if which in (side, "both"):
            models[side] = Subclassed(width)
            models[side](cases.data()[0])
            kwargs[f"{side}_features"] = features
    return _new(*losses, **models, **kwargs)


@SIDES
def test_subclassed_networks_hand_over_features_and_are_saved(subclassed, tmp_path):
    distiller = _with_subclassed(subclassed, _hint("relu1"), _hint(None, name="logits"))
    _compiled(distiller, run_eagerly=subclassed != "both")
    x, _ = cases.data()
    history = _fit(distiller, epochs=3)
    assert history["hint"][2] < history["hint"][0]
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher_features is distiller.teacher_features
    assert loaded.student_features is distiller.student_features
    np.testing.assert_array_equal(loaded.teacher(x), distiller.teacher(x))
    np.testing.assert_array_equal(loaded(x), distiller(x))
    assert _evaluate(loaded) == _evaluate(distiller)
    _fit(loaded)


@SIDES
def test_the_logits_of_subclassed_networks_need_no_features(subclassed):
    distiller = _with_subclassed(subclassed)
    plain = mikd.Distiller(distiller.teacher, distiller.student, [mikd.SoftTargets(name="kd")])
    expected, seen = (_evaluate(_compiled(d)) for d in (plain, distiller))
    assert seen == expected


# Logs, files, and what is handed over


def test_every_term_and_readout_reaches_tensorboard(tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices(cases.data()).batch(8)
    vid = mikd.GaussianVIDHead(teacher_layer="stage1", student_layer="stage1", name="vid")
    distiller = _compiled(_new(mikd.SoftTargets(name="kd"), _jsd(), vid), metrics=["accuracy"])
    history = _fit(
        distiller,
        x=dataset,
        validation_data=dataset.take(1),
        epochs=2,
        callbacks=[keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)],
    )
    names = {"loss", "task_loss", "accuracy", "kd", "jsd", "jsd_mi_nats", "vid"}
    names |= {"jsd_mi_nats_se", "jsd_mi_nats_limit", "vid_gaussian_nats"}
    assert set(history) == names | {f"val_{name}" for name in names}
    for split, prefix in (("train", ""), ("validation", "val_")):
        log = EventAccumulator(str(tmp_path / split)).Reload()
        assert {f"epoch_{name}" for name in names} <= set(log.Tags()["tensors"])
        for name in names:
            written = [float(tf.make_ndarray(e.tensor_proto)) for e in log.Tensors(f"epoch_{name}")]
            assert written == pytest.approx(history[prefix + name], rel=1e-6), name


def test_validation_says_what_evaluate_says():
    distiller = _compiled(_new(_jsd(), _hint()), metrics=["accuracy"])
    history = _fit(distiller, validation_data=cases.data(), validation_batch_size=8)
    seen = _evaluate(distiller, batch_size=8)
    assert {f"val_{name}": pytest.approx([value]) for name, value in seen.items()} == {
        name: value for name, value in history.items() if name.startswith("val_")
    }


def test_called_a_distiller_is_its_student():
    distiller = _compiled(_new(), metrics=["accuracy"])
    x, y = cases.data()
    logits = distiller.student.predict(x, verbose=0)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), logits)
    np.testing.assert_array_equal(distiller(x), distiller.student(x))
    assert _evaluate(distiller)["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == y))


@pytest.mark.parametrize("trained", [False, True])
def test_the_exported_network_is_the_student_and_nothing_else(trained, tmp_path):
    distiller = _compiled(_new(_jsd()))
    if trained:
        _fit(distiller)
    distiller.export(tmp_path / "student", verbose=False)
    exported = tf.saved_model.load(tmp_path / "student")
    x, _ = cases.data()
    np.testing.assert_allclose(exported.serve(x), distiller.student(x), rtol=1e-5, atol=1e-6)
    assert len(exported.variables) == len(distiller.student.variables)


def test_checkpoints_of_weights_and_of_everything(tmp_path):
    weights, whole = tmp_path / "{epoch}.weights.h5", tmp_path / "{epoch}.keras"
    distiller = _compiled(_new(mikd.SoftTargets(name="kd"), _hint()), "adam")
    callbacks = [
        keras.callbacks.ModelCheckpoint(weights, save_weights_only=True),
        keras.callbacks.ModelCheckpoint(whole, monitor="kd", mode="min", save_best_only=True),
    ]
    _fit(distiller, epochs=2, callbacks=callbacks)
    expected = _evaluate(distiller)
    other = _compiled(_new(mikd.SoftTargets(name="kd"), _hint()), "adam")
    assert _evaluate(other) != expected
    other.load_weights(tmp_path / "2.weights.h5")
    assert _evaluate(other) == expected
    assert _evaluate(keras.saving.load_model(tmp_path / "2.keras")) == expected
    assert _evaluate(keras.saving.load_model(tmp_path / "1.keras")) != expected


def test_a_distiller_that_was_not_compiled_is_saved_as_such(tmp_path):
    _new().save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert not loaded.compiled
    _fit(_compiled(loaded))


def test_a_student_made_outside_of_the_scope_is_refused(two_replicas):
    outside = cases.student()
    with two_replicas.scope():
        inside = cases.student()
        message = "student made under no strategy, the distiller under MirroredStrategy"
        with pytest.raises(ValueError, match=message):
            _new(student=outside)
    with pytest.raises(ValueError, match="MirroredStrategy, the distiller under none"):
        _new(student=inside)


def test_a_distiller_made_outside_of_the_scope_does_not_train_inside(two_replicas):
    distiller = cases.distiller_with(mikd.SoftTargets())
    distiller.compile("sgd", cases.cross_entropy())
    with two_replicas.scope():
        for train in (distiller.fit, distiller.train_on_batch):
            with pytest.raises(
                ValueError, match="outside of a scope, .*made: none. Received: the "
            ):
                train(*cases.data())


def test_a_students_own_step_is_told():
    class OwnStep(keras.Model):
        def train_step(self, data):
            raise NotImplementedError

        def compute_loss(self, *args, **kwargs):
            raise NotImplementedError

    network = cases.student()
    student = OwnStep(network.inputs, network.outputs[0])
    with pytest.warns(UserWarning, match="has its own train_step, compute_loss, which a distiller"):
        mikd.Distiller(cases.teacher(), student, [mikd.SoftTargets()])


def test_a_teacher_may_be_made_outside_of_the_scope(two_replicas):
    teacher = cases.teacher()
    with two_replicas.scope():
        distiller = _compiled(_new(teacher=teacher), run_eagerly=False)
    alone = _compiled(_new(teacher=teacher))
    for each in (distiller, alone):
        _fit(each)
    _assert_close(_values(distiller.student), _values(alone.student))


def test_a_student_may_ignore_an_input_of_its_teacher():
    image, text = keras.Input(cases.IMAGE_SHAPE), keras.Input((3,))
    logits = cases.teacher()(image) + keras.layers.Dense(cases.NUM_CLASSES)(text)
    classifier = cases.student()
    student = keras.Model([image, text], classifier(image))
    distiller = _compiled(_new(teacher=keras.Model([image, text], logits), student=student))
    x, y = cases.data()
    before = _values(classifier)
    distiller.fit([x, x[:, 0, 0, :1] * np.ones((1, 3), "float32")], y, verbose=0)
    assert any(np.any(old != new) for old, new in zip(before, _values(classifier), strict=True))


def _two_tensors(model, x, training):
    return {"output": model(x, training=training)}


def test_a_function_that_a_file_cannot_hold_is_told(tmp_path):
    distiller = _new(teacher_features=_two_tensors)
    with pytest.warns(UserWarning, match="'_two_tensors' is saved by its name only.*register_ke"):
        distiller.save(tmp_path / "distiller.keras")
    functions = {"_two_tensors": _two_tensors}
    loaded = keras.saving.load_model(tmp_path / "distiller.keras", custom_objects=functions)
    assert loaded.teacher_features is _two_tensors


def test_distributions_are_refused_where_indices_are_expected():
    x, y = cases.data()
    y = keras.utils.to_categorical(y, cases.NUM_CLASSES)
    distiller = _compiled(_new())
    for data in ((x, y), (tf.data.Dataset.from_tensor_slices((x, y)).batch(8),)):
        with pytest.raises(ValueError, match="integer labels .*are for .*CategoricalCrossentropy"):
            distiller.fit(*data, verbose=0)


def test_losses_without_names_are_numbered_in_their_order():
    for _ in range(2):
        losses = [
            mikd.SoftTargets(temperature=1.0),
            mikd.SoftTargets(temperature=4.0),
            keras.distillation.LogitsDistillation(2.0, loss=keras.losses.KLDivergence()),
            keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence()),
            mikd.Hint(teacher_layer="stage1", student_layer="stage1"),
        ]
        distiller = _compiled(_new(*losses))
        names = ["soft_targets", "soft_targets_2", "keras_loss_adapter", "keras_loss_adapter_2"]
        assert [x.name for x in distiller.distillation_losses] == [*names, "hint_stage1"]
        assert {*names, "hint_stage1"} < set(_evaluate(distiller))
    with pytest.raises(ValueError, match="Set `name=` in each"):
        _new(mikd.SoftTargets(name="kd"), mikd.SoftTargets(name="kd"))


@keras.saving.register_keras_serializable("distiller_test")
class _Logits:
    """Features of a model, by an object that has a config."""

    def __call__(self, model, x, training):
        return {"output": model(x, training=training)}

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def test_features_may_be_an_object(tmp_path):
    distiller = _new(teacher_features=_Logits())
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert isinstance(loaded.teacher_features, _Logits)


def test_indices_of_as_many_places_as_classes_are_indices():
    inputs = keras.Input((4, 3))
    network = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Dense(5)(inputs)))
    distiller = _compiled(mikd.SelfDistiller(network, []))
    distiller.fit(np.zeros((8, 4, 3)), np.zeros((8, 4), int), verbose=0)
    with pytest.raises(ValueError, match="integer labels"):
        distiller.fit(np.zeros((8, 4, 3)), np.zeros((8, 4, 4), int), verbose=0)


class _Grows(mikd.DistillationLoss):
    """Is infinite from the second step on."""

    def build(self, teacher_shape, student_shape):
        self.step = self.add_weight(shape=(), trainable=False, initializer="zeros", name="step")

    def call(self, teacher, student, labels=None, training=None):
        self.step.assign_add(1.0)
        error = keras.ops.mean(keras.ops.square(teacher - student), axis=-1)
        return error * keras.ops.where(self.step > 1.0, np.inf, 1.0)


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {}, {"jit_compile": True}])
def test_a_term_that_is_not_finite_ends_training_before_it_reaches_the_student(options):
    student = cases.student(normalize=True)
    distiller = mikd.Distiller(cases.teacher(), student, [_Grows(name="grows")])
    distiller.compile(keras.optimizers.SGD(0.1), cases.cross_entropy(), **options)
    x, y = cases.data(32)
    seen = []
    steps = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(student.trainable_variables[0].numpy())
    )
    with pytest.raises(ValueError, match="finite losses. Received: .* in `grows`"):
        distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[steps])
    # XLA compiles no stop: the gradient is left out, and the epoch is the last.
    assert len(seen) == (4 if options.get("jit_compile") else 1)
    np.testing.assert_array_equal(student.trainable_variables[0], seen[0])
    assert all(np.all(np.isfinite(v)) for v in student.variables)


def test_weights_that_were_thawed_after_compile_are_told():
    student = cases.student()
    student.get_layer("conv1").trainable = False
    distiller = mikd.Distiller(cases.teacher(), student, [mikd.SoftTargets()])
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    student.get_layer("conv1").trainable = True
    with pytest.raises(ValueError, match="2 more, such as 'conv1/kernel'.*Call `compile` again"):
        distiller.fit(*cases.data(), verbose=0)
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    distiller.fit(*cases.data(), verbose=0)
    student.get_layer("conv1").trainable = False
    distiller.fit(*cases.data(), verbose=0)


def test_the_weight_of_the_task_can_be_a_schedule(tmp_path):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.25])
    losses = [mikd.SoftTargets(weight=0.0)]
    distiller = mikd.Distiller(cases.teacher(), cases.student(), losses, task_loss_weight=schedule)
    distiller.compile(keras.optimizers.SGD(0.0), cases.cross_entropy(), run_eagerly=True)
    first, second = (distiller.fit(*cases.data(8), verbose=0).history for _ in range(2))
    assert first["loss"][0] == pytest.approx(first["task_loss"][0])
    assert second["loss"][0] == pytest.approx(0.25 * second["task_loss"][0])
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.fit(*cases.data(8), verbose=0).history["loss"][0] == second["loss"][0]


@pytest.mark.parametrize("name", ["vid", "mimkd", "muse", "mutual", "mcmi"])
def test_every_distiller_trains_in_double_precision(name):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        distiller = cases.distiller(name)
        distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
        before = distiller.trainable_variables[0].numpy()
        history = distiller.fit(*cases.data(8), verbose=0).history
    finally:
        keras.config.set_floatx("float32")
    assert before.dtype == "float64"
    assert all(np.isfinite(values[0]) for values in history.values())
    assert np.any(distiller.trainable_variables[0].numpy() != before)


def test_the_summary_shows_the_teacher(capsys):
    distiller = mikd.Distiller(cases.teacher(), cases.student(), [mikd.SoftTargets()])
    distiller.summary()
    weights = distiller.teacher.count_params()
    assert f"'{distiller.teacher.name}', {weights:,} weights" in capsys.readouterr().out


def _small(loss, **kwargs):
    return cases.distiller_with(loss, **kwargs)


def test_a_critic_in_two_losses_is_refused():
    critic = mikd.SeparableCritic(width=4)
    losses = [mikd.JSDCritic(critic=critic, name=name) for name in ("a", "b")]
    with pytest.raises(ValueError, match="layers of its own.* in 'a' and in 'b'.*new one for each"):
        mikd.Distiller(cases.teacher(), cases.student(), losses)
    loss = mikd.SoftTargets()
    with pytest.raises(ValueError, match="layers of its own"):
        mikd.Distiller(cases.teacher(), cases.student(), [loss, loss])


@pytest.mark.parametrize(
    "loss, critic_optimizer", [(mikd.JSDCritic, None), (mikd.SoftTargets, "sgd")]
)
def test_a_student_without_weights_to_train_is_refused(loss, critic_optimizer):
    student = cases.student()
    student.trainable = False
    distiller = _small(loss(), student_model=student)
    distiller.compile(
        "sgd", cases.cross_entropy(), critic_optimizer=critic_optimizer, run_eagerly=True
    )
    x, y = cases.data(8)
    for start in (distiller.fit, distiller.train_on_batch):
        with pytest.raises(ValueError, match="weights to train in the student.*compile again"):
            start(x, y)


@pytest.mark.parametrize("critic_optimizer", [None, "sgd"])
def test_losses_in_front_of_all_that_is_trained_are_refused(critic_optimizer):
    student = cases.student()
    for name in ("conv1", "conv2"):
        student.get_layer(name).trainable = False
    loss = mikd.JSDCritic(teacher_layer="stage1", student_layer="stage1")
    distiller = _small(loss, student_model=student)
    distiller.compile("sgd", critic_optimizer=critic_optimizer, run_eagerly=True)
    before = [v.numpy() for v in distiller.trainable_variables]
    with pytest.raises(ValueError, match="trains at least one weight of the network"):
        distiller.fit(cases.data(8)[0], verbose=0)
    for variable, value in zip(distiller.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_weights_of_which_all_are_zero_are_told():
    x, y = cases.data(8)
    for options, loss in (({}, None), ({"task_loss_weight": 0.0}, cases.cross_entropy())):
        distiller = _small(mikd.SoftTargets(weight=0.0), **options)
        distiller.compile("sgd", loss, run_eagerly=True)
        with pytest.warns(UserWarning, match="Nothing is learned: the weight of every loss is 0"):
            distiller.fit(x, y, verbose=0)


def test_a_task_that_reaches_no_weight_counts_for_nothing():
    student = cases.student()
    student.trainable = False
    head = mikd.GaussianVIDHead(teacher_layer="stage2", student_layer="stage2", weight=0.0)
    distiller = _small(head, student_model=student)
    distiller.compile("sgd", cases.cross_entropy(), critic_optimizer="adam", run_eagerly=True)
    with pytest.warns(UserWarning, match="or the networks have no weights to train"):
        distiller.fit(*cases.data(8), verbose=0)


@pytest.mark.parametrize("source", ["arrays", "dataset"])
def test_batches_of_one_example_are_told_once(source):
    x, y = cases.data(2)
    distiller = _small(mikd.JSDCritic(critic=mikd.SeparableCritic(width=4)))
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(1)
    with pytest.warns(UserWarning, match="one example, and jsd_critic_pooled compares") as caught:
        if source == "arrays":
            distiller.fit(x, y, batch_size=1, validation_data=(x, y), verbose=0)
        else:
            distiller.fit(data, verbose=0, shuffle=False)
    assert len([w for w in caught if "one example" in str(w.message)]) == 1


def test_a_compile_without_a_loss_forgets_the_one_of_before():
    ends = []
    for losses in ([cases.cross_entropy(), None], [None]):
        distiller = cases.distiller_with(mikd.SoftTargets())
        for loss in losses:
            distiller.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        distiller.fit(cases.data()[0], shuffle=False, verbose=0)
        ends.append(distiller.student.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_and_metrics_of_several_outputs_go_by_their_names():
    def network(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(cases.IMAGE_SHAPE)
        x = keras.layers.Flatten()(inputs)
        return keras.Model(inputs, [keras.layers.Dense(4, name=n)(x) for n in ("kind", "side")])

    place = {"teacher_layer": "output/0", "student_layer": "output/0"}
    distiller = mikd.Distiller(network(0), network(1), [mikd.SoftTargets(**place, name="kd")])
    losses = {"kind": cases.cross_entropy(), "side": cases.cross_entropy()}
    distiller.compile("sgd", losses, metrics={"side": ["accuracy"]}, run_eagerly=True)
    x, y = cases.data()
    logs = distiller.evaluate(x, {"kind": y, "side": y}, verbose=0, return_dict=True)
    alone = network(1)
    alone.compile("sgd", losses, metrics={"side": ["accuracy"]}, run_eagerly=True)
    expected = alone.evaluate(x, {"kind": y, "side": y}, verbose=0, return_dict=True)
    assert logs["side_accuracy"] == expected["side_accuracy"]
    assert logs["task_loss"] == pytest.approx(expected["loss"])


def test_a_metric_with_the_name_of_a_term_is_refused():
    distiller = cases.distiller_with(mikd.SoftTargets(name="kld"))
    for metric in ("kld", keras.metrics.Mean(name="task_loss")):
        with pytest.raises(ValueError, match="metrics with names of their own"):
            distiller.compile("sgd", cases.cross_entropy(), metrics=["accuracy", metric])


def test_arguments_of_fit_may_be_given_as_keras_takes_them():
    distiller = cases.distiller_with(mikd.SoftTargets(name="kd"))
    distiller.compile(keras.optimizers.SGD(0.0), cases.cross_entropy(), run_eagerly=True)
    x, y = cases.data()
    nothing = np.zeros(len(x))
    arguments = (x, y, 16, 3, 0, None, 0.0, [x, y], False, None, nothing, 1)
    history = distiller.fit(*arguments)
    assert history.epoch == [1, 2] and history.history["loss"] == [0.0, 0.0]
    assert history.history["val_task_loss"][0] > 0.0
