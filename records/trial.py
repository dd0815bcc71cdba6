"""One training of a recipe for a search: ./run.sh started, its logs read."""

import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from records import RecordError
from records.judge.logs import Run, read_entry
from records.run.signals import DIVERGED, ENDED

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (str(ROOT / "run.sh"),)


class TuneError(RecordError):
    """The search cannot start or go on: what was expected, what was found, what to do."""


def train(
    command: Sequence[str],
    recipe: Path,
    changes: Mapping[str, object],
    seeds: str,
    folder: Path,
    arguments: Sequence[str],
) -> float:
    """Train into `folder`; the mean final validation loss of the seeds, infinite where a run diverged.

    Raises TuneError where the run did not start or ended otherwise (killed, out of memory, a damaged shard, a
    traceback): which says nothing of the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changed = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    options = ["--seeds", seeds, "--validate-ends", "--out", str(folder)]
    with open(folder / "console.out", "wb") as console:
        process = subprocess.Popen(
            [*command, "--recipe", str(recipe), *changed, *options, *arguments],
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    runs = runs_in(folder)
    last = [run.validations[-1] for run in runs]
    unfinished = [run for run, end in zip(runs, last, strict=True) if end.step < run.total_steps]
    told = (folder / "console.out").read_text(errors="replace").strip().splitlines() or ["nothing"]
    diverged = code == ENDED and any(line.startswith("error") and line.endswith(DIVERGED) for line in told)
    if not runs or not (diverged or code == 0) or (unfinished and code == 0):
        raise TuneError(
            f"{folder.name}: exit code {code} without a result; {folder}/console.out says: {told[-1]}"
        )
    mean = sum(end.val_loss for end in last) / len(last)
    return mean if code == 0 and math.isfinite(mean) else math.inf


def runs_in(folder: Path) -> tuple[Run, ...]:
    """The runs of the logs in a folder; none where there is no log."""
    return read_entry(folder).runs if list(folder.glob("*.txt")) else ()
