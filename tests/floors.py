"""Prints the oldest versions that pyproject.toml supports, as pip takes them.

No test by itself: `make test-oldest` installs what it prints.
"""

import pathlib
import sys
import tomllib

NAMES = ["keras", "tensorflow", "pytest", "hypothesis"]
"""What the tests of the core need."""


def floors(names):
    """Returns `["keras==3.15", ...]`, the floor of each of these packages."""
    path = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    versions = dict(each.split(">=") for each in stated if ">=" in each)
    for name in names:
        if name not in versions:
            raise ValueError(f"Expected '{name}>=<version>' in pyproject.toml. Received: {stated}")
    return [f"{name}=={versions[name]}" for name in names]


if __name__ == "__main__":
    print(*floors(sys.argv[1:] or NAMES))
