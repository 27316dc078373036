"""Files are timed by LiteRT's own benchmark, in a process of its own."""

import json
import subprocess
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mikd as mikd


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    path = tmp_path_factory.mktemp("latency") / "a.tflite"
    return mikd.export_tflite(model, path, check_on=np.ones((1, 8, 8, 3))).path


def test_a_file_is_timed_with_every_number_of_threads(file):
    found = mikd.measure_latency(file, threads=(1, 2), runs=20)
    assert [latency.threads for latency in found] == [1, 2]
    for latency in found:
        assert 0 <= latency.median_ms <= latency.p95_ms and latency.runs == 20


def test_the_benchmark_is_asked_for_the_threads_and_read_as_it_says(file, monkeypatch):
    commands = []

    def run(command, **options):
        options_of = dict(part.removeprefix("--").split("=", 1) for part in command if "=" in part)
        commands.append(options_of)
        with open(options_of["result_json"], "w") as result:
            json.dump({"latency": {"median_ms": 1.5, "p95_ms": 2.5}}, result)
        return types.SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    found = mikd.measure_latency(file, threads=(1, 4), runs=20)
    assert [(each.median_ms, each.p95_ms) for each in found] == [(1.5, 2.5)] * 2
    asked = [(c["model"], c["num_threads"], c["num_runs"]) for c in commands]
    assert asked == [(str(file), "1", "20"), (str(file), "4", "20")]


@pytest.mark.parametrize(
    "options, said",
    [({"threads": ()}, "threads=()"), ({"threads": (0,)}, "threads=0"), ({"runs": 0}, "runs=0")],
)
def test_bad_arguments(file, options, said):
    with pytest.raises(ValueError, match=said.replace("()", r"\(\)")):
        mikd.measure_latency(file, **options)


def test_a_model_is_to_be_exported_first():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(TypeError, match=r"`path` to be a .tflite file.*export_tflite\(model, "):
        mikd.measure_latency(model)
    with pytest.raises(TypeError, match=r"export_tflite\(distiller.student, "):
        mikd.measure_latency(mikd.SelfDistiller(model, []))


def test_ids_are_those_that_an_embedding_has(tmp_path):
    options = {"vocabulary_size": 50, "max_length": 12, "width": 8}
    model = mikd.models.text_transformer(depth=1, num_classes=3, **options)
    (found,) = mikd.measure_latency(mikd.export_tflite(model, tmp_path / "a.tflite").path, runs=5)
    assert 0 <= found.median_ms <= found.p95_ms


def test_inputs_in_int16_are_made(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    options = {"quantize": "int16", "integer_io": True, "calibrate_on": np.ones((20, 5))}
    report = mikd.export_tflite(model, tmp_path / "a.tflite", **options)
    (found,) = mikd.measure_latency(report.path, runs=5)
    assert 0 <= found.median_ms <= found.p95_ms


def test_inputs_of_text_are_told(tmp_path):
    same = tf.function(lambda x: x).get_concrete_function(tf.TensorSpec((1,), tf.string))
    content = tf.lite.TFLiteConverter.from_concrete_functions([same]).convert()
    (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(RuntimeError, match="makes no inputs of text.*the ids of the words"):
        mikd.measure_latency(tmp_path / "a.tflite", runs=5)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a .tflite file"):
        mikd.measure_latency(tmp_path / "none.tflite")
    (tmp_path / "broken.tflite").write_bytes(b"no network")
    with pytest.raises(RuntimeError, match="to run .*broken.tflite.*Received: exit code"):
        mikd.measure_latency(tmp_path / "broken.tflite")


def test_a_file_that_ends_with_a_reshape_is_timed(tmp_path):
    """As MobileNet's in `keras.applications`; LiteRT's benchmark cannot run it."""
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(10, 8), keras.layers.Flatten()]
    )
    mikd.export_tflite(model, tmp_path / "a.tflite")
    (latency,) = mikd.measure_latency(tmp_path / "a.tflite", runs=5)
    assert latency.runs == 5 and 0 < latency.median_ms <= latency.p95_ms


def test_an_open_size_is_told(tmp_path):
    image = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    mikd.export_tflite(keras.Model(image, x), tmp_path / "a.tflite")
    with pytest.raises(RuntimeError, match="has an open size"):
        mikd.measure_latency(tmp_path / "a.tflite", runs=2)
