"""The optimizer and the data of examples/train_teacher.py, beside what PyTorch's benchmarks do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from tests import cases
from tests.example_runs import loaded

CRD = (
    "--dataset=cifar100 --optimizer=sgd --schedule=steps --weight_decay=5e-4 --learning_rate=0.05 "
    "--batch_size=64 --epochs=240 --validation_fraction=0 --nodrop_remainder"
).split()


@pytest.fixture
def script():
    with loaded("train_teacher") as module:
        yield module


def test_the_rate_falls_in_the_first_step_after_150_180_and_210_of_240_epochs(script):
    steps = 782
    rate = script.new_schedule("steps", 0.05, 240 * steps)
    for epoch, factors in ((150, (1, 0.1)), (180, (0.1, 0.01)), (210, (0.01, 0.001))):
        found = [float(rate(step)) for step in (epoch * steps - 1, epoch * steps)]
        np.testing.assert_allclose(found, np.multiply(0.05, factors), rtol=1e-5)
    assert float(script.new_schedule("cosine", 0.05, 100)(50)) == pytest.approx(0.025)


def _trained(optimizer, penalty=0.0, steps=400):
    """Norms of kernels and of gammas after steps of an optimizer, or of PyTorch's SGD by hand."""
    model = cases.network((6, 8), normalize=True, seed=3)
    x, y = map(tf.constant, cases.data(16))
    variables = model.trainable_variables
    kernels = [v for v in variables if v.path.endswith("kernel")]
    velocities = [tf.Variable(tf.zeros(v.shape)) for v in variables]

    @tf.function
    def train():
        for _ in tf.range(steps):
            step()

    def step():
        with tf.GradientTape() as tape:
            loss = cases.cross_entropy()(y, model(x, training=True))
            loss += penalty * sum(tf.reduce_sum(tf.square(kernel.value)) for kernel in kernels)
        gradients = tape.gradient(loss, variables)
        if optimizer is not None:
            optimizer.apply(gradients, variables)
            return
        for variable, gradient, velocity in zip(variables, gradients, velocities, strict=True):
            velocity.assign(0.9 * velocity + gradient + 5e-3 * variable)
            variable.assign_sub(0.05 * velocity)

    if optimizer is not None:
        optimizer.build(variables)
    train()
    norms = [(v.name, np.linalg.norm(v)) for v in variables]
    return [[norm for name, norm in norms if name == kind] for kind in ("kernel", "gamma")]


def test_a_weight_without_a_gradient_decays_as_in_pytorch(script):
    optimizer = script.new_optimizer("sgd", 0.05, 5e-3)
    variable = keras.Variable(np.ones(1))
    optimizer.build([variable])
    step = tf.function(lambda: optimizer.apply([tf.zeros(1)]))
    torch, velocity = 1.0, 0.0
    for _ in range(400):
        step()
        velocity = 0.9 * velocity + 5e-3 * torch
        torch -= 0.05 * velocity
    assert torch < 0.4
    np.testing.assert_allclose(variable, torch, rtol=0.03)


@pytest.mark.slow
def test_the_weight_decay_is_that_of_pytorch(script):
    """Ten times that of the benchmark, so that 400 steps show it. An L2 penalty on the kernels,
    which leaves out the gammas of BatchNormalization, does not come near."""
    kernels, gammas = _trained(None)
    decayed = _trained(script.new_optimizer("sgd", 0.05, 5e-3))
    _, penalized = _trained(script.new_optimizer("sgd", 0.05, 0.0), penalty=2.5e-3)
    assert (len(kernels), len(gammas)) == (3, 2)
    np.testing.assert_allclose(decayed[0] + decayed[1], kernels + gammas, rtol=0.01)
    assert np.divide(penalized, gammas).min() > 1.5


def test_flags_of_the_split_are_refused_with_the_digits(script):
    for split in ({"validation_fraction": 0.0, "drop_remainder": True}, {"drop_remainder": False}):
        with pytest.raises(SystemExit, match="a split of its own. Received: one of them"):
            script.load_data("digits", {}, {"validation_fraction": None, **split})


def test_adam_decays_as_adamw(script):
    optimizer = script.new_optimizer("adam", 0.1, 0.5)
    variable = keras.Variable(np.ones(1))
    optimizer.apply([np.zeros(1, "float32")], [variable])
    np.testing.assert_allclose(variable, 0.95)
    assert script.new_optimizer("adam", 0.1, 0.0).weight_decay is None


def test_the_command_of_the_benchmark_asks_for_all_images_and_batches(
    script, tmp_path, monkeypatch
):
    asked, trained = {}, []

    def load(**options):
        asked.update(options)
        data = tf.data.Dataset.from_tensors((np.zeros((1, 8, 8, 1)), [0])).repeat(782)
        return mikd.datasets.Splits(data, None, data, 100, (8, 8, 1), 50_000, 0, 1)

    def train(teacher, data, optimizer, epochs, logs):
        trained.append((teacher, data.validation, optimizer, epochs))

    monkeypatch.setattr(mikd.datasets, "loader", {"cifar100": load}.get)
    monkeypatch.setattr(script, "train", train)
    script.flags.FLAGS(["train_teacher", *CRD, "--model=resnet8", f"--output_dir={tmp_path}"])
    script.main([])
    assert (asked["validation_fraction"], asked["drop_remainder"], asked["batch_size"]) == (
        0,
        False,
        64,
    )
    ((teacher, validation, optimizer, epochs),) = trained
    assert (validation, epochs, teacher.losses) == (None, 240, [])
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, pytest.approx(5e-3))
    rates = [float(optimizer._learning_rate(782 * epoch)) for epoch in (149, 150, 239)]
    np.testing.assert_allclose(rates, [0.05, 5e-3, 5e-5], rtol=1e-5)


def test_a_teacher_that_trained_in_half_precision_is_saved_in_float32(
    script, tmp_path, monkeypatch, capsys
):
    trained = []

    def train(teacher, *_):
        trained.append(teacher)
        teacher.set_weights([w + 0.01 for w in teacher.get_weights()])

    given = ["--policy=mixed_bfloat16", "--model=resnet8", f"--output_dir={tmp_path}"]
    monkeypatch.setattr(script, "train", train)
    script.flags.FLAGS(["train_teacher", *given])
    script.main([])
    (teacher,) = trained
    saved = keras.saving.load_model(tmp_path / "teacher.keras")
    policies = [{layer.dtype_policy.name for layer in each.layers} for each in (teacher, saved)]
    assert policies == [{"mixed_bfloat16"}, {"float32"}]
    assert keras.config.dtype_policy().name == "float32"
    for found, expected in zip(saved.get_weights(), teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    test = mikd.datasets.load_digits().test
    images, labels = map(np.concatenate, zip(*test.as_numpy_iterator(), strict=True))
    accuracy = 100 * np.mean(saved.predict(images, verbose=0).argmax(-1) == labels)
    assert f"Teacher: {accuracy:.2f} % of the test split" in capsys.readouterr().out
