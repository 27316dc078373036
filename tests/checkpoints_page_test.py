"""The code of docs/howto/checkpoints.md, run from top to bottom."""

import pathlib
import re

import cases
import keras
import numpy as np
import tensorflow as tf

import keras_mikd as mikd

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "howto" / "checkpoints.md"


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text().replace("epochs=60", "epochs=2")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    data = tf.data.Dataset.from_tensor_slices(cases.data(8)).batch(4)
    teacher, student = cases.teacher(), cases.student()
    teacher.save("teacher.keras")
    distiller = mikd.Distiller(teacher, student, [mikd.SoftTargets()])
    distiller.compile("adam", cases.cross_entropy(), metrics=["accuracy"])
    names = {"keras": keras, "mikd": mikd, "train": data, "validation": data, "test": data}
    names |= {"teacher": teacher, "student": student, "distiller": distiller}
    for block in blocks:
        exec(block, names)
    for name in ("student.keras", "student.tflite", "distiller.keras", "runs/resume/state.npz"):
        assert pathlib.Path(name).stat().st_size > 0
    assert type(names["distiller"]) is mikd.VIDDistiller and names["distiller"] is not distiller
    assert names["distiller"].teacher is names["teacher"]
    for a, b in zip(names["teacher"].get_weights(), teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_inline_call_of_a_checkpoint_is_accepted():
    calls = re.findall(r"`(StudentCheckpoint\([^`]*\))`", PAGE.read_text())
    assert len(calls) == 2
    for call in calls:
        assert isinstance(eval(call, vars(mikd).copy()), mikd.StudentCheckpoint)
