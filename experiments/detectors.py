r"""Trains a small RetinaNet alone and with MUSE, and compares them with COCO's metrics.

On scenes of real handwritten digits, without a download; three seeds of every method:

    python experiments/detectors.py --output_dir=runs/detectors --seeds=3

With a teacher, a wider detector that this script trained:

    python experiments/detectors.py --output_dir=runs/wide --width=32 --methods=plain
    python experiments/detectors.py --output_dir=runs/taught --methods=plain,offline --seeds=3 \
        --teacher=runs/wide/plain-seed0/student.keras

The methods: `untrained`; `plain`, the detector's own losses; `muse`, with mutual and
self-information between the levels of its backbone and of its pyramid (a reconstruction, see
keras_mikd.MUSE); `offline`, the same with the levels of a teacher. All start from the same weights
and see the same batches.

`--dataset=coco` trains on MS COCO 2017, which has to be in `--data_dir` (see
keras_mikd.datasets.load_coco), and wants an accelerator.

Writes to `<output_dir>`: `results.json` (every run), and for every run a folder with its detector
(`student.keras`, which loads after `import retinanets`) and TensorBoard logs.
"""

import dataclasses
import functools
import time
import warnings

import keras
from absl import app, flags, logging

import keras_mikd as mikd
import protocol
import results
import retinanets

