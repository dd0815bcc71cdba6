"""Figures of the records as SVG: learning curves, the record over time, entries by their steps to the target.

The same data gives the same bytes with the same matplotlib. Another version may draw other bytes, so each
figure carries the SHA-256 of the data it shows (`embedded_digest`), and that is what a comparison looks at.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, told apart with every common colour blindness; without yellow, unreadable on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
BANDED = 4  # curves with bands: more of them cover one another
FAR = 1.45  # times the fewest steps to the target: what is farther behind is written at the edge
STYLE = matplotlib.RcParams(
    {
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
)


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
class Place:
    """An entry's steps to the target, mean and 95% interval over its runs (none for a single run)."""

    name: str
    rank: int
    steps: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Picture:
    """A figure not yet drawn: `draw` puts `data` (plain JSON data) on a figure of this size in inches."""

    data: object
    draw: Callable[[Figure], None]
    width: float = 9.5
    height: float = 4.2

    @property
    def digest(self) -> str:
        return digest(self.data)

    def svg(self) -> bytes:
        buffer = BytesIO()
        metadata = {"Creator": None, "Date": None, "Description": f"data sha256:{self.digest}"}
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
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


def leaderboard_picture(
    results: Sequence[Result], curves: Sequence[Curve], target: float, places: Sequence[Place] = ()
) -> Picture:
    """The record over time from `results`, or the `places` of entries; beside it `curves` near the target.

    Raises ValueError where there is nothing to draw.
    """
    panels: list[tuple[Callable[..., None], tuple]] = []
    if results:
        panels.append((draw_history, (results,)))
    if places:
        panels.append((draw_places, (places,)))
    if curves:
        panels.append((draw_near_target, (curves, target)))
    if not panels:
        raise ValueError("a leaderboard's figure needs a result, a place or a curve, got none")

    def draw(figure: Figure) -> None:
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (panel, data) in zip(row, panels, strict=True):
            panel(axes, *data)
        if curves:
            add_legend(figure, row[-1])

    data = [
        [asdict(result) for result in results],
        [asdict(curve) for curve in curves],
        target,
        [asdict(place) for place in places],
    ]
    height = max(4.2, 1.7 + 0.17 * len(places))
    return Picture(data, draw, width=6.5 if len(panels) == 1 else 9.5, height=height)


def draw_places(axes: Axes, places: Sequence[Place]) -> None:
    """A row an entry, best first, equal ranks on one shade; those far behind stand at the edge as numbers."""
    rows = sorted(places, key=lambda place: (place.rank, place.steps))
    edge = FAR * min(place.steps for place in rows)
    shades = {rank: i % 2 for i, rank in enumerate(dict.fromkeys(place.rank for place in rows))}
    for y, place in enumerate(rows):
        if shades[place.rank]:
            axes.axhspan(y - 0.5, y + 0.5, color="#eeeeee", linewidth=0, zorder=0)
        if place.steps > edge:
            told = f"{place.steps:.0f} \N{RIGHTWARDS ARROW}"
            axes.text(edge, y, told, ha="right", va="center", fontsize=8, color=COLOURS[0])
            continue
        axes.plot(place.steps, y, "o", color=COLOURS[0], markersize=4)
        if place.low is not None and place.high is not None:
            axes.plot([place.low, place.high], [y, y], color=COLOURS[0], linewidth=1.4)
    axes.set_title("Rank and steps to the target, with 95% intervals")
    axes.set_xlabel("step")
    axes.set_xlim(right=1.01 * edge)
    axes.set_yticks(range(len(rows)), [f"{place.name}  {place.rank}" for place in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def draw_curves(axes: Axes, curves: Sequence[Curve], target: float) -> None:
    """Means, with bands from low to high where there are BANDED curves at most."""
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        if len(curves) <= BANDED:
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
    draw_curves(axes, curves, target)
    axes.set_title("Near the target")
    steps, losses = near_target(curves, target)
    axes.set_xlim(steps)
    axes.set_ylim(losses)


def near_target(curves: Sequence[Curve], target: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The steps and the losses of a view in which every curve meets the target, or ends above it."""
    met = [meeting(curve, target) for curve in curves if curve.steps]
    if not met:
        return (0.0, 1.0), (0.98 * target, 1.02 * target)
    start, end = 0.85 * min(met), float(max(met))
    end = min(end + 0.3 * (end - start), max(curve.steps[-1] for curve in curves if curve.steps)) + 1
    shown = [
        (low, high) if len(curves) <= BANDED else (mean, mean)
        for curve in curves
        for step, mean, low, high in zip(curve.steps, curve.mean, curve.low, curve.high, strict=True)
        if start <= step <= end
    ]
    lowest = min(target, *(low for low, _ in shown))
    # High enough to see where curves come from, never so high that the crossing is squeezed flat.
    ceiling = max(1.02 * target, target + 1.5 * (target - lowest))
    if lowest == target:  # which no curve comes to: where they end
        ceiling = max(ceiling, *(curve.mean[-1] for curve in curves if curve.steps))
    highest = max(target, min(ceiling, max(high for _, high in shown)))
    margin = 0.05 * (highest - lowest) or 0.01 * abs(target)
    return (start, end + 0.02 * (end - start)), (lowest - margin, highest + margin)


def meeting(curve: Curve, target: float) -> int:
    """The first step at which the mean is at or below the target, else the last."""
    return next(
        (step for step, mean in zip(curve.steps, curve.mean, strict=True) if mean <= target), curve.steps[-1]
    )


def draw_history(axes: Axes, results: Sequence[Result]) -> None:
    axes.set_title("Record over time")
    axes.set_ylabel("steps to the target")
    for own, label, colour, marker in (
        (False, "published, not ours", "#999999", "o"),
        (True, "entry of this repository", COLOURS[0], "D"),
    ):
        points = [r for r in results if r.own == own]
        if points:
            axes.scatter([day_number(r.day) for r in points], [r.steps for r in points],
                         s=18, color=colour, marker=marker, label=label, zorder=3)  # fmt: skip
    last = max(r.day for r in results)
    for own, colour in ((False, "#777777"), (True, COLOURS[0])):
        records = record_results([r for r in results if r.own == own])
        if records and records[0].day < last:  # a record of one day has no line
            axes.step(
                [day_number(r.day) for r in records] + [day_number(last)],
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
    days = [day_number(r.day) for r in results]
    margin = max(2.0, 0.05 * (max(days) - min(days)))
    axes.set_xlim(min(days) - margin, max(days) + margin)
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=2, maxticks=5, interval_multiples=False))
    axes.xaxis.set_major_formatter(DateFormatter("%Y-%m-%d"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.legend(frameon=False, fontsize=8)


def day_number(day: str) -> float:
    """An ISO date as matplotlib counts days."""
    return float(date2num(date.fromisoformat(day)))


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
