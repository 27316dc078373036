"""What holds for every distiller of detectors."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import detectors
import keras_mikd as mikd
from keras_mikd.detection.detector_task import DetectorTask


class _Means(mikd.DistillationLoss):
    """Compares the averages of the pyramids, which need no known size."""

    def __init__(self, **kwargs):
        super().__init__(
            teacher_layer="feature_pyramid/P5", student_layer="feature_pyramid/P5", **kwargs
        )

    def call(self, teacher, student, labels=None, training=None):
        difference = keras.ops.mean(teacher, (1, 2)) - keras.ops.mean(student, (1, 2))
        return keras.ops.mean(keras.ops.square(difference), -1)


DISTILLERS = pytest.mark.parametrize(
    "make", detectors.DISTILLERS.values(), ids=detectors.DISTILLERS.keys()
)


def test_every_public_distiller_of_detectors_is_listed():
    public = {
        value
        for value in vars(mikd).values()
        if inspect.isclass(value) and issubclass(value, DetectorTask)
    }
    assert public == {type(make()) for make in detectors.DISTILLERS.values()}


def _evaluate(model):
    return model.evaluate(*detectors.scenes(4), batch_size=4, verbose=0, return_dict=True)


@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
def test_a_loss_of_no_weight_leaves_the_detectors_own_training(deterministic_ops):
    plain, distilled = detectors.retinanet(), detectors.retinanet()
    history = detectors.fit(detectors.eager(plain), epochs=2)
    distiller = detectors.offline(distilled, [detectors.hint(weight=0.0)])
    logs = detectors.fit(detectors.eager(distiller), epochs=2)
    for a, b in zip(plain.get_weights(), distilled.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name, values in history.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(logs["task_loss"], history["loss"], rtol=1e-5)


def test_the_total_is_the_weighted_sum_and_a_regularizer_counts_once():
    student = detectors.retinanet(regularizer=keras.regularizers.L2(0.1))
    pyramid = detectors.hint("feature_pyramid/P3", name="pyramid", weight=2.0)
    losses = [detectors.hint(weight=3.0), pyramid]
    half = keras.optimizers.schedules.PolynomialDecay(0.5, 10, 0.5)
    logs = _evaluate(detectors.eager(detectors.offline(student, losses, task_loss_weight=half)))
    penalty = 0.1 * np.sum(student.box_head.kernel.numpy() ** 2)
    detector = logs["box_loss"] + logs["classification_loss"]
    assert logs["task_loss"] == pytest.approx(detector, rel=1e-5)
    total = 0.5 * detector + 3 * logs["hint"] + 2 * logs["pyramid"] + penalty
    assert logs["loss"] == pytest.approx(total, rel=1e-5)
    assert min(logs["hint"], logs["pyramid"], penalty, detector) > 0.001


def test_evaluation_changes_no_variable_and_starts_anew():
    distiller = detectors.eager(detectors.alone())
    before = [v.numpy() for v in distiller.variables]
    first = _evaluate(distiller)
    assert _evaluate(distiller) == pytest.approx(first)
    for old, variable in zip(before, distiller.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_an_evaluation_counts_its_own_data_alone():
    distiller = detectors.eager(detectors.alone())
    x, y = detectors.scenes(4, seed=1)
    first, _, again = (
        distiller.evaluate(*data, batch_size=4, verbose=0, return_dict=True)
        for data in ((x, y), detectors.scenes(4), (x, y))
    )
    assert again == pytest.approx(first)


@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
def test_predictions_are_the_detectors_decoded_ones():
    distiller = detectors.eager(detectors.offline())
    x, _ = detectors.scenes(4)
    decoded = distiller.predict(x, batch_size=4, verbose=0)
    own = distiller.student.predict(x, batch_size=4, verbose=0)
    assert set(decoded) == {"boxes", "classes", "confidence", "num_detections"}
    assert np.all(own["num_detections"] > 0)
    for name in own:
        np.testing.assert_array_equal(decoded[name], own[name])


@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
def test_batches_of_a_cache_are_predicted_like_others():
    images = keras.Input((detectors.SIZE, detectors.SIZE, 1), name="images")
    teacher, x = (
        keras.Model({"images": images}, detectors.backbone(5)(images)),
        detectors.scenes(4)[0],
    )
    cache = mikd.TeacherCache(teacher, x, np.zeros(4, int), ["P4"], batch_size=4).build(verbose=0)
    distiller = mikd.DetectorDistiller(teacher, detectors.retinanet(), [detectors.hint()])
    detectors.eager(distiller)
    cached = distiller.predict(cache.batches(4, shuffle=False), verbose=0)
    plain = distiller.predict(x, batch_size=4, verbose=0)
    assert np.all(plain["num_detections"] > 0)
    for name in plain:
        np.testing.assert_array_equal(cached[name], plain[name])


@DISTILLERS
def test_a_step_runs_the_detector_once(make):
    class Counter(keras.layers.Layer):
        calls = 0

        def call(self, x):
            Counter.calls += 1
            return x

    distiller = make(detectors.retinanet(layer=Counter(name="counter")))
    detectors.eager(distiller)
    detectors.fit(distiller, batch_size=8)  # Looks at the networks once, before any step.
    Counter.calls = 0
    detectors.fit(distiller, batch_size=8)
    assert Counter.calls == 1


def test_the_detectors_own_metrics_are_logged():
    metric = detectors.keras_cv().metrics.BoxCOCOMetrics("xyxy", evaluate_freq=1)
    distiller = detectors.eager(detectors.alone(), metrics=[metric])
    logs = _evaluate(distiller)
    assert {"MaP", "Recall@[max_detections=100]", "muse", "box_loss"} <= set(logs)


@DISTILLERS
def test_the_detector_alone_is_the_plain_architecture(make, tmp_path):
    plain, trained = detectors.retinanet(), detectors.retinanet()
    detectors.fit(detectors.eager(make(trained)))
    names, own_names = ([(w.path, w.shape) for w in m.weights] for m in (plain, trained))
    assert own_names == names
    trained.save(tmp_path / "detector.keras")
    alone = keras.saving.load_model(tmp_path / "detector.keras", compile=False)
    assert len(alone.weights) == len(names)
    plain.set_weights(trained.get_weights())
    x, _ = detectors.scenes(4)
    for name, output in trained({"images": x}).items():
        np.testing.assert_array_equal(alone({"images": x})[name], output)
        np.testing.assert_array_equal(plain({"images": x})[name], output)


def test_save_load_and_go_on_equals_never_having_stopped(tmp_path, deterministic_ops):
    def new():
        return detectors.eager(detectors.alone())

    straight, stopped = new(), new()
    detectors.fit(straight, 4, epochs=2)
    detectors.fit(stopped, 4)
    stopped.save(tmp_path / "distiller.keras")
    resumed = keras.saving.load_model(tmp_path / "distiller.keras")
    detectors.fit(resumed, 4)
    for a, b in zip(straight.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.mark.parametrize(
    "make",
    [pytest.param(each, marks=pytest.mark.slow) for each in (detectors.alone, detectors.offline)],
    ids=["self", "offline"],
)
def test_two_replicas_of_the_same_boxes_give_the_update_of_one(make, two_replicas):
    """Of other boxes they do not quite: each divides by the boxes that it has."""
    x, y = detectors.scenes(4)
    twice = tf.nest.map_structure(lambda array: np.concatenate([array, array]), (x, y))

    def trained(scope, run_eagerly):
        with scope:
            student = detectors.retinanet(regularizer=keras.regularizers.L2(0.01))
            distiller = detectors.compiled(make(student), run_eagerly=run_eagerly)
        history = distiller.fit(*twice, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        return student.get_weights(), history

    one, one_history = trained(tf.distribute.get_strategy().scope(), run_eagerly=True)
    two, two_history = trained(two_replicas.scope(), run_eagerly=False)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert {"loss", "task_loss", "box_loss", "classification_loss"} < set(one_history)
    for name, values in one_history.items():
        np.testing.assert_allclose(two_history[name], values, rtol=1e-4, err_msg=name)


def test_sums_and_means_do_not_mix_under_replicas(two_replicas):
    mean = keras.losses.Huber()
    with two_replicas.scope():
        distiller = detectors.offline()
    with pytest.raises(
        ValueError, match=r"all sums or all means .* \['sum_over_batch_size', 'sum'"
    ):
        distiller.compile("sgd", box_loss=mean, classification_loss="focal")
    detectors.offline().compile("sgd", box_loss=mean, classification_loss="focal")


def test_mixed_precision_stays_finite():
    keras.config.set_dtype_policy("mixed_float16")
    distiller = detectors.eager(detectors.alone())
    assert distiller.student.feature_extractor.get_layer("P3").compute_dtype == "float16"
    history = detectors.fit(distiller)
    assert all(np.all(np.isfinite(values)) for values in history.values())
    assert all(np.all(np.isfinite(w)) for w in distiller.student.get_weights())


@pytest.mark.slow
@DISTILLERS
def test_whole_step_of_static_shapes_compiles_and_gives_the_same_history(make):
    """What can be checked of a TPU without one."""
    batches = tf.data.Dataset.from_tensor_slices(detectors.scenes(8)).batch(4, drop_remainder=True)
    plain, compiled = (
        detectors.compiled(make(), **options).fit(batches, shuffle=False, verbose=0).history
        for options in ({"run_eagerly": True}, {"jit_compile": True})
    )
    for name, values in plain.items():
        np.testing.assert_allclose(compiled[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("losses", "missing"),
    [({}, "box_loss and no class"), ({"box_loss": "huber"}, "classification_loss")],
)
def test_a_detector_without_its_losses_is_refused(losses, missing):
    with pytest.raises(
        ValueError, match=rf"with which TinyRetinaNet is to be compiled.* no {missing}"
    ):
        detectors.alone().compile("adam", **losses)


@DISTILLERS
def test_a_detector_that_is_not_compiled_is_refused(make):
    with pytest.raises(ValueError, match="call `compile"):
        detectors.fit(make())


@DISTILLERS
def test_another_model_is_refused(make):
    with pytest.raises(ValueError, match="Expected a detector of KerasCV.*Received: Functional"):
        make(detectors.backbone(3))


def test_a_model_with_one_of_a_detectors_methods_is_refused():
    class Decodes(keras.Model):
        def decode_predictions(self, predictions, images):
            return predictions

    class HasLoss(keras.Model):
        def compute_loss(self, x, y, y_pred, sample_weight):
            return 0.0

    for kind in (Decodes, HasLoss):
        with pytest.raises(ValueError, match=f"a detector of KerasCV.*Received: {kind.__name__}"):
            mikd.SelfDetectorDistiller(kind(), [detectors.muse()])


def test_data_without_boxes_is_refused():
    distiller = detectors.eager(detectors.alone())
    x, y = detectors.scenes(4)
    keras_cv_dict = tf.data.Dataset.from_tensors({"images": x, "bounding_boxes": y})
    for data, received in (
        ((x, y["classes"]), "ndarray"),
        ((x, {"boxes": y["boxes"]}), r"\['boxes'\]"),
        ((keras_cv_dict,), r"\['bounding_boxes', 'images'\]"),
    ):
        with pytest.raises(ValueError, match=f"a dict of their boxes.* Received: {received}"):
            distiller.fit(*data, verbose=0)
    with pytest.raises(ValueError, match="`validation_data`.* Received: ndarray"):
        distiller.fit(x, y, validation_data=(x, y["classes"]), verbose=0)


def test_sample_weights_are_refused():
    x, y = detectors.scenes(4)
    distiller = detectors.eager(detectors.alone())
    with pytest.raises(ValueError, match="detectors do not weight images"):
        distiller.fit(x, y, sample_weight=np.ones(4), verbose=0)


def test_labels_for_other_negatives_are_refused():
    losses = [detectors.muse(negatives_from="other_classes")]
    distiller = detectors.eager(detectors.alone(losses=losses))
    with pytest.raises(ValueError, match='negatives_from="batch" needs none'):
        detectors.fit(distiller)


@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
def test_the_distiller_can_be_evaluated_as_coco_does():
    distiller = detectors.eager(detectors.alone())
    dataset = tf.data.Dataset.from_tensor_slices(detectors.scenes(16)).batch(8)
    own = mikd.coco_metrics(distiller.student, dataset)
    assert mikd.coco_metrics(distiller, dataset) == pytest.approx(own, nan_ok=True)
    assert 0 < own["AP50"] < 0.1


@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
@pytest.mark.slow
def test_a_trained_detector_finds_what_an_untrained_one_does_not():
    distiller = detectors.alone(detectors.retinanet(8))
    distiller.compile(keras.optimizers.Adam(0.01), **detectors.LOSSES)
    others = tf.data.Dataset.from_tensor_slices(detectors.scenes(16, seed=1)).batch(16)
    assert mikd.coco_metrics(distiller, others)["AP"] < 0.05
    detectors.fit(distiller, 32, batch_size=8, epochs=20)
    assert mikd.coco_metrics(distiller, others)["AP"] > 0.5


@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
@pytest.mark.parametrize(
    ("kind", "sides", "run_eagerly"),
    [
        ("self", detectors.SIZE, True),
        pytest.param("self", detectors.SIZE, False, marks=pytest.mark.slow),
        pytest.param("self", None, False, marks=pytest.mark.slow),
        pytest.param("offline", detectors.SIZE, False, marks=pytest.mark.slow),
        pytest.param("offline", None, False, marks=pytest.mark.slow),
    ],
)
def test_a_retinanet_as_keras_cv_assembles_it(kind, sides, run_eagerly, tmp_path):
    """With KerasCV's own pyramid, which tells Keras wrong shapes of its last levels."""
    student = detectors.stock_retinanet(sides)
    if kind == "offline":
        teacher = detectors.stock_retinanet(sides)
        distiller = mikd.DetectorDistiller(teacher, student, [_Means(name="means")])
    else:
        losses = [detectors.muse()] if sides else []
        distiller = mikd.SelfDetectorDistiller(student, losses)
    history = detectors.fit(detectors.compiled(distiller, run_eagerly=run_eagerly), 4)
    assert {"box_loss", "percent_boxes_matched_with_anchor"} < set(history)
    assert all(np.all(np.isfinite(values)) for values in history.values())
    student.save(tmp_path / "detector.keras")
    assert keras.saving.load_model(tmp_path / "detector.keras", compile=False)
