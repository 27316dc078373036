"""What the comparisons on few labels share, the heads for perceptrons, and transfer."""

import json
import types

import cases
import keras
import numpy as np
import pytest

import keras_mikd as mikd
from tests import script_runs


def _flags(folder, *more):
    return [f"--output_dir={folder / 'run'}", f"--data_dir={folder / 'data'}", *more]


def _rows(folder, size):
    content = json.loads((folder / "run" / str(size) / "comparison.json").read_text())
    return {row["method"]: row for row in content["rows"]}


@pytest.fixture
def few_labels():
    with script_runs.module("experiments", "few_labels") as module:
        yield module


def test_some_digits_are_all_images_of_these_classes(few_labels, tmp_path, monkeypatch):
    class Flags:
        data_dir, validation_images = str(tmp_path), 2000

    monkeypatch.setattr(few_labels, "FLAGS", Flags)
    all_classes, last = few_labels.load("digits"), few_labels.load("digits7-9", 3)
    images, labels = all_classes.test
    np.testing.assert_array_equal(last.test[0], images[labels >= 7])
    np.testing.assert_array_equal(last.test[1], labels[labels >= 7] - 7)
    assert last.num_classes == 3 and np.bincount(last.train[1]).tolist() == [3, 3, 3]
    assert few_labels.new_network("mlp_6", last).output_shape == (None, 3)
    with pytest.raises(SystemExit, match="Received: digits8-3"):
        few_labels.load("digits8-3")
    # All images stay, in any order, and three of each class have their label.
    data = few_labels.load("digits", 3, unlabelled=True)
    assert len(data.train[1]) == len(all_classes.train[1])
    assert np.bincount(data.train[1] + 1)[1:].tolist() == [3] * 10
    kept = data.train[1] >= 0
    labelled, known = data.train[0][kept], dict(zip(*_keys(all_classes.train), strict=True))
    assert [known[image.tobytes()] for image in labelled] == data.train[1][kept].tolist()


def _keys(split):
    images, labels = split
    return [image.tobytes() for image in images], labels.tolist()


def test_a_perceptron_is_paired_with_a_cnn_in_order():
    with script_runs.module("experiments", "perceptron_methods") as methods:
        student = mikd.models.mlp(width=4, num_classes=4, input_shape=cases.IMAGE_SHAPE)
        teacher = cases.teacher()
        pairs = methods.pairs_in_order(teacher, student)
        assert pairs == [("stage1", "hidden2"), ("stage2", "hidden3")]
        losses = methods.PERCEPTRON_METHODS["vid_unfolded"].losses(teacher, student, 2.0)
        assert [(x.teacher_layer, x.student_layer, x.weight) for x in losses] == [
            (*pair, 2.0) for pair in pairs
        ]


def test_methods_without_a_teacher_train_the_student_alone_or_beside_a_peer():
    with script_runs.module("experiments", "no_teacher_methods") as methods:
        found = methods.NO_TEACHER_METHODS
    kinds = {}
    for name, method in found.items():
        student = cases.student()
        distiller = method.losses(None, student, 0.7)
        assert len(method.weights) == 3
        peers = getattr(distiller, "peers", None)
        kinds[name] = type(distiller)
        assert (peers[0] if peers else distiller.student) is student
        if peers:  # A network of the same kind that begins somewhere else.
            assert peers[1].count_params() == student.count_params()
            assert np.any(peers[1].get_weights()[0] != student.get_weights()[0])
        weights = {type(loss): loss.weight for loss in distiller.distillation_losses}
        assert weights.pop(mikd.SoftTargets, 0.7) == (1.0 if name == "dml_muse" else 0.7)
        assert set(weights.values()) <= {0.7}
    alone = ("byot", "self_jsd", "self_muse", "self_muse_additive")
    peers = ("dml", "dml_muse")
    assert kinds == {
        **dict.fromkeys(alone, mikd.SelfDistiller),
        **dict.fromkeys(peers, mikd.MutualDistiller),
    }


