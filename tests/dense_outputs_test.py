"""Networks with logits at every position, such as segmenters."""

import warnings

import cases
import keras
import numpy as np
import pytest
import segmented_scenes
import tensorflow as tf

import keras_mikd as mikd

SOURCES = pytest.mark.parametrize("source", ["arrays", "dataset"])
IGNORED = 255


def _cross_entropy(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def _distiller(losses=None, loss=None, teacher=None, student=None, metrics=None):
    distiller = mikd.Distiller(
        teacher or cases.teacher(dense=True),
        student or cases.student(dense=True),
        losses or [mikd.SoftTargets(name="kd")],
        xla_critics=False,
    )
    loss = loss or _cross_entropy(ignore_class=IGNORED)
    distiller.compile("sgd", loss, metrics=metrics, run_eagerly=True)
    return distiller


def _fit(distiller, x, y, source="arrays", **kwargs):
    if source == "dataset":
        parts = (x, y, *kwargs.values())
        data = tf.data.Dataset.from_tensor_slices(parts).batch(16)
        return distiller.fit(data, shuffle=False, verbose=0).history
    return distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0, **kwargs).history


def _refused(distiller, message, x, y, source="arrays", **kwargs):
    before = [v.numpy() for v in distiller.variables]
    with pytest.raises(ValueError, match=message):
        _fit(distiller, x, y, source, **kwargs)
    for old, variable in zip(before, distiller.variables, strict=True):
        np.testing.assert_array_equal(variable, old)


def _with_ignored():
    x, y = cases.data(dense=True)
    y[:, 1:3] = IGNORED
    return x, y


def _log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _expected(x, y, weights=None):
    """The task loss and the divergence of the first step, before its update, by NumPy."""
    logits = [np.float64(make(dense=True)(x)) for make in (cases.teacher, cases.student)]
    log_p, log_q = (_log_softmax(z / 4) for z in logits)
    divergence = 16 * np.sum(np.exp(log_p) * (log_p - log_q), -1).mean((1, 2))
    log_q = _log_softmax(logits[1])
    valid = y != IGNORED
    each = -np.take_along_axis(log_q, np.where(valid, y, 0)[..., None], -1)[..., 0]
    weights = np.ones(y.shape) if weights is None else weights
    task = np.sum(each * valid * weights) / valid.sum()
    return task, np.mean(divergence * weights.mean((1, 2)))


@SOURCES
def test_an_ignored_label_counts_in_no_task_loss_and_its_pixels_in_the_divergence(source):
    x, y = _with_ignored()
    history = _fit(_distiller(), x, y, source)
    task, divergence = _expected(x, y)
    assert history["task_loss"][0] == pytest.approx(task, rel=1e-4)
    assert history["kd"][0] == pytest.approx(divergence, rel=1e-4)


@SOURCES
def test_weights_of_pixels_count_by_pixel_in_the_task_and_by_their_mean_elsewhere(source):
    x, y = _with_ignored()
    weights = np.random.default_rng(1).uniform(size=y.shape).astype("float32")
    history = _fit(_distiller(), x, y, source, sample_weight=weights)
    task, divergence = _expected(x, y, weights)
    assert history["task_loss"][0] == pytest.approx(task, rel=1e-4)
    assert history["kd"][0] == pytest.approx(divergence, rel=1e-4)


def test_labels_in_a_last_axis_and_one_hot_are_the_same_labels():
    x, y = cases.data(dense=True)
    plain = _fit(_distiller(), x, y)
    last = _fit(_distiller(), x, y[..., None])
    one_hot = np.eye(cases.NUM_CLASSES, dtype="float32")[y]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    distributions = _fit(_distiller(loss=loss), x, one_hot)
    for other in (last, distributions):
        assert other["loss"][0] == pytest.approx(plain["loss"][0], rel=1e-5)


@SOURCES
def test_labels_that_are_none_of_the_positions_are_refused(source):
    x, y = cases.data(dense=True)
    for labels in (y[:, :2], y[:, 0, 0], y[:, 0], y[..., None, None]):
        message = r"a label for every position of the output, \(batch, 4, 4\).*Received: labels"
        _refused(_distiller(), message, x, labels, source)
    one_hot = np.eye(cases.NUM_CLASSES, dtype="float32")[y]
    _refused(_distiller(), r"integer labels of shape \(batch, 4, 4\)", x, one_hot, source)


@SOURCES
def test_an_ignored_label_that_the_loss_does_not_name_is_refused(source):
    distiller = _distiller(loss=_cross_entropy())
    _refused(distiller, "integers from 0 to 3.*such as ignore_class=255", *_with_ignored(), source)


