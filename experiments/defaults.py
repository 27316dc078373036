r"""Does a method help, or hurt, with its defaults, as one uses it who has chosen nothing?

    python experiments/defaults.py --teacher=runs/demo/teacher.keras --output_dir=runs/defaults

Needs a teacher of examples/train_teacher.py for the same data. A student is trained alone and by
the recipes as they come, once with augmented views, the same for teacher and student, and once with
the images as they are. On photographs:

    python experiments/defaults.py --teacher=wrn_40_2.keras --dataset=cifar10 --data_dir=... \
        --student=wrn_16_1 --labels_per_class=50 --batch_size=64 --epochs=40 \
        --output_dir=runs/defaults_cifar10

A run that is there is not made again. Writes what `keras_mikd.compare` writes to
`<output_dir>/augmented` and `<output_dir>/plain`.
"""

import functools
import inspect
from pathlib import Path

from absl import app, flags, logging

import few_labels
import protocol
from keras_mikd import recipes
from keras_mikd.comparison.methods import Method

FLAGS = flags.FLAGS
few_labels.define_flags()
few_labels.define_trials()
flags.DEFINE_string("teacher", None, "Teacher of examples/train_teacher.py.", required=True)
RECIPES = {
    "kd": recipes.kd,
    "hint": recipes.hint,
    "at": recipes.attention_transfer,
    "vid": recipes.vid,
    "vid_auto": functools.partial(recipes.vid, initial_variance="auto"),
    "mimkd": recipes.mimkd,
    "info_nce": recipes.info_nce,
    "muse": recipes.muse,
}
flags.DEFINE_list("methods", list(RECIPES), "Some of them.")


def as_it_comes(recipe):
    """Returns a method whose one weight is the default of its recipe."""
    parameters = inspect.signature(recipe).parameters
    default = next(p.default for name, p in parameters.items() if name.endswith("weight"))
    return Method(lambda teacher, student, _: recipe(teacher, student), (default,))


def main(_):
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    protocol.check_names("methods", FLAGS.methods, RECIPES)
    (labels_per_class,) = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    teacher = protocol.load_network(FLAGS.teacher)
    data = few_labels.load(FLAGS.dataset, labels_per_class)
    methods = {name: as_it_comes(RECIPES[name]) for name in FLAGS.methods}
    for name, options in (("augmented", {}), ("plain", {"augment": None, "views": 1})):
        print(f"\nImages: {name}", flush=True)
        few_labels.compare(teacher, data, methods, Path(FLAGS.output_dir) / name, **options)


if __name__ == "__main__":
    app.run(main)
