"""python -m records.judge.paired_simulation: how often each rule decides, for differences that are known.

Two methods are run on n seeds. The second takes `effect` steps more: its curve lies `effect` times the fall
of a step higher. A run has noise of the seed, the same for both methods, and noise of its own; runs also
fall more or less steeply. The figures are nano's. Prints records/studies/paired/README.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from records.judge.logs import read_entry
from records.judge.paired import ALPHA, FIRST_LOOK, decides, p_value, sequential_level
from records.judge.statistics import crossings, steps_to_target, threshold
from records.run.track import RECORDS, shipped_tracks

SIMULATIONS = 2000  # a row
NOISE = 0.0096  # standard deviation of one entry's loss over seeds, nano
FALL = 0.0006  # of the loss in a step where it meets the target
STEEPNESS = 0.1  # relative standard deviation of a run's fall
STEPS = np.arange(300, 451, 5)
MEETS = 400  # step at which the mean curve of the first method meets the target
TRACK = shipped_tracks()["nano"]


@dataclass(frozen=True)
class Case:
    """A row: so many seeds, this correlation of two methods over seeds, this many steps between them."""

    seeds: int
    correlation: float
    effect: int


def draw(case: Case, chance: np.random.Generator) -> np.ndarray:
    """Losses of both methods [2, seeds, steps]."""
    common = chance.standard_normal((1, case.seeds, 1)) * np.sqrt(case.correlation)
    own = chance.standard_normal((2, case.seeds, 1)) * np.sqrt(1 - case.correlation)
    fall = FALL * (1 + STEEPNESS * chance.standard_normal((2, case.seeds, 1)))
    later = np.array([0, case.effect]).reshape(2, 1, 1)
    return TRACK.target + fall * (MEETS - STEPS) + FALL * later + NOISE * (common + own)


def decisions(losses: np.ndarray) -> dict[str, float]:
    """Which rules decide (1 or 0), and after how many seeds the sequential comparison stops."""
    first, second = losses[..., STEPS == MEETS][..., 0]
    a, b = crossings(list(STEPS), losses, TRACK.target)
    n, by_loss, by_steps = len(first), second - first, b - a
    left = by_loss.mean() / np.sqrt(2 / n)
    looks = [k for k in range(FIRST_LOOK, n + 1) if decides(by_loss[:k], n)]
    return {
        "pairwise rule": abs(left) >= threshold(TRACK.sigma),
        "Welch": stats.ttest_ind(first, second, equal_var=False).pvalue < ALPHA,
        "paired, loss": p_value(by_loss.mean(), by_loss.std(ddof=1), n) < ALPHA,
        "paired, steps": p_value(by_steps.mean(), by_steps.std(ddof=1), n) < ALPHA,
        "sequential": bool(looks),
        "seeds used": min(looks, default=n),
    }


def rows(simulations: int = SIMULATIONS) -> Iterator[tuple[Case, dict[str, float]]]:
    """Each case with the means of its simulations."""
    chance = np.random.default_rng(0)
    for seeds in (6, 12):
        for correlation in (0.5, 0.0):
            for effect in (0, 5, 10, 15, 20, 30):
                case = Case(seeds, correlation, effect)
                found = [decisions(draw(case, chance)) for _ in range(simulations)]
                yield case, {rule: float(np.mean([one[rule] for one in found])) for rule in found[0]}


def wrong_with_real_noise(draws: int = 200) -> float:
    """How often the paired test of steps tells equals apart, with the noise of nano's entries.

    The differences by seed of every pair of entries, less their mean, with signs at random.
    """
    chance = np.random.default_rng(0)
    folders = sorted(path.parent for path in RECORDS.glob("nano/*/recipe.toml"))
    entries = [
        {run.seed: run for run in read_entry(folder).runs if run.seed is not None} for folder in folders
    ]
    wrong = []
    for first, second in combinations(entries, 2):
        seeds = sorted(first.keys() & second.keys())
        a, b = (steps_to_target([side[seed] for seed in seeds], TRACK.target) for side in (first, second))
        if a is None or b is None:
            continue
        signs = chance.choice((-1, 1), size=(draws, len(seeds)))
        tests = signs * (b - a - (b - a).mean())
        scatter = zip(tests.mean(1), tests.std(1, ddof=1), strict=True)
        wrong += [p_value(mean, std, len(seeds)) < ALPHA for mean, std in scatter]
    return float(np.mean(wrong))


HEAD = f"""# What the paired comparison decides

How many of {SIMULATIONS} simulated comparisons each rule decides. Two methods are run on the same
seeds; one takes so many steps more. The noise is nano's: {NOISE} of the loss over seeds, which falls by
{FALL} a step. Correlation .5 is that of two methods over nano's seeds; 0 is a pairing that is not real.

- pairwise rule: the benchmark's, with the track's sigma, {TRACK.sigma}
- Welch: the t-test without pairing, p < {ALPHA}
- paired: the t-test of differences by seed, of the loss at step {MEETS} or of the steps to the target,
  p < {ALPHA}
- sequential: as `./run.sh tune --paired` stops, looking after each seed from the third on
"""


def main() -> None:
    """Print the page."""
    print(HEAD)
    equals = []
    for i, (case, means) in enumerate(rows()):
        equals += [means] if case.effect == 0 else []
        told = [f"{mean:.1f}" if rule == "seeds used" else f"{mean:.2%}" for rule, mean in means.items()]
        if i == 0:
            print("| seeds | correlation | steps apart |", " | ".join(means), "|")
            print("|" + " ---: |" * (3 + len(means)))
        print(f"| {case.seeds} | {case.correlation:g} | {case.effect} |", " | ".join(told), "|", flush=True)
    wrong = {rule: np.mean([means[rule] for means in equals]) for rule in equals[0] if rule != "seeds used"}
    told = [f"{rule} {rate:.2%}" for rule, rate in wrong.items()]
    margin = 1.96 * (ALPHA * (1 - ALPHA) / SIMULATIONS) ** 0.5
    levels = ", ".join(f"{sequential_level(n):.5f} for {n}" for n in (6, 12, 24))
    print(
        f"\nWrongly decided, of all {len(equals) * SIMULATIONS} simulations without a difference: "
        f"{', '.join(told)}. In one row a rule that is wrong in {ALPHA:.0%} shows {ALPHA - margin:.2%} to "
        f"{ALPHA + margin:.2%} (95%). With the noise of nano's entries (differences by seed of every pair, "
        "less their mean, with signs at random) the paired test of the steps is wrong in "
        f"{wrong_with_real_noise():.2%}.\n\nA look of the sequential comparison decides below p = {levels} "
        "planned seeds.\n\nMade by `python -m records.judge.paired_simulation`; do not edit."
    )


if __name__ == "__main__":
    main()
