"""python -m records compare A B [...]: better, worse or not decided, and how many more seeds would decide.

The pairwise rule of the benchmark, at the step each side claims:

    (loss_difference + step_difference * slope) / sqrt(1/n1 + 1/n2) >= 0.004

says the first is better. Both differences are the second's minus the first's; the slope is 0.0045 of loss per
100 steps on FineWeb (measured around 3300 steps by shortening one entry by 200), and likewise measured on
nano. The 0.004 scales with sigma.

Entries that share seeds are compared by seed as well (records.judge.paired): p < 0.01 of a two-sided t-test
of the steps to the target, or of the loss at the last common step where a side does not come to it.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats

from records import RecordError
from records.judge.logs import read_entry
from records.judge.paired import PairedComparison, TTest, compare_paired
from records.judge.statistics import ROUNDING, Summary, common_steps, crossings, curves_of, threshold
from records.judge.summarize import count, finite, positive_number, summarize, table
from records.judge.tracks import DEFAULT, entry_track
from records.run.track import Track, shipped_tracks

PUBLISHED = Path(__file__).parents[1] / "fineweb" / "published.json"
RESAMPLES = 2000


@dataclass(frozen=True)
class Side:
    """Mean validation loss of n runs at a step. `summary` is None for a published result."""

    name: str
    step: int
    mean: float
    n: int
    track: Track
    summary: Summary | None = None


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; low and high are None where a side has one run only."""

    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """The pairwise rule for two sides. Differences are second minus first: positive speaks for the first."""

    first: Side
    second: Side
    loss_difference: float
    step_difference: int
    slope: float  # loss per step
    left_hand_side: float
    rounded_left_hand_side: float  # from means rounded to 4 decimals, as published results state them
    threshold: float
    z: float
    p: float  # one-sided, in the direction observed
    verdict: str  # of the first: "better", "worse", "not decided"
    runs_needed: tuple[int, int] | None  # of each side to decide at this difference; None: no number does
    common_step: int | None  # the last that all runs of both sides share
    loss_at_common_step: Interval | None
    steps_to_target: Interval | None  # from where the mean curves cross the target
    paired: PairedComparison | None  # None where the sides share no seed

    @property
    def more_seeds(self) -> tuple[int, int] | None:
        """How many more runs each side needs to decide at this difference."""
        if self.runs_needed is None:
            return None
        return self.runs_needed[0] - self.first.n, self.runs_needed[1] - self.second.n


