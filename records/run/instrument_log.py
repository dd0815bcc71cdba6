"""What instruments told of a run: `<id>.instruments.jsonl`, and `<id>.instruments.npz` with those by neuron.

A line of the first: {"seed", "step", "name" of a matrix or layer, its numbers}. An array of the second is
"<seed>/<step>/<name>/<what>", one number a neuron; at most MOST_NEURONS numbers in all: matrices that would
not fit over the whole run have none. A resumed run repeats lines; the last counts.
"""

import json
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

MOST_NEURONS = 2**21  # 8 MiB of float32


@dataclass
class InstrumentLog:
    """Writes beside the log `log`, for a run of one seed with `measurements` to come.

    seeds: how many runs share the files.
    """

    log: Path
    seed: int
    measurements: int
    seeds: int = 1
    chosen: dict[tuple[str, str], bool] = field(default_factory=dict)
    left: int = MOST_NEURONS

    def write(
        self,
        step: int,
        numbers: Mapping[str, Mapping[str, float | None]],
        rows: Mapping[str, Mapping[str, ArrayLike]],
    ) -> None:
        """Append the numbers of one update."""
        lines, arrays = self.log.with_suffix(".instruments.jsonl"), self.log.with_suffix(".instruments.npz")
        with lines.open("a") as file:
            for name, values in numbers.items():
                file.write(json.dumps({"seed": self.seed, "step": step, "name": name, **values}) + "\n")
        draft = arrays.with_suffix(".partial")  # renamed when it is whole: kill -9 loses one measurement
        draft.write_bytes(arrays.read_bytes() if is_whole(arrays) else b"")
        with zipfile.ZipFile(draft, "a", zipfile.ZIP_DEFLATED) as archive:
            there = set(archive.namelist())
            for name, of_matrix in rows.items():
                for what, by_neuron in of_matrix.items():
                    array = np.asarray(by_neuron, dtype=np.float32)
                    key = f"{self.seed}/{step}/{name}/{what}.npy"
                    if self._fits(name, what, array.size) and key not in there:
                        with archive.open(key, "w") as member:
                            np.lib.format.write_array(member, array, allow_pickle=False)
        draft.replace(arrays)

    def _fits(self, name: str, what: str, size: int) -> bool:
        """Whether there is room for this matrix at every measurement of every run; asked once for each."""
        if (name, what) not in self.chosen:
            needed = size * self.measurements * self.seeds
            self.chosen[name, what] = needed <= self.left
            self.left -= needed if self.chosen[name, what] else 0
        return self.chosen[name, what]


def is_whole(path: Path) -> bool:
    """Whether it is a zip file and every array in it as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def read_numbers(log: Path) -> list[dict]:
    """The lines of a log's instruments, in order, the last of each seed, step and name; [] without a file."""
    path = log.with_suffix(".instruments.jsonl")
    if not path.is_file():
        return []
    found: dict[tuple[int, int, str, bool], dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            found[values["seed"], values["step"], values["name"], "units" in values] = values
        except (ValueError, LookupError, TypeError):  # a line cut by kill -9
            continue
    return [found[key] for key in sorted(found)]


def read_neurons(log: Path) -> dict[tuple[int, str, str], dict[int, np.ndarray]]:
    """(seed, name, what) -> step -> a number a neuron; empty where there is no file that can be read."""
    path = log.with_suffix(".instruments.npz")
    found: dict[tuple[int, str, str], dict[int, np.ndarray]] = {}
    if not is_whole(path):
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            seed, step, name, what = key.split("/")
            found.setdefault((int(seed), name, what), {})[int(step)] = arrays[key]
    return {key: dict(sorted(by_step.items())) for key, by_step in sorted(found.items())}


class Unobserved:
    """What surrounds updates and validations that nobody measures: nothing."""

    def updating(self, step: int) -> AbstractContextManager[None]:
        return nullcontext()

    def validating(self, step: int) -> AbstractContextManager[None]:
        return nullcontext()


def unobserved(*of_run: object) -> Unobserved:
    """Of a run without --instruments; see records.observe."""
    return Unobserved()