def test_a_sequence_of_two_classes_is_no_example_of_several():
    """Labels of 0 and 1 at every position look like rows of several labels."""

    def network(width):
        inputs = keras.Input((6, 2))
        x = keras.layers.Conv1D(width, 3, padding="same")(inputs)
        pooled = keras.layers.GlobalAveragePooling1D(name="gap")(x)
        x = keras.layers.Multiply()([x, keras.layers.Reshape((1, width))(pooled)])
        return keras.Model(inputs, keras.layers.Conv1D(2, 1)(x))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 6, 2)).astype("float32"), rng.integers(2, size=(16, 6))
    distiller = _distiller(teacher=network(4), student=network(3))
    assert np.isfinite(_fit(distiller, x, y)["kd"][0])
    critic = mikd.JSDCritic(
        teacher_layer="gap", student_layer="gap", negatives_from="other_classes"
    )
    distiller = _distiller([critic], teacher=network(4), student=network(3))
    _refused(distiller, r"one class for each example.*labels of shape \(16, 6\)", x, y)


def test_metrics_of_segmentation():
    metrics = ["accuracy", keras.metrics.MeanIoU(4, ignore_class=IGNORED, sparse_y_pred=False)]
    x, y = _with_ignored()
    distiller = _distiller(metrics=metrics)
    _fit(distiller, x, y)
    seen = distiller.evaluate(x, y, verbose=0, return_dict=True)
    (iou,) = (value for name, value in seen.items() if name.startswith("mean_io_u"))
    predicted, valid = np.argmax(distiller.predict(x, verbose=0), -1), y != IGNORED
    shares = []
    for c in range(4):
        either = valid & ((predicted == c) | (y == c))
        shares += [(valid & (predicted == c) & (y == c)).sum() / either.sum()]
    assert iou == pytest.approx(np.mean(shares), rel=1e-5)


def _upsampled(model):
    up = keras.layers.UpSampling2D(2, interpolation="bilinear")
    return keras.Model(model.inputs, up(model.outputs[0]))


@pytest.mark.parametrize("finer", ["teacher", "student"])
def test_logits_of_another_resolution_meet_on_the_coarser_grid(finer):
    networks = {"teacher": cases.teacher(dense=True), "student": cases.student(dense=True)}
    networks[finer] = _upsampled(networks[finer])
    x, y = cases.data(dense=True)
    y = np.repeat(np.repeat(y, 2, 1), 2, 2) if finer == "student" else y
    distiller = _distiller(**networks)
    (loss,) = distiller.distillation_losses
    assert loss.compared.teacher.grid == loss.compared.student.grid == (4, 4)
    assert np.isfinite(_fit(distiller, x, y)["kd"][0])


def _softmax_behind(layer):
    model = cases.teacher(dense=True)
    return keras.Model(model.inputs, layer(keras.layers.Softmax()(model.outputs[0])))


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.UpSampling2D(2, interpolation="bilinear"),
        keras.layers.Resizing(6, 6),
        keras.layers.Cropping2D(1),
        lambda x: keras.ops.image.resize(x, (8, 8)),
    ],
)
def test_probabilities_at_another_resolution_are_refused(layer):
    with pytest.raises(ValueError, match="Expected logits.*teacher.*probabilities"):
        _distiller(teacher=_softmax_behind(layer))


@SOURCES
def test_probabilities_that_no_name_shows_are_refused(source):
    teacher, student = (
        keras.Model(model.inputs, keras.layers.Lambda(tf.nn.softmax)(model.outputs[0]))
        for model in (cases.teacher(dense=True), cases.student(dense=True))
    )
    x, y = _with_ignored()
    _refused(_distiller(teacher=teacher), "Expected logits.*'output' of the teacher", x, y, source)
    hint = mikd.Hint(teacher_layer="stage1", student_layer="stage1")
    distiller = _distiller([hint], student=student)
    _refused(distiller, "the student puts out probabilities", x, y, source)


@pytest.mark.filterwarnings("default:The teacher is right for:UserWarning")
@SOURCES
def test_a_dense_teacher_is_judged_by_the_positions_that_have_a_label(source, capsys):
    x, _ = cases.data(dense=True)
    teacher = cases.teacher(dense=True)
    y = np.argmax(teacher(x), -1)
    wrong = (y + 1) % cases.NUM_CLASSES
    y[:, 0], wrong[:, 0] = IGNORED, IGNORED
    with pytest.warns(UserWarning, match=r"right for 0.0% of the positions in the first 16"):
        _fit(_distiller(), x, wrong, source)
    distiller = _distiller()
    distiller.fit(x, y, verbose=2)
    said = "The teacher is right for 100.0% of the positions in the first 16 examples."
    assert capsys.readouterr().out.count(said) == 1


