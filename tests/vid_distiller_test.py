"""Which heads a VIDDistiller puts where, and for which pairs of networks."""

import pathlib

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


def _vid(teacher=None, student=None, **kwargs):
    return mikd.VIDDistiller(teacher or cases.teacher(), student or cases.student(), **kwargs)


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


STAGES = [("vid_stage1", "stage1", "stage1", 1.0), ("vid_stage2", "stage2", "stage2", 1.0)]


def test_by_default_a_head_for_each_pair_of_stages():
    distiller = _vid()
    assert _layout(distiller) == STAGES
    for head in distiller.distillation_losses:
        assert isinstance(head, mikd.GaussianVIDHead)
        assert (head.variant, head.initial_variance) == ("official", None)
        assert head.reduction == "mean"


def test_a_head_between_the_students_vector_and_the_teachers_logits():
    distiller = _vid(stage_weight=2.0, logits_weight=0.5)
    scaled = [(*where, 2.0) for *where, _ in STAGES]
    assert _layout(distiller) == [*scaled, ("vid_logits", "output", "pooled", 0.5)]
    head = distiller.distillation_losses[-1]
    assert [tuple(v.shape) for v in head.mean_layers[0].weights] == [(5, 4), (4,)]


def test_a_weight_of_zero_leaves_a_level_out():
    assert _layout(_vid(stage_weight=0, logits_weight=1)) == [
        ("vid_logits", "output", "pooled", 1.0)
    ]
    with pytest.raises(ValueError, match="list of at least one DistillationLoss"):
        _vid(stage_weight=0.0)


@pytest.mark.parametrize("argument", ["stage_weight", "logits_weight"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), "1"])
def test_bad_weights_are_refused(argument, weight):
    with pytest.raises(
        ValueError, match="`weight` to be a finite number of at least 0. Received: weight="
    ):
        _vid(**{argument: weight})


def test_soft_targets_may_be_added():
    distiller = _vid(soft_targets=mikd.SoftTargets(weight=0.9, name="kd"))
    assert _layout(distiller) == [("kd", "output", "output", 0.9), *STAGES]


def test_losses_of_the_callers_own_take_the_place_of_the_heads():
    kd = mikd.SoftTargets()
    assert _vid(distillation_losses=[kd]).distillation_losses == (kd,)
    kd, hint = mikd.SoftTargets(), mikd.Hint(teacher_layer="stage2", student_layer="stage2")
    both = _vid(distillation_losses=[hint], soft_targets=kd)
    assert both.distillation_losses == (kd, hint)


@pytest.mark.parametrize("variant", ["official", "repdistiller", "wgan"])
def test_the_choices_of_the_head_reach_every_head(variant):
    choices = {"variant": variant, "initial_variance": 0.25, "reduction": "sum"}
    for head in _vid(**choices, logits_weight=1.0).distillation_losses:
        assert {name: head.get_config()[name] for name in choices} == choices
        np.testing.assert_allclose(head.variance(), 0.25, rtol=1e-5)


def test_the_total_is_the_sum_that_the_docstring_gives():
    kd = mikd.SoftTargets(weight=0.9, name="kd")
    distiller = _vid(stage_weight=0.3, logits_weight=0.2, soft_targets=kd, task_loss_weight=0.5)
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    seen = distiller.evaluate(*cases.data(), verbose=0, return_dict=True)
    stages = seen["vid_stage1"] + seen["vid_stage2"]
    expected = 0.5 * seen["task_loss"] + 0.9 * seen["kd"] + 0.3 * stages
    assert seen["loss"] == pytest.approx(expected + 0.2 * seen["vid_logits"], rel=1e-5)
    assert seen["vid_stage1"] != seen["vid_stage2"]


def test_a_schedule_is_a_weight():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)
    history = _step(_vid(stage_weight=schedule))
    assert history["loss"] == pytest.approx(history["task_loss"])


