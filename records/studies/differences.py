"""Runs of two kinds on common seeds: their differences by seed, in a table and in a picture."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from records.judge.logs import read_entry
from records.judge.paired import TTest
from records.publish.pictures import COLOURS


def last_losses(folder: Path) -> dict[int, float]:
    """By seed, the last validation loss of the runs in a folder's logs that came to their end; {} without."""
    runs = read_entry(folder).runs if list(folder.glob("*.txt")) else ()
    return {
        run.seed: end.val_loss
        for run in runs
        if run.seed is not None and run.validations and (end := run.validations[-1]).step == run.total_steps
    }


def in_rows(tests: Mapping[str, TTest], slope: float | None) -> list[list]:
    """A row each of a table; the mean in steps of Muon too, where the track has a slope."""
    return [
        [name, test.n, test.mean, test.low, test.high, test.p, test.mean / slope * 100 if slope else None]
        for name, test in tests.items()
    ]


def told(names: Sequence[str]) -> str:
    """The names in a sentence."""
    return ", ".join(name.replace("_", " ") for name in names) or "in no case"


def intervals(
    tests: Mapping[str, TTest], what: str, over: str = "over paired seeds"
) -> Callable[[Figure], None]:
    """Draws each test's mean and 95%, the first on top."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, test in enumerate(tests.values()):
            if test.low is not None and test.high is not None:
                axes.plot([test.low, test.high], [place, place], color=COLOURS[0])
            axes.plot(test.mean, place, "o", color=COLOURS[0], markersize=5)
        axes.axvline(0, color="#666", linewidth=1, linestyle="dashed")
        axes.set_yticks(range(len(tests)), [name.replace("_", " ") for name in tests])
        axes.invert_yaxis()
        axes.set_xlabel(f"{what}, mean and 95% {over}")

    return draw
