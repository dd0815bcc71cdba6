"""Figures of the records as SVG: learning curves, and the record over time.

The same data gives the same bytes with the same matplotlib. Another version may draw other bytes, so each
figure carries the SHA-256 of the data it shows (`embedded_digest`), and that is what a comparison looks at.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, told apart with every common colour blindness; without yellow, unreadable on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
STYLE = {
    "svg.hashsalt": "records",  # ids inside the file: the same in every run
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.family": "DejaVu Sans",  # comes with matplotlib, so text has the same width everywhere
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Curve:
    """Validation loss over steps of one entry (or one run: then low = mean = high)."""

    name: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """One claim in time: `steps` to the target, reached on `day` (ISO date); `own` if its logs are here."""

    name: str
    day: str
    steps: int
    own: bool


@dataclass(frozen=True)
class Picture:
    """A figure not yet drawn: `draw` puts `data` (plain JSON data) on a figure of `width` inches."""

    data: object
    draw: Callable[[Figure], None]
    width: float = 9.5

    @property
    def digest(self) -> str:
        return digest(self.data)

    def svg(self) -> bytes:
        buffer = BytesIO()
        metadata = {"Creator": None, "Date": None, "Description": f"data sha256:{self.digest}"}
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(self.width, 4.2), layout="constrained")
            self.draw(figure)
            figure.savefig(buffer, format="svg", metadata=metadata)
        return buffer.getvalue()


def record_results(results: Sequence[Result]) -> list[Result]:
    """Those that needed fewer steps than every result before them, in order of time."""
    best, records = math.inf, []
    for result in sorted(results, key=lambda r: (r.day, r.steps, r.name)):
        if result.steps < best:
            best = result.steps
            records.append(result)
    return records


def curves_picture(curves: Sequence[Curve], target: float) -> Picture:
    """The curves (mean, band from low to high): the whole run at the left, near the target at the right."""

    def draw(figure: Figure) -> None:
        whole, near = figure.subplots(1, 2)
        draw_curves(whole, curves, target)
        whole.set_title("Whole run")
        draw_near_target(near, curves, target)
        add_legend(figure, near)

    return Picture([[asdict(curve) for curve in curves], target], draw)


def leaderboard_picture(results: Sequence[Result], curves: Sequence[Curve], target: float) -> Picture:
    """The record over time from `results`, the `curves` near the target, or both side by side.

    Raises ValueError where there is neither.
    """
    panels = [(draw_history, (results,))] if results else []
    panels += [(draw_near_target, (curves, target))] if curves else []
    if not panels:
        raise ValueError("a leaderboard's figure needs a result or a curve, got neither")

    def draw(figure: Figure) -> None:
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (panel, data) in zip(row, panels, strict=True):
            panel(axes, *data)
        if curves:
            add_legend(figure, row[-1])

    data = [[asdict(result) for result in results], [asdict(curve) for curve in curves], target]
    return Picture(data, draw, width=9.5 if len(panels) == 2 else 6.5)


def draw_curves(axes: Axes, curves: Sequence[Curve], target: float) -> None:
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            curve.steps, curve.mean, color=colour, linestyle=DASHES[i // len(COLOURS) % len(DASHES)],
            linewidth=1.4, marker="." if len(curve.steps) == 1 else "", label=curve.name,
        )  # fmt: skip
    axes.axhline(target, color="#666666", linewidth=1, linestyle=(0, (6, 3)), label=f"target {target:g}")
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def draw_near_target(axes: Axes, curves: Sequence[Curve], target: float) -> None:
    """The last quarter of the longest curve, from below the lowest loss to a little above the target."""
    draw_curves(axes, curves, target)
    axes.set_title("Near the target")
    end = max(curve.steps[-1] for curve in curves)
    start = 0.75 * end
    points = [point for curve in curves for point in zip(curve.steps, curve.low, curve.high, strict=True)]
    late = [point for point in points if point[0] >= start]
    lowest = min(target, *(low for _, low, _ in late))
    # High enough to see where curves come from, never so high that the crossing is squeezed flat.
    ceiling = max(1.02 * target, target + 1.5 * (target - lowest))
    highest = max(target, min(ceiling, max(high for _, _, high in late)))
    margin = 0.05 * (highest - lowest) or 0.01 * abs(target)
    axes.set_xlim(start, end + 0.04 * (end - start) + 1)
    axes.set_ylim(lowest - margin, highest + margin)


def draw_history(axes: Axes, results: Sequence[Result]) -> None:
    axes.set_title("Record over time")
    axes.set_ylabel("steps to the target")
    for own, label, colour, marker in (
        (False, "published, not ours", "#999999", "o"),
        (True, "entry of this repository", COLOURS[0], "D"),
    ):
        points = [r for r in results if r.own == own]
        if points:
            axes.scatter([date.fromisoformat(r.day) for r in points], [r.steps for r in points],
                         s=18, color=colour, marker=marker, label=label, zorder=3)  # fmt: skip
    days = sorted(date.fromisoformat(r.day) for r in results)
    for own, colour in ((False, "#777777"), (True, COLOURS[0])):
        records = record_results([r for r in results if r.own == own])
        if records and records[0].day < days[-1].isoformat():  # a record of one day has no line
            axes.step(
                [date.fromisoformat(r.day) for r in records] + [days[-1]],
                [r.steps for r in records] + [records[-1].steps],
                where="post", color=colour, linewidth=1.4,
                label="best so far" + ("" if own else ", published"),
            )  # fmt: skip
    steps = sorted(r.steps for r in results)
    # A few far slower results would press the record against the axis: the title counts them instead.
    ceiling = 1.6 * steps[len(steps) // 2]
    hidden = sum(s > ceiling for s in steps)
    if hidden:
        axes.set_ylim(top=ceiling)
        axes.set_title(f"Record over time ({hidden} above {ceiling:.0f} steps not drawn)")
    margin = max(timedelta(days=2), (days[-1] - days[0]) * 0.05)
    axes.set_xlim(days[0] - margin, days[-1] + margin)
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=2, maxticks=5, interval_multiples=False))
    axes.xaxis.set_major_formatter(DateFormatter("%Y-%m-%d"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.legend(frameon=False, fontsize=8)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it covers no curve."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(label) for label in labels)
    columns = max(1, min(6, 110 // (longest + 8)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def digest(data: object) -> str:
    """SHA-256 of plain data, floats at seven digits so that the last bit of a mean does not matter."""

    def rounded(value: object) -> object:
        if isinstance(value, float):
            return f"{value:.7g}"
        if isinstance(value, dict):
            return {key: rounded(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [rounded(v) for v in value]
        return value

    return hashlib.sha256(json.dumps(rounded(data), sort_keys=True).encode()).hexdigest()


def embedded_digest(svg: bytes) -> str | None:
    """The digest of the data a figure was drawn from, or None where the bytes hold none."""
    found = re.search(rb"data sha256:([0-9a-f]{64})", svg)
    return found.group(1).decode() if found else None
