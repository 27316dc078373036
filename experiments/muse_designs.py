"""Forms of MUSE on the digits: validation accuracy and step time of every one.

MUSE is a reconstruction: its equations are not public. This table shows whether another form of it
is above its own mutual term. A network teaches itself, there is no teacher.

    python experiments/muse_designs.py --output_dir=runs/muse --seeds=5

Only the validation split is looked at. The seeds, from 100 on, are not those of the published
results. Writes what offline.py writes.
"""

from absl import app, flags, logging

import keras_mikd as mikd
import protocol
import results
from keras_mikd import recipes

FLAGS = flags.FLAGS
protocol.define_designs()

STAGES = ["stage1", "stage2", "stage3"]
INFO_NCE = {"bound": mikd.bounds.info_nce, "negatives": 8}
ON_INPUT = {"self_information": "input", "teacher_layer": ["pooled", "input"]}
ADDITIVE = {"combine": "additive"}


def mutual_term(network, **options):
    """A critic of every stage with the pooled vector, `recipes.stage_critics` with any bound."""
    return [
        mikd.JSDCritic(
            student_layer=stage,
            critic=mikd.SeparableCritic(),
            negatives_from="other_classes",
            name=stage,
            **options,
        )
        for stage in STAGES
    ]


def muse(network, **options):
    """MUSE of all stages with the pooled vector, `recipes.muse` with the input as well."""
    options = {"negatives_from": "other_classes", **options}
    return [mikd.MUSE(student_layer=STAGES, name="muse", **options)]


def with_byot(network):
    return muse(network) + recipes.be_your_own_teacher(network, network, weight=0.3)


# name -> function from a network to its losses, and arguments of the function.
DESIGNS = {
    "plain": None,
    "mutual term": (mutual_term, {}),
    "mutual term: weight 0.3": (mutual_term, {"weight": 0.3}),
    "mutual term: InfoNCE": (mutual_term, INFO_NCE),
    "mutual term: InfoNCE at weight 0.3": (mutual_term, {"weight": 0.3, **INFO_NCE}),
    "multiplicative": (muse, {}),
    "multiplicative: weight 3": (muse, {"weight": 3.0}),
    "multiplicative: on the input": (muse, ON_INPUT),
    "multiplicative: temperature 0.3": (muse, {"temperature": 0.3}),
    "multiplicative: temperature 1": (muse, {"temperature": 1.0}),
    "multiplicative: negatives of any class": (muse, {"negatives_from": "batch"}),
    "multiplicative: with BYOT": (with_byot, {}),
    "multiplicative: InfoNCE": (muse, INFO_NCE),
    "multiplicative: InfoNCE at weight 0.3": (muse, {"weight": 0.3, **INFO_NCE}),
    "multiplicative: InfoNCE on the input": (muse, {**INFO_NCE, **ON_INPUT}),
    "additive": (muse, ADDITIVE),
    "additive: weight 0.3": (muse, {"weight": 0.3, **ADDITIVE}),
    "additive: weight 0.3 on the input": (muse, {"weight": 0.3, **ADDITIVE, **ON_INPUT}),
    "additive: InfoNCE at weight 0.3": (muse, {"weight": 0.3, **ADDITIVE, **INFO_NCE}),
}


def build(design, network):
    """Returns what is fitted."""
    if DESIGNS[design] is None:
        return network
    losses, options = DESIGNS[design]
    return mikd.SelfDistiller(network, losses(network, **options))


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    designs = FLAGS.designs or list(DESIGNS)
    protocol.check_names("designs", designs, DESIGNS)
    kept = results.Results(FLAGS.output_dir, epochs=FLAGS.epochs)
    results.compare_designs(kept, designs, FLAGS.seeds, FLAGS.epochs, build)


if __name__ == "__main__":
    app.run(main)