def register(subparsers) -> None:
    """Add the subcommand `compare`."""
    parser = subparsers.add_parser(
        "compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sides", nargs="+", metavar="A B", help="a log, a folder of logs, or published:N")
    parser.add_argument("--json", action="store_true", help="a list with one object for each pair")
    told = "validation loss to reach (the track's)"
    parser.add_argument("--target", type=positive_number, metavar="L", help=told)
    parser.add_argument(
        "--slope", type=positive_number, metavar="L", help="loss per 100 steps that shortening a run costs"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print all pairs, and a table where there are more than two sides."""
    if len(args.sides) < 2:
        raise RecordError(f"expected at least two entries to compare, found {len(args.sides)}")
    sides = [read_side(path, args.target) for path in args.sides]
    pairs = [compare(a, b, args.slope and args.slope / 100) for a, b in combinations(sides, 2)]
    if args.json:
        print(json.dumps([as_json(pair) for pair in pairs], indent=1, allow_nan=False))
    else:
        print("\n\n".join("\n".join(as_text(pair)) for pair in pairs))
        if len(sides) > 2:
            print("\n" + "\n".join(matrix(sides, pairs)))
    return 0


def read_side(path: str | Path, target: float | None = None) -> Side:
    """A log or folder, or `published:N`. Raises RecordError for what cannot be compared."""
    if str(path).startswith("published:"):
        return published_side(str(path).removeprefix("published:"))
    entry = read_entry(path)
    return side(summarize(entry, target), entry_track(entry))


def side(summary: Summary, track: Track) -> Side:
    """An entry at its first significant step, else at its last common one. Raises RecordError without one."""
    at = summary.judged
    if at is None or not math.isfinite(at.mean):
        found = (
            "no run" if not summary.runs else "none common to all runs" if at is None else "a loss not finite"
        )
        raise RecordError(f"{summary.name}: expected a validation to compare at, found {found}")
    return Side(summary.name, at.step, at.mean, at.n, track, summary)


def published_side(number: str) -> Side:
    """A published result by its number. Raises RecordError for an unknown one."""
    results = json.loads(PUBLISHED.read_text())
    results = {str(result["number"]): result for result in results if result.get("kind") != "open"}
    if number not in results:
        raise RecordError(f"published:{number}: expected a number from 1 to {len(results)}")
    found = results[number]
    track = shipped_tracks()[DEFAULT]
    return Side(f"published:{number}", found["steps"], found["mean_val_loss"], found["runs"], track)


def compare(first: Side, second: Side, slope: float | None = None) -> Comparison:
    """The pairwise rule; `slope` in loss per step, by default the track's.

    Raises RecordError for sides of different tracks, or of different steps where the track states no slope.
    """
    if first.track != second.track:
        same = " with other values" if first.track.name == second.track.name else ""
        raise RecordError(
            f"{first.name} is of track {first.track.name}, {second.name} of {second.track.name}{same}: "
            "expected entries of one track, their losses cannot be compared"
        )
    if slope is None and first.step != second.step and not first.track.slope:
        raise RecordError(f"track {first.track.name} states no slope: expected one in its file, or --slope")
    slope = first.track.slope / 100 if slope is None else slope
    asked = threshold(first.track.sigma)
    left = left_hand_side(first, second, slope)
    z = left / first.track.sigma
    decided = abs(left) >= asked - ROUNDING
    return Comparison(
        first=first,
        second=second,
        loss_difference=second.mean - first.mean,
        step_difference=second.step - first.step,
        slope=slope,
        left_hand_side=left,
        rounded_left_hand_side=left_hand_side(first, second, slope, digits=4),
        threshold=asked,
        z=z,
        p=float(stats.norm.sf(abs(z))),
        verdict="not decided" if not decided else "better" if left > 0 else "worse",
        runs_needed=runs_needed(left * math.sqrt(1 / first.n + 1 / second.n), first.n, second.n, asked),
        **bootstrapped(first.summary, second.summary),
        paired=(
            compare_paired(first.summary, second.summary, first.track.name)
            if first.summary and second.summary
            else None
        ),
    )


def left_hand_side(first: Side, second: Side, slope: float, digits: int = 12) -> float:
    """Of the pairwise rule, from means rounded to so many digits; `slope` in loss per step."""
    loss = round(second.mean, digits) - round(first.mean, digits)
    return (loss + (second.step - first.step) * slope) / math.sqrt(1 / first.n + 1 / second.n)


def runs_needed(gain: float, n1: int, n2: int, asked: float) -> tuple[int, int] | None:
    """The fewest runs in all (each side keeps those it has) with |gain| / sqrt(1/n1 + 1/n2) >= asked.

    New runs go to the side that has fewer. None where the gain is zero: no number of runs decides that.
    """
    ratio = (gain / asked) ** 2  # 1/n1 + 1/n2 must not exceed it
    if ratio < 1e-12:
        return None
    if 1 / n1 + 1 / n2 <= ratio * (1 + ROUNDING):
        return n1, n2
    few, many = sorted((n1, n2))
    if 1 / many + 1 / many > ratio:  # even as many as the other side would not do: both grow
        few = many = math.ceil(2 / ratio * (1 - ROUNDING))
        if 1 / (few - 1 or 1) + 1 / many <= ratio and few - 1 >= max(n1, n2):
            few -= 1
    else:
        few = math.ceil(1 / (ratio - 1 / many) * (1 - ROUNDING))
    return (few, many) if n1 <= n2 else (many, few)


def bootstrapped(first: Summary | None, second: Summary | None) -> dict:
    """Differences in loss at the last common step and in steps to the target, second minus first.

    95% percentile intervals of 2000 bootstrap resamples over the runs of each side. A resampled mean curve
    that stays above the target is continued in a straight line, as steep as over its last tenth.
    """
    nothing = {"common_step": None, "loss_at_common_step": None, "steps_to_target": None}
    if first is None or second is None or not (steps := common_steps([*first.runs, *second.runs])):
        return nothing
    curves = [curves_of(summary.runs) for summary in (first, second)]
    if not all(np.isfinite(losses).all() for _, losses in curves):
        return nothing
    at = [own.index(steps[-1]) for own, _ in curves]

    def differences(*chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        means = [losses[runs].mean(axis=-2) for (_, losses), runs in zip(curves, chosen, strict=True)]
        loss = [mean[..., column] for mean, column in zip(means, at, strict=True)]
        cross = [crossings(own, mean, first.target) for (own, _), mean in zip(curves, means, strict=True)]
        return np.stack([loss[1] - loss[0], cross[1] - cross[0]])

    every = [np.arange(len(losses)) for _, losses in curves]
    estimate = differences(*every)
    low = high = (None, None)
    if min(map(len, every)) > 1:
        found = stats.bootstrap(
            every,
            differences,
            n_resamples=RESAMPLES,
            batch=200,
            vectorized=True,
            method="percentile",
            random_state=0,
        )
        low, high = found.confidence_interval
    reached = all(any(at.mean <= first.target for at in summary.steps) for summary in (first, second))
    intervals = [
        Interval(float(value), *(None if edge is None or math.isnan(edge) else float(edge) for edge in edges))
        for value, *edges in zip(estimate, low, high, strict=True)
    ]
    return {
        "common_step": steps[-1],
        "loss_at_common_step": intervals[0],
        "steps_to_target": intervals[1] if reached and np.isfinite(estimate[1]) else None,
    }


def as_json(pair: Comparison) -> dict:
    """Plain data of a comparison."""
    plain = {side: {key: getattr(getattr(pair, side), key) for key in ("name", "step", "mean", "n")}
             for side in ("first", "second")}  # fmt: skip
    keys = (
        "loss_difference", "step_difference", "slope", "left_hand_side", "rounded_left_hand_side",
        "threshold", "z", "p", "verdict", "runs_needed", "more_seeds", "common_step",
    )  # fmt: skip
    plain |= {key: getattr(pair, key) for key in keys}
    for key in ("loss_at_common_step", "steps_to_target"):
        plain[key] = getattr(pair, key) and asdict(getattr(pair, key))
    return finite(plain | {"paired": pair.paired and paired_as_json(pair.paired)})


def paired_as_json(paired: PairedComparison) -> dict:
    """n, mean, low, high, p of the loss difference at `step`; steps_saved by the first, with their own p."""
    steps = paired.steps
    return {
        "verdict": paired.verdict,
        "seeds": paired.seeds,
        "step": paired.step,
        **asdict(paired.loss),
        "correlation": paired.correlation,
        "steps_saved": steps and steps.mean,
        "steps_low": steps and steps.low,
        "steps_high": steps and steps.high,
        "steps_p": steps and steps.p,
        "steps_positive": steps and steps.positive,
        "steps_seeds_needed": steps and steps.seeds_needed,
        "doubts": paired.doubts,
    }


def as_text(pair: Comparison) -> Iterator[str]:
    """The lines of a comparison for a reader."""
    a, b = pair.first, pair.second
    yield f"{a.name} against {b.name}: {pair.verdict}"
    for one in (a, b):
        shown = one.summary is None or one.summary.first_significant_step is not None
        doubts = len(one.summary.warnings) if one.summary else 0
        yield (
            f"  {one.name}: mean val_loss {one.mean:.5f} at step {one.step}, n = {one.n}"
            + ("" if shown else " (its last common step: rule 2 is not shown)")
            + (f" (doubtful, see summarize: {count(doubts, 'warning')})" if doubts else "")
        )
    yield f"  {in_words(pair)}"
    yield (
        f"  (loss difference + step difference x {100 * pair.slope:.4g}/100) / sqrt(1/{a.n} + 1/{b.n}) = "
        f"{pair.left_hand_side:.5f}, decided from {pair.threshold:.5f} on; z {pair.z:.2f}, p {pair.p:.2g}"
    )
    if f"{pair.rounded_left_hand_side:.5f}" != f"{pair.left_hand_side:.5f}":
        yield f"  (from means rounded to 4 decimals, as published: {pair.rounded_left_hand_side:.5f})"
    if pair.verdict == "not decided":
        yield f"  {seeds_in_words(pair)}"
    if loss := pair.loss_at_common_step:
        yield f"  loss at common step {pair.common_step}: {_told(loss, '.5f')} more for {b.name}"
    if steps := pair.steps_to_target:
        yield f"  steps to the target (mean curves): {_told(steps, '.1f')} more for {b.name}"
    elif a.summary and b.summary:
        yield "  steps to the target: a mean curve does not come to it, or has too few validations"
    if pair.paired:
        yield from paired_as_text(pair.paired, b.name)


def paired_as_text(paired: PairedComparison, second: str) -> Iterator[str]:
    """The lines of a paired comparison for a reader."""
    common = f", correlation {paired.correlation:.2f}" if paired.correlation is not None else ""
    yield f"  paired, {count(paired.loss.n, 'shared seed')}{common}: {paired.verdict}"
    yield f"    loss at step {paired.step}: {test_in_words(paired.loss, '.5f')} more for {second}"
    if paired.steps:
        yield f"    steps to the target: {test_in_words(paired.steps, '.1f')} more for {second}"
    if paired.verdict == "not decided":
        needed = "no number" if paired.test.seeds_needed is None else paired.test.seeds_needed
        yield f"    shared seeds that would decide at this difference: {needed}"
    yield from (f"    doubt: {doubt}" for doubt in paired.doubts)


def test_in_words(test: TTest, places: str) -> str:
    """Such as: 12.9 (95% from 6.6 to 19.1, p 0.00074, above zero for 11 of 12)."""
    if test.low is None:
        return f"{test.mean:{places}} (one seed has no spread: no interval)"
    edges = f"95% from {test.low:{places}} to {test.high:{places}}"
    return f"{test.mean:{places}} ({edges}, p {test.p:.2g}, above zero for {test.positive} of {test.n})"


def in_words(pair: Comparison) -> str:
    """Such as: 11 takes 25 steps fewer at 0.00140 more loss, which is worth 31 steps."""
    a, b = pair.first.name, pair.second.name
    steps, loss = pair.step_difference, pair.loss_difference
    taken = f"{abs(steps)} steps {'fewer' if steps > 0 else 'more'} than" if steps else "as many steps as"
    if abs(loss) < 5e-6:
        return f"{a} takes {taken} {b}, at the same loss"
    worth = f", which is worth {abs(loss) / pair.slope:.0f} steps" if pair.slope > 0 else ""
    return f"{a} takes {taken} {b} at {abs(loss):.5f} {'less' if loss > 0 else 'more'} loss{worth}"


def seeds_in_words(pair: Comparison) -> str:
    """How many more seeds would decide."""
    if pair.more_seeds is None:
        return "no number of seeds decides: there is no difference"
    more = ", ".join(
        f"{extra} more of {one.name} ({one.n + extra} in all)"
        for one, extra in zip((pair.first, pair.second), pair.more_seeds, strict=True)
    )
    return f"seeds that would decide at this difference: {more}"


SIGNS = {"better": "+", "worse": "-", "not decided": "?"}
OPPOSITE = {"better": "worse", "worse": "better", "not decided": "not decided"}


def matrix(sides: Sequence[Side], pairs: Sequence[Comparison]) -> Iterator[str]:
    """The left-hand sides of row against column, and the signs of the pairwise and the paired verdict."""
    cells = {}
    for pair in pairs:
        verdicts = [pair.verdict, *([pair.paired.verdict] if pair.paired else [])]
        there = "".join(SIGNS[verdict] for verdict in verdicts)
        back = "".join(SIGNS[OPPOSITE[verdict]] for verdict in verdicts)
        cells[id(pair.first), id(pair.second)] = f"{pair.left_hand_side:.5f} {there}"
        cells[id(pair.second), id(pair.first)] = f"{-pair.left_hand_side:.5f} {back}"
    yield (
        "left-hand side of row against column: + better, - worse, ? not decided; where seeds are shared "
        "the second sign is the paired verdict"
    )
    rows = [
        [a.name, str(a.step), f"{a.mean:.5f}", str(a.n), *(cells.get((id(a), id(b)), "") for b in sides)]
        for a in sides
    ]
    yield from table(["", "step", "mean", "n", *(s.name for s in sides)], rows)


def _told(interval: Interval, places: str) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:{places}} (one run has no spread: no interval)"
    return f"{interval.estimate:{places}} (95% from {interval.low:{places}} to {interval.high:{places}})"
