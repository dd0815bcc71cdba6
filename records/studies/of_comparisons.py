"""Studies that compare whole trainings on common seeds: polar factors more and less exact, wider MLPs."""

import os
from collections.abc import Mapping
from statistics import fmean

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from records import RecordError
from records.judge.paired import TTest, t_test
from records.publish.pictures import COLOURS, Picture
from records.run.track import read_track
from records.studies.differences import in_rows, intervals, last_losses
from records.studies.of_trainings import FOLDER, Run, made, runs_there, series
from records.studies.page import Findings, Study, Table
from records.trial import ROOT

# --------------------------------------------------------------------------------------------------
# polar_error

EXACT = "svd"
POLAR = {
    "simple-3": ("simple", 3), "simple-6": ("simple", 6), "simple-12": ("simple", 12),
    "quintic-3": ("quintic", 3), "quintic-5": ("quintic", 5), "polar_express-3": ("polar_express", 3),
    "polar_express-8": ("polar_express", 8), "cans-8": ("cans", 8), EXACT: ("svd", None),
}  # fmt: skip
POLAR_SEEDS = "0-2"


def polar_run(name: str) -> Run:
    """Muon's entry at 450 steps with another polar factor; instruments measure how far from exact it is."""
    method, steps = POLAR[name]
    changes = [f'matrix.polar="{method}"', *([f"matrix.polar_steps={steps}"] if steps else [])]
    options = ["--recipe", "records/nano/muon.toml", "--steps", "450", "--seeds", POLAR_SEEDS]
    changed = [word for change in changes for word in ("--set", change)]
    return Run(name, [*options, *changed, "--validate-ends", "--instruments", "75"])