METHODS = ["untrained", "plain", "muse", "offline"]
SHOWN = ("AP", "AP50", "AP75", "AR_100")
NOTE = """
COCO's metrics (pycocotools) in per cent of the test split after the last epoch, mean
and standard deviation over the seeds. MUSE is a reconstruction: its equations are not
public."""

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder for everything written.", required=True)
flags.DEFINE_enum("dataset", "digit_scenes", ["digit_scenes", "coco"], "Data to train on.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
flags.DEFINE_integer("num_scenes", 500, "Training scenes of digits.", 1)
flags.DEFINE_list("methods", "untrained,plain,muse", "Some of: " + ", ".join(METHODS))
flags.DEFINE_string("teacher", None, "For offline: a student.keras of this script.")
flags.DEFINE_integer("width", None, "Channels of the first stage; the data set's if not given.", 1)
flags.DEFINE_integer("epochs", None, "Epochs; the data set's if not given.", 1)
flags.DEFINE_integer("batch_size", 16, "Images in a batch.", 1)
flags.DEFINE_float("learning_rate", 2e-3, "First learning rate; it falls to 0 as a cosine.", 0.0)
flags.DEFINE_float("muse_weight", 0.03, "Weight of MUSE, in the backbone and in the pyramid.", 0.0)
flags.DEFINE_enum("combine", "multiplicative", ["additive", "multiplicative"], "Kind of MUSE.")
flags.DEFINE_integer("seeds", 1, "Detectors per row: seeds 0, 1, ... of weights and order.", 1)
protocol.define_strategy()


@dataclasses.dataclass(frozen=True)
class Setup:
    """What fits the boxes of a data set, and how a detector is trained on it."""

    dataset: str
    width: int
    epochs: int
    anchor_sizes: tuple
    aspect_ratios: tuple
    rescale: bool
    batch_size: int = 16
    learning_rate: float = 2e-3
    muse_weight: float = 0.03
    combine: str = "multiplicative"


SETUPS = {
    "digit_scenes": Setup("digit_scenes", 16, 40, (14, 18, 24, 32, 48), (0.5, 0.75, 1.0), False),
    "coco": Setup("coco", 48, 24, (32, 64, 128, 256, 512), (0.5, 1.0, 2.0), True),
}


def new_detector(setup, data):
    return retinanets.SmallRetinaNet(
        data.num_classes,
        data.image_shape,
        width=setup.width,
        anchor_sizes=setup.anchor_sizes,
        aspect_ratios=setup.aspect_ratios,
        rescale=setup.rescale,
    )


def muse(setup, levels):
    """MUSE between levels of the backbone and the last, and the same in the pyramid."""
    options = {"weight": setup.muse_weight, "combine": setup.combine}
    pyramid = [f"feature_pyramid/{level}" for level in levels]
    return [
        mikd.MUSE(teacher_layer="P5", student_layer=levels, name="backbone", **options),
        mikd.MUSE(
            teacher_layer="feature_pyramid/P5", student_layer=pyramid, name="pyramid", **options
        ),
    ]


def build(method, setup, detector, teacher):
    """Returns what is fitted and evaluated."""
    if method == "muse":
        return mikd.SelfDetectorDistiller(detector, muse(setup, ["P3", "P4"]))
    if method == "offline":
        return mikd.DetectorDistiller(teacher, detector, muse(setup, ["P3", "P4", "P5"]))
    # A detector's losses are sums: by themselves, they would count once for every replica.
    return protocol.alone(detector, mikd.SelfDetectorDistiller)


def train(setup, data_arguments, teacher, folder, method, seed):
    """Returns the numbers of one detector, and saves it."""
    keras.utils.set_random_seed(seed)
    data = protocol.load(setup.dataset, batch_size=setup.batch_size, seed=seed, **data_arguments)
    detector = new_detector(setup, data)
    model = build(method, setup, detector, teacher)
    start = time.perf_counter()
    if method != "untrained":
        fit(model, data, setup, folder)
    seconds = time.perf_counter() - start
    if protocol.is_chief():
        folder.mkdir(parents=True, exist_ok=True)
        detector.save(folder / "student.keras")
    splits = {"validation": data.validation, "test": data.test}
    metrics = {name: mikd.coco_metrics(model, s) for name, s in splits.items() if s is not None}
    return {
        **{f"{split} {name}": 100 * v for split, m in metrics.items() for name, v in m.items()},
        "weights": detector.count_params(),
        "seconds": seconds,
    }


def fit(model, data, setup, folder):
    steps = setup.epochs * len(data.train)
    rate = keras.optimizers.schedules.CosineDecay(setup.learning_rate, steps)
    model.compile(
        optimizer=keras.optimizers.Adam(rate, global_clipnorm=10.0),
        box_loss="huber",
        classification_loss="focal",
    )
    logs = keras.callbacks.TensorBoard(folder, write_graph=False)
    model.fit(data.train, epochs=setup.epochs, shuffle=False, verbose=2, callbacks=[logs])


def print_table(rows):
    print(f"\n{'method':10}" + "".join(f"{name:>14}" for name in SHOWN) + f"{'seconds':>9}")
    for row in rows:
        cells = [results.spread(row, f"test {name}") for name in SHOWN]
        seconds = results.mean(row, "seconds")
        print(f"{row['method']:10}" + "".join(f"{c:>14}" for c in cells) + f"{seconds:>9.0f}")


def print_gains(rows):
    """Prints what every method has above the plain detector, seed by seed."""
    tests = {row["method"]: {r["seed"]: r["test AP"] for r in row["runs"]} for row in rows}
    plain = tests.pop("plain", {})
    tests.pop("untrained", None)
    for method, test in tests.items():
        if shared := sorted(test.keys() & plain.keys()):
            gain = results.mean_and_spread(test[seed] - plain[seed] for seed in shared)
            print(f"{method} above plain, seed by seed: AP {gain}")


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    # KerasCV calls its detectors with an image where Keras 3.15 wants the dict of one.
    warnings.filterwarnings("ignore", "The structure of `inputs` doesn't match")
    protocol.check_names("methods", FLAGS.methods, METHODS)
    if "offline" in FLAGS.methods and not FLAGS.teacher:
        raise SystemExit("Expected --teacher for the method offline. Received: none")
    names = ("width", "epochs", "batch_size", "learning_rate", "muse_weight", "combine")
    given = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    setup = dataclasses.replace(SETUPS[FLAGS.dataset], **given)
    scenes = {"num_scenes": FLAGS.num_scenes} if FLAGS.dataset == "digit_scenes" else {}
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        teacher = FLAGS.teacher and protocol.load_network(
            FLAGS.teacher, "experiments/detectors.py", compile=False
        )
        kept = results.Results(
            FLAGS.output_dir,
            setup=dataclasses.asdict(setup),
            teacher=FLAGS.teacher and protocol.digest(FLAGS.teacher),
            **scenes,
        )
        one = functools.partial(train, setup, {"data_dir": FLAGS.data_dir, **scenes}, teacher)
        shown = "test AP" if FLAGS.dataset == "coco" else "validation AP"
        rows = [{"method": method} for method in FLAGS.methods]
        results.sweep(kept, rows, range(FLAGS.seeds), one, shown)
    rows = kept.rows("method")
    print_table(rows)
    print_gains(rows)
    print(f"{NOTE}\n\nEvery run: {kept.path}; its detector: a folder beside it")


if __name__ == "__main__":
    app.run(main)
