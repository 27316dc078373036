"""The experiments that compare methods, run on very little."""

import json
import math
import statistics

import keras
import numpy as np
import pytest

import keras_mikd as mikd
from tests import detectors, script_runs

TINY = ["--student=digits_cnn", "--epochs=2", "--labels_per_class=2", "--batch_size=10"]


def _runs(folder):
    return json.loads((folder / "results.json").read_text())["runs"]


def _line(printed, *starts):
    (line,) = (x for x in map(str.split, printed.splitlines()) if x[: len(starts)] == [*starts])
    return line[len(starts) :]


@pytest.mark.slow
def test_a_network_that_teaches_itself_beside_the_plain_one(tmp_path, capsys):
    flags = [f"--output_dir={tmp_path / 'self'}", f"--data_dir={tmp_path / 'data'}", *TINY]
    with script_runs.module("experiments", "self_distillation") as script:
        script_runs.call(script, *flags, "--methods=plain")
        path = tmp_path / "self" / "plain-weight0-seed0" / "student.keras"
        written = path.stat().st_mtime_ns
        capsys.readouterr()
        script_runs.call(script, *flags, "--methods=plain,vid", "--weights=1")
    assert path.stat().st_mtime_ns == written  # It is not trained again.
    printed, (plain, vid) = capsys.readouterr().out, _runs(tmp_path / "self")
    gain = f"{vid['test'] - plain['test']:+.2f}"
    assert _line(printed, "vid", "1")[:2] == [f"{vid['test']:.2f}", gain]
    assert list(vid["nats"]) == [f"vid_stage3_to_stage{i}_gaussian_nats" for i in (1, 2)]
    test = mikd.datasets.load_digits(data_dir=str(tmp_path / "data")).test
    labels = np.concatenate([labels for _, labels in test])
    student = keras.saving.load_model(path)
    right = 100 * np.mean(student.predict(test, verbose=0).argmax(axis=1) == labels)
    assert plain["test"] == pytest.approx(right, abs=0.01)
    assert plain["curve"][-1] == pytest.approx(plain["validation"], abs=0.01)
    assert (plain["weights"], plain["training_only_weights"]) == (student.count_params(), 0)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["self_distillation", "online"])
def test_every_method_without_a_teacher_runs(script, tmp_path):
    flags = ["--epochs=1", "--weights=1", "--student=digits_cnn", f"--output_dir={tmp_path}"]
    printed = script_runs.succeed(f"experiments/{script}.py", *flags)
    runs = _runs(tmp_path)
    assert all(f"\n{run['method']} " in printed for run in runs)
    assert len(runs) == (8 if script == "self_distillation" else 3)
    # MUSE is read out against its ceiling.
    nats, ceiling = runs[-1]["nats"], 2 * math.log(2)
    ceilings = [value for name, value in nats.items() if "ceiling" in name]
    assert ceilings and ceilings == pytest.approx([ceiling] * len(ceilings))
    assert len(nats) > 6 and all(value <= ceiling + 1e-6 for value in nats.values())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    mikd.models.digits_cnn(10, (8, 8, 1)).save(path)
    return path


@pytest.mark.slow
def test_every_method_with_a_teacher_runs(teacher, tmp_path):
    flags = [f"--teacher={teacher}", f"--output_dir={tmp_path}", *TINY]
    printed = script_runs.succeed("experiments/offline.py", *flags, "--weights=1")
    runs = _runs(tmp_path)
    methods = ["student", "kd", "at", "hint", "vid", "mimkd", "kd_muse"]
    assert [run["method"] for run in runs] == methods
    for run in runs:
        assert _line(printed, run["method"], f"{run['weight']:g}")[0] == f"{run['test']:.2f}"
        needs_heads = run["method"] in ("hint", "vid", "mimkd", "kd_muse")
        assert (run["training_only_weights"] > 0) is needs_heads