def polar_error(train: bool) -> Findings:
    """Muon's last loss against the root-mean-square polar error of its updates."""
    found = runs_there("polar_error", [polar_run(name) for name in POLAR], train)
    losses = {name: last_losses(FOLDER / "polar_error" / name) for name in found}
    of_step = {name: dict(zip(*series(run, "polar_error_rms"), strict=True)) for name, run in found.items()}
    # Not of step 0, where the head is zero, and so is every gradient.
    errors = {name: fmean(e for step, e in of_run.items() if step) for name, of_run in of_step.items()}
    tests = {
        name: t_test([of_name[seed] - losses[EXACT][seed] for seed in of_name.keys() & losses[EXACT].keys()])
        for name, of_name in losses.items()
        if name != EXACT and EXACT in losses
    }
    means = {name: fmean(of_name.values()) for name, of_name in losses.items()}
    rank = float(spearmanr([errors[name] for name in found], [means[name] for name in found])[0])
    worse = [name for name, test in sorted(tests.items()) if test.decided and test.mean > 0]
    better = [name for name, test in sorted(tests.items()) if test.decided and test.mean < 0]
    verdict = (
        f"Over {len(found)} polar factors the rank correlation of Muon's error with its loss is {rank:.2f}. "
        f"Against the exact factor, at p below .01, higher: {', '.join(worse) or 'none'}; lower: "
        f"{', '.join(better) or 'none'}. The learning rate was not searched again."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, name in enumerate(sorted(found, key=errors.__getitem__)):
            axes.plot([errors[name]] * len(losses[name]), list(losses[name].values()), "o", color=COLOURS[0],
                      alpha=0.4, markersize=3)  # fmt: skip
            axes.plot(errors[name], means[name], "o", color=COLOURS[0], markersize=6)
            apart = (4, -11, 13)[place % 3]  # the closest factors lie side by side
            axes.annotate(name, (errors[name], means[name]), xytext=(5, apart), textcoords="offset points",
                          fontsize=8)  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("RMS distance of the update's singular values from 1, mean over steps and matrices")
        axes.set_ylabel("last validation loss")

    rows = [
        [name, errors[name], means[name], *(in_rows({name: tests[name]}, None)[0][1:6] if name in tests
         else [len(losses[name]), *[None] * 4])]
        for name in sorted(found, key=errors.__getitem__)
    ]  # fmt: skip
    header = ["polar factor", "RMS error", "last val_loss", "seeds", f"more loss than {EXACT}", "95% from",
              "to", "p"]  # fmt: skip
    numbers = {name: {"error": errors[name], "losses": losses[name]} for name in found}
    return Findings(
        verdict, f"seeds {POLAR_SEEDS}, errors of the first", [Table("Error and loss", header, rows)],
        {"loss.svg": Picture(numbers, draw, 6.5, 4.2)}, numbers,
        ", ".join(name for name in POLAR if name not in found),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# expansion

RATIOS = (1, 2, 4, 8, 16)
METHODS = ("muon", "aurora")
LR, FACTOR, MOST = 0.0287, 1.6, 6  # the search's middle, its grid, its trials at most
SEARCH_SEED, SEEDS = "1000", "0-5"


def expansion_run(method: str, ratio: int, lr: float, seeds: str) -> Run:
    """A method's entry at 450 steps, its MLPs `ratio` times as wide as the model."""
    track = os.path.relpath(FOLDER / "expansion" / f"mlp{ratio}.toml", ROOT)
    name = f"{method}-{ratio}x" + (f"-lr{lr:.3g}" if seeds == SEARCH_SEED else "")
    return Run(name, ["--track", track, "--recipe", f"records/nano/{method}.toml", "--steps", "450",
                      "--set", f"matrix.lr={lr:.3g}", "--seeds", seeds, "--validate-ends"])  # fmt: skip


def searched(method: str, ratio: int, train: bool) -> dict[float, float]:
    """The losses by learning rate: three, and further ones as long as the best is at an end."""
    losses: dict[float, float] = {}
    rates = [LR / FACTOR, LR, LR * FACTOR]
    while rates and len(losses) < MOST:
        for lr in rates:
            run = expansion_run(method, ratio, lr, SEARCH_SEED)
            if not made("expansion", run, train):
                return {}
            losses[lr] = fmean(last_losses(FOLDER / "expansion" / run.name).values())
        best = min(losses, key=losses.__getitem__)
        rates = [best / FACTOR] if best == min(losses) else [best * FACTOR] if best == max(losses) else []
    return losses


def gains(ratio: int, train: bool) -> tuple[dict[str, float], dict[int, float]]:
    """Of an expansion, each method's learning rate, and by seed Muon's loss less Aurora's; empty without."""
    rates, losses = {}, {}
    for method in METHODS:
        search = searched(method, ratio, train)
        if not search:
            return {}, {}
        rates[method] = min(search, key=search.__getitem__)
        run = expansion_run(method, ratio, rates[method], SEEDS)
        if not made("expansion", run, train):
            return {}, {}
        losses[method] = last_losses(FOLDER / "expansion" / run.name)
    muon, aurora = (losses[method] for method in METHODS)
    return rates, {seed: muon[seed] - aurora[seed] for seed in sorted(muon.keys() & aurora.keys())}


def growth(by_ratio: Mapping[int, Mapping[int, float]]) -> TTest:
    """The test of how much the gain grows by doubling: each seed's slope over the expansions in order."""
    common = sorted(set.intersection(*(set(of_ratio) for of_ratio in by_ratio.values())))
    places = range(len(by_ratio))
    centred = [place - fmean(places) for place in places]
    weight = sum(place**2 for place in centred)
    return t_test([
        sum(place * of_ratio[seed] for place, of_ratio in zip(centred, by_ratio.values(), strict=True))
        / weight for seed in common
    ])  # fmt: skip


def expansion(train: bool) -> Findings:
    """Aurora's gain over Muon by the expansion of the MLP."""
    found = {ratio: gains(ratio, train) for ratio in RATIOS}
    there = {ratio: by_seed for ratio, (_, by_seed) in found.items() if by_seed}
    if not there:
        raise RecordError(f"expected runs in {FOLDER / 'expansion'}, found none; --train makes them")
    tests = {f"{ratio} times": t_test(list(by_seed.values())) for ratio, by_seed in there.items()}
    told = ", ".join(f"{name} {test.mean:.4f}" for name, test in tests.items())
    verdict = f"Muon's loss less Aurora's, each at its best learning rate: {told}."
    if len(there) == len(RATIOS):
        slope = growth(there)
        shows = "shows" if slope.decided and slope.mean > 0 else "does not show"
        verdict += f" By a doubling it grows by {slope.mean:.4f} (p {slope.p:.2g}): the claim {shows}."
    rows = [
        [*row, *found[ratio][0].values()]
        for ratio, row in zip(there, in_rows(tests, read_track("nano").slope), strict=True)
    ]
    header = ["expansion", "seeds", "gain in loss", "95% from", "to", "p", "in steps of Muon at 4 times",
              *(f"lr of {method}" for method in METHODS)]  # fmt: skip
    numbers = {ratio: {"lr": rates, "gain": by_seed} for ratio, (rates, by_seed) in found.items() if by_seed}
    return Findings(
        verdict, f"learning rates searched on seed {SEARCH_SEED}, then seeds {SEEDS}",
        [Table("Aurora's gain over Muon", header, rows)],
        {"gain.svg": Picture(numbers, intervals(tests, "Muon's last loss less Aurora's"), 6.5, 3.2)}, numbers,
        ", ".join(f"{ratio} times" for ratio in RATIOS if ratio not in there),
    )  # fmt: skip


STUDIES = (
    Study(
        "polar_error", "closer polar factors do not by themselves train better", "Aurora fig. 2",
        polar_error, "--train",
    ),
    Study(
        "expansion", "Aurora's gain over Muon grows with the expansion of the MLP", "Aurora fig. 11",
        expansion, "--train",
    ),
)  # fmt: skip
