"""Studies of whole trainings on nano: what runs they are made of, and what the instruments say of these.

A run's log and its instruments lie in the study's folder, in a folder of the run's name; `--train` makes
those that are missing by `./run.sh`, one after the other.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from records import RecordError
from records.publish.instruments_view import Measured, layer_and_kind, measured_run
from records.publish.pictures import COLOURS, Picture
from records.run.instrument_log import read_numbers
from records.studies.differences import last_losses
from records.studies.page import FOLDER, Cell, Findings, Study, Table
from records.trial import ROOT


@dataclass(frozen=True)
class Run:
    """A run of a study: its name there, the options of ./run.sh that make it."""

    name: str
    options: Sequence[str]

    def command(self, folder: Path) -> list[str]:
        out = os.path.relpath(folder / self.name, ROOT)
        return ["./run.sh", "--track", "nano", *self.options, "--compile", "--out", out]


def recipe_runs(names: Sequence[str], seeds: str, *options: str) -> list[Run]:
    return [Run(name, ["--recipe", f"records/nano/{name}.toml", "--steps", "450", "--seeds", seeds, *options,
                       "--instruments"]) for name in names]  # fmt: skip


def made(study: str, run: Run, train: bool) -> bool:
    """Whether the run is in the study's folder, to its end, after a training where it was not and may be."""
    own = FOLDER / study / run.name
    if train and not last_losses(own):
        subprocess.run(run.command(FOLDER / study), cwd=ROOT, check=True)
    return bool(last_losses(own))


def runs_there(study: str, runs: Sequence[Run], train: bool) -> dict[str, Measured]:
    """The measured runs by name. Raises RecordError where there is none, with the commands that make them."""
    folder, found = FOLDER / study, {}
    for run in runs:
        logs = sorted((folder / run.name).glob("*.txt")) if made(study, run, train) else []
        if logs and (measured := measured_run(run.name, logs)):
            found[run.name] = measured
    if not found:
        commands = "\n".join(f"  {' '.join(run.command(folder))}" for run in runs)
        raise RecordError(f"expected runs in {folder}, found none; --train makes them, by\n{commands}")
    return found


def last_loss(study: str, name: str) -> float | None:
    """The mean over seeds of the last validation loss of a run's logs."""
    losses = last_losses(FOLDER / study / name)
    return fmean(losses.values()) if losses else None


def series(run: Measured, quantity: str, kind: str = "") -> tuple[list[int], list[float]]:
    """The quantity over steps, its mean over the layers' matrices of that kind (of all)."""
    names = [name for name, of_name in run.numbers.items()
             if quantity in of_name and layer_and_kind(name)[1].startswith(kind)]  # fmt: skip
    by_step: dict[int, list[float]] = {}
    for name in names:
        for step, value in run.numbers[name][quantity]:
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    return steps, [sum(by_step[step]) / len(by_step[step]) for step in steps]


def of_trainings(
    study: str, runs: Sequence[Run], quantities: Sequence[tuple[str, str]],
    verdict: Callable[[dict[str, Measured]], str], train: bool,
) -> Findings:  # fmt: skip
    """A panel and a column for each (quantity, kind of matrix): its mean over layers, and its last value."""
    found = runs_there(study, runs, train)
    data = {name: {f"{quantity} {kind}".strip(): series(run, quantity, kind) for quantity, kind in quantities}
            for name, run in found.items()}  # fmt: skip
    titles = list(next(iter(data.values())))

    def draw(figure: Figure) -> None:
        panels: list[Axes] = list(figure.subplots(1, len(titles), squeeze=False)[0])
        for axes, title in zip(panels, titles, strict=True):
            for i, (name, of_run) in enumerate(data.items()):
                axes.plot(*of_run[title], color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.4)
            axes.set_title(title.replace("_", " "))
            axes.set_xlabel("step")
        panels[0].legend(frameon=False, fontsize=8)

    rows = [
        [
            name,
            last_loss(study, name),
            *(of_run[title][1][-1] if of_run[title][1] else None for title in titles),
        ]
        for name, of_run in data.items()
    ]
    absent = [run for run in runs if run.name not in found]
    missing = (
        f"{len(absent)} of {len(runs)} runs: {', '.join(run.name for run in absent[:6])}" if absent else ""
    )
    seeds = sorted({run.seed for run in found.values()})
    return Findings(
        verdict(found), f"instruments of seed {', '.join(map(str, seeds))}",
        [Table("At the last measured step", ["run", "last val_loss", *titles], rows)],
        {"curves.svg": Picture(data, draw, 3.4 * len(titles), 3.6)}, data, missing,
    )  # fmt: skip


def silent(name: str) -> dict[int, tuple[int, int, int]]:
    """By seed of a run, at its last measured validation: units of all MLPs, dead ones, faint ones."""
    found: dict[int, dict[int, list[dict]]] = {}
    for log in sorted((FOLDER / "dying_neurons" / name).glob("*.txt")):
        for line in read_numbers(log):
            if "dead" in line:
                found.setdefault(line["seed"], {}).setdefault(line["step"], []).append(line)
    last = {seed: of_seed[max(of_seed)] for seed, of_seed in sorted(found.items())}
    return {
        seed: (*(sum(line[key] for line in lines) for key in ("units", "dead", "faint")),)
        for seed, lines in last.items()
    }


