"""What an update needs: a gradient for the network, and one dtype for a common norm."""

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd

FROZEN = {
    "backbone": ("conv1", "conv2"),
    "all": ("conv1", "conv2", "logits"),
    "early": ("conv1",),
}


def _student(frozen=(), dtype="float32"):
    keras.config.set_dtype_policy(dtype)
    try:
        student = cases.student()
    finally:
        keras.config.set_dtype_policy("float32")
    for name in FROZEN.get(frozen, ()):
        student.get_layer(name).trainable = False
    return student


def _fit(distiller, optimizer="sgd", loss=None, **options):
    distiller.compile(optimizer, loss, **options)
    x, y = cases.data()
    return distiller.fit(x, y, batch_size=8, verbose=0).history


def _distiller(loss, student):
    places = (
        {} if loss is mikd.SoftTargets else {"teacher_layer": "relu1", "student_layer": "relu1"}
    )
    return mikd.Distiller(cases.teacher(), student, [loss(**places)])


@pytest.mark.parametrize(
    ("frozen", "loss", "task", "options"),
    [
        ("early", mikd.AttentionTransfer, False, {}),
        ("early", mikd.Hint, False, {}),  # Its regressor would be trained, and nothing else.
        ("backbone", mikd.Hint, False, {"critic_optimizer": "adam"}),
        ("all", mikd.AttentionTransfer, True, {}),
        ("all", mikd.SoftTargets, True, {"run_eagerly": True}),
    ],
)
def test_a_network_that_nothing_trains_is_refused_before_the_first_step(
    frozen, loss, task, options
):
    distiller = _distiller(loss, _student(frozen))
    before = [w.numpy() for w in distiller.weights]
    with pytest.raises(
        ValueError, match="trains at least one weight|weights to train in the student"
    ):
        _fit(distiller, loss=cases.cross_entropy() if task else None, **options)
    assert int(distiller.optimizer.iterations) == 0
    for weight, value in zip(distiller.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_self_distillation_and_peers_are_looked_at_too():
    frozen = _student("all")
    with pytest.raises(ValueError, match="weights to train in the student"):
        _fit(mikd.SelfDistiller(frozen, []), loss=cases.cross_entropy())
    peers = mikd.MutualDistiller([_student("all"), cases.teacher()], [mikd.SoftTargets()])
    assert np.isfinite(_fit(peers, loss=cases.cross_entropy())["loss"]).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_frozen_backbone_with_a_head_trains():
    student = _student("backbone")
    kernel = student.get_layer("logits").kernel.numpy()
    _fit(_distiller(mikd.SoftTargets, student))
    assert np.any(student.get_layer("logits").kernel != kernel)


@pytest.mark.parametrize("dtype", ["float64", "mixed_float16"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_common_norm_clips_gradients_of_every_dtype(dtype, wrapped):
    """With a norm of 0.1, SGD of rate 1 moves student and regressor together by 0.1."""
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=0.1)
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
    distiller = _distiller(mikd.Hint, _student(dtype=dtype))
    before = [w.numpy().astype("float64") for w in distiller.trainable_weights]
    distiller.compile(optimizer, cases.cross_entropy(), auto_scale_loss=False)
    distiller.fit(*cases.data(8), batch_size=8, verbose=0)
    moved = [w.numpy() - old for w, old in zip(distiller.trainable_weights, before, strict=True)]
    norm = np.sqrt(sum(np.sum(np.square(each)) for each in moved))
    np.testing.assert_allclose(norm, 0.1, rtol=0.02 if "float16" in dtype else 1e-5)


def test_a_common_norm_of_accumulated_gradients_of_unlike_dtypes_is_refused():
    optimizer = keras.optimizers.SGD(0.1, global_clipnorm=0.1, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="global_clipnorm=0.1, with .* float32 and float64. Use"):
        _fit(_distiller(mikd.Hint, _student(dtype="float64")), optimizer, cases.cross_entropy())
