r"""Pairs of networks of the papers: every method on each of them, one table.

    python experiments/pairs.py --output_dir=runs/pairs

Without other flags it is a twin for two cores: small pairs of one kind and of two kinds of networks
on the digits, ten labelled images of each class. The 13 pairs of the CRD benchmark, with its data,
schedule and number of epochs, from teachers that are trained first:

    python experiments/pairs.py --pairs=crd --dataset=cifar100 --data_dir=... \
        --labels_per_class=all --sgd --learning_rate=0.05 --batch_size=64 --epochs=240 \
        --teacher_epochs=240 --views=16 --only_middle_weight \
        --methods=kd,hint,at,sp,cc,vid,rkd,pkt,nst,crd,mimkd --output_dir=runs/crd

The benchmark augments anew in every epoch; here an image has `--views` views, with which a teacher
runs once. `low_capacity` are students of MIMKD's kind, "extremely low capacity": that paper's
networks are not public, and these are ours.

Writes to `<output_dir>/<teacher>-<student>` what `keras_mikd.compare` writes, the teachers to
`<output_dir>/teachers`, and `<output_dir>/pairs.json`. A run that is there is not made again.
"""

import functools
import json
from pathlib import Path

from absl import app, flags, logging

import few_labels
import protocol
from keras_mikd.comparison.methods import METHODS, Method

FLAGS = flags.FLAGS
few_labels.define_flags(student=None, views=1)
few_labels.define_trials()

PAIRS = {
    "digits": [("resnet14", "resnet8"), ("resnet20", "resnet8"), ("wrn_16_1", "digits_cnn")],
    "crd_same": [
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_40_1"),
        ("resnet56", "resnet20"),
        ("resnet110", "resnet20"),
        ("resnet110", "resnet32"),
        ("resnet32x4", "resnet8x4"),
        ("vgg13", "vgg8"),
    ],
    "crd_cross": [
        ("vgg13", "mobilenet_v2_half"),
        ("resnet50", "mobilenet_v2_half"),
        ("resnet50", "vgg8"),
        ("resnet32x4", "shufflenet_v1"),
        ("resnet32x4", "shufflenet_v2"),
        ("wrn_40_2", "shufflenet_v1"),
    ],
    "low_capacity": [("resnet32x4", "resnet8"), ("wrn_40_2", "resnet8"), ("vgg13", "resnet8")],
}
"""Teachers and students. Those of "digits" and "low_capacity" are ours."""
PAIRS["crd"] = PAIRS["crd_same"] + PAIRS["crd_cross"]


flags.DEFINE_enum("pairs", "digits", list(PAIRS), "Which teachers and students.")
flags.DEFINE_list("methods", ["kd", "hint", "vid", "mimkd"], "Some of: " + ", ".join(METHODS))
flags.DEFINE_boolean("only_middle_weight", False, "Try the authors' weight alone, where known.")
flags.DEFINE_integer("teacher_epochs", 40, "Epochs of a teacher.", 1)
flags.DEFINE_boolean("sgd", False, "SGD with the steps of the CRD benchmark, in place of Adam.")


def methods():
    """Returns `{name: Method}` with the weights to try."""
    chosen = {name: METHODS[name] for name in FLAGS.methods}
    if not FLAGS.only_middle_weight:
        return chosen
    middle = {name: method.weights[len(method.weights) // 2] for name, method in chosen.items()}
    return {name: Method(chosen[name].losses, (weight,)) for name, weight in middle.items()}


def print_table(tables):
    """Prints the test accuracy of every method on every pair."""
    rows = list(dict.fromkeys(row["method"] for table in tables.values() for row in table["rows"]))
    width = max(len(pair) for pair in tables)
    print(f"\n{'':<{width}} {'teacher':>12}" + "".join(f"{name:>16}" for name in rows))
    for pair, table in tables.items():
        of = {row["method"]: row for row in table["rows"]}
        cells = "".join(f"{of[n]['mean']:>9.2f} ± {of[n]['deviation'] or 0:4.2f}" for n in rows)
        print(f"{pair:<{width}} {table['teacher']:>12.2f}{cells}")


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    protocol.check_names("methods", FLAGS.methods, METHODS)
    (number,) = FLAGS.labels_per_class
    if number != "all":
        (number,) = protocol.numbers("labels_per_class", [number], int)
    everything = few_labels.load(FLAGS.dataset)
    data = everything if number == "all" else few_labels.load(FLAGS.dataset, number)
    make = protocol.sgd_with_steps if FLAGS.sgd else protocol.adam_with_cosine
    new_optimizer = functools.partial(make, FLAGS.learning_rate)
    folder, tables = Path(FLAGS.output_dir), {}
    for teacher_name, student in PAIRS[FLAGS.pairs]:
        pair = f"{teacher_name}-{student}"
        print(f"\n{pair}", flush=True)
        path = folder / "teachers" / f"{teacher_name}.keras"
        teacher = few_labels.trained(
            teacher_name, everything, FLAGS.teacher_epochs, path, new_optimizer
        )
        result = few_labels.compare(
            teacher,
            data,
            methods(),
            folder / pair,
            make_student=functools.partial(few_labels.new_network, student, data),
            make_optimizer=new_optimizer,
        )
        tables[pair] = result.as_dict()
        (folder / "pairs.json").write_text(json.dumps(tables, indent=1))
    print_table(tables)


if __name__ == "__main__":
    app.run(main)