def dying(runs: dict[str, Measured]) -> str:
    """Whether Aurora leaves fewer units dead than Muon on every seed, here and where the MLP is wide."""
    told = []
    for muon, aurora in (("muon", "aurora"), ("muon-16x", "aurora-16x")):
        if muon in runs and aurora in runs:
            (units, _, _), *_ = silent(muon).values()
            dead = {name: [of_seed[1] for of_seed in silent(name).values()] for name in (muon, aurora)}
            words = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in dead.items())
            shows = "shows" if max(dead[aurora]) < min(dead[muon]) else "does not show"
            if min(dead[aurora]) > max(dead[muon]):
                shows += ", it is the other way round"
            told.append(f"Dead of {units} units, by seed: {words}; the claim {shows}.")
    return " ".join(told) or "No two runs to compare yet."


def dying_neurons(train: bool) -> Findings:
    """The study of neurons that are silent on all validation tokens, or nearly."""
    quantities = [
        ("dead", "mlp"),
        ("faint", "mlp"),
        ("row_variation", "mlp.fc"),
        ("leverage_variation", "mlp.fc"),
    ]
    found = of_trainings("dying_neurons", DYING, quantities, dying, train)
    rows: list[list[Cell]] = [
        [run.name, seed, *numbers] for run in DYING for seed, numbers in silent(run.name).items()
    ]
    header = ["run", "seed", "units", "dead", "faint, the dead among them"]
    return replace(found, tables=[*found.tables, Table("Silent units at the end, by seed", header, rows)])


def unevenness(run: Measured) -> float:
    """How far a matrix's fastest row turns in an update, over the mean of its rows; mean over the run."""
    (_, fastest), (_, mean) = series(run, "row_angle_max"), series(run, "row_angle")
    return fmean(top / row for top, row in zip(fastest, mean, strict=True) if row)


def norms(runs: dict[str, Measured]) -> str:
    """The momentum's radial part, how unevenly rows turn, and how far their norms go, of every run."""
    radial = {name: fmean(series(run, "radial_part")[1]) for name, run in runs.items()}
    uneven = {name: unevenness(run) for name, run in runs.items()}
    lengths = {name: series(run, "row_norm_mean")[1] for name, run in runs.items()}

    def told(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in values.items())

    words = [f"Radial part of the momentum, mean over the run: {told(radial)}."]
    words += [f"The fastest row of a matrix turns that many times as far as the mean one: {told(uneven)}"]
    if "muon" in runs and "nora_init" in runs:
        shows = "shows" if uneven["nora_init"] < uneven["muon"] else "does not show"
        words[-1] += f"; that rows turn more evenly under nora_init than under muon {shows}"
    grown = {name: values[-1] / values[0] for name, values in lengths.items()}
    return f"{' '.join(words)}. Row norms at the last measurement over those at the first: {told(grown)}."


def scales(runs: dict[str, Measured]) -> str:
    """The mean over the run with the usual batch and with four times it; how the usual one moves."""
    of_run = {name: series(run, "step_scale")[1] for name, run in runs.items()}
    means = {name: fmean(values) for name, values in of_run.items() if values}
    told = "Mean over the run: " + ", ".join(f"{name} {value:.3g}" for name, value in means.items()) + "."
    if "namo" in means and "namo-4x" in means:
        shows = "shows" if means["namo-4x"] > means["namo"] else "does not show"
        told += f" That it grows with the batch {shows}."
    if values := of_run.get("namo"):
        half = len(values) // 2
        shows = "shows" if fmean(values[half:]) < fmean(values[:half]) else "does not show"
        told += (
            f" In the first half of the run it is {fmean(values[:half]):.3g}, in the second "
            f"{fmean(values[half:]):.3g}: that it shrinks as training goes on {shows}."
        )
    return told


BATCH = ["--track", "records/studies/noise_scales/batch4x.toml", "--steps", "450", "--seeds", "0"]
MLP16 = ["--track", "records/studies/expansion/mlp16.toml", "--steps", "450", "--seeds", "0"]
DYING = [
    *recipe_runs(["muon", "aurora"], "0-2"),
    *(
        Run(f"{name}-16x", ["--recipe", f"records/nano/{name}.toml", *MLP16, "--instruments"])
        for name in ("muon", "aurora")
    ),
]
NOISE = [
    *recipe_runs(["namo", "namo_d"], "0"),
    Run("namo-4x", ["--recipe", "records/nano/namo.toml", *BATCH, "--instruments"]),
]
ADAPTIVE = [("step_scale", ""), ("step_scale_spread", "")]
NORMS = [("row_norm_mean", ""), ("row_angle", ""), ("radial_part", "")]
NORMED = recipe_runs(["muon", "rmnp_init", "nora_init", "muonh"], "0")
STUDIES = (
    Study(
        "dying_neurons", "Muon starves neurons of the MLP, Aurora does not", "Aurora figs. 5 to 8",
        dying_neurons, "--train",
    ),
    Study(
        "nora_norms",
        "momentum has a radial part that moves norms and makes rows turn unevenly; Nora takes it out",
        "Nora", partial(of_trainings, "nora_norms", NORMED, NORMS, norms), "--train",
    ),
    Study(
        "noise_scales", "the adaptive scale shrinks as gradients grow noisier, and grows with the batch",
        "NAMO", partial(of_trainings, "noise_scales", NOISE, ADAPTIVE, scales), "--train",
    ),
)  # fmt: skip
