"""The runs of a comparison, each in a file of its own, so that a killed one goes on."""

import json
import pathlib
import re

from keras_mikd.atomic_files import write_whole
from keras_mikd.comparison.score import ACCURACY, written

_SETTINGS = "settings.json"


class Cells:
    """Runs by method, weight and seed, in a folder or in memory.

    Args:
        folder: Where every run is a JSON file, or `None`.
        settings: What all runs of the folder share.

    Raises:
        ValueError: If the folder holds runs of other settings, or files of something else.
    """

    def __init__(self, folder, settings):
        self.folder = None if folder is None else pathlib.Path(folder)
        self._in_memory = {}
        if self.folder is None:
            return
        path, settings = self.folder / _SETTINGS, json.loads(json.dumps(settings))
        if path.exists():
            kept = json.loads(path.read_text())
            differ = sorted(k for k in {*kept, *settings} if kept.get(k) != settings.get(k))
            if differ:
                raise ValueError(
                    f"Expected a folder of runs with the same {', '.join(differ)}. Received: "
                    f"{str(self.folder)!r}, with {[kept.get(k) for k in differ]} and not "
                    f"{[settings.get(k) for k in differ]}. Name another folder."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"Expected an empty folder, or one of `compare`. Received: {str(self.folder)!r}"
            )
        write_whole(path, json.dumps(settings, indent=1).encode())

    def get(self, key):
        """Returns the run of a key, a dict; `None` if it was not made yet."""
        if self.folder is None:
            return self._in_memory.get(name_of(key))
        path = self.path(key, ".json")
        return json.loads(path.read_text()) if path.exists() else None

    def keep(self, key, run):
        """Keeps the run of a key, which then is not made again."""
        self._in_memory[name_of(key)] = run
        if self.folder is not None:
            write_whole(self.path(key, ".json"), json.dumps(run, indent=1).encode())

    def path(self, key, suffix):
        """Returns the file of a key, with a suffix."""
        return self.folder / f"{name_of(key)}{suffix}"


class Progress:
    """Says what runs, and how long the rest takes as the runs so far went."""

    def __init__(self, total, show, metric=ACCURACY):
        self.total, self.show, self.metric = total, show, metric
        self.done, self.seconds = 0, []

    def ran(self, key, run, is_new):
        """Notes a run that was made, or that was there already."""
        self.done += 1
        if is_new:
            self.seconds.append(run["seconds"])
        if not self.show:
            return
        value = written(self.metric, run["validation"])
        said = f"[{self.done}/{self.total}] {name_of(key)}: {value} on validation"
        if "stopped" in run:
            said += " (stopped: its loss was not finite)"
        if not is_new:
            said += ", from its file"
        if self.seconds and self.done < self.total:
            left = sum(self.seconds) / len(self.seconds) * (self.total - self.done)
            said += f", at most {_readable(left)} left"
        print(said, flush=True)


def name_of(key):
    """Returns the name of a run, such as `kd-weight3-seed0`."""
    parts = (v if isinstance(v, str) else f"{k}{v:g}" for k, v in key.items())
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))


def _readable(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
