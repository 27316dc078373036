import json
import warnings

import cases
import cmi_twins as twins
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


def _linear(classes=4, features=4, softmax=False):
    inputs = keras.Input((features,))
    outputs = keras.layers.Dense(classes, activation="softmax" if softmax else None)(inputs)
    return keras.Model(inputs, outputs)


def _data():
    features, labels = twins.outputs(51)
    return np.float32(features), labels


def _measured(model, *data, **kwargs):
    return mikd.measure_cmi(model, *data, verbose=0, **kwargs)


def test_logits_and_probabilities_are_told_apart_and_give_the_definitions():
    features, labels = _data()
    logits, probabilities = _linear(), _linear(softmax=True)
    probabilities.set_weights(logits.get_weights())
    # The temperature is that of the logits, also where there are only probabilities.
    p = twins.softmax(logits.predict(features, verbose=0), 2.0)
    for model in (logits, probabilities):
        report = _measured(model, (features, labels), temperature=2.0, batch_size=8)
        assert report.temperature == 2.0
        np.testing.assert_allclose(report.cmi, twins.cmi(p, labels), atol=1e-6)
        np.testing.assert_allclose(report.separation, twins.separation(p, labels), atol=1e-5)
        np.testing.assert_allclose(report.ncmi, report.cmi / report.separation)
        ratios = report.cmi_per_class / report.separation_per_class
        np.testing.assert_allclose(report.ncmi_per_class, ratios)
        np.testing.assert_allclose(report.centroids, twins.centroids(p, labels), atol=1e-6)
        right = p.argmax(axis=1) == labels
        assert report.accuracy == right.mean() and report.examples == 51
        assert report.accuracy_per_class[2] == right[labels == 2].mean()
        assert report.log_likelihood == pytest.approx(np.log(p[range(51), labels]).mean(), abs=1e-6)


@pytest.mark.slow
def test_real_digits_in_any_order():
    digits = mikd.datasets.load_digits(batch_size=60)
    model = mikd.models.digits_cnn(digits.num_classes, digits.image_shape)
    first = _measured(model, digits.validation)
    again = _measured(model, digits.validation.unbatch().shuffle(400, seed=3).batch(7))
    for name, value in first.as_dict().items():
        np.testing.assert_allclose(again.as_dict()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    p = np.concatenate([twins.softmax(model(x)) for x, _ in digits.validation])
    labels = np.concatenate([y for _, y in digits.validation])
    np.testing.assert_allclose(first.cmi, twins.cmi(p, labels), atol=1e-6)


def test_two_replicas_measure_what_one_measures(two_replicas):
    features, labels = _data()
    one = _linear()
    with two_replicas.scope():
        two = _linear()
    two.set_weights(one.get_weights())
    reports = [_measured(m, (features, labels), batch_size=8) for m in (one, two)]
    for name, value in reports[0].as_dict().items():
        np.testing.assert_allclose(reports[1].as_dict()[name], value, atol=1e-7, err_msg=name)


def test_the_model_and_how_it_was_compiled_stay_as_they_are():
    x, y = cases.data(24)
    model = cases.network((3, 4), normalize=True, dropout=0.5)
    model.compile("adam", cases.cross_entropy(), metrics=["accuracy"], run_eagerly=True)
    model.fit(x, y, verbose=0)
    before = [v.numpy() for v in model.variables]
    seen = model.get_metrics_result()
    _measured(model, (x, y), empty_classes="omit")
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)
    assert model.get_metrics_result() == seen
    assert type(model.optimizer) is keras.optimizers.Adam


def test_training_mode_moves_batch_normalization():
    x, y = cases.data(24)
    model = cases.network((3, 4), normalize=True)
    before = model.get_layer("bn1").moving_mean.numpy()
    _measured(model, (x, y), training=True, empty_classes="omit")
    assert np.any(model.get_layer("bn1").moving_mean.numpy() != before)


def test_one_hot_outputs_and_one_example_per_class():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    report = _measured(model, (np.eye(3, dtype="float32"), np.arange(3)), from_logits=False)
    assert report.cmi == 0 and report.accuracy == 1 and report.log_likelihood == 0
    assert report.separation == np.inf and report.ncmi == 0