def test_the_heads_are_saved(tmp_path):
    distiller = _vid(stage_weight=0.5, logits_weight=0.5)
    _step(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert type(loaded) is mikd.VIDDistiller
    assert _layout(loaded) == _layout(distiller)
    for a, b in zip(loaded.variables, distiller.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_heads_learn():
    distiller = _vid()
    distiller.compile(keras.optimizers.Adam(0.01), cases.cross_entropy(), run_eagerly=True)
    history = distiller.fit(*cases.data(), epochs=5, verbose=0).history
    assert history["vid_stage1"][-1] < history["vid_stage1"][0]
    assert history["vid_stage2"][-1] < history["vid_stage2"][0]


def test_networks_of_other_families_depths_and_widths():
    shape = (12, 12, 3)
    teacher = mikd.models.wide_resnet(depth=10, width=2, num_classes=5, input_shape=shape)
    student = mikd.models.resnet8(num_classes=4, input_shape=shape)
    distiller = _vid(teacher, student, logits_weight=1.0)
    _step(distiller, shape)
    assert [where[:3] for where in _layout(distiller)] == [
        ("vid_stage1", "stage1", "stage1"),
        ("vid_stage2", "stage2", "stage2"),
        ("vid_stage3", "stage3", "stage3"),
        ("vid_logits", "output", "pooled"),
    ]


def test_networks_of_other_resolutions_with_more_or_fewer_stages():
    def downsampling(widths):
        inputs = x = keras.Input((16, 16, 3))
        for width in widths:
            x = keras.layers.Conv2D(width, 3, strides=2, padding="same")(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(4)(x))

    deep = mikd.models.resnet8(num_classes=4, input_shape=(16, 16, 3))  # 16, 8 and 4 pixels
    shallow = downsampling([4, 6])  # 8 and 4 pixels
    small = _vid(deep, shallow)
    assert [where[1:3] for where in _layout(small)] == [("stage2", "stage1"), ("stage3", "stage2")]
    large = _vid(shallow, deep)
    assert [where[1:3] for where in _layout(large)] == [("stage1", "stage2"), ("stage2", "stage3")]
    unlike = _vid(deep, downsampling([4, 6, 8]))  # 8, 4 and 2 pixels
    assert [head.grid for head in unlike.distillation_losses] == [(8, 8), (4, 4), (2, 2)]
    _step(unlike, (16, 16, 3))


def test_networks_without_stages_are_refused():
    inputs = keras.Input((6,))
    dense = keras.Model(inputs, keras.layers.Dense(4)(inputs), name="dense")
    other = keras.models.clone_model(dense)
    with pytest.raises(ValueError, match="Expected a teacher with stages.*Functional 'dense'"):
        _vid(dense, other)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_keras_cv_backbone(role):
    small = mikd.models.resnet8(num_classes=4, input_shape=(32, 32, 3))
    networks = {"teacher": small, "student": small, role: cases.keras_cv_classifier()}
    distiller = _vid(**networks)
    assert len(distiller.distillation_losses) == 3
    before = [v.numpy() for v in distiller.student.trainable_variables]
    _step(distiller, (32, 32, 3))
    after = distiller.student.trainable_variables
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("unused", [{"stage_weight": 3.0}, {"variant": "wgan"}])
def test_arguments_that_losses_of_the_callers_own_leave_unused_are_refused(unused):
    with pytest.raises(ValueError, match=f"Received: distillation_losses and {[*unused][0]}"):
        mikd.VIDDistiller(cases.teacher(), cases.student(), [mikd.SoftTargets()], **unused)


def _channel_variances(teacher, place, x):
    read = keras.Model(teacher.input, teacher.get_layer(place).output)
    values = np.float64(read.predict(x, verbose=0))
    return values.var(axis=tuple(range(values.ndim - 1)))


def _auto(**kwargs):
    return mikd.VIDDistiller(
        cases.teacher(), cases.student(), logits_weight=1.0, initial_variance="auto", **kwargs
    )


def _heads(distiller):
    return {loss.name: loss for loss in distiller.distillation_losses}


class _Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, number):
        rows = slice(10 * number, 10 * number + 10)
        return self.x[rows], self.y[rows]


@pytest.mark.parametrize("source", ["long", "PyDataset"])
def test_the_first_256_examples_of_all_batches_are_measured(source):
    x, y = cases.data(300 if source == "long" else 30)
    distiller = _auto()
    distiller.compile(keras.optimizers.SGD(0.0), cases.cross_entropy(), run_eagerly=True)
    long = tf.data.Dataset.from_tensor_slices((x, y)).batch(100)
    distiller.fit(long if source == "long" else _Batches(x, y), shuffle=False, verbose=0)
    for name, place in (("vid_stage2", "relu2"), ("vid_logits", "logits")):
        expected = _channel_variances(distiller.teacher, place, x[:256])
        np.testing.assert_allclose(_heads(distiller)[name].variance(), expected, rtol=1e-4)


@pytest.mark.parametrize("source", ["arrays", "dataset", "one batch"])
def test_measured_variances_are_those_of_the_teacher_at_the_first_step(source):
    x, y = cases.data(24)
    distiller = _auto()
    distiller.compile(keras.optimizers.SGD(0.0), cases.cross_entropy(), run_eagerly=True)
    if source == "arrays":
        logs = distiller.fit(x, y, batch_size=24, verbose=0).history
    elif source == "dataset":
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
        logs = distiller.fit(data, shuffle=False, verbose=0).history
    else:
        distiller.train_on_batch(x, y)
    for name, place in (("vid_stage2", "relu2"), ("vid_logits", "logits")):
        expected = _channel_variances(distiller.teacher, place, x)
        np.testing.assert_allclose(_heads(distiller)[name].variance(), expected, rtol=1e-4)
    if source == "arrays":
        teacher = distiller.teacher.predict(x, verbose=0)
        pooled = keras.Model(distiller.student.input, distiller.student.get_layer("gap").output)
        head = _heads(distiller)["vid_logits"].mean_layers[0]
        mean = pooled.predict(x, verbose=0) @ head.kernel.numpy() + head.bias.numpy()
        squares = (teacher - mean) ** 2 / expected + np.log(expected)
        assert logs["vid_logits"][0] == pytest.approx(0.5 * squares.mean(), rel=1e-4)


def test_a_loaded_file_keeps_its_measured_variance(tmp_path):
    distiller = _auto()
    distiller.compile(keras.optimizers.SGD(0.1), cases.cross_entropy(), run_eagerly=True)
    distiller.fit(*cases.data(16), batch_size=8, verbose=0)
    distiller.save(tmp_path / "vid.keras")
    loaded = keras.saving.load_model(tmp_path / "vid.keras")
    trained = {name: head.variance().numpy() for name, head in _heads(distiller).items()}
    loaded.optimizer.learning_rate = 0.0
    x, y = cases.data(16, seed=1)
    loaded.fit(100 * x, y, batch_size=8, verbose=0)
    for name, head in _heads(loaded).items():
        assert head.initial_variance == "auto"
        np.testing.assert_allclose(head.variance(), trained[name], rtol=1e-6)


@pytest.mark.slow
def test_two_replicas_measure_the_variances_of_one(two_replicas):
    with two_replicas.scope():
        distiller = _auto(xla_critics=False)
        distiller.compile(keras.optimizers.SGD(0.0), cases.cross_entropy())
    x, y = cases.data(16)
    distiller.fit(x, y, batch_size=16, verbose=0)
    expected = _channel_variances(distiller.teacher, "relu1", x)
    np.testing.assert_allclose(_heads(distiller)["vid_stage1"].variance(), expected, rtol=1e-4)


def test_a_generator_cannot_be_measured():
    distiller = _auto()
    distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
    x, y = cases.data(8)
    with pytest.raises(ValueError, match="read again.*vid_stage1.*`initial_variance` to a number"):
        distiller.fit(((x, y) for _ in range(2)), verbose=0)


def test_a_constant_channel_gets_the_smallest_variance():
    head = mikd.GaussianVIDHead(initial_variance="auto")
    head.build((None, 2), (None, 3))
    head.look_at(np.float32([[1.0, 0.0], [1.0, 2.0]]), np.zeros((2, 3), "float32"))
    np.testing.assert_allclose(head.variance(), [1e-4, 1.0], rtol=1e-3)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_file_is_to_be_loaded_first_and_its_argument_is_named(role, raw):
    with pytest.raises(ValueError, match=f"Expected `{role}` to be.*keras.saving.load_model"):
        _vid(**{role: pathlib.Path("a.keras")}, raw=raw)


def test_logits_of_a_softmax_are_refused():
    inner = cases.teacher()
    teacher = keras.Model(inner.input, keras.layers.Softmax()(inner.output), name="big")
    with pytest.raises(ValueError, match="logits with `logits_weight`. Received: 'big'"):
        mikd.VIDDistiller(teacher, cases.student(), logits_weight=1.0)
    mikd.VIDDistiller(teacher, cases.student())
