import cmi_twins as twins
import keras
import numpy as np
import pytest

import keras_mikd as mikd


def _filled(outputs, labels, batch=None, **kwargs):
    metric = mikd.ConditionalMutualInformation(outputs.shape[1], **kwargs)
    batch = batch or len(labels)
    for i in range(0, len(labels), batch):
        metric.update_state(labels[i : i + batch], outputs[i : i + batch])
    return metric


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("from_logits", [True, False])
def test_everything_equals_the_definitions(from_logits, temperature):
    logits, labels = twins.outputs()
    outputs = logits if from_logits else twins.softmax(logits)
    metric = _filled(outputs, labels, 7, from_logits=from_logits, temperature=temperature)
    p = twins.softmax(logits, temperature)
    readout = metric.readout()
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(metric.result(), twins.cmi(p, labels), **close)
    np.testing.assert_allclose(readout["cmi"], twins.cmi(p, labels), **close)
    np.testing.assert_allclose(readout["centroids"], twins.centroids(p, labels), **close)
    np.testing.assert_allclose(readout["separation"], twins.separation(p, labels), **close)
    np.testing.assert_allclose(
        readout["ncmi"], twins.cmi(p, labels) / twins.separation(p, labels), **close
    )
    log_p = twins.log_softmax(logits, temperature)
    mean = log_p[np.arange(len(labels)), labels].mean()
    np.testing.assert_allclose(readout["log_likelihood"], mean, **close)
    for y in range(4):
        own = labels == y
        divergence = twins.divergence(p[own], p[own].mean(axis=0))
        np.testing.assert_allclose(readout["cmi_per_class"][y], divergence.mean(), **close)
        separation = twins.separation(p, labels, np.flatnonzero(own))
        np.testing.assert_allclose(readout["separation_per_class"][y], separation, **close)


def test_cmi_is_entropy_of_the_centroid_minus_mean_entropy():
    logits, labels = twins.outputs(seed=1)
    p = twins.softmax(logits)
    difference = sum(
        (labels == y).mean()
        * (twins.entropy(p[labels == y].mean(axis=0)) - twins.entropy(p[labels == y]).mean())
        for y in range(4)
    )
    np.testing.assert_allclose(_filled(logits, labels).readout()["cmi"], difference, atol=1e-12)


def test_it_is_zero_if_the_outputs_of_a_class_agree():
    labels = np.arange(40) % 4
    logits = np.float32(np.random.default_rng(0).normal(size=(4, 4)))[labels]
    metric = _filled(logits, labels, 8)
    assert 0 <= metric.readout()["cmi"] < 1e-12
    assert 0 <= float(metric.result()) < 1e-7


def test_order_and_batches_do_not_matter():
    logits, labels = twins.outputs(seed=2)
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = _filled(logits, labels, 11), _filled(logits[order], labels[order], 4)
    for name, value in first.readout().items():
        np.testing.assert_allclose(second.readout()[name], value, rtol=1e-12, err_msg=name)


def test_one_hot_outputs_have_a_closed_form():
    outputs = np.eye(3)[[0, 0, 0, 1, 1, 2, 2]]
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    readout = _filled(outputs, labels, from_logits=False).readout()
    three_of_four = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    np.testing.assert_allclose(readout["cmi_per_class"], [three_of_four, 0, 0], atol=1e-12)
    np.testing.assert_allclose(readout["cmi"], 4 / 7 * three_of_four, atol=1e-12)
    assert readout["separation"] == np.inf
    assert readout["ncmi"] == 0


def test_huge_logits_stay_finite():
    logits = np.array([[1e4, 0.0, -1e4], [0.0, 1e4, 0.0], [100.0, -100.0, 0.0]], "float32")
    readout = _filled(logits, np.array([0, 0, 1])).readout()
    np.testing.assert_allclose(readout["cmi_per_class"][0], np.log(2), atol=1e-12)
    assert np.isfinite(readout["separation"])


def test_small_information_is_not_lost_among_large_sums():
    """Two outputs that differ by d have the information d^2 / 8 / (p (1 - p)) to second order."""
    p = np.array([[0.5 + 1e-5, 0.5 - 1e-5], [0.5 - 1e-5, 0.5 + 1e-5]]).repeat(5000, axis=0)
    readout = _filled(p, np.zeros(10000, int), 1000, from_logits=False).readout()
    np.testing.assert_allclose(readout["cmi"], 2e-10, rtol=1e-3)


def test_a_class_without_examples_is_nan_and_counts_nowhere():
    logits, labels = twins.outputs()
    some = labels != 2
    readout = _filled(logits[some], labels[some]).readout()
    assert np.isnan(readout["cmi_per_class"][2]) and np.isnan(readout["centroids"][2]).all()
    p = twins.softmax(logits[some])
    kept = [
        twins.divergence(p[m], p[m].mean(0)).sum() for m in (labels[some] == y for y in (0, 1, 3))
    ]
    np.testing.assert_allclose(readout["cmi"], sum(kept) / some.sum(), atol=1e-12)
    assert float(mikd.ConditionalMutualInformation(3).result()) == 0


def test_it_stands_in_compile():
    logits, labels = twins.outputs(32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile(metrics=[mikd.ConditionalMutualInformation(4)], loss="mse")
    seen = model.evaluate(logits, labels[:, None], batch_size=5, verbose=0, return_dict=True)
    p = twins.softmax(model.predict(logits, verbose=0))
    np.testing.assert_allclose(seen["cmi"], twins.cmi(p, labels), atol=1e-6)


def test_sample_weights_count_examples_more_than_once_or_not_at_all():
    outputs = np.array([[0.9, 0.1], [0.6, 0.4], [1.0, 0.0], [0.2, 0.8]])
    labels, weights = np.array([0, 0, 0, 1]), np.array([2, 1, 0, 1])
    weighted = mikd.ConditionalMutualInformation(2, from_logits=False)
    weighted.update_state(labels, outputs, sample_weight=weights)
    repeated = _filled(outputs.repeat(weights, 0), labels.repeat(weights), from_logits=False)
    for name, value in repeated.readout().items():
        np.testing.assert_allclose(weighted.readout()[name], value, err_msg=name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 1}, "at least 2. Received: num_classes=1"),
        ({"num_classes": 2.5}, "Received: num_classes=2.5"),
        ({"num_classes": 3, "temperature": 0}, "Received: temperature=0"),
        ({"num_classes": 3, "temperature": float("nan")}, "Received: temperature=nan"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mikd.ConditionalMutualInformation(**arguments)


def test_wrong_shapes_are_refused():
    metric = mikd.ConditionalMutualInformation(3)
    with pytest.raises(ValueError, match=r"Received: labels of shape \(2, 3\)"):
        metric.update_state(np.eye(3)[:2], np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"Received: outputs of shape \(2, 4\)"):
        metric.update_state([0, 1], np.zeros((2, 4)))


def test_config_round_trip():
    metric = mikd.ConditionalMutualInformation(3, from_logits=False, temperature=2.0, name="c")
    twin = mikd.ConditionalMutualInformation.from_config(metric.get_config())
    assert twin.get_config() == metric.get_config()
