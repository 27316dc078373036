"""What the scripts make students of, examples/students.py."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd
from tests import cases

SCRIPT = pathlib.Path(__file__).parents[1] / "examples" / "students.py"


@pytest.fixture(scope="module")
def students():
    spec = importlib.util.spec_from_file_location("students", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["kd", "at", "hint", "vid", "mimkd"])
def test_every_method_has_its_losses_at_the_given_weight(students, method):
    losses = {
        "kd": [mikd.SoftTargets],
        "at": [mikd.AttentionTransfer] * 2,
        "hint": [mikd.Hint],
        "vid": [mikd.GaussianVIDHead] * 2,
        "mimkd": [mikd.JSDCritic] * 4,
    }
    assert set(students.METHODS) == set(losses)
    distiller = students.METHODS[method](cases.teacher(), cases.student(), 0.7)
    assert [type(loss) for loss in distiller.distillation_losses] == losses[method]
    assert {loss.weight for loss in distiller.distillation_losses} == {0.7}
    assert distiller.task_loss_weight == 1.0


def test_soft_targets_and_muse_stand_beside_one_another(students):
    distiller = students.kd_muse(cases.teacher(), cases.student(), 0.7, kd_weight=0.4)
    soft_targets, muse = distiller.distillation_losses
    assert (soft_targets.weight, muse.weight) == (0.4, 0.7)
    assert (muse.teacher_layer, muse.student_layer) == ("pooled", ["stage1", "stage2"])


def test_of_every_method_the_weight_that_validation_chooses(students):
    rows = [
        {"method": method, "weight": weight, "runs": [{"validation": v} for v in validation]}
        for method, weight, validation in (
            ("plain", 0, [1.0, 1.0]),
            ("vid", 1, [2.0, 6.0]),
            ("vid", 3, [5.0, 4.0]),
            ("vid", 9, [3.0, 3.0]),
        )
    ]
    assert students.chosen_rows(rows) == [rows[0], rows[2]]


def test_soft_targets_have_the_weights_and_the_temperature_of_the_zero_shot_paper(students):
    distiller = students.kd(cases.teacher(), cases.student(), 0.9, task_weight=0.1, temperature=2.0)
    (loss,) = distiller.distillation_losses
    assert (distiller.task_loss_weight, loss.weight, loss.temperature) == (0.1, 0.9, 2.0)


def test_the_rate_of_cifar_falls_after_150_180_and_210_of_240_epochs(students):
    optimizer = students.sgd_with_steps(0.05, steps=24_000)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 14_999, 15_001, 18_001, 21_001)]
    np.testing.assert_allclose(rates, [0.05, 0.05, 5e-3, 5e-4, 5e-5], rtol=1e-5)
    assert optimizer.momentum == 0.9


def test_only_a_protocol_with_a_penalty_has_one(students):
    for dataset, penalty in (("digits", 0), ("cifar100", 2.5e-4)):
        data = mikd.datasets.Splits(None, None, None, 10, (8, 8, 1), 0, 0, 0)
        student = students.new_student(students.PROTOCOLS[dataset], data)
        kernel = next(w for w in student.trainable_weights if w.name == "kernel")
        expected = penalty * np.sum(np.square(kernel))
        found = float(student.losses[0]) if student.losses else 0
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_classes_are_dropped_inside_the_batch(students):
    labels = np.array([0, 1, 2, 0, 1, 2, 1, 1, 1, 0, 2, 2], "int32")
    images = np.arange(12, dtype="float32")
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    batches = list(students.without(dataset, [1]).as_numpy_iterator())
    # The third batch has class 1 only; the first one comes again, so that an epoch keeps its steps.
    assert [each.tolist() for each, _ in batches] == [[0, 2], [3, 5], [9, 10, 11], [0, 2]]
    assert [each.tolist() for _, each in batches] == [[0, 2], [0, 2], [0, 2, 2], [0, 2]]
    assert len(students.without(dataset, [0, 1])) == 4


def test_readouts_are_means_over_the_seeds(students):
    row = {"runs": [{"nats": {"a_nats": 1.0, "b": 0.5}}, {"nats": {"a_nats": 2.0, "b": 0.5}}]}
    assert students.readouts(row) == "a_nats 1.50, b 0.50"
    assert students.readouts({"runs": [{"nats": {}}]}) == ""


def test_mean_and_standard_deviation(students):
    assert students.mean_and_spread([90.0]) == "90.00"
    assert students.mean_and_spread(iter([90.0, 91.0, 95.0])) == "92.00 ± 2.65"


def test_a_student_is_trained_and_measured(students, tmp_path):
    keras.utils.set_random_seed(0)
    data = students.load_data("digits", batch_size=50, data_dir=str(tmp_path / "data"))
    model = mikd.models.digits_cnn(10, data.image_shape)
    optimizer = students.adam_with_cosine(1e-2, 2 * len(data.train))
    history = students.train(model, data, optimizer=optimizer, epochs=2, logs=tmp_path / "logs")
    assert len(history["val_accuracy"]) == 2
    assert float(optimizer.learning_rate) == 0
    logits, labels = students.outputs(model, data.test)
    right = 100 * np.mean(logits.argmax(axis=1) == labels)
    assert logits.shape == (539, 10) and right > 30
    assert students.accuracy(model, data.test) == pytest.approx(right, abs=0.01)
    assert (tmp_path / "logs" / "validation").is_dir()


if __name__ == "__main__":
    pytest.main([__file__])
