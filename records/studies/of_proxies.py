"""Which small training orders the methods as the large one does. All candidates are tried on every other
method of the half that chooses, the two best and nano on all of it, the best and nano on the other half.

Every method has its nano entry's values, and all that it does at a step stretched to the candidate's length.
"""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import kendalltau
from scipy.stats import t as student

from records import RecordError
from records.judge.compare import RESAMPLES, Interval, compare, published_side
from records.publish.pictures import COLOURS, Picture
from records.run.files import write_whole
from records.run.recipe import toml_lines
from records.run.recipe_files import read_table
from records.run.stretch import stretched
from records.run.track import RECORDS, read_track
from records.studies.differences import last_losses
from records.studies.page import FOLDER, Findings, Study, Table
from records.trial import ROOT

HOME, RUNS = FOLDER / "proxies", ROOT / "logs" / "proxies"


@dataclass(frozen=True)
class Candidate:
    """A smaller training: its track, its steps."""

    told: str
    track: str
    steps: int


CANDIDATES = {
    "nano": Candidate("the track as it is", "nano", 450),
    "micro": Candidate("1,500 steps", "nano", 1500),
    "batch": Candidate("8,192 tokens a step", "records/studies/proxies/batch4x.toml", 450),
    "width": Candidate("width 128", "records/studies/proxies/width128.toml", 450),
    "warm": Candidate("from step 90 of Muon's run on", "warm", 450),
    "late": Candidate("from step 450 of it on", "records/studies/proxies/late.toml", 450),
}
# Entry -> its published result; by published steps, and taken in turn into the half that chooses and the half
# that judges.
METHODS = {
    "row_floor": 46, "aurora_ema_nesterov": 40, "aurora_proj": 30, "muown_contra": 31, "klsoaph_power": 25,
    "muown": 23, "sinksoap": 26, "soap_muon": 16, "klsoaph": 19, "soaph": 27, "ema_nesterov": 39,
    "aurora_contra_floor": 17, "contra_split": 24, "dynmuon": 28, "muloco": 13, "contra_muon": 11,
    "pmuon": 18, "normuonh_cooling": 8, "normuon_floor": 9, "normuon_record": 10, "newton_muon": 15,
    "muonh": 5, "muonsq": 7, "muon": 12, "psgd_kron": 33, "shampoo_pseudo_inverse": 35, "shampoo": 21,
    "adamh": 4, "adamw": 2, "muon_no_momentum": 22,
}  # fmt: skip
CHOOSE, JUDGE = list(METHODS)[::2], list(METHODS)[1::2]
CHOOSING_SEEDS, JUDGING_SEEDS = (0,), (0, 1)

Losses = Mapping[str, Mapping[int, float]]  # method -> seed -> last validation loss


