import keras
import numpy as np
import pytest

import detectors
import keras_mikd as mikd


def test_backbone_and_pyramid_share_information():
    detector = detectors.retinanet()
    pyramid = ["feature_pyramid/P3", "feature_pyramid/P4"]
    losses = [
        detectors.muse(),
        detectors.muse(teacher_layer="feature_pyramid/P5", student_layer=pyramid, name="pyramid"),
    ]
    distiller = detectors.eager(detectors.alone(detector, losses, stop_gradient=False))
    history = detectors.fit(distiller)
    names = {"muse", "pyramid", "box_loss", "classification_loss", "task_loss"}
    assert names <= set(history)
    assert all(np.all(np.isfinite(values)) for values in history.values())
    assert distiller.student is detector


def test_the_information_reaches_the_first_layer_and_not_the_heads():
    detector = detectors.retinanet()
    distiller = detectors.alone(detector, [detectors.muse()], task_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(1.0), run_eagerly=True, **detectors.LOSSES)
    first = detector.feature_extractor.get_layer("conv_P3").kernel
    box = detector.box_head.kernel
    before = first.numpy(), box.numpy()
    detectors.fit(distiller)
    assert np.any(first.numpy() != before[0])
    np.testing.assert_array_equal(box.numpy(), before[1])


@pytest.mark.slow
def test_yolo_v8():
    models = detectors.keras_cv().models
    backbone = models.YOLOV8Backbone(
        stackwise_channels=[8, 8, 8, 8],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=False,
        input_shape=(detectors.SIZE, detectors.SIZE, 1),
    )
    detector = models.YOLOV8Detector(
        num_classes=detectors.NUM_CLASSES,
        bounding_box_format="xyxy",
        backbone=backbone,
        fpn_depth=1,
    )
    distiller = mikd.SelfDetectorDistiller(detector, [detectors.muse()])
    distiller.compile("adam", box_loss="ciou", classification_loss="binary_crossentropy")
    history = detectors.fit(distiller)
    assert all(np.all(np.isfinite(values)) for values in history.values())
    x, _ = detectors.scenes(8)
    assert distiller.predict(x, batch_size=4, verbose=0)["boxes"].shape[0] == 8
