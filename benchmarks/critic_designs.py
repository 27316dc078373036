"""MIMKD's critics on the digits: validation accuracy and step time of every design.

The defaults of `MIMKDDistiller` were chosen from this table. MIMKD's own critics are not public.

    python examples/train_teacher.py --output_dir=runs/digits
    python benchmarks/critic_designs.py --teacher=runs/digits/teacher.keras

Only the validation split is looked at; the seeds are not those of the published results.
"""

import keras
from absl import app, flags

import designs
import keras_mikd as mikd

FLAGS = flags.FLAGS
flags.DEFINE_string("teacher", None, "Saved teacher of train_teacher.py.", required=True)
designs.define_flags()

FEATURES_ONLY = {"global_weight": 0.0, "local_weight": 0.0}


def _concat(width):
    return lambda: mikd.ConcatCritic(width=width)


# name -> arguments of MIMKDDistiller; None is the student alone.
DESIGNS = {
    "student alone": None,
    "default": {},
    "weight 1": dict.fromkeys(("global_weight", "local_weight", "feature_weight"), 1.0),
    "weight 10": dict.fromkeys(("global_weight", "local_weight", "feature_weight"), 10.0),
    "global and local only": {"feature_weight": 0.0},
    "features only": FEATURES_ONLY,
    "features only: grid 4": {**FEATURES_ONLY, "grid": 4},
    "features only: 4 negatives": {**FEATURES_ONLY, "negatives": 4},
    "features only: all negatives": {**FEATURES_ONLY, "negatives": "all"},
    "features only: concat 64": {**FEATURES_ONLY, "critic": _concat(64)},
    "features only: concat 128": {**FEATURES_ONLY, "critic": _concat(128)},
    "features only: concat 128 at grid 4": {**FEATURES_ONLY, "critic": _concat(128), "grid": 4},
}


def with_teacher(teacher, arguments):
    if arguments is None:
        return lambda student: student
    return lambda student: mikd.MIMKDDistiller(teacher, student, **arguments)


def main(argv):
    del argv
    designs.check_flags(DESIGNS)
    teacher = keras.saving.load_model(FLAGS.teacher)
    designs.compare({name: with_teacher(teacher, given) for name, given in DESIGNS.items()})


if __name__ == "__main__":
    app.run(main)