def test_the_first_look_is_at_one_batch():
    """256 outputs of full size at once might not fit into memory."""
    sizes = []

    @keras.saving.register_keras_serializable("tests")
    class Watched(keras.layers.Layer):
        def call(self, x):
            if x.shape[0]:
                sizes.append(int(x.shape[0]))
            return x

    model = cases.teacher(dense=True)
    teacher = keras.Model(model.inputs, Watched()(model.outputs[0]))
    distiller = _distiller(teacher=teacher)
    distiller.fit(*cases.data(64, dense=True), batch_size=8, verbose=0)
    assert set(sizes) == {8}


@SOURCES
@pytest.mark.parametrize("critic", [mikd.JSDCritic, mikd.MUSE])
def test_negatives_of_other_classes_need_a_class_for_each_example(critic, source):
    places = {"teacher_layer": "stage2", "student_layer": "stage1"}
    loss = critic(**places, negatives_from="other_classes")
    message = r"one class for each example.*Received: labels of shape \(16, 4, 4\).*\"batch\""
    _refused(_distiller([loss]), message, *_with_ignored(), source)


@SOURCES
def test_weights_of_classes_are_refused(source):
    message = r"no `class_weight`.*outputs of shape \(None, 4, 4, 4\).*`sample_weight`"
    with pytest.raises(ValueError, match=message):
        x, y = cases.data(dense=True)
        data = (x, y) if source == "arrays" else (_batches(x, y),)
        _distiller().fit(*data, class_weight={0: 2.0}, shuffle=False, verbose=0)


def _batches(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(8)


def test_what_is_for_one_class_for_each_example_says_so():
    network, (x, y) = cases.teacher(dense=True), cases.data(dense=True)
    with pytest.raises(ValueError, match="MCMI is for one class for each example"):
        mikd.MCMITeacher(network)
    with pytest.raises(ValueError, match="for one class for each example.*4, 4, 4"):
        mikd.measure_cmi(network, (x, y))
    reshape = r"outputs of shape \(16, 4, 4, 4\).*ops.reshape: outputs to \(-1, 4\)"
    for update in (
        mikd.ConditionalMutualInformation(4).update_state,
        lambda labels, outputs: mikd.CMIRegularizer(4)(outputs, labels),
    ):
        with pytest.raises(ValueError, match=reshape):
            update(y, network(x))
    heads = mikd.BeYourOwnTeacher(teacher_layer=["stage2", "output"], student_layer=["stage1"])
    with pytest.raises(ValueError, match="the last feature map and the logits"):
        mikd.SelfDistiller(network, [heads])
    with pytest.raises(ValueError, match="logits"):
        mikd.figures.logits_tsne(network(x), y)


def test_positions_as_examples_give_the_information_of_a_dense_output():
    network, (x, y) = cases.teacher(dense=True), _with_ignored()
    metric = mikd.ConditionalMutualInformation(4)
    metric.update_state(keras.ops.reshape(y, (-1,)), keras.ops.reshape(network(x), (-1, 4)))
    logits, labels = np.float64(network(x)).reshape(-1, 4), y.reshape(-1)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = []
    for c in range(4):  # The ignored ones are skipped.
        own = p[labels == c]
        each += list(np.sum(own * np.log(own / own.mean(0)), -1))
    assert float(metric.result()) == pytest.approx(np.mean(each), rel=1e-4)


def test_peers_and_early_stages_of_dense_networks_have_finite_losses():
    x, y = cases.data(dense=True)
    peers = [cases.teacher(dense=True), cases.student(dense=True)]
    critic = mikd.JSDCritic(teacher_layer="stage2", student_layer="stage1")
    for distiller in (
        mikd.MutualDistiller(peers, [mikd.SoftTargets(temperature=1.0)]),
        mikd.SelfDistiller(cases.student(dense=True), [critic], xla_critics=False),
    ):
        distiller.compile("sgd", cases.cross_entropy(), run_eagerly=True)
        assert np.isfinite(_fit(distiller, x, y)["loss"][0])


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_cache_of_dense_logits(top_k):
    x, y = _with_ignored()
    teacher = cases.teacher(dense=True)
    cache = mikd.TeacherCache(teacher, x, y, top_k=top_k).build(verbose=0)
    # Four logits; or two and their classes, and what is left for the others.
    assert cache.nbytes == 16 * 16 * 4 * (4 if top_k is None else 2 + 2 + 1)
    batch = next(iter(cache.batches(16, shuffle=False)))
    np.testing.assert_array_equal(batch.y, y)
    ((_, features),) = batch.teacher_features.items()
    logits, kept = teacher(x).numpy(), features["output"].numpy()
    if top_k is not None:
        order = np.argsort(-logits, -1)
        largest = np.take_along_axis(logits, order[..., :2], -1)
        others = np.exp(np.take_along_axis(logits, order[..., 2:], -1))
        rest = np.repeat(np.log(others.mean(-1, keepdims=True)), 2, -1)
        logits = np.empty_like(logits)
        np.put_along_axis(logits, order, np.concatenate([largest, rest], -1), -1)
    np.testing.assert_allclose(kept, logits, rtol=1e-5, atol=1e-6)
    if top_k is None:
        from_cache, without = (_distiller(teacher=cases.teacher(dense=True)) for _ in range(2))
        from_cache.fit(cache.batches(16, shuffle=False), shuffle=False, verbose=0)
        _fit(without, x, y)
        for a, b in zip(from_cache.trainable_variables, without.trainable_variables, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_a_cache_refuses_what_would_move_images_and_leave_their_labels():
    x, y = _with_ignored()
    teacher = cases.teacher(dense=True)
    for change in ({"augment": lambda image, seed: image[:, ::-1]}, {"mix": "cutmix"}):
        with pytest.raises(ValueError, match="labels would stay where they are"):
            mikd.TeacherCache(teacher, x, y, **change)
    with pytest.raises(ValueError, match="4 outputs for each example"):
        mikd.TeacherCache(cases.teacher(), x, y[:, 0, :1].astype("float32"))
    # Features of a classifier may teach a segmenter.
    classifier = mikd.TeacherCache(cases.teacher(), x, y).build(verbose=0)
    assert next(iter(classifier.batches(8))).y.shape == (8, 4, 4)
    with pytest.raises(ValueError, match="16 rows of 256 B, together 4 KiB.*top_k"):
        mikd.TeacherCache(teacher, x, y, max_bytes=1000)


def _deeplab(filters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip("keras_hub", exc_type=ImportError).models
    shape = (64, 64, 1)
    encoder = models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, filters],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=shape,
    )
    backbone = models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P3",
        low_level_feature_key="P2",
        upsampling_size=2,
        dilation_rates=[1, 2],
        projection_filters=8,
        image_shape=shape,
    )
    return models.DeepLabV3ImageSegmenter(backbone, num_classes=segmented_scenes.CLASSES)


