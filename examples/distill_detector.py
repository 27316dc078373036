r"""Trains a small RetinaNet alone and with MUSE, and compares them with COCO's metrics.

On scenes of real handwritten digits, without a download; some six minutes on two cores:

    python examples/distill_detector.py --output_dir=runs/detector

Three seeds, or a teacher: a wider detector that this script trained.

    python examples/distill_detector.py --output_dir=runs/detectors --seeds=3
    python examples/distill_detector.py --output_dir=runs/wide --width=32 --methods=plain
    python examples/distill_detector.py --output_dir=runs/taught --methods=plain,offline \
        --teacher=runs/wide/student.keras

The methods: `plain`, the detector's own losses; `muse`, with mutual and self-information between
the levels of its backbone and of its pyramid (a reconstruction, see keras_mikd.MUSE); `offline`,
the same with the levels of a teacher. All start from the same weights and see the same batches.

`--dataset=coco` trains on MS COCO 2017, which has to be in `--data_dir` (see
keras_mikd.datasets.load_coco), and wants an accelerator.

Writes to `<output_dir>`: `results.json` (every number, after every detector), `student.keras` (the
best on the validation split; loads after `import retinanets`), TensorBoard logs under `logs/`.
"""

import dataclasses
import os
import statistics
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging

import keras_mikd as mikd
import retinanets
import scripts
import strategies
import students

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
flags.DEFINE_enum("dataset", "digit_scenes", ["digit_scenes", "coco"], "Data to train on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; its default if not given.")
flags.DEFINE_integer("num_scenes", None, "Training scenes of digits; 500 if not given.", 1)
flags.DEFINE_list("methods", "plain,muse", "Some of: plain, muse, offline.")
flags.DEFINE_string("teacher", None, "For offline: a student.keras of this script.")
flags.DEFINE_integer("width", None, "Channels of the first stage; the data set's if not given.", 1)
flags.DEFINE_integer("epochs", None, "Epochs; the data set's if not given.", 1)
flags.DEFINE_integer("batch_size", 16, "Images in a batch.", 1)
flags.DEFINE_float("learning_rate", 2e-3, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_float("muse_weight", 0.03, "Weight of MUSE, in the backbone and in the pyramid.", 0.0)
flags.DEFINE_enum("combine", "multiplicative", ["additive", "multiplicative"], "Kind of MUSE.")
flags.DEFINE_integer("seeds", 1, "Detectors per row: seeds 0, 1, ... of weights and order.", 1)
strategies.define_flags()

UNTRAINED = "untrained"
SHOWN = ("AP", "AP50", "AP75", "AR_100")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What fits the boxes of a data set."""

    width: int
    epochs: int
    anchor_sizes: tuple
    aspect_ratios: tuple
    rescale: bool


SETUPS = {
    "digit_scenes": Setup(16, 40, (14, 18, 24, 32, 48), (0.5, 0.75, 1.0), rescale=False),
    "coco": Setup(48, 24, (32, 64, 128, 256, 512), (0.5, 1.0, 2.0), rescale=True),
}


def load_data(seed):
    options = {"batch_size": FLAGS.batch_size, "seed": seed, "data_dir": FLAGS.data_dir}
    if FLAGS.dataset == "coco":
        return students.load_data("coco", **options)
    return students.load_data(
        "digit_scenes", num_scenes=scripts.given("num_scenes", 500), **options
    )


def new_detector(data):
    setup = SETUPS[FLAGS.dataset]
    return retinanets.SmallRetinaNet(
        data.num_classes,
        data.image_shape,
        width=scripts.given("width", setup.width),
        anchor_sizes=setup.anchor_sizes,
        aspect_ratios=setup.aspect_ratios,
        rescale=setup.rescale,
    )


def muse(levels):
    """MUSE between levels of the backbone and the last, and the same in the pyramid."""
    options = {"weight": FLAGS.muse_weight, "combine": FLAGS.combine}
    backbone = mikd.MUSE(teacher_layer="P5", student_layer=levels, name="backbone", **options)
    pyramid = mikd.MUSE(
        teacher_layer="feature_pyramid/P5",
        student_layer=[f"feature_pyramid/{level}" for level in levels],
        name="pyramid",
        **options,
    )
    return [backbone, pyramid]


def plain(detector, _):
    return strategies.fits_everywhere(detector, mikd.SelfDetectorDistiller)


def self_distilled(detector, _):
    return mikd.SelfDetectorDistiller(detector, muse(["P3", "P4"]))


def offline(detector, teacher):
    return mikd.DetectorDistiller(teacher, detector, muse(["P3", "P4", "P5"]))


METHODS = {"plain": plain, "muse": self_distilled, "offline": offline}


class Progress(keras.callbacks.Callback):
    """A line for every epoch."""

    def on_train_begin(self, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        names = ("loss", "box_loss", "classification_loss")
        shown = ", ".join(f"{name} {logs[name]:.3f}" for name in names)
        seconds = time.perf_counter() - self.start
        of = self.params["epochs"]
        print(f"    epoch {epoch + 1}/{of}: {shown} ({seconds:.0f} s)", flush=True)


def train(method, seed, teacher):
    """Returns a detector and its numbers; without a method it keeps its first weights."""
    print(f"  {method}, seed {seed}", flush=True)
    keras.utils.set_random_seed(seed)
    data = load_data(seed)
    detector = new_detector(data)
    numbers = {"weights": detector.count_params(), "seconds": 0.0}
    model = METHODS.get(method, plain)(detector, teacher)
    if method != UNTRAINED:
        start = time.perf_counter()
        fit(model, data, f"{method}-seed{seed}")
        numbers["seconds"] = time.perf_counter() - start
    if data.validation is not None:
        numbers["validation"] = mikd.coco_metrics(model, data.validation)
    numbers["test"] = mikd.coco_metrics(model, data.test)
    return detector, numbers


def fit(model, data, name):
    epochs = scripts.given("epochs", SETUPS[FLAGS.dataset].epochs)
    schedule = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, epochs * len(data.train))
    model.compile(
        optimizer=keras.optimizers.Adam(schedule, global_clipnorm=10.0),
        box_loss="huber",
        classification_loss="focal",
    )
    logs = Path(FLAGS.output_dir) / "logs" / name
    callbacks = [Progress(), keras.callbacks.TensorBoard(logs, write_graph=False)]
    model.fit(data.train, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)


def percent(row, split, name):
    return [100 * run[split][name] for run in row["runs"]]


def print_table(rows):
    print(f"\n{'method':10}" + "".join(f"{name:>14}" for name in SHOWN) + f"{'seconds':>9}")
    for row in rows:
        cells = [students.mean_and_spread(percent(row, "test", name)) for name in SHOWN]
        seconds = statistics.mean(run["seconds"] for run in row["runs"])
        print(f"{row['method']:10}" + "".join(f"{c:>14}" for c in cells) + f"{seconds:>9.0f}")
    for row in rows[2:]:
        pairs = zip(percent(row, "test", "AP"), percent(rows[1], "test", "AP"), strict=True)
        gain = students.mean_and_spread(a - b for a, b in pairs)
        print(f"{row['method']} above {rows[1]['method']}, seed by seed: AP {gain}")
    print(
        "\nCOCO's metrics (pycocotools) in per cent of the test split after the last epoch, mean\n"
        "and standard deviation over the seeds. MUSE is a reconstruction: its equations are not\n"
        "public."
    )


def check_flags():
    unknown = sorted(set(FLAGS.methods) - set(METHODS))
    if unknown or not FLAGS.methods:
        raise SystemExit(f"--methods: expected some of {', '.join(METHODS)}; got {FLAGS.methods}")
    if ("offline" in FLAGS.methods) != (FLAGS.teacher is not None):
        raise SystemExit("--teacher and the method offline need each other")
    if FLAGS.teacher is not None:
        scripts.check_file("teacher", FLAGS.teacher, "distill_detector.py")
    if FLAGS.num_scenes is not None and FLAGS.dataset != "digit_scenes":
        raise SystemExit(f"--num_scenes is for digit_scenes; got --dataset={FLAGS.dataset}")
    strategies.check_flags()
    scripts.check_outputs(["results.json", "student.keras", "logs"])


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    # KerasCV calls its detectors with an image where Keras 3.15 wants the dict of one.
    warnings.filterwarnings("ignore", "The structure of `inputs` doesn't match")
    check_flags()
    with strategies.chosen().scope():
        run()


def run():
    Path(FLAGS.output_dir).mkdir(parents=True, exist_ok=True)
    teacher = FLAGS.teacher and scripts.load_network(FLAGS.teacher, compile=False)
    rows, best = [], -1.0
    for method in (UNTRAINED, *FLAGS.methods):
        row = {"method": method, "runs": []}
        rows.append(row)
        for seed in range(FLAGS.seeds):
            detector, numbers = train(method, seed, teacher)
            row["runs"].append(numbers)
            reached = numbers.get("validation", numbers["test"])["AP"]
            print(f"  {method}, seed {seed}: AP {100 * reached:.2f} (validation)", flush=True)
            scripts.save_results(rows)
            if reached > best:
                best = reached
                if strategies.is_chief():
                    detector.save(Path(FLAGS.output_dir) / "student.keras")
    print_table(rows)
    print(
        f"\nBest on the validation split: {FLAGS.output_dir}/student.keras\n"
        f"Curves: tensorboard --logdir {FLAGS.output_dir}/logs"
    )


if __name__ == "__main__":
    app.run(main)
