"""Self- and online distillation as scripts, run as a reader runs them, on very little."""

import concurrent.futures
import json
import math
import os
import statistics

import pytest

from tests.example_runs import run_example, tensorboard_tags

TINY = ["--student=digits_cnn", "--epochs=2", "--labels_per_class=2", "--batch_size=10"]
SELF = ["plain", "byot", "muse_multiplicative"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("muse")


def _run(folder, script, *arguments):
    """Returns what the script printed, and its rows by method."""
    output = folder / script
    run = run_example(
        script, f"--output_dir={output}", f"--data_dir={folder / 'data'}", *TINY, *arguments
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr and "Warning" not in run.stderr, run.stderr
    return run.stdout, json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def by_itself(folder):
    return _run(folder, "self_distill", f"--methods={','.join(SELF)}", "--weights=1")


@pytest.fixture(scope="module")
def together(folder):
    return _run(folder, "online_distill", "--weights=0.5,1", "--methods=alone,dml", "--seeds=2")


def _line(printed, method):
    (line,) = (each for each in printed.splitlines() if each.split()[:1] == [method])
    return line.split()


def test_every_method_of_self_distillation_has_a_row(by_itself):
    printed, rows = by_itself
    assert [(row["method"], row["weight"]) for row in rows] == [
        ("plain", 0.0),
        *((method, 1.0) for method in SELF[1:]),
    ]
    plain = rows[0]["runs"][0]["test"]
    for row in rows:
        (run,) = row["runs"]
        assert run["milliseconds"] > 0 and 0 <= run["test"] <= 100
        expected = [f"{run['test']:.2f}", f"{run['test'] - plain:+.2f}"]
        assert _line(printed, row["method"])[2:4] == expected
    assert "MUSE is a reconstruction" in printed


def test_muse_is_read_out_against_its_ceiling(by_itself):
    printed, rows = by_itself
    nats = rows[-1]["runs"][0]["nats"]
    assert nats.pop("muse_ceiling_nats") == pytest.approx(2 * math.log(2))
    assert set(nats) == {
        f"muse_stage{i}_{term}_nats" for i in (1, 2, 3) for term in ("mutual", "self")
    }
    assert all(value <= 2 * math.log(2) for value in nats.values())
    assert f"muse_stage1_self_nats {nats['muse_stage1_self_nats']:.2f}" in printed


def test_the_terms_are_in_tensorboard(by_itself, folder):
    (logs,) = (folder / "self_distill" / "logs").glob("muse_multiplicative-*")
    tags = tensorboard_tags(logs / "train")
    assert {"epoch_loss", "epoch_task_loss", "epoch_muse", "epoch_muse_stage1_self_nats"} <= {*tags}


def test_peers_are_reported_by_their_mean_and_one_by_one(together):
    printed, rows = together
    assert [(row["method"], row["weight"]) for row in rows] == [
        ("alone", 0.0),
        ("dml", 0.5),
        ("dml", 1.0),
    ]
    for row in rows:
        assert len(row["runs"]) == 2
        for run in row["runs"]:
            assert len(run["test_by_network"]) == 2
            assert run["test"] == pytest.approx(statistics.mean(run["test_by_network"]))
    best = max(rows[1:], key=lambda row: statistics.mean(run["validation"] for run in row["runs"]))
    mean = statistics.mean(run["test"] for run in best["runs"])
    assert _line(printed, "dml")[1:3] == [f"{best['weight']:g}", f"{mean:.2f}"]


@pytest.mark.slow
def test_unlike_peers_share_features(folder):
    printed, rows = _run(
        folder / "unlike",
        "online_distill",
        "--peer=resnet8",
        "--weights=1",
        "--methods=dml_muse",
    )
    (run,) = rows[0]["runs"]
    assert run["test_by_network"][0] != run["test_by_network"][1]
    for pair in ("peer1_to_peer2", "peer2_to_peer1"):
        assert run["nats"][f"muse_{pair}_stage3_mutual_nats"] < 2 * math.log(2)
    assert "trained with resnet8" in printed


# name -> script, arguments, end of the message.
REFUSED = {
    "results are kept": ("self_distill", ["--output_dir={folder}"], "exists and is kept; name"),
    "an unknown method": (
        "self_distill",
        ["--methods=plain,muse"],
        "got ['muse']",
    ),
    "no weight": ("self_distill", ["--weights=0"], "expected numbers above 0; got ['0']"),
    "a weight for nothing": (
        "online_distill",
        ["--methods=alone", "--weights=1"],
        "--weights is given and no method of --methods has a weight",
    ),
    "negatives for nothing": (
        "self_distill",
        ["--methods=plain,hint", "--negatives_from=batch"],
        "neither jsd nor muse is among --methods",
    ),
    "an unknown peer": ("online_distill", ["--peer=vgg"], "got 'vgg'"),
    "a peer for other images": (
        "online_distill",
        ["--dataset=cifar10", "--peer=digits_cnn"],
        "--peer: digits_cnn is for digits; got --dataset=cifar10",
    ),
}


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory):
    """A folder of old files and all runs that end before they start, several at a time."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "results.json").write_text("old")
    commands = {}
    for name, (script, arguments, _) in REFUSED.items():
        arguments = [argument.format(folder=folder) for argument in arguments]
        if not any(argument.startswith("--output_dir") for argument in arguments):
            arguments.append(f"--output_dir={folder / 'new'}")
        commands[name] = (script, *arguments)
    commands |= {script: (script, "--help") for script in ("self_distill", "online_distill")}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda command: run_example(*command), commands.values())
        return folder, dict(zip(commands, runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_wrong_flags_end_in_one_line_and_write_nothing(short_runs, name):
    folder, runs = short_runs
    run = runs[name]
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert REFUSED[name][-1] in run.stderr.strip().splitlines()[-1]
    assert [path.name for path in folder.iterdir()] == ["results.json"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["self_distill", "online_distill"])
def test_help_says_what_the_script_does_and_lists_its_flags(short_runs, script):
    printed = short_runs[1][script].stdout
    own = {"self_distill": ["negatives_from"], "online_distill": ["peer"]}
    for flag in ("output_dir", "labels_per_class", "methods", "weights", "seeds", *own[script]):
        assert f"--{flag}: " in printed, flag
    assert "MUSE (a reconstruction)" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (
            "self_distill",
            ["--labels_per_class=2"],
            "digits: Expected `batch_size` to be at most 20",
        ),
        ("self_distill", ["--dataset=cifar10"], "cifar10: cifar10 is not at "),
        ("distill_detector", ["--dataset=coco"], "coco: coco/2017 is not at "),
        ("distill_detector", ["--num_scenes=3000"], "digit_scenes: Expected `num_scenes` to be at"),
        ("train_teacher", ["--batch_size=6000"], "digits: Expected `batch_size` to be at most 898"),
    ],
)
def test_data_that_cannot_be_had_ends_in_one_line(script, flags, message, tmp_path):
    folders = [f"--output_dir={tmp_path / 'new'}", f"--data_dir={tmp_path / 'data'}"]
    run = run_example(script, *flags, *folders)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith(message)


@pytest.mark.slow
def test_a_file_that_holds_no_network_ends_in_one_line(tmp_path):
    (tmp_path / "teacher.keras").write_text("no network")
    files = [f"--teacher={tmp_path / 'teacher.keras'}", f"--output_dir={tmp_path / 'new'}"]
    run = run_example("distill", *files)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "teacher.keras: expected a network that Keras saved" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["self_distill", "online_distill"])
def test_every_method_runs(script, tmp_path):
    run = run_example(
        script,
        "--epochs=1",
        "--weights=1",
        "--student=digits_cnn",
        f"--output_dir={tmp_path / 'all'}",
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "all" / "results.json").read_text())
    assert all(f"\n{row['method']} " in run.stdout for row in rows)
    assert len(rows) == (8 if script == "self_distill" else 3)


if __name__ == "__main__":
    pytest.main([__file__])
