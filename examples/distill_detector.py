r"""Trains a small RetinaNet of KerasCV alone and with MUSE, and compares them by COCO's metrics.

On scenes of real handwritten digits, without a download; then with the result as a teacher:

    python examples/distill_detector.py --output_dir=runs/detector
    python examples/distill_detector.py --output_dir=runs/taught --seed=1 \
        --teacher=runs/detector/student.keras

MUSE (a reconstruction) joins levels of the backbone and of the pyramid with their last, or with the
teacher's. Writes to `<output_dir>`: `results.json`, TensorBoard logs and `student.keras`, the best
on the validation split (loads after `import keras_cv`).
"""

import json
import os
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_cv
import tensorflow as tf
from absl import app, flags, logging

import keras_mikd as mikd

STRATEGIES = {
    "none": tf.distribute.get_strategy,
    "mirrored": tf.distribute.MirroredStrategy,
    "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,  # See launch_workers.py.
    "tpu": lambda: tf.distribute.TPUStrategy(
        tf.distribute.cluster_resolver.TPUClusterResolver.connect("")
    ),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything that is written.", required=True)
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_string("teacher", None, "Saved detector, for MUSE from a teacher.")
flags.DEFINE_integer("epochs", 20, "Epochs of a detector.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, scenes and order, the same for both.", 0)
flags.DEFINE_enum("strategy", "none", list(STRATEGIES), "Devices to train on.")


def new_head(filters, **options):
    conv = partial(keras.layers.Conv2D, kernel_size=3, padding="same")
    hidden = [conv(64, activation="relu", kernel_initializer="he_normal") for _ in range(2)]
    last = conv(filters, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01), **options)
    return keras.Sequential([keras.Input((None, None, 256)), *hidden, last])


def new_detector(num_classes, image_shape):
    """A thin RetinaNet. Its pyramid is KerasCV's own: KerasCV would not save another one."""
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 64, 64, 64],
        stackwise_blocks=[1, 1, 1, 1],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=False,
        input_shape=image_shape,
    )
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # Keras' 0.99 lags behind in a run of a thousand steps.
    anchors = keras_cv.layers.AnchorGenerator(
        "xyxy",
        sizes=[14.0, 18.0, 24.0, 32.0, 48.0],  # KerasCV's own ones are larger than the digits.
        scales=[2 ** (i / 3) for i in range(3)],
        aspect_ratios=[0.5, 0.75, 1.0],
        strides=[8, 16, 32, 64, 128],
        clip_boxes=True,
    )
    prior = keras.initializers.Constant(-4.6)  # A hundredth for every class.
    return keras_cv.models.RetinaNet(
        backbone=backbone,
        num_classes=num_classes,
        bounding_box_format="xyxy",
        anchor_generator=anchors,
        box_head=new_head(9 * 4),
        classification_head=new_head(9 * num_classes, bias_initializer=prior),
        prediction_decoder=keras_cv.layers.NonMaxSuppression(
            "xyxy", from_logits=True, confidence_threshold=0.05, max_detections=100
        ),
    )


def new_model(method, teacher, detector):
    muse = partial(mikd.MUSE, weight=0.03)
    levels = ["P3", "P4", "P5"] if teacher else ["P3", "P4"]
    inner = [f"feature_pyramid/{level}" for level in levels]
    losses = [
        muse(teacher_layer="P5", student_layer=levels, name="backbone"),
        muse(teacher_layer="feature_pyramid/P5", student_layer=inner, name="pyramid"),
    ]
    if teacher and method == "muse":
        return mikd.DetectorDistiller(teacher, detector, losses)
    return mikd.SelfDetectorDistiller(detector, losses if method == "muse" else [])


def train(model, data, epochs, logs):
    """Returns COCO's numbers of the validation and the test split."""
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(data.train))
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
    model.compile(optimizer, box_loss="huber", classification_loss="focal")
    tensorboard = mikd.TensorBoard(logs, write_graph=False)
    model.fit(data.train, epochs=epochs, shuffle=False, verbose=2, callbacks=[tensorboard])
    splits = {"validation": data.validation, "test": data.test}
    return {name: mikd.coco_metrics(model, split) for name, split in splits.items()}


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets logs every read.
    warnings.filterwarnings("ignore", "The structure of `inputs` doesn't match")  # KerasCV's calls.
    output = Path(FLAGS.output_dir)
    for name in ("results.json", "student.keras"):
        if (output / name).exists():
            raise SystemExit(f"Expected a new --output_dir. Received: {output / name} exists.")
    options = {"num_scenes": 500, "batch_size": 16, "seed": FLAGS.seed, "data_dir": FLAGS.data_dir}
    strategy = STRATEGIES[FLAGS.strategy]()
    with strategy.scope():
        teacher = FLAGS.teacher and keras.saving.load_model(FLAGS.teacher, compile=False)
        rows, detectors = [], []
        for method in ("plain", "muse"):
            print(f"{method}: {FLAGS.epochs} epochs", flush=True)
            keras.utils.set_random_seed(FLAGS.seed)
            data = mikd.datasets.load_digit_scenes(**options)
            detector = new_detector(data.num_classes, data.image_shape)
            model = new_model(method, teacher, detector)
            row = train(model, data, FLAGS.epochs, output / "logs" / method)
            rows.append({"method": method, **row})
            detectors.append(detector)
    if strategy.cluster_resolver and strategy.cluster_resolver.task_id:
        return  # Of several workers, the first one writes.
    best = max(range(len(rows)), key=lambda i: rows[i]["validation"]["AP"])
    detectors[best].save(output / "student.keras")
    (output / "results.json").write_text(json.dumps(rows, indent=1))
    print(f"\n{'test split':12}{'AP':>8}{'AP50':>9}{'AP75':>9}")
    for row in rows:
        scores = (f"{row['test'][name]:8.2%}" for name in ("AP", "AP50", "AP75"))
        print(f"{row['method']:12}", *scores)
    print(
        f"\nBest on the validation split: {rows[best]['method']}, saved as {output}/student.keras\n"
        f"Curves: tensorboard --logdir {output}/logs\nNext: again, --teacher={output}/student.keras"
    )


if __name__ == "__main__":
    app.run(main)