def test_a_student_of_the_source_keeps_its_own_classifier():
    with script_runs.module("experiments", "transfer") as transfer:
        learned, student = cases.student(classes=7), cases.student()
        own = student.layers[-1].get_weights()
        assert transfer.finetuned({2.0: learned}, None, student, 2.0) == []
        for old, new in zip(own, student.layers[-1].get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        for a, b in zip(learned.layers[:-1], student.layers[:-1], strict=True):
            for expected, found in zip(a.get_weights(), b.get_weights(), strict=True):
                np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lwf", {"lwf": ("output", "pooled", 3.0)}),
        ("mi_l", {"vid_logits": ("output", "pooled", 3.0)}),
        ("lwf+hint", {"lwf": ("output", "pooled", 1.0), "hint_stage2": ("stage2", "stage2", 3.0)}),
        (
            "mi_l+mi_i",
            {
                "vid_stage1": ("stage1", "stage1", 3.0),
                "vid_stage2": ("stage2", "stage2", 3.0),
                "vid_logits": ("output", "pooled", 3.0),
            },
        ),
    ],
)
def test_rows_of_the_transfer_read_the_places_of_the_paper(name, expected):
    with script_runs.module("experiments", "transfer") as transfer:
        method = transfer.methods({})[name]
        losses = method.losses(cases.teacher(classes=7), cases.student(), 3.0)
    found = {x.name: (x.teacher_layer or "output", x.student_layer, x.weight) for x in losses}
    assert found == expected


@pytest.mark.slow
def test_every_row_of_the_transfer_runs_and_none_is_made_again(tmp_path, capsys):
    tiny = ["--student=digits_cnn", "--teacher_network=digits_cnn", "--labels_per_class=5"]
    epochs = ["--teacher_epochs=3", "--source_epochs=1,2,3", "--epochs=1", "--seeds=1"]
    flags = _flags(tmp_path, *tiny, *epochs)
    with script_runs.module("experiments", "transfer") as script:
        script_runs.call(script, *flags)
        rows = _rows(tmp_path, 5)
        assert list(rows) == ["student", *script.ROWS]
        teacher = keras.saving.load_model(tmp_path / "run" / "source" / "teacher.keras")
        assert teacher.output_shape == (None, 5)
        capsys.readouterr()
        script_runs.call(script, *flags, "--methods=finetuned")
    printed = capsys.readouterr().out
    assert "finetuned-weight1-seed0" in printed and printed.count("from its file") == 4
    assert rows["finetuned"]["training_only_weights"] == 0
    assert rows["finetuned"]["trials"].keys() == {"1.0", "2.0", "3.0"}


@pytest.mark.slow
def test_unlabelled_images_and_perceptrons_in_the_comparison(tmp_path):
    keras.utils.set_random_seed(0)
    teacher = tmp_path / "teacher.keras"
    mikd.models.digits_cnn(10, (8, 8, 1)).save(teacher)
    common = [f"--teacher={teacher}", "--dataset=digits", "--labels_per_class=2", "--seeds=1"]
    common += ["--epochs=1", "--batch_size=10", "--views=1"]
    flags = _flags(tmp_path / "few", *common, "--student=digits_cnn", "--unlabelled")
    with script_runs.module("experiments", "compare") as script:
        script_runs.call(script, *flags, "--methods=vid", "--with_kd=vid")
        assert list(_rows(tmp_path / "few", 2)) == ["student", "vid", "vid+kd"]
        flags = _flags(tmp_path / "alone", *common, "--student=digits_cnn")
        script_runs.call(script, *flags, "--methods=muse,self_muse,dml_muse")
        assert list(_rows(tmp_path / "alone", 2)) == ["student", "muse", "self_muse", "dml_muse"]
        flags = _flags(tmp_path / "mlp", *common, "--student=mlp_8")
        script_runs.call(script, *flags, "--methods=hint_pooled,vid_unfolded")
    rows = _rows(tmp_path / "mlp", 2)
    assert list(rows) == ["student", "hint_pooled", "vid_unfolded"]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"weights": None, "balance": "none"}, (1.0, 10.0, 100.0)),
        ({"weights": ["2", "4"], "balance": "none"}, [2.0, 4.0]),
        ({"weights": None, "balance": "gradient"}, (0.3, 1.0, 3.0)),
        ({"weights": ["1"], "balance": "gradient"}, [1.0]),
    ],
)
def test_weights_to_try_are_those_of_the_flag_or_ratios(flags, expected, monkeypatch):
    with script_runs.module("experiments", "compare") as script:
        monkeypatch.setattr(script, "FLAGS", types.SimpleNamespace(**flags))
        tried = script.tried(script.KNOWN["vid"])
    assert tried.weights == expected and tried.losses == script.KNOWN["vid"].losses