def test_an_empty_class_is_named_or_left_out():
    features, labels = _data()
    some = labels != 2
    model = _linear()
    with pytest.raises(ValueError, match=r'none of \[2\]. .*empty_classes="omit"'):
        _measured(model, (features[some], labels[some]))
    report = _measured(model, (features[some], labels[some]), empty_classes="omit")
    p = twins.softmax(model.predict(features[some], verbose=0))
    kept = np.array([0, 1, 2, 3])[labels[some]]
    expected = (
        sum(twins.divergence(p[kept == c], p[kept == c].mean(0)).sum() for c in (0, 1, 3))
        / some.sum()
    )
    assert report.cmi == pytest.approx(expected, abs=1e-6)
    assert np.isnan(report.accuracy_per_class[2]) and "nan" in str(report)


def test_progress_the_table_and_the_dict(capsys):
    report = mikd.measure_cmi(_linear(), _data(), verbose=2)
    assert "cmi:" in capsys.readouterr().out
    lines = str(report).splitlines()
    assert lines[0].split() == ["class", "examples", "CMI", "separation", "NCMI", "accuracy"]
    assert [line.split()[0] for line in lines[1:6]] == ["0", "1", "2", "3", "all"]
    assert f"{report.cmi:.4f}" in lines[5] and "nats" in lines[6]
    values = json.loads(json.dumps(report.as_dict()))
    assert values["examples"] == 51 and len(values["centroids"]) == 4


def test_endless_data_with_steps():
    features, labels = _data()
    data = tf.data.Dataset.from_tensor_slices((features, labels)).batch(17).repeat()
    model = _linear()
    report = _measured(model, data, steps=3)
    assert report.examples == 51
    expected = _measured(model, (features, labels), batch_size=17)
    assert report.cmi == pytest.approx(expected.cmi, abs=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, x):
        return self.dense(x)


def test_a_subclassed_model_needs_to_be_described():
    features, labels = _data()
    model = Subclassed()
    model(features)
    with pytest.raises(ValueError, match="Expected `from_logits` to be True or False"):
        _measured(model, (features, labels))
    with pytest.raises(ValueError, match="Expected `num_classes`"):
        _measured(model, (features, labels), from_logits=True)
    report = _measured(model, (features, labels), from_logits=True, num_classes=4)
    p = twins.softmax(model.predict(features, verbose=0))
    assert report.cmi == pytest.approx(twins.cmi(p, labels), abs=1e-6)


def _changed(labels, value):
    labels = labels.copy()
    labels[3] = value
    return labels


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x, _changed(y, 4)), "integers from 0 to 3.* Received: 1 of 51 outside"),
        (lambda x, y: (x, _changed(y, -1)), "integers from 0 to 3.* Received: 1 of 51 outside"),
        (lambda x, y: (x, np.eye(4)[y]), r"Received: labels of shape \(None, 4\)"),
        (lambda x, y: (x * np.nan, y), "Expected finite outputs. Received: nan or inf .* 51 of 51"),
        (lambda x, y: x, "Expected data with labels"),
    ],
)
def test_wrong_data_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _measured(_linear(), change(*_data()))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"from_logits": False}, "Expected probabilities that add up to 1"),
        ({"empty_classes": "skip"}, "Received: empty_classes='skip'"),
        ({"temperature": -1.0}, "Received: temperature=-1.0"),
        ({"num_classes": 5}, r"Received: outputs of shape \(None, 4\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _measured(_linear(), _data(), **arguments)


def test_other_models_and_empty_data_are_refused():
    inputs = keras.Input((8, 8, 2))
    maps = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ValueError, match="one output of shape"):
        _measured(maps, cases.data())
    features, labels = _data()
    empty = tf.data.Dataset.from_tensor_slices((features, labels)).batch(5).take(0)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="empty data"):
        warnings.simplefilter("ignore")
        _measured(_linear(), empty)


def test_nan_that_a_relu_hides_is_refused():
    model = cases.student()
    model.get_layer("conv1").kernel.assign(np.full((3, 3, 2, 3), np.nan))
    with pytest.raises(ValueError, match="`model` to have numbers.*'conv1/kernel' has NaN.*Load"):
        mikd.measure_cmi(model, cases.data(), empty_classes="omit", verbose=0)


def test_probabilities_that_no_name_shows_are_refused():
    classifier = cases.student()
    hidden = keras.layers.Lambda(tf.nn.softmax)(classifier.output)
    model = keras.Model(classifier.input, hidden)
    with pytest.raises(ValueError, match="Expected logits.*from_logits=False"):
        mikd.measure_cmi(model, cases.data(), empty_classes="omit", verbose=0)
    mikd.measure_cmi(model, cases.data(), from_logits=False, empty_classes="omit", verbose=0)
