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

from records.judge.compare import RESAMPLES, Interval, Side, compare, mean_crossing, published_side, side
from records.judge.tracks import Track
from records.publish.entry_page import Standing
from records.publish.pages import escape, table
from records.publish.pictures import COLOURS, Picture

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
    steps = [at.step for at in summary.steps]
    losses = np.array([[run.curve[step] for step in steps] for run in summary.runs])
    chosen = np.random.default_rng(number).integers(len(losses), size=(RESAMPLES, len(losses)))
    crossings = mean_crossing(steps, losses[chosen].mean(axis=1), track.target)
    at = float(mean_crossing(steps, losses.mean(axis=0), track.target))
    return Pairing(number, entry.name, side(summary, track), published_side(str(number)), at, crossings)


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
        rows = [
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
        parts.append(table(header, rows))
    return "\n".join(parts)


def told(name: str, value: Interval) -> str:
    """Such as: Kendall's tau 0.62 (0.31 to 0.83)."""
    return f"{name} {value.estimate:.2f} ({value.low:.2f} to {value.high:.2f})"


def prediction_picture(paired: Sequence[Pairing]) -> Picture:
    """Steps here over published steps with 95% intervals over runs: all left, the close ones right."""
    points = [
        (p.number, p.published.step, p.steps, *map(float, np.nanpercentile(p.crossings, (2.5, 97.5))))
        for p in paired
    ]
    near = [point for point in points if point[1] <= CLOSE * points[0][1]]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        close = f"Within {CLOSE - 1:.0%} of the fewest published steps"
        for axes, shown, title in ((left, points, "All"), (right, near, close)):
            draw_points(axes, shown, points)
            axes.set_title(title)

    return Picture([points], draw)


def draw_points(axes: Axes, shown: Sequence[tuple], points: Sequence[tuple]) -> None:
    """Points with their results' numbers; the line is "the median ratio of all, and no other difference"."""
    _, published, here, low, high = map(np.array, zip(*shown, strict=True))
    axes.errorbar(published, here, yerr=(here - low, high - here), fmt="o", color=COLOURS[0], markersize=4)
    for number, x, y, *_ in shown:
        axes.annotate(f"#{number}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7)
    ratio = np.median([y / x for _, x, y, *_ in points])
    ends = np.array([published.min(), published.max()])
    axes.plot(ends, ratio * ends, "--", color="#666666", linewidth=1, label=f"published x {ratio:.3f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("published steps")
    axes.set_ylabel("steps here")
    axes.legend(frameon=False, fontsize=8)
