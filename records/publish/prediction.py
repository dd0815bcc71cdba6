"""Does a track's order of methods predict the published one? For entries whose method has a published result.

An entry's recipe names the result (`published = 17`). Compared are the steps at which the mean curve of the
entry's runs meets the track's target, interpolated, and the published steps. Both sides are noisy, so a pair
of methods in opposite orders contradicts only where the pairwise rule decides it on both tracks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter
from scipy import stats
from scipy.optimize import isotonic_regression

from records.judge.compare import RESAMPLES, Interval, Side, compare, published_side, side
from records.judge.statistics import crossings, curves_of
from records.publish.entry_page import Standing
from records.publish.pages import escape, table
from records.publish.pictures import COLOURS, Picture
from records.run.track import Track

CLOSE = 1.15  # times the fewest published steps: among these an order is hard to tell, and worth the most


@dataclass(frozen=True)
class Pairing:
    """A method on both tracks. `crossings`: its steps here, once for each bootstrap resample of its runs."""

    number: int
    name: str
    here: Side
    published: Side
    steps: float
    crossings: np.ndarray


@dataclass(frozen=True)
class Reversal:
    """Two methods, the first better as published and worse here; whether the pairwise rule decides either."""

    better: Pairing
    worse: Pairing
    decided_published: bool
    decided_here: bool


def pairings(entries: Sequence[Standing], track: Track, published: Sequence[dict]) -> list[Pairing]:
    """The entries that reach the target and name one of the published results, by its steps.

    Of several entries of one result the fastest counts.
    """
    known = {result["number"] for result in published}
    found = [
        pairing(entry, track)
        for entry in entries
        if entry.recipe.get("published") in known and entry.summary.first_significant_step is not None
    ]
    fastest = {p.number: p for p in sorted(found, key=lambda p: -p.steps)}
    return sorted(fastest.values(), key=lambda p: (p.published.step, p.number))


def pairing(entry: Standing, track: Track) -> Pairing:
    """One entry beside its published result; the generator's seed is the result's number."""
    summary, number = entry.summary, entry.recipe["published"]
    steps, losses = curves_of(summary.runs)
    chosen = np.random.default_rng(number).integers(len(losses), size=(RESAMPLES, len(losses)))
    resampled = crossings(steps, losses[chosen].mean(axis=1), track.target)
    at = float(crossings(steps, losses.mean(axis=0), track.target))
    return Pairing(number, entry.name, side(summary, track), published_side(str(number)), at, resampled)


def rank_agreement(paired: Sequence[Pairing]) -> dict[str, Interval]:
    """Kendall's tau-b and Spearman's rho of the steps here and published.

    95% percentile intervals of bootstrap resamples of the methods and, within each, of its runs. Resamples in
    which all steps of a side are equal have no rank correlation and are left out.
    """
    published = np.array([p.published.step for p in paired])
    here = np.array([p.crossings for p in paired])
    chosen = np.random.default_rng(0).integers(len(paired), size=(RESAMPLES, len(paired)))
    found = {}
    for name, correlation in (("Kendall's tau", stats.kendalltau), ("Spearman's rho", stats.spearmanr)):
        estimate = correlation([p.steps for p in paired], published).statistic
        resampled = [
            correlation(here[methods, draw], published[methods]).statistic
            for draw, methods in enumerate(chosen)
            if len(set(published[methods])) > 1
        ]
        low, high = np.nanpercentile(resampled, (2.5, 97.5))
        found[name] = Interval(float(estimate), float(low), float(high))
    return found


def reversals(paired: Sequence[Pairing]) -> list[Reversal]:
    """The pairs ordered otherwise here than published, those decided on both tracks first."""
    found = []
    for better, worse in combinations(paired, 2):  # by published steps
        if better.published.step < worse.published.step and better.steps > worse.steps:
            decided = (
                compare(first, second).verdict == verdict
                for first, second, verdict in (
                    (better.published, worse.published, "better"),
                    (better.here, worse.here, "worse"),
                )
            )
            found.append(Reversal(better, worse, *decided))
    return sorted(found, key=lambda r: not (r.decided_published and r.decided_here))


def prediction_text(paired: Sequence[Pairing]) -> str:
    """The section of the leaderboard: the methods, the rank correlations, the pairs in another order."""
    pairs = math.comb(len(paired), 2)
    near = [p for p in paired if p.published.step <= CLOSE * paired[0].published.step]
    turned = reversals(paired)
    contradict = sum(r.decided_published and r.decided_here for r in turned)
    rows = [(f"\\#{p.number}", escape(p.name), p.published.step, f"{p.steps:.1f}") for p in paired]
    agreement = "; ".join(told(name, value) for name, value in rank_agreement(paired).items())
    parts = [
        f"{len(paired)} entries run a method that has a published result, if not at its size. Steps here: "
        "where the mean curve of the runs meets the target.\n",
        f"**{agreement}** (95% intervals: {RESAMPLES} bootstrap resamples of the methods and of each one's "
        "runs; 1 is the same order, 0 chance).\n",
    ]
    if 2 < len(near) < len(paired):
        within = told("Kendall's tau", rank_agreement(near)["Kendall's tau"])
        parts.append(
            f"Among the {len(near)} within {CLOSE - 1:.0%} of the fewest published steps: {within}.\n"
        )
    parts.append(table(("result", "entry", "published steps", "steps here"), rows, right=(2, 3)))
    parts.append(
        f"Of {pairs} pairs of methods {len(turned)} are ordered otherwise here; {contradict} of these are "
        "decided on both tracks by the pairwise rule, the others may be noise on one of them.\n"
    )
    if turned:
        header = ("better as published", "worse as published", "published steps", "steps here", "decided")
        turned_rows = [
            (
                f"{escape(r.better.name)} \\#{r.better.number}",
                f"{escape(r.worse.name)} \\#{r.worse.number}",
                f"{r.better.published.step}, {r.worse.published.step}",
                f"{r.better.steps:.1f}, {r.worse.steps:.1f}",
                {
                    (True, True): "**on both: a contradiction**",
                    (True, False): "as published only",
                    (False, True): "here only",
                    (False, False): "on neither",
                }[r.decided_published, r.decided_here],
            )
            for r in turned
        ]
        parts.append(table(header, turned_rows))
    return "\n".join(parts)


def told(name: str, value: Interval) -> str:
    """Such as: Kendall's tau 0.62 (0.31 to 0.83)."""
    return f"{name} {value.estimate:.2f} ({value.low:.2f} to {value.high:.2f})"


