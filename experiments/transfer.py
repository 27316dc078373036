r"""Transfer to other classes: a teacher of one data set, students of another (VID, table 2).

    python experiments/transfer.py --output_dir=runs/transfer

Without other flags it is a twin for two cores: the teacher knows the digits 0 to 4, students learn
5 to 9 from 10 images of each. At its full size, with a teacher that examples/train_teacher.py
trained:

    python experiments/transfer.py --teacher=tiny.keras --source=<its data> --dataset=cifar10 \
        --data_dir=... --student=wrn_16_1 --labels_per_class=5,10,20,50 --batch_size=50 \
        --epochs=100 --views=8 --source_epochs=5,20,60 --output_dir=runs/transfer

The paper has a ResNet-34 of ImageNet as the teacher, MIT-67 and CUB-200 as the data, ResNet-18 and
VGG-9 as students. Its rows are here under its names:

* `finetuned`: the student's network, trained on the source, with a new classifier. What is chosen
  is how many epochs it sees the source, of `--source_epochs`, as many as others have weights.
* `lwf`: a second classifier of the student follows the teacher's classes; `hint`, `at`: FitNets'
  regression in the middle, attention maps of all stages; `lwf+hint`: both, LwF at a weight of 1.
* `mi_l`: VID's Gaussian of the teacher's logits, given the student's last vector; `mi_i`: of the
  stages; `mi_l+mi_i`: both, at one weight.

Every weight is tried on the validation split. The accuracy of the twin's teacher in its table means
nothing: its five classes are others. A run that is there is not made again. Writes to
`<output_dir>/source` the networks of the source data, and to `<output_dir>/<images per class>` what
`keras_mikd.compare` writes.
"""

import functools
from pathlib import Path

from absl import app, flags, logging

import few_labels
import keras_mikd as mikd
import protocol
from keras_mikd.comparison.methods import METHODS, Method

FLAGS = flags.FLAGS
few_labels.define_flags(dataset="digits5-9", views=1)
few_labels.define_trials()
flags.DEFINE_string("source", "digits0-4", "Data of the teacher, named as in --dataset.")
flags.DEFINE_string("teacher", None, "Teacher of the source; if not given, one is trained.")
flags.DEFINE_string("teacher_network", "resnet14", "Network of a teacher that is trained.")
flags.DEFINE_integer("teacher_epochs", 40, "Epochs of a teacher that is trained.", 1)
flags.DEFINE_list("source_epochs", ["2", "10", "40"], "Epochs on the source, for `finetuned`.")
flags.DEFINE_list("methods", None, "Some of the rows above; all if not given.")

VID = {"initial_variance": "auto"}
# One network sees both data sets, so both are scaled alike: by the moments of ImageNet.
SCALING = mikd.datasets.ImagePipeline(
    max_value=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def finetuned(pretrained, teacher, student, epochs):
    """Gives a student the weights that it has after some epochs on the source; no losses.

    Its classifier stays as it is, new. `compare` calls this once for every student.
    """
    del teacher
    for layer, learned in zip(student.layers[:-1], pretrained[epochs].layers[:-1], strict=True):
        layer.set_weights(learned.get_weights())
    return []


def lwf(teacher, student, weight):
    return mikd.recipes.lwf(teacher, student, weight=weight)


def lwf_and_hint(teacher, student, weight):
    return lwf(teacher, student, 1.0) + METHODS["hint"].losses(teacher, student, weight)


def mi_logits(teacher, student, weight):
    return mikd.recipes.vid(teacher, student, stage_weight=0.0, logits_weight=weight, **VID)


def mi_both(teacher, student, weight):
    both = {"stage_weight": weight, "logits_weight": weight}
    return mikd.recipes.vid(teacher, student, **both, **VID)


def methods(pretrained):
    """Returns `{name: Method}` of all rows but the student alone."""
    return {
        "finetuned": Method(functools.partial(finetuned, pretrained), tuple(pretrained)),
        "lwf": Method(lwf, (0.1, 1.0, 10.0)),
        "hint": METHODS["hint"],
        "at": METHODS["at"],
        "mi_l": Method(mi_logits, METHODS["vid"].weights),
        "mi_i": METHODS["vid"],
        "lwf+hint": Method(lwf_and_hint, METHODS["hint"].weights),
        "mi_l+mi_i": Method(mi_both, METHODS["vid"].weights),
    }


ROWS = list(methods({}))


def load(name, labels_per_class=None):
    options = {} if name.startswith("digits") else {"pipeline": SCALING}
    return few_labels.load(name, labels_per_class, **options)


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells every read.
    names = FLAGS.methods or ROWS
    protocol.check_names("methods", names, ROWS)
    sizes = protocol.numbers("labels_per_class", FLAGS.labels_per_class, int)
    epochs = protocol.numbers("source_epochs", FLAGS.source_epochs, int)
    source, folder = load(FLAGS.source), Path(FLAGS.output_dir) / "source"
    if FLAGS.teacher:
        teacher = protocol.load_network(FLAGS.teacher)
    else:
        path = folder / "teacher.keras"
        teacher = few_labels.trained(FLAGS.teacher_network, source, FLAGS.teacher_epochs, path)
    pretrained = {
        float(count): few_labels.trained(
            FLAGS.student, source, count, folder / f"student-{count}.keras"
        )
        for count in (epochs if "finetuned" in names else [])
    }
    chosen = {name: method for name, method in methods(pretrained).items() if name in names}
    for size in sizes:
        print(f"\n{FLAGS.source} to {FLAGS.dataset}, {size} images of each class", flush=True)
        data = load(FLAGS.dataset, size)
        few_labels.compare(teacher, data, chosen, Path(FLAGS.output_dir) / str(size))


if __name__ == "__main__":
    app.run(main)
