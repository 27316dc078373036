"""The benchmark of the networks runs; its times are not looked at."""

import json

import pytest

from tests import script_runs


@pytest.mark.slow
def test_a_small_run_prints_and_writes_every_network(tmp_path):
    output, folder = tmp_path / "networks.json", tmp_path / "files"
    flags = ["--networks=resnet8,digits_cnn", "--rounds=1", "--size=8", "--num_classes=10"]
    flags += [f"--output={output}", f"--folder={folder}"]
    printed = script_runs.succeed("benchmarks/networks.py", *flags)
    small, large = sorted(json.loads(output.read_text())["rows"], key=lambda row: row["weights"])
    assert (small["network"], large["network"]) == ("digits_cnn", "resnet8")
    for row in (small, large):
        assert f"\n{row['network']} " in printed
        assert row["kilobytes"]["int8"] < row["kilobytes"]["float32"]
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 4 and kept[0] == "digits_cnn-10-8-float32.tflite"


@pytest.mark.slow
def test_unknown_networks_are_refused():
    done = script_runs.run("benchmarks/networks.py", "--networks=resnet9")
    assert "Received: ['resnet9']" in done.stderr


if __name__ == "__main__":
    pytest.main([__file__])
