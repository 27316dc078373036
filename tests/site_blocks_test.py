"""Code on the site that is no cell: it runs here, and what it says of other projects is whole."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

import keras_mikd as mikd

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Of train_student.py and train_teacher.py, commit b84f547 of October 2023.
FLAGS_OF_REPDISTILLER = """
--print_freq --tb_freq --save_freq --batch_size --num_workers --epochs --init_epochs --learning_rate
--lr_decay_epochs --lr_decay_rate --weight_decay --momentum --dataset --model_s --path_t --distill
--trial -r --gamma -a --alpha -b --beta --kd_T --feat_dim --mode --nce_k --nce_t --nce_m
--hint_layer --model -t
""".split()
METHODS_OF_REPDISTILLER = """
kd hint attention similarity correlation vid crd kdsvd fsp rkd pkt abound factor nst
""".split()


def _page(name):
    return (DOCS / name).read_text()


def _blocks(page, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def _script_for_hosts():
    script, for_tpu = _blocks(_page("tutorials/devices_and_hosts.md"))
    return script.replace("epochs=20", "epochs=2"), for_tpu


def _small_data(monkeypatch):
    load = mikd.datasets.load_digits
    monkeypatch.setattr(mikd.datasets, "load_digits", lambda **_: load(labels_per_class=5))


def _save_teacher(folder):
    keras.utils.set_random_seed(0)
    mikd.models.digits_cnn(10, (8, 8, 1)).save(folder / "teacher.keras")


# Its blocks are pieces of files, which tests/add_a_loss_test.py puts together.
PAGES = sorted(set(DOCS.rglob("*.md")) - {DOCS / "add_a_loss.md"})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_blocks_of_python_are_python(path):
    for block in _blocks(path.read_text()):
        ast.parse(block)


@pytest.mark.slow
def test_the_script_for_hosts_trains_on_two_workers(tmp_path):
    script, _ = _script_for_hosts()
    (tmp_path / "train_on_hosts.py").write_text(script)
    _save_teacher(tmp_path)
    launcher = [sys.executable, ROOT / "examples" / "launch_workers.py", "--workers=2"]
    done = subprocess.run(
        [*launcher, f"--output_dir={tmp_path / 'out'}", "--", "train_on_hosts.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert not done.returncode, done.stdout + done.stderr
    assert "Epoch 2/2" in done.stdout
    assert keras.saving.load_model(tmp_path / "student.keras").output_shape == (None, 10)
    assert (tmp_path / "resume").exists()


def test_the_lines_for_a_tpu_take_the_place_of_the_strategy(tmp_path, monkeypatch, two_replicas):
    """There is no TPU: what connects to one is replaced, by its public name, and the rest runs."""
    script, for_tpu = _script_for_hosts()
    asked = []

    def made(_, found):
        asked.append(found)
        return two_replicas

    resolver = tf.distribute.cluster_resolver.TPUClusterResolver
    monkeypatch.setattr(resolver, "connect", lambda name: asked.append(name) or "resolver")
    monkeypatch.setattr(tf.distribute, "TPUStrategy", type("TPUStrategy", (), {"__new__": made}))
    _small_data(monkeypatch)
    _save_teacher(tmp_path)
    monkeypatch.chdir(tmp_path)
    old = "strategy = tf.distribute.MultiWorkerMirroredStrategy()\n"
    assert script.count(old) == 1
    names = {}
    exec(script.replace(old, for_tpu), names)
    assert asked == ["", "resolver"]
    assert names["strategy"] is two_replicas
    assert (tmp_path / "student.keras").exists()


def test_a_command_of_repdistiller_is_the_distiller_beside_it():
    (block,) = _blocks(_page("howto/repdistiller.md"))
    shape = (8, 8, 1)
    names = {"mikd": mikd, "teacher": mikd.models.resnet8(10, shape)}
    names["student"] = mikd.models.digits_cnn(10, shape)
    exec(block, names)
    distiller = names["distiller"]
    assert distiller.task_loss_weight == 1.0
    assert [loss.weight for loss in distiller.distillation_losses] == [1.0] * 3
    assert {loss.variant for loss in distiller.distillation_losses} == {"repdistiller"}


def test_every_flag_and_method_of_repdistiller_has_an_answer():
    page = _page("howto/repdistiller.md")
    answered = set(re.findall(r"`(--?\w+)`", page))
    assert not set(FLAGS_OF_REPDISTILLER) - answered
    table = page.split("| `--distill` | recipe |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    assert list(rows) == METHODS_OF_REPDISTILLER
    for method, answer in rows.items():
        if method != "kdsvd":
            assert callable(getattr(mikd.recipes, re.match(r"`(\w+)`", answer)[1]))


def test_options_that_stand_for_flags_are_there():
    page = _page("howto/repdistiller.md")
    losses = mikd.recipes.crd(None, None, width=64, temperature=0.1, negatives=9, momentum=0.4)
    losses += mikd.recipes.correlation_congruence(None, None, width=64)
    assert [loss.width for loss in losses] == [64, 64]
    assert (losses[0].temperature, losses[0].negatives, losses[0].momentum) == (0.1, 9, 0.4)
    for name in ("resnet50", "mobilenet_v2_half", "shufflenet_v1", "shufflenet_v2"):
        assert f"`{name}`" in page and hasattr(mikd.models, name)


if __name__ == "__main__":
    pytest.main([__file__])
