"""The texts of experiments/docstrings.py, and experiments/transformers.py run on very little."""

import json

import numpy as np
import pytest

from tests import script_runs


@pytest.fixture(scope="module")
def docstrings():
    with script_runs.module("experiments", "docstrings") as script:
        yield script


def _rows(dataset):
    """Returns the texts of a pipeline as tuples of numbers, and their labels."""
    tokens, labels = (np.concatenate(each) for each in zip(*dataset, strict=True))
    return [tuple(row) for row in tokens.tolist()], labels


def test_no_file_and_no_paragraph_is_in_two_splits(docstrings):
    paragraphs = docstrings._paragraphs()
    texts = docstrings._by_split(paragraphs)
    files = {w: (name, file) for name, own in paragraphs.items() for file in own for w in own[file]}
    of_split = {split: {files[words] for words, _ in own} for split, own in texts.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not of_split[a] & of_split[b]
        assert not {w for w, _ in texts[a]} & {w for w, _ in texts[b]}
    labels = {split: {label for _, label in own} for split, own in texts.items()}
    assert all(own == set(range(8)) for own in labels.values())
    whole = sum(map(len, texts.values()))
    assert len(texts["train"]) / whole == pytest.approx(0.6, abs=0.03)


@pytest.mark.slow
def test_texts_are_numbers_of_words_of_the_training_split(docstrings):
    few = docstrings.load(max_length=12, batch_size=8, labels_per_class=4, seed=1)
    assert few.sizes["train"] == 32
    tokens, labels = _rows(few.train)
    assert np.bincount(labels).tolist() == [4] * 8
    again, other = (
        docstrings.load(max_length=12, batch_size=8, labels_per_class=4, seed=seed)
        for seed in (1, 2)
    )
    assert set(_rows(again.train)[0]) == set(tokens) != set(_rows(other.train)[0])
    tokens, _ = _rows(few.test)
    assert max(map(max, tokens)) < few.vocabulary_size
    for row in tokens:
        length = np.count_nonzero(row)  # At least 8 words; padding is behind them.
        assert 8 <= length <= 12 and not any(row[length:])
    with pytest.raises(SystemExit, match="at most .* texts per class"):
        docstrings.load(max_length=12, batch_size=8, labels_per_class=10_000)


@pytest.mark.slow
def test_transformers_choose_a_weight_and_go_on_where_they_were(tmp_path, capsys):
    flags = ["--pair=text", "--epochs=1", "--teacher_epochs=1", f"--output_dir={tmp_path}"]
    with script_runs.module("experiments", "transformers") as script:
        script_runs.call(script, *flags, "--methods=student,kd", "--seeds=1")
        first = json.loads((tmp_path / "results.json").read_text())["runs"]
        assert [(run["method"], run["weight"]) for run in first] == [
            ("student", 0.0),
            ("kd", 1.0),
            ("kd", 3.0),
        ]
        capsys.readouterr()
        script_runs.call(script, *flags, "--methods=student,kd", "--seeds=2")
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert runs[:3] == first
    best = max(first[1:], key=lambda run: run["validation"])
    others = [(run["method"], run["weight"], run["seed"]) for run in runs[3:]]
    assert others == [("student", 0.0, 1), ("kd", best["weight"], 1)]
    table = capsys.readouterr().out.split("test %")[1]
    mean = (best["test"] + runs[4]["test"]) / 2
    (line,) = (line for line in table.splitlines() if line.startswith("kd "))
    assert line.split()[1:3] == [f"{best['weight']:g}", f"{mean:.2f}"]
