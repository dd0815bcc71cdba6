"""Ranks of entries in groups that cannot be told apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ndtr

from records.judge.compare import left_hand_side, side
from records.judge.paired import TTest, compare_paired, t_test
from records.judge.statistics import Summary, steps_to_target
from records.judge.tracks import DEFAULT
from records.run.track import Track

FAMILY = 0.05  # chance that any pair is decided wrongly


@dataclass(frozen=True)
class Ranking:
    """Of the entries that show the target, by name: rank and steps to it. How many pairs are decided."""

    ranks: dict[str, int]
    steps: dict[str, TTest]
    pairs: int
    decided: int


def rank(entries: Sequence[Summary], track: Track) -> Ranking:
    """One more than the number of entries ahead: shown to be, or ahead of one that is shown to be. But no
    better than the rank of an entry with fewer steps, else few runs would show little and rank well.

    Of two entries of one rank neither is shown to be ahead. Each pair is tested (`pair_test`), with Holm's
    correction: with probability 1 - FAMILY no pair is decided wrongly.
    """
    shown = [e for e in entries if e.first_significant_step is not None]
    pairs = list(combinations(shown, 2))
    tests = [pair_test(a, b, track) for a, b in pairs]
    decided = holm([p for p, _ in tests], FAMILY)
    ahead: dict[str, set[str]] = {e.name: set() for e in shown}
    for (a, b), (_, difference), known in zip(pairs, tests, decided, strict=True):
        if known:
            better, worse = (a, b) if difference > 0 else (b, a)
            ahead[worse.name].add(better.name)
    for between in ahead:  # Warshall: ahead of one that is ahead
        for name in ahead:
            if between in ahead[name]:
                ahead[name] |= ahead[between]
    curves = {e.name: steps_to_target(e.runs, track.target) for e in shown}
    steps = {name: t_test(found) for name, found in curves.items() if found is not None}
    return Ranking(
        ranks=ranks_in_order({name: better - {name} for name, better in ahead.items()}, steps),
        steps=steps,
        pairs=len(pairs),
        decided=sum(decided),
    )


def ranks_in_order(ahead: dict[str, set[str]], steps: dict[str, TTest]) -> dict[str, int]:
    """Ranks that rise with the steps and above the rank of whatever is `ahead`, which is transitive."""
    mean = {name: steps[name].mean if name in steps else np.inf for name in ahead}
    late = {name: max(mean[other] for other in {name} | better) for name, better in ahead.items()}
    ranks: dict[str, int] = {}
    for name in sorted(ahead, key=lambda name: (late[name], len(ahead[name]))):
        below = [ranks[better] + 1 for better in ahead[name] if better in ranks]
        ranks[name] = max(1 + len(ahead[name]), *below, max(ranks.values(), default=1))
    return ranks


def pair_test(first: Summary, second: Summary, track: Track) -> tuple[float, float]:
    """Two-sided p, and a difference that is positive where the first is better.

    By seed where seeds are shared; else, and on FineWeb, by the pairwise rule; undecided without a slope.
    """
    paired = compare_paired(first, second, track.name) if track.name != DEFAULT else None
    if paired and paired.test.p is not None:
        return paired.test.p, paired.test.mean
    if not track.slope:
        return 1.0, 0.0
    left = left_hand_side(side(first, track), side(second, track), track.slope / 100)
    return float(2 * ndtr(-abs(left) / track.sigma)), left


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of several tests are decided so that with probability 1 - `alpha` none is decided wrongly.

    Holm's step-down: the k-th smallest of m p-values must not exceed alpha / (m - k + 1), nor any before it.
    """
    order = np.argsort(p_values, kind="stable")
    allowed = alpha / np.arange(len(order), 0, -1)
    within = np.logical_and.accumulate(np.asarray(p_values, dtype=float)[order] <= allowed)
    decided = np.zeros(len(order), dtype=bool)
    decided[order] = within
    return decided.tolist()
