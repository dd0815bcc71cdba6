"""Statistics over the runs of an entry: rule 2 of the benchmark, crossings, what an entry shows.

Rule 2: n runs show a mean validation loss at or below the target at a step common to all of them where
`(target - mean) * sqrt(n) >= 0.004`. On another track the 0.004 scales with its sigma, the run-to-run
standard deviation of the validation loss (0.0013 on FineWeb, so 0.004 is p < 0.001 of a one-sided z-test).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import numpy as np
from scipy.special import ndtr

from records.judge.logs import Entry, Run
from records.judge.warnings import conditions, entry_warnings

THRESHOLD = 0.004  # of rule 2 and of the pairwise rule, at SIGMA
SIGMA = 0.0013
ROUNDING = 1e-9  # losses are decimal numbers: 3.28 - 3.278 must count as 0.002
GAP = 0.5  # of the steps to the target: a run validated at its ends says nothing of them


def threshold(sigma: float = SIGMA) -> float:
    """What rule 2 and the pairwise rule ask for, in loss times sqrt(runs)."""
    return THRESHOLD * sigma / SIGMA


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """The validation losses of all runs at one step. `std` has n - 1 in the denominator, nan for one run.

    statistic = (target - mean) sqrt(n); z = statistic / sigma; p = P(Z >= z), one-sided.
    """

    step: int
    n: int
    mean: float
    std: float
    min: float
    max: float
    statistic: float
    z: float
    p: float
    significant: bool


def step_statistics(
    step: int, losses: Sequence[float], target: float, sigma: float = SIGMA
) -> StepStatistics:
    """Rule 2 at one step for the losses of n >= 1 runs. A loss that is not finite is never significant."""
    n = len(losses)
    if not all(map(math.isfinite, losses)):
        nan = math.nan
        return StepStatistics(step, n, nan, nan, nan, nan, nan, nan, nan, significant=False)
    mean = fmean(losses)
    statistic = (target - mean) * math.sqrt(n)
    z = statistic / sigma
    return StepStatistics(
        step, n, mean, stdev(losses) if n > 1 else math.nan, min(losses), max(losses),
        statistic, z, float(ndtr(-z)), statistic >= threshold(sigma) - ROUNDING,
    )  # fmt: skip


@dataclass(frozen=True)
class Crossing:
    """A run first at or below the target: at a validation, and on the line to it from the one before."""

    step: int
    interpolated: float


def first_crossing(run: Run, target: float) -> Crossing | None:
    """The first validation at or below the target, or None. A run that starts there crosses at its first."""
    before = None
    for validation in run.validations:
        if validation.val_loss <= target:
            step = float(validation.step)
            if before is not None and math.isfinite(before.val_loss) and math.isfinite(validation.val_loss):
                part = (before.val_loss - target) / (before.val_loss - validation.val_loss)
                step = before.step + part * (validation.step - before.step)
            return Crossing(validation.step, step)
        before = validation
    return None


def common_steps(runs: Sequence[Run]) -> list[int]:
    """The steps at which every run was validated, in order."""
    if not runs:
        return []
    return sorted(set.intersection(*(set(run.curve) for run in runs)))


def crossings(steps: Sequence[int], curves: np.ndarray, target: float) -> np.ndarray:
    """Where curves [..., steps] first come to the target, interpolated [...].

    A curve that stays above is continued in a straight line, as steep as over its last tenth; nan where that
    does not fall, and where a curve comes to the target between two steps further apart than GAP of the way.
    """
    x = np.asarray(steps, dtype=float)
    below = curves <= target
    i = np.where(below.any(-1), below.argmax(-1), len(x) - 1)
    late = int(np.argmax(x >= 0.9 * x[-1]))
    j = np.where(below.any(-1), np.maximum(i - 1, 0), min(late, max(len(x) - 2, 0)))
    here, before = (np.take_along_axis(curves, k[..., None], -1)[..., 0] for k in (i, j))
    fall = before - here
    with np.errstate(divide="ignore", invalid="ignore"):
        line = x[i] + (here - target) * (x[i] - x[j]) / fall
    told = (fall > 0) & ~(below.any(-1) & (x[i] - x[j] > GAP * x[i]))
    return np.where((i == 0) & below.any(-1), x[0], np.where(told, line, np.nan))


def curves_of(runs: Sequence[Run]) -> tuple[list[int], np.ndarray]:
    """The steps common to all runs, and their losses [runs, steps]."""
    steps = common_steps(runs)
    curves = [run.curve for run in runs]
    return steps, np.array([[curve[step] for step in steps] for curve in curves])


def steps_to_target(runs: Sequence[Run], target: float) -> np.ndarray | None:
    """Steps to the target of each run, interpolated or continued [runs].

    None where the mean curve does not come to it, where a loss is not finite, where a run does not fall, or
    was validated too seldom to tell (see crossings).
    """
    steps, curves = curves_of(runs)
    if not steps or not np.isfinite(curves).all() or curves.mean(axis=0).min() > target:
        return None
    found = crossings(steps, curves, target)
    return found if np.isfinite(found).all() else None


def ms_per_step(runs: Sequence[Run]) -> float | None:
    """Median training time of a step in milliseconds, over all intervals between validations of all runs.

    The median leaves out the first interval's compilation; None where no two times were printed.
    """
    intervals = [
        1000 * (after.train_time - before.train_time) / (after.step - before.step)
        for run in runs
        for before, after in zip(run.validations, run.validations[1:], strict=False)
        if before.train_time is not None and after.train_time is not None
    ]
    return median(intervals) if intervals else None


@dataclass(frozen=True)
class Summary:
    """What an entry shows. `judged` is the first significant step, else the last common one, else None."""

    name: str
    target: float
    sigma: float
    runs: tuple[Run, ...]
    steps: tuple[StepStatistics, ...]  # at each step common to all runs
    crossings: tuple[Crossing | None, ...]  # of each run
    first_crossing_step: float | None  # mean of the interpolated crossings; None unless every run crosses
    first_significant_step: int | None
    judged: StepStatistics | None
    ms_per_step: float | None
    warnings: tuple[str, ...]
    conditions: dict[str, tuple[str, ...]]  # under which it ran, as its logs state them

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def mean_val_loss(self) -> float | None:
        return self.judged.mean if self.judged else None

    @property
    def statistic(self) -> float | None:
        return self.judged.statistic if self.judged else None

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(run.seed for run in self.runs)


def summarize_entry(entry: Entry, target: float, sigma: float = SIGMA) -> Summary:
    """Judge an entry by rule 2. An entry without runs gives a Summary with n = 0."""
    runs = entry.runs
    curves = [run.curve for run in runs]
    steps = tuple(
        step_statistics(step, [curve[step] for curve in curves], target, sigma) for step in common_steps(runs)
    )
    crossed = tuple(first_crossing(run, target) for run in runs)
    reached = [crossing.interpolated for crossing in crossed if crossing]
    first = next((at for at in steps if at.significant), None)
    return Summary(
        name=entry.name,
        target=target,
        sigma=sigma,
        runs=runs,
        steps=steps,
        crossings=crossed,
        first_crossing_step=fmean(reached) if runs and len(reached) == len(runs) else None,
        first_significant_step=first.step if first else None,
        judged=first or (steps[-1] if steps else None),
        ms_per_step=ms_per_step(runs),
        warnings=entry_warnings(entry),
        conditions=conditions(entry),
    )
