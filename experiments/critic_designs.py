"""MIMKD's critics on the digits: validation accuracy and step time of every design.

The defaults of `MIMKDDistiller` were chosen from this table. MIMKD's own critics are not public.

    python examples/train_teacher.py --output_dir=runs/digits
    python experiments/critic_designs.py --teacher=runs/digits/teacher.keras --seeds=2 \
        --output_dir=runs/critics

Only the validation split is looked at. The seeds, from 100 on, are not those of the published
results. Writes what offline.py writes.
"""

import functools

from absl import app, flags, logging

import keras_mikd as mikd
import protocol
import results
from keras_mikd import recipes

FLAGS = flags.FLAGS
protocol.define_designs()
protocol.define_teacher()

FEATURES_ONLY = {"global_weight": 0.0, "local_weight": 0.0}
LEVELS = ("global_weight", "local_weight", "feature_weight")


def concat(width):
    return functools.partial(mikd.ConcatCritic, width=width)


# name -> arguments of recipes.mimkd; None is the student alone.
DESIGNS = {
    "student alone": None,
    "default": {},
    "weight 1": dict.fromkeys(LEVELS, 1.0),
    "weight 10": dict.fromkeys(LEVELS, 10.0),
    "global and local only": {"feature_weight": 0.0},
    "features only": FEATURES_ONLY,
    "features only: grid 4": {**FEATURES_ONLY, "grid": 4},
    "features only: 4 negatives": {**FEATURES_ONLY, "negatives": 4},
    "features only: all negatives": {**FEATURES_ONLY, "negatives": "all"},
    "features only: concat 64": {**FEATURES_ONLY, "make_critic": concat(64)},
    "features only: concat 128": {**FEATURES_ONLY, "make_critic": concat(128)},
    "features only: concat 128 at grid 4": {**FEATURES_ONLY, "make_critic": concat(128), "grid": 4},
}


def build(teacher, design, student):
    """Returns what is fitted."""
    if DESIGNS[design] is None:
        return student
    return mikd.Distiller(teacher, student, recipes.mimkd(teacher, student, **DESIGNS[design]))


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    designs = FLAGS.designs or list(DESIGNS)
    protocol.check_names("designs", designs, DESIGNS)
    teacher = protocol.load_network(FLAGS.teacher)
    kept = results.Results(
        FLAGS.output_dir, epochs=FLAGS.epochs, teacher=protocol.digest(FLAGS.teacher)
    )
    made = functools.partial(build, teacher)
    results.compare_designs(kept, designs, FLAGS.seeds, FLAGS.epochs, made)


if __name__ == "__main__":
    app.run(main)
