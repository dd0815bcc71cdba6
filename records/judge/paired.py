"""Paired comparison: two entries on the seeds they share, and the sequential test of a candidate.

A run is initialised by its seed, so two methods on one seed have part of their luck in common; in the
differences by seed it cancels. Both tests here are Student's, two-sided, on n such differences. They hold
whether or not the seeds have anything in common: where they have not, they only lose their advantage.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import stdtr, stdtrit

from records.judge.statistics import ROUNDING, Summary, common_steps, steps_to_target
from records.judge.tracks import DEFAULT

ALPHA = 0.01  # p below it decides
FIRST_LOOK = 3  # seeds before a sequential comparison is looked at
SEQUENCES = 200_000  # simulated for the level of its looks


@dataclass(frozen=True)
class TTest:
    """Student's t-test of n values against zero, two-sided. One value has no interval and no p.

    `seeds_needed`: the fewest values with p < ALPHA at this mean and scatter; None where no number is.
    """

    n: int
    mean: float
    low: float | None  # 95%
    high: float | None
    p: float | None
    positive: int  # values above zero
    seeds_needed: int | None

    @property
    def decided(self) -> bool:
        return self.p is not None and self.p < ALPHA


@dataclass(frozen=True)
class PairedComparison:
    """Two entries on shared seeds. Differences are second minus first: positive speaks for the first.

    `steps` is None where a mean curve does not come to the target; `correlation`, of the two sides' losses
    over three seeds or more, where a side's do not differ. `doubts`: why the pairing may not be real.
    """

    seeds: tuple[int, ...]
    step: int  # the last that all these runs share
    loss: TTest  # validation loss at that step
    steps: TTest | None  # to the target, interpolated in each run
    correlation: float | None
    doubts: tuple[str, ...]

    @property
    def test(self) -> TTest:
        """What decides: steps to the target, which a track counts; else the loss."""
        return self.steps or self.loss

    @property
    def verdict(self) -> str:
        """Of the first: "better", "worse" or "not decided"."""
        if not self.test.decided:
            return "not decided"
        return "better" if self.test.mean > 0 else "worse"


def t_test(values: Sequence[float] | np.ndarray) -> TTest:
    """The t-test of n >= 1 finite values. Where all are alike p is 0, or 1 if they are zero."""
    values = np.asarray(values, dtype=float)
    n, mean, positive = len(values), float(values.mean()), int((values > 0).sum())
    if n == 1:
        return TTest(n, mean, None, None, None, positive, None)
    std = float(values.std(ddof=1))
    margin = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    p, needed = p_value(mean, std, n), seeds_needed(mean, std)
    return TTest(n, mean, mean - margin, mean + margin, p, positive, needed)


def p_value(mean: float, std: float, n: int) -> float:
    """Two-sided p of n differences of this mean and standard deviation."""
    if std < ROUNDING:
        return 0.0 if abs(mean) > ROUNDING else 1.0
    return float(2 * stdtr(n - 1, -abs(mean) / std * math.sqrt(n)))


def seeds_needed(mean: float, std: float, most: int = 1_000_000) -> int | None:
    """The fewest seeds at which this mean and standard deviation have p < ALPHA; None where over `most`."""
    if p_value(mean, std, most) >= ALPHA:
        return None
    few, enough = 1, most  # p falls with n: halve what lies between
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if p_value(mean, std, middle) < ALPHA else (middle, enough)
    return enough


def compare_paired(first: Summary, second: Summary, track: str) -> PairedComparison | None:
    """The entries on the seeds that each ran exactly once.

    None without such a seed, without a step after 0 common to its runs, or where a loss is not finite.
    """
    seeds = [seed for seed in seeds_run_once(first) if seed in seeds_run_once(second)]
    sides = [[run for seed in seeds for run in side.runs if run.seed == seed] for side in (first, second)]
    step = max(common_steps([*sides[0], *sides[1]]), default=0)
    if step == 0 or not all(
        math.isfinite(loss) for runs in sides for run in runs for loss in run.curve.values()
    ):
        return None
    losses = np.array([[run.curve[step] for run in runs] for runs in sides])
    a, b = (steps_to_target(runs, first.target) for runs in sides)
    vary = len(seeds) > 2 and losses.std(axis=1).min() > ROUNDING
    return PairedComparison(
        seeds=tuple(seeds),
        step=step,
        loss=t_test(losses[1] - losses[0]),
        steps=None if a is None or b is None else t_test(b - a),
        correlation=float(np.corrcoef(losses)[0, 1]) if vary else None,
        doubts=tuple(doubts(first, second, track)),
    )


def seeds_run_once(summary: Summary) -> list[int]:
    """The seeds of an entry in order; not those run twice: which run counts is not known."""
    return sorted(seed for seed, n in Counter(summary.seeds).items() if seed is not None and n == 1)


def doubts(first: Summary, second: Summary, track: str) -> list[str]:
    """Why the pairing of two entries may not be real or not fair, a sentence each."""
    found = []
    if track == DEFAULT:
        found.append(
            f"how much of the noise a seed explains on {track} is not known: the pairwise rule decides there"
        )
    for what, here in first.conditions.items():
        there = second.conditions.get(what)
        if there and here != there:
            found.append(
                f"{what} differs, {' or '.join(here)} against {' or '.join(there)}: "
                "the seeds may have less in common, then the pairing gains less"
            )
    planned = [sorted({run.total_steps for run in side.runs}) for side in (first, second)]
    if planned[0] != planned[1]:
        told = " against ".join(" or ".join(map(str, steps)) for steps in planned)
        found.append(
            f"planned for {told} steps: at a common step one has cooled down further, so the loss there is "
            "no fair comparison"
        )
    return found


@cache
def sequential_level(seeds: int, alpha: float = ALPHA) -> float:
    """The p below which a look decides, where one looks after each seed from FIRST_LOOK to `seeds`.

    Of two equals a comparison then decides with probability `alpha`, at any of its looks. Simulated with
    SEQUENCES sequences of normal differences; the number of seeds must be fixed beforehand.
    """
    draws = np.random.default_rng(0).standard_normal((SEQUENCES, seeds))
    n = np.arange(1, seeds + 1)
    mean = draws.cumsum(axis=1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = np.sqrt(((draws**2).cumsum(axis=1) - n * mean**2) / (n - 1))
        p = 2 * stdtr(n - 1, -np.abs(mean) / deviation * np.sqrt(n))
    return float(np.quantile(p[:, FIRST_LOOK - 1 :].min(axis=1), alpha))


def decides(differences: Sequence[float] | np.ndarray, planned: int) -> bool:
    """Whether a comparison of `planned` seeds stops at these first ones, decided."""
    values, n = np.asarray(differences, dtype=float), len(differences)
    level = sequential_level(planned)
    return n >= FIRST_LOOK and p_value(float(values.mean()), float(values.std(ddof=1)), n) < level