def test_all_networks_of_the_pairs_are_there():
    with script_runs.module("experiments", "pairs") as pairs:
        assert len(pairs.PAIRS["crd"]) == 13
        names = {name for group in pairs.PAIRS.values() for pair in group for name in pair}
    assert all(callable(getattr(mikd.models, name)) for name in names)


def test_defaults_are_those_of_the_recipes():
    with script_runs.module("experiments", "defaults") as script:
        methods = {name: script.as_it_comes(recipe) for name, recipe in script.RECIPES.items()}
    weights = {name: method.weights for name, method in methods.items()}
    assert weights["kd"] == (0.9,) and weights["hint"] == (100.0,) and weights["mimkd"] == (3.0,)
    losses = methods["vid_auto"].losses(cases.teacher(), cases.student(), 7.0)
    assert {(x.weight, x.initial_variance) for x in losses} == {(1.0, "auto")}


@pytest.mark.slow
def test_every_pair_and_every_place_of_augmentation_has_its_table(tmp_path, capsys):
    few = ["--labels_per_class=2", "--batch_size=10", "--epochs=1", "--seeds=1"]
    with script_runs.module("experiments", "pairs") as script:
        script.PAIRS["digits"] = [("digits_cnn", "digits_cnn")]
        flags = ["--teacher_epochs=1", "--only_middle_weight", "--methods=kd,vid", "--sgd"]
        script_runs.call(script, *_flags(tmp_path, *few, *flags))
    assert "digits_cnn-digits_cnn" in capsys.readouterr().out
    tables = json.loads((tmp_path / "run" / "pairs.json").read_text())
    assert [row["method"] for row in tables["digits_cnn-digits_cnn"]["rows"]] == [
        "student",
        "kd",
        "vid",
    ]
    teacher = tmp_path / "run" / "teachers" / "digits_cnn.keras"
    flags = [f"--teacher={teacher}", "--student=digits_cnn", "--methods=kd,vid", "--weights=3,10"]
    with script_runs.module("experiments", "augmentation") as script:
        with pytest.warns(UserWarning, match="changes its images at random"):
            script_runs.call(script, *_flags(tmp_path / "places", *few, *flags, "--views=2"))
        for place in script.PLACES:
            path = tmp_path / "places" / "run" / place / "comparison.json"
            assert len(json.loads(path.read_text())["rows"]) == 3
            assert (path.parent / "vid-weight10-seed0.keras").exists()
    flags = [f"--teacher={teacher}", "--student=digits_cnn", "--methods=vid,mimkd", "--views=2"]
    with script_runs.module("experiments", "defaults") as script:
        script_runs.call(script, *_flags(tmp_path / "defaults", *few, *flags))
    for images in ("augmented", "plain"):
        path = tmp_path / "defaults" / "run" / images / "comparison.json"
        rows = {row["method"]: row["weight"] for row in json.loads(path.read_text())["rows"]}
        assert rows == {"student": None, "vid": 1.0, "mimkd": 3.0}


if __name__ == "__main__":
    pytest.main([__file__])
