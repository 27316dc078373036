"""Critics are compiled by XLA as the documentation says: what it compiled is looked at."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.fixture(
    scope="module",
    params=["info_nce_critic", pytest.param("jsd_feature", marks=pytest.mark.slow)],
)
def compiled(request, tmp_path_factory):
    """How many programs there were after one epoch and after three, and their HLO by direction."""
    folder = tmp_path_factory.mktemp("hlo")
    process = subprocess.run(
        [sys.executable, TESTS / "critic_compilations.py", folder, request.param],
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_dump_to={folder} --xla_backend_optimization_level=0",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        },
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    programs = {"forward": [], "backward": []}
    for path in sorted(folder.glob("*.before_optimizations.txt")):
        assert "_scored_" in path.name  # Nothing but the critics.
        programs["backward" if "backward" in path.name else "forward"].append(path.read_text())
    return request.param, json.loads(process.stdout.splitlines()[-1]), programs


def test_the_short_last_batch_is_compiled_once(compiled):
    _, counts, _ = compiled
    # Forward and backward, for batches of 8 and of 4; later epochs compile nothing.
    assert counts == [4, 4]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_scores_and_bound_are_one_program_of_static_shapes(compiled, direction):
    case, _, programs = compiled
    assert len(programs[direction]) == 2
    for batch, hlo in zip((8, 4), programs[direction], strict=True):
        assert hlo.count("ENTRY ") == 1
        assert "<=" not in hlo  # How HLO writes a dimension that is only bounded.
        assert f"f32[{batch}]" in hlo  # The bound, or its gradient, of every example.
        assert "custom-call" not in hlo  # Nothing calls back to the host.
        if case == "info_nce_critic":
            # All pairs of the batch in one product of embeddings; backward, one for each side.
            products = re.findall(rf"= f32\[1,{batch},(?:{batch}|8)\]\S* dot\(", hlo)
            assert len(products) == (1 if direction == "forward" else 2)
