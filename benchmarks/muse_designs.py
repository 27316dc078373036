"""Forms of MUSE on the digits: validation accuracy and step time of every one.

MUSE is a reconstruction: its equations are not public. Whether another form of it would be above
its own mutual term is what this table is for; a network that teaches itself, no teacher.

    python benchmarks/muse_designs.py --seeds=5

Only the validation split is looked at; the seeds are not those of the published results.
"""

import functools

from absl import app

import designs
import keras_mikd as mikd

designs.define_flags()

INFO_NCE = {"bound": mikd.bounds.info_nce, "negatives": 8}
STAGES = ["stage1", "stage2", "stage3"]


def mutual_term(network, *, weight=1.0, **options):
    """The mutual term by itself: a critic of every stage with the pooled vector."""
    losses = [
        mikd.JSDCritic(
            teacher_layer="pooled",
            student_layer=stage,
            critic=mikd.SeparableCritic(),
            negatives_from="other_classes",
            weight=weight,
            name=stage,
            **options,
        )
        for stage in STAGES
    ]
    return mikd.SelfDistiller(network, losses)


def muse(network, *, own_teacher=False, **options):
    """MUSE of all stages with the pooled vector, with deep supervision beside it if asked for."""
    information = options.get("self_information", "feature")
    loss = mikd.MUSE(
        teacher_layer=["pooled", "input"] if information == "input" else "pooled",
        student_layer=STAGES,
        name="muse",
        **{"negatives_from": "other_classes", **options},
    )
    early = mikd.BeYourOwnTeacher(
        teacher_layer=["stage3", "output"], student_layer=STAGES[:2], weight=0.3, name="byot"
    )
    return mikd.SelfDistiller(network, [loss, early] if own_teacher else [loss])


def forms(**options):
    return functools.partial(muse, **options)


ON_INPUT = {"self_information": "input"}
ADDITIVE = {"combine": "additive"}
# name -> function from a student to what is fitted.
DESIGNS = {
    "plain": lambda network: network,
    "mutual term": mutual_term,
    "mutual term: weight 0.3": functools.partial(mutual_term, weight=0.3),
    "mutual term: InfoNCE": functools.partial(mutual_term, **INFO_NCE),
    "mutual term: InfoNCE at weight 0.3": functools.partial(mutual_term, weight=0.3, **INFO_NCE),
    "multiplicative": forms(),
    "multiplicative: weight 3": forms(weight=3.0),
    "multiplicative: on the input": forms(**ON_INPUT),
    "multiplicative: temperature 0.3": forms(temperature=0.3),
    "multiplicative: temperature 1": forms(temperature=1.0),
    "multiplicative: negatives of any class": forms(negatives_from="batch"),
    "multiplicative: with BYOT": forms(own_teacher=True),
    "multiplicative: InfoNCE": forms(**INFO_NCE),
    "multiplicative: InfoNCE at weight 0.3": forms(weight=0.3, **INFO_NCE),
    "multiplicative: InfoNCE on the input": forms(**INFO_NCE, **ON_INPUT),
    "additive": forms(**ADDITIVE),
    "additive: weight 0.3": forms(weight=0.3, **ADDITIVE),
    "additive: weight 0.3 on the input": forms(weight=0.3, **ADDITIVE, **ON_INPUT),
    "additive: InfoNCE at weight 0.3": forms(weight=0.3, **ADDITIVE, **INFO_NCE),
}


def main(argv):
    del argv
    designs.check_flags(DESIGNS)
    designs.compare(DESIGNS)


if __name__ == "__main__":
    app.run(main)