@pytest.mark.slow
def test_unlike_peers_are_reported_by_their_mean_and_one_by_one(tmp_path):
    flags = [f"--output_dir={tmp_path}", "--peer=resnet8", "--weights=1", *TINY]
    printed = script_runs.succeed("experiments/online.py", *flags, "--methods=dml_muse")
    (run,) = _runs(tmp_path)
    first, second = run["test_by_network"]
    assert first != second and run["test"] == pytest.approx(statistics.mean((first, second)))
    for pair in ("peer1_to_peer2", "peer2_to_peer1"):
        assert run["nats"][f"muse_{pair}_stage3_mutual_nats"] < 2 * math.log(2)
    assert _line(printed, "dml_muse", "1")[0] == f"{run['test']:.2f}"


@pytest.mark.slow
def test_designs_are_compared_on_the_validation_split_only(teacher, tmp_path):
    critics = ["default", "student alone"]
    forms = ["mutual term: InfoNCE", "multiplicative: InfoNCE on the input", "additive"]
    for script, designs, flags in (
        ("critic_designs", critics, [f"--teacher={teacher}"]),
        ("muse_designs", forms, []),
    ):
        flags += [f"--output_dir={tmp_path / script}", "--epochs=2", "--seeds=1"]
        path = f"experiments/{script}.py"
        printed = script_runs.succeed(path, *flags, f"--designs={','.join(designs)}")
        runs = _runs(tmp_path / script)
        assert [(run["design"], run["seed"]) for run in runs] == [(each, 100) for each in designs]
        for run in runs:
            numbers = [f"{run['validation']:.2f}", f"{run['milliseconds']:.2f}"]
            assert _line(printed, *run["design"].split()) == numbers
            assert "test" not in run


@pytest.mark.slow
def test_detectors_and_one_as_the_teacher_of_another(tmp_path):
    detectors.keras_cv()
    tiny = ["--num_scenes=16", "--epochs=1", "--width=2", f"--data_dir={tmp_path / 'data'}"]
    own, taught = (f"--output_dir={tmp_path / name}" for name in ("own", "taught"))
    printed = script_runs.succeed("experiments/detectors.py", own, *tiny)
    runs = _runs(tmp_path / "own")
    assert [run["method"] for run in runs] == ["untrained", "plain", "muse"]
    for run in runs:
        shown = [f"{run[f'test {name}']:.2f}" for name in ("AP", "AP50", "AP75", "AR_100")]
        # A second line of the method compares it with the plain one.
        assert _line(printed, run["method"], shown[0])[:3] == shown[1:]
    assert "muse above plain, seed by seed: AP" in printed
    teacher = tmp_path / "own" / "plain-seed0" / "student.keras"
    flags = [taught, "--methods=offline", f"--teacher={teacher}", *tiny]
    script_runs.succeed("experiments/detectors.py", *flags)
    assert [run["method"] for run in _runs(tmp_path / "taught")] == ["offline"]


@pytest.mark.slow
def test_two_workers_train_and_the_chief_writes(tmp_path):
    launcher = ["--workers=2", f"--output_dir={tmp_path / 'workers'}", "--"]
    script = ["experiments/self_distillation.py", "--strategy=multi_worker", *TINY]
    flags = [f"--output_dir={tmp_path / 'run'}", "--methods=plain,jsd", "--weights=1"]
    done = script_runs.run("examples/launch_workers.py", *launcher, *script, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [run["method"] for run in _runs(tmp_path / "run")] == ["plain", "jsd"]
    # Only the chief's TensorBoard wrote.
    events = list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert len({path.name.split(".")[-3] for path in events}) == 1, events


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("offline", ["--teacher=missing.keras"], "Received: missing.keras"),
        ("self_distillation", ["--methods=plain,muse"], "Received: --methods=plain,muse"),
        ("self_distillation", ["--labels_per_class=2"], "digits: Expected `batch_size` to be"),
        ("detectors", ["--methods=offline"], "Expected --teacher for the method offline"),
        ("detectors", ["--dataset=coco"], "coco: Expected coco/2017 at "),
    ],
)
def test_what_cannot_be_run_ends_in_one_line(script, flags, message, tmp_path):
    folders = [f"--output_dir={tmp_path / 'new'}", f"--data_dir={tmp_path / 'data'}"]
    done = script_runs.run(f"experiments/{script}.py", *flags, *folders)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "new").exists()


if __name__ == "__main__":
    pytest.main([__file__])