def test_an_export_agrees_position_by_position(tmp_path):
    x, _ = cases.data(4, dense=True)
    report = mikd.export_tflite(cases.student(dense=True), tmp_path / "student.tflite", check_on=x)
    assert report.ok and report.class_agreement == 1.0


@pytest.mark.slow
# KerasHub compiles its models by itself, and Keras says that it does not repeat this.
@pytest.mark.filterwarnings("ignore:.*was not called as part of model loading:UserWarning")
def test_deeplab_learns_real_scenes_from_a_deeplab(tmp_path):
    x, y = segmented_scenes.first(16)
    assert set(np.unique(y)) > {segmented_scenes.BACKGROUND, IGNORED}
    teacher, student = _deeplab(16), _deeplab(8)
    loss = _cross_entropy(ignore_class=IGNORED)
    plain = keras.Model(teacher.inputs, teacher.outputs)  # Without the metrics of KerasHub.
    plain.compile(keras.optimizers.Adam(0.003), loss)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    plain.fit(batches, epochs=2, shuffle=False, verbose=0)
    losses = [mikd.SoftTargets(name="kd"), *mikd.recipes.vid(teacher, student)]
    assert [each.name for each in losses] == ["kd", "vid_stage1", "vid_stage2", "vid_stage3"]
    distiller = mikd.Distiller(teacher, student, losses)
    iou = keras.metrics.MeanIoU(segmented_scenes.CLASSES, ignore_class=IGNORED, sparse_y_pred=False)
    distiller.compile(keras.optimizers.Adam(0.003), loss, metrics=[iou])
    history = distiller.fit(batches, epochs=3, shuffle=False, verbose=0).history
    for term in ("task_loss", "kd", "vid_stage2"):
        assert history[term][-1] < history[term][0], history
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    np.testing.assert_array_equal(loaded(x[:2]), student(x[:2]))
    report = mikd.export_tflite(student, tmp_path / "student.tflite", check_on=x[:4])
    assert report.ok and report.class_agreement > 0.999
