r"""Trains the same small student alone and with every method that has a teacher: one table.

Needs a teacher of examples/train_teacher.py. With 10 labelled digits per class:

    python experiments/offline.py --teacher=runs/digits/teacher.keras --seeds=5 \
        --output_dir=runs/five

Every weight is trained. The one that is best on the validation split is reported on the test split.
`--weights` tries others, and a folder may get more methods, weights and seeds later:

    python experiments/offline.py --teacher=runs/digits/teacher.keras --seeds=5 \
        --output_dir=runs/five --methods=vid,mimkd --weights=1,10,30

The methods: `student` (alone), `kd`, `at`, `hint`, `vid`, `mimkd`, and `kd_muse` (KD and MUSE).
`--dataset=cifar100` takes the protocol of the CRD benchmark: its data, schedule, weight decay,
losses and weights, and the last epoch on the test split. MIMKD's and MUSE's weights are ours; to
choose others, hold images out with `--validation_fraction=0.1`.

Writes to `<output_dir>`: `results.json` (every run), and a folder for every run with its student
and TensorBoard logs.
"""

import functools

from absl import app, flags, logging

import protocol
import results

METHODS = ["student", "kd", "at", "hint", "vid", "mimkd", "kd_muse"]
NOTE = """\
gain: points above the student alone. weights: the student's, + those that only train.
nats, on the validation split: *_mi_nats is a Donsker-Varadhan lower bound on the mutual
information of the pair. *_gaussian_nats is nats per channel, and a bound only if the
teacher's channel is Gaussian. MUSE's are to be compared with their ceiling. MIMKD and
MUSE are reconstructions: their critics are not public."""

FLAGS = flags.FLAGS
protocol.define_flags()
protocol.define_teacher()
protocol.define_comparison(METHODS)


def train(settings, teacher, folder, method, weight, seed):
    """Returns the numbers of one student."""

    def build(student):
        return protocol.with_teacher(settings, method, teacher, student, weight)

    return protocol.train(build, settings, seed, folder)


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    settings = protocol.chosen(FLAGS, labels_per_class=FLAGS.labels_per_class or None)
    rows = protocol.cells(FLAGS.methods, settings.weights, METHODS, FLAGS.weights)
    protocol.check_choice(settings, "weights", protocol.most_weights(rows))
    with protocol.STRATEGIES[FLAGS.strategy]().scope():
        teacher = protocol.load_network(FLAGS.teacher)
        kept = results.Results(
            FLAGS.output_dir, protocol=settings.settings(), teacher=protocol.digest(FLAGS.teacher)
        )
        print(f"Students: {settings}, {FLAGS.labels_per_class or 'all'} labels per class")
        one = functools.partial(train, settings, teacher)
        results.compare(kept, rows, range(FLAGS.seeds), one, "student", NOTE)


if __name__ == "__main__":
    app.run(main)