def command(name: str, method: str, seeds: Sequence[int]) -> list[str]:
    """The run of a method under a candidate; its recipe is written to where the log comes."""
    one, folder = CANDIDATES[name], RUNS / name / method
    recipe = folder.with_suffix(".toml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    track = read_track(ROOT / one.track if "/" in one.track else one.track)
    table = read_table(RECORDS / "nano" / f"{method}.toml") | {"track": track.name}
    if track.start:  # then no [init] is free
        table.pop("init", None)
    write_whole(recipe, ("\n".join(toml_lines(stretched(table, one.steps))) + "\n").encode())
    options = ["--track", one.track, "--recipe", str(recipe), "--compile"]
    options += ["--seeds", ",".join(map(str, seeds))]
    return ["./run.sh", *options, "--validate-ends", "--out", str(folder)]


def measured(name: str, methods: Sequence[str], seeds: Sequence[int], train: bool) -> Losses:
    """Of a candidate: what is kept beside the page, what was run since, and with `train` what is lacking of
    the seeds.
    """
    kept = HOME / "numbers.json"
    of_name = json.loads(kept.read_text())["losses"].get(name, {}) if kept.exists() else {}
    losses = {}
    for method in methods:
        known = {int(seed): loss for seed, loss in of_name.get(method, {}).items()}
        known |= last_losses(RUNS / name / method)
        lacking = [seed for seed in seeds if seed not in known]
        if lacking and train:
            subprocess.run(command(name, method, lacking), cwd=ROOT, check=True)
            known |= last_losses(RUNS / name / method)
        if known:
            losses[method] = known
    return losses


def resampled_taus(losses: Losses, methods: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Kendall's tau of the mean losses over these seeds with the published steps [1 + RESAMPLES]: of the
    methods, then of methods drawn with replacement, the same ones for every candidate, and of seeds.
    """
    published = np.array([published_side(str(METHODS[method])).step for method in methods])
    own = np.array([[losses[method][seed] for seed in seeds] for method in methods])
    drawn = np.random.default_rng(0).integers(len(methods), size=(RESAMPLES, len(methods)))
    rng = np.random.default_rng(1)
    taus = [kendalltau(own.mean(1), published).statistic]
    for chosen in drawn:
        means = rng.choice(own[chosen], len(seeds), axis=1).mean(1)
        taus.append(kendalltau(means, published[chosen]).statistic)  # nan where all are one method
    return np.array(taus)


def interval(values: np.ndarray) -> Interval:
    """The first value, and 95% of the others."""
    return Interval(float(values[0]), *map(float, np.nanpercentile(values[1:], (2.5, 97.5))))


def agreement(losses: Losses, methods: Sequence[str], seeds: Sequence[int]) -> Interval | None:
    """Kendall's tau over those of the methods that were trained; None for fewer than three."""
    there = [method for method in methods if set(seeds) <= set(losses.get(method, ()))]
    return interval(resampled_taus(losses, there, seeds)) if len(there) > 2 else None


def contradictions(losses: Losses, seeds: Sequence[int]) -> tuple[int, int]:
    """Pairs of methods decided on both sides, and those of them decided otherwise. Published: by the pairwise
    rule. Here: means over the seeds further apart than p = .01 of what scatters once each method's and each
    seed's mean is taken out.
    """
    there = [method for method in losses if set(seeds) <= set(losses[method])]
    if len(there) < 2 or len(seeds) < 2:
        return 0, 0
    table = np.array([[losses[method][seed] for seed in seeds] for method in there])
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (len(there) - 1) * (len(seeds) - 1)
    apart = student.ppf(0.995, freedom) * ((left**2).sum() / freedom * 2 / len(seeds)) ** 0.5
    published = [published_side(str(METHODS[method])) for method in there]
    both = opposite = 0
    for first, second in combinations(range(len(there)), 2):
        verdict = compare(published[first], published[second]).verdict
        less = float(table[second].mean() - table[first].mean())
        if verdict in ("better", "worse") and abs(less) > apart:
            both += 1
            opposite += (verdict == "better") != (less > 0)
    return both, opposite


Taus = dict[str, Interval]  # candidate -> how well it agrees


@dataclass(frozen=True)
class Race:
    """What was measured, and how well candidates agreed in each round."""

    losses: dict[str, Losses]
    first: Taus  # of every other method of the half that chooses
    chosen: Taus  # of that half, the two best of the first round and nano
    judged: Taus  # of the other half, the best of these and nano

    @property
    def ahead(self) -> list[str]:
        return sorted(self.first, key=lambda name: -self.first[name].estimate)[:2]

    @property
    def best(self) -> str:
        return max(self.chosen, key=lambda name: self.chosen[name].estimate)

    def more_than_nano(self, methods: Sequence[str], seeds: Sequence[int]) -> Interval:
        """Tau of the best less that of nano, over the same resampled methods."""
        best, nano = (resampled_taus(self.losses[name], methods, seeds) for name in (self.best, "nano"))
        return interval(best - nano)

    def missing(self) -> str:
        """What the race asks for and does not have."""
        asked = dict.fromkeys(CANDIDATES, CHOOSE[::2]) | dict.fromkeys((*self.ahead, "nano"), CHOOSE)
        asked |= dict.fromkeys((self.best, "nano"), list(METHODS))
        lacking = {name: len(set(methods) - set(self.losses[name])) for name, methods in asked.items()}
        return ", ".join(f"{name} of {count} methods" for name, count in lacking.items() if count)


def race(train: bool) -> Race:
    """Runs it, or reads what was run. Raises RecordError where nothing was."""
    losses: dict[str, Losses] = {name: {} for name in CANDIDATES}

    def tried(names: Iterable[str], methods: Sequence[str], seeds: Sequence[int]) -> Taus:
        for name in names:
            losses[name] = {**losses[name], **measured(name, methods, seeds, train)}
        return {name: tau for name in names if (tau := agreement(losses[name], methods, seeds))}

    run = Race(losses, tried(CANDIDATES, CHOOSE[::2], CHOOSING_SEEDS), {}, {})
    if not run.first:
        raise RecordError(f"expected {HOME / 'numbers.json'}, found none; --train makes it in many hours")
    going_on = [name for name in CANDIDATES if name in (*run.ahead, "nano")]
    run = replace(run, chosen=tried(going_on, CHOOSE, CHOOSING_SEEDS))
    return replace(run, judged=tried(dict.fromkeys((run.best, "nano")), JUDGE, JUDGING_SEEDS))


def cell(tau: Interval | None) -> str | None:
    """In a table."""
    return f"{tau.estimate:.2f} ({tau.low:.2f} to {tau.high:.2f})" if tau else None


def told(run: Race) -> str:
    """The verdict."""
    first, chosen, judged = (
        ", ".join(f"{name} {tau.estimate:.2f}" for name, tau in taus.items())
        for taus in (run.first, run.chosen, run.judged)
    )
    verdict = f"Kendall's tau of the first eight methods: {first}. {' and '.join(run.ahead)} go on. "
    verdict += f"Of the half that chooses: {chosen}; {run.best} is chosen."
    if len(run.judged) == 2 and not run.missing():
        own, every = run.more_than_nano(JUDGE, JUDGING_SEEDS), run.more_than_nano([*METHODS], CHOOSING_SEEDS)
        verdict += f" Of the half that judges: {judged}; {run.best} has {cell(own)} more. Over all"
        verdict += f" {len(METHODS)}, with those that chose it and on their seed, it has {cell(every)} more."
    return verdict


def proxies(train: bool) -> Findings:
    """The study. Losses are shown of the seed that all have."""
    run = race(train)
    shown = {
        name: {method: of_seed[0] for method, of_seed in run.losses[name].items() if 0 in of_seed}
        for name in run.first
    }
    published = {method: published_side(str(number)).step for method, number in METHODS.items()}
    whole = {name: agreement(run.losses[name], list(METHODS), CHOOSING_SEEDS) for name in run.judged}
    judging = {name: {method: run.losses[name].get(method, {}) for method in JUDGE} for name in shown}
    rows = [
        [f"{name}: {CANDIDATES[name].told}",
         *(cell(taus.get(name)) for taus in (run.first, run.chosen, run.judged, whole)),
         *(contradictions(judging[name], JUDGING_SEEDS))]
        for name in shown
    ]  # fmt: skip
    header = ["candidate", "tau of eight (95%)", "of the half that chooses", "of the half that judges",
              "of all", "pairs judged and decided on both", "otherwise"]  # fmt: skip
    by_method = [
        [method, number, published[method], "chooses" if method in CHOOSE else "judges",
         *(losses.get(method) for losses in shown.values())]
        for method, number in METHODS.items()
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (name, losses) in zip(panels, shown.items(), strict=True):
            for half, colour in ((CHOOSE, COLOURS[0]), (JUDGE, COLOURS[1])):
                there = [method for method in half if method in losses]
                axes.plot([published[method] for method in there], [losses[method] for method in there],
                          "o", color=colour, markersize=4)  # fmt: skip
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(name)
            axes.set_xlabel("published steps")
        panels[0].set_ylabel("last validation loss")

    numbers = {"losses": run.losses}
    return Findings(
        told(run), "seed 0 to choose, seeds 0 and 1 to judge",
        [Table("Candidates", header, rows),
         Table("Last losses, seed 0", ["entry", "result", "published steps", "half", *shown], by_method)],
        {"losses.svg": Picture(numbers, draw, 3.0 * len(shown), 3.4)}, numbers, run.missing(),
    )  # fmt: skip


STUDIES = (
    Study("proxies", "a small training orders the methods as the large one does", "this project", proxies,
          "--train"),
)  # fmt: skip