def prediction_picture(paired: Sequence[Pairing]) -> Picture:
    """Steps here over published steps with 95% intervals over runs: all left, the close ones right.

    A point is named where it stands apart: the close ones in the right panel only.
    """
    points = [
        (p.number, p.published.step, p.steps, *map(float, np.nanpercentile(p.crossings, (2.5, 97.5))))
        for p in paired
    ]
    near = [point for point in points if point[1] <= CLOSE * points[0][1]]
    far = [point for point in points if point not in near]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        draw_points(left, points, points, named=far if len(near) > 1 else points)
        draw_points(right, near, points, named=near)
        left.set_title("All")
        right.set_title(f"Within {CLOSE - 1:.0%} of the fewest published steps")
        left.legend(frameon=False, fontsize=8)

    return Picture([points], draw)


def draw_points(axes: Axes, shown: Sequence[tuple], points: Sequence[tuple], named: Sequence[tuple]) -> None:
    """Points, the `named` with their results' numbers; the line is the median ratio of all `points`."""
    _, published, here, low, high = map(np.array, zip(*shown, strict=True))
    axes.errorbar(published, here, yerr=(here - low, high - here), fmt="o", color=COLOURS[0], markersize=4)
    ratio = np.median([y / x for _, x, y, *_ in points])
    ends = np.array([published.min(), published.max()])
    axes.plot(ends, ratio * ends, "--", color="#666666", linewidth=1, label=f"published x {ratio:.3f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("published steps")
    axes.set_ylabel("steps here")
    gap = 0.04 * float(np.ptp(np.log(axes.get_ylim())))
    for x in {point[1] for point in named}:
        column = sorted((y, number) for number, at, y, *_ in named if at == x)
        heights = spread([math.log(y) for y, _ in column], gap)
        for (_, number), height in zip(column, heights, strict=True):
            place = (x, math.exp(height))
            axes.annotate(
                f"#{number}", place, xytext=(6, 0), textcoords="offset points", va="center", fontsize=7
            )


def spread(places: Sequence[float], gap: float) -> np.ndarray:
    """Rising places, moved as little as possible (least squares) to be at least `gap` apart."""
    steps = gap * np.arange(len(places))
    return isotonic_regression(np.asarray(places) - steps).x + steps
