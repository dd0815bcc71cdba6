"""Which small training orders the methods as the large one does. All candidates are tried on every other
method of the half that chooses, the two best and nano on all of it, the best and nano on the other half.

Every method has its nano entry's values, and all that it does at a step stretched to the candidate's length.
"""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from records import RecordError
from records.judge.compare import RESAMPLES, Interval, compare, published_side
from records.publish.pictures import COLOURS, Picture
from records.run.files import write_whole
from records.run.recipe import parse_seeds, read_table, toml_lines
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
CHOOSING_SEEDS, JUDGING_SEEDS = "0", "0-1"

Losses = Mapping[str, Mapping[int, float]]  # method -> seed -> last validation loss


def command(name: str, method: str, seeds: str) -> list[str]:
    """The run of a method under a candidate; its recipe is written to where the log comes."""
    one, folder = CANDIDATES[name], RUNS / name / method
    recipe = folder.with_suffix(".toml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    track = read_track(ROOT / one.track if "/" in one.track else one.track)
    table = read_table(RECORDS / "nano" / f"{method}.toml") | {"track": track.name}
    if track.start:  # then no [init] is free
        table.pop("init", None)
    write_whole(recipe, ("\n".join(toml_lines(stretched(table, one.steps))) + "\n").encode())
    options = ["--track", one.track, "--recipe", str(recipe), "--seeds", seeds, "--compile"]
    return ["./run.sh", *options, "--validate-ends", "--out", str(folder)]


def measured(name: str, methods: Sequence[str], seeds: str, train: bool) -> dict[str, dict[int, float]]:
    """Method -> seed -> last loss under a candidate: what is kept beside the page, what was run since, and
    with `train` what is lacking of the seeds.
    """
    kept = HOME / "numbers.json"
    of_name = json.loads(kept.read_text())["losses"].get(name, {}) if kept.exists() else {}
    losses = {}
    for method in methods:
        known = {int(seed): loss for seed, loss in of_name.get(method, {}).items()}
        known |= last_losses(RUNS / name / method)
        lacking = [seed for seed in parse_seeds(seeds) if seed not in known]
        if lacking and train:
            subprocess.run(command(name, method, ",".join(map(str, lacking))), cwd=ROOT, check=True)
            known |= last_losses(RUNS / name / method)
        if known:
            losses[method] = known
    return losses


def resampled_taus(losses: Losses, methods: Sequence[str]) -> np.ndarray:
    """Kendall's tau of the mean losses with the published steps [1 + RESAMPLES]: of the methods, then of
    methods drawn with replacement, the same ones for every candidate, and of seeds.
    """
    published = np.array([published_side(str(METHODS[method])).step for method in methods])
    own = [np.array(list(losses[method].values())) for method in methods]
    drawn = np.random.default_rng(0).integers(len(methods), size=(RESAMPLES, len(methods)))
    seeds = np.random.default_rng(1)
    taus = [kendalltau([values.mean() for values in own], published).statistic]
    for chosen in drawn:
        means = [seeds.choice(own[at], len(own[at])).mean() for at in chosen]
        taus.append(kendalltau(means, published[chosen]).statistic)  # nan where all are one method
    return np.array(taus)


def interval(values: np.ndarray) -> Interval:
    """The first value, and 95% of the others."""
    return Interval(float(values[0]), *map(float, np.nanpercentile(values[1:], (2.5, 97.5))))


def agreement(losses: Losses, methods: Sequence[str]) -> Interval | None:
    """Kendall's tau over those of the methods that were trained; None for fewer than three."""
    there = [method for method in methods if method in losses]
    return interval(resampled_taus(losses, there)) if len(there) > 2 else None


def contradictions(losses: Losses) -> tuple[int, int]:
    """Pairs of methods decided on both sides, and those of them decided otherwise. Published: by the pairwise
    rule. Here: means over the common seeds further apart than p = .01 of what scatters once each method's and
    each seed's mean is taken out.
    """
    common = sorted(set.intersection(*map(set, losses.values()))) if losses else []
    if len(losses) < 2 or len(common) < 2:
        return 0, 0
    table = np.array([[of_method[seed] for seed in common] for of_method in losses.values()])
    methods, seeds = table.shape
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    apart = 2.58 * ((left**2).sum() / ((methods - 1) * (seeds - 1)) * 2 / seeds) ** 0.5
    published = [published_side(str(METHODS[method])) for method in losses]
    both = opposite = 0
    for first, second in combinations(range(methods), 2):
        verdict = compare(published[first], published[second]).verdict
        less = float(table[second].mean() - table[first].mean())
        if verdict in ("better", "worse") and abs(less) > apart:
            both += 1
            opposite += (verdict == "better") != (less > 0)
    return both, opposite


def estimates(taus: Mapping[str, Interval]) -> str:
    """In a sentence."""
    return ", ".join(f"{name} {tau.estimate:.2f}" for name, tau in taus.items())


def cell(tau: Interval | None) -> str | None:
    """In a table."""
    return f"{tau.estimate:.2f} ({tau.low:.2f} to {tau.high:.2f})" if tau else None


def proxies(train: bool) -> Findings:
    """The study."""

    def try_out(names: Iterable[str], methods: Sequence[str], seeds: str) -> dict[str, Interval]:
        """Adds what was measured; how well each candidate agrees on these methods."""
        for name in names:
            found[name] |= measured(name, methods, seeds, train)
        return {name: tau for name in names if (tau := agreement(found[name], methods))}

    found: dict[str, dict[str, dict[int, float]]] = {name: {} for name in CANDIDATES}
    first = try_out(CANDIDATES, CHOOSE[::2], CHOOSING_SEEDS)
    if not first:
        raise RecordError(f"expected {HOME / 'numbers.json'}, found none; --train makes it in many hours")
    ahead = sorted(first, key=lambda name: -first[name].estimate)[:2]
    try_out({*ahead, "nano"}, CHOOSE[1::2], CHOOSING_SEEDS)
    chosen = {name: tau for name in CANDIDATES if name in {*ahead, "nano"}
              if (tau := agreement(found[name], CHOOSE))}  # fmt: skip
    best = max(chosen, key=lambda name: chosen[name].estimate)
    judged = try_out(dict.fromkeys((best, "nano")), JUDGE, JUDGING_SEEDS)
    whole = {name: agreement(found[name], list(METHODS)) for name in judged}
    rows = [
        [f"{name}: {CANDIDATES[name].told}",
         *(cell(taus.get(name)) for taus in (first, chosen, judged, whole)),
         *contradictions({method: losses for method, losses in found[name].items() if method in JUDGE})]
        for name in first
    ]  # fmt: skip
    verdict = f"Kendall's tau of the first eight methods: {estimates(first)}. {' and '.join(ahead)} go on. "
    verdict += f"Of the half that chooses: {estimates(chosen)}; {best} is chosen."
    if judged:
        verdict += f" Of the half that judges: {estimates(judged)}."
    if len(judged) == 2:
        there = [method for method in METHODS if method in found[best] and method in found["nano"]]
        more = interval(resampled_taus(found[best], there) - resampled_taus(found["nano"], there))
        verdict += f" Over all {len(there)}, {best} has {cell(more)} more than nano."
    header = ["candidate", "tau of eight (95%)", "of the half that chooses", "of the half that judges",
              "of all", "pairs judged and decided on both", "otherwise"]  # fmt: skip
    by_method = [
        [method, number, published_side(str(number)).step, "chooses" if method in CHOOSE else "judges",
         *(fmean(found[name][method].values()) if method in found[name] else None for name in first)]
        for method, number in METHODS.items()
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(first), squeeze=False)[0]
        for axes, name in zip(panels, first, strict=True):
            losses = found[name]
            for half, colour in ((CHOOSE, COLOURS[0]), (JUDGE, COLOURS[1])):
                there = [method for method in half if method in losses]
                axes.plot([published_side(str(METHODS[method])).step for method in there],
                          [fmean(losses[method].values()) for method in there], "o", color=colour,
                          markersize=4)  # fmt: skip
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(name)
            axes.set_xlabel("published steps")
        panels[0].set_ylabel("last validation loss")

    asked = {name: CHOOSE[::2] for name in CANDIDATES} | dict.fromkeys({*ahead, "nano"}, CHOOSE)
    asked |= dict.fromkeys((best, "nano"), list(METHODS))
    lacking = {name: len(set(methods) - set(found[name])) for name, methods in asked.items()}
    numbers = {"losses": found}
    return Findings(
        verdict, f"seed {CHOOSING_SEEDS} to choose, {JUDGING_SEEDS} to judge",
        [Table("Candidates", header, rows),
         Table("Last losses", ["entry", "result", "published steps", "half", *first], by_method)],
        {"losses.svg": Picture(numbers, draw, 3.0 * len(first), 3.4)}, numbers,
        ", ".join(f"{name} of {count} methods" for name, count in lacking.items() if count),
    )  # fmt: skip


STUDIES = (
    Study("proxies", "a small training orders the methods as the large one does", "this project", proxies,
          "--train"),
)  # fmt: skip
