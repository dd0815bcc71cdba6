"""Does a track's order of methods predict the published one? For entries whose method has a published result.

An entry's recipe names the result (`published = 17`). Compared are the steps at which the mean curve of the
entry's runs meets the track's target, interpolated, and the published steps. Both sides are noisy, so a pair
of methods in opposite orders contradicts only where the pairwise rule decides it on both tracks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
    chosen = np.random.default_rng(0).integers(len(paired), size=(RESAMPLES, len(paired)))
    published = np.array([p.published.step for p in paired])[chosen]
    here = np.array([p.crossings for p in paired])[chosen, np.arange(RESAMPLES)[:, None]]
    mixed = (published != published[:, :1]).any(axis=1)
    found = {}
    for name, correlation in (("Kendall's tau", kendall), ("Spearman's rho", spearman)):
        (estimate,) = correlation(
            np.array([[p.steps for p in paired]]), np.array([[p.published.step for p in paired]])
        )
        low, high = np.nanpercentile(correlation(here[mixed], published[mixed]), (2.5, 97.5))
        found[name] = Interval(float(estimate), float(low), float(high))
    return found


def kendall(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Kendall's tau-b of each row of the one with that of the other."""
    return [stats.kendalltau(x, y).statistic for x, y in zip(first, second, strict=True)]


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rho of each row of the one with that of the other: Pearson's r of their ranks."""
    x, y = (stats.zscore(stats.rankdata(side, axis=1), axis=1) for side in (first, second))
    return (x * y).mean(axis=1)


def reversals(paired: Sequence[Pairing]) -> list[Reversal]:
    """The pairs ordered otherwise here than published, those decided on both tracks first."""
    found = []
    for better, worse in combinations(paired, 2):  # by published steps
        if better.published.step < worse.published.step and better.steps > worse.steps:
            decided = (  # without the runs, whose intervals take long and are not asked for
                compare(replace(first, summary=None), replace(second, summary=None)).verdict == verdict
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
    """A line for each method, from its published steps to its steps here, the fewest on top.

    Coloured is what takes a tenth more or less here than the median of the methods lets expect.
    """
    points = [(p.number, p.name, p.published.step, p.steps) for p in paired]
    usual = float(np.median([here / published for *_, published, here in points]))
    expected, slower, faster = f"as expected: published x {usual:.3f}", "10% slower here", "10% faster here"
    colours = {expected: "#999999", slower: COLOURS[1], faster: COLOURS[0]}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        left, right = heights([p.published.step for p in paired]), heights([p.steps for p in paired])
        for (number, name, published, here), *ends in zip(points, left, right, strict=True):
            off = here / published / usual
            kind = slower if off > 1.1 else faster if off < 0.9 else expected
            axes.plot((0, 1), ends, color=colours[kind], linewidth=1.3)
            for x, y, text in (
                (0, ends[0], f"{published:,}  #{number}"),
                (1, ends[1], f"{here:.0f}  {name}"),
            ):
                axes.annotate(
                    text, (x, y), xytext=(12 * x - 6, 0), textcoords="offset points", va="center",
                    ha="left" if x else "right", fontsize=8,
                )  # fmt: skip
        axes.set_xlim(-0.5, 1.7)
        axes.invert_yaxis()
        axes.set_axis_off()
        axes.set_title("Published steps and result, steps here and entry")
        lines = [Line2D([], [], color=colour, label=kind) for kind, colour in colours.items()]
        axes.legend(handles=lines, frameon=False, fontsize=8, loc="upper center", ncols=3,
                    bbox_to_anchor=(0.5, 0.02))  # fmt: skip

    return Picture(points, draw, 7.5, 1.4 + 0.17 * len(points))


def heights(steps: Sequence[float]) -> np.ndarray:
    """Where each number of steps stands: on a logarithmic scale, but with room for a line of text each."""
    order, logarithms = np.argsort(steps, kind="stable"), np.log(steps)
    places = np.empty(len(steps))
    places[order] = spread(logarithms[order], max(float(np.ptp(logarithms)), 1e-9) / len(steps))
    span = float(np.ptp(places)) or 1.0
    return (places - places.min()) / span


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Rising places, moved as little as possible (least squares) to be at least `gap` apart."""
    steps = gap * np.arange(len(places))
    return isotonic_regression(places - steps).x + steps
