"""A search by designs: stages are changed by halves, and what each is worth is read from all the runs.

A design of 16 changes has 32 points: a Hadamard matrix of order 16 and its negative, a column a change. Every
change is made in half of the points, and any other change in half of these: so a change's worth is compared
over all runs, with about an eighth of the variance of as many runs spent on one change after the other. What
two changes do only together moves no single worth (resolution IV); it is part of the noise.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from scipy.linalg import hadamard
from scipy.special import stdtr, stdtrit

from records import RecordError
from records.judge.paired import ALPHA, TTest, t_test
from records.publish.pictures import Picture
from records.run.recipe import parse_seeds
from records.run.track import read_track
from records.studies.differences import in_rows, intervals, last_losses, told
from records.studies.page import FOLDER, Cell, Findings, Study, Table
from records.trial import ROOT

HOME = FOLDER / "own"
RUNS = ROOT / "logs" / "own"


@dataclass(frozen=True)
class Design:
    """Changes of the recipe `own/NAME.toml`, each by --set, and the seeds of every point.

    there: changes that the first point has and its opposite has not. alone: made one at a time at the first.
    """

    seeds: str
    changes: Mapping[str, tuple[str, ...]]
    there: frozenset[str]
    alone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def points(self) -> dict[str, frozenset[str]]:
        """Each point's changes, by its number."""
        half = hadamard(16)
        return {
            str(number): frozenset(
                name
                for name, sign in zip(self.changes, row, strict=True)
                if (sign < 0) != (name in self.there)
            )
            for number, row in enumerate(np.vstack([half, -half]))
        }

    def settings(self) -> dict[str, list[str]]:
        """What --set is given at each point, then for each change alone."""
        points = self.points()
        first = [change for name in self.changes if name in self.there for change in self.changes[name]]
        return {
            number: [change for name in self.changes if name in has for change in self.changes[name]]
            for number, has in points.items()
        } | {name: [*first, *changes] for name, changes in self.alone.items()}


DESIGNS = {
    "first": Design(
        "1000-1003",
        {
            "SOAP's averages keep .95": ("matrix.covariance_beta=0.95", "matrix.beta2=0.95"),
            "two-timescale momentum": ('matrix.memory="bimaxwell"', "matrix.begin=155"),
            "radial brake": ("matrix.radial_brake=0.5",),
            "Schatten-4 norm": ('matrix.norm="schatten4"',),
            "Contra-Muon": ("matrix.contra=0.4",),
            "floor": ("matrix.update_floor=0.35",),
            "neuron variance": ("matrix.neuron_beta2=0.95",),
            "weight decay .08": ("matrix.weight_decay=0.08",),
            "K-FAC of the head": (
                'around.head_kfac.params=["proj.weight"]',
                "around.head_kfac.start=215",
                "around.head_kfac.apply=231",
                "around.head_kfac.stop=400",
                "around.head_kfac.strength=[[231, 0.25], [269, 0.75]]",
                "around.head_kfac.damping=[[231, 0.15], [269, 0.05]]",
                "around.head_kfac.every=2",
                "around.head_kfac.row_step=1",
            ),
            "momentum up and down": (
                "schedule.matrix.momentum=[[0, 0.85], [46, 0.95], [360, 0.95], [400, 0.85]]",
            ),
            "cooldown to the power 1.2": ("schedule.cooldown_power=1.2",),
            "gradient beyond the average": (
                'around.beyond.kind="extrapolated_gradient"',
                'around.beyond.average="average"',
                "around.beyond.strength=[[325, 0.0], [341, 0.45]]",
            ),
            "planned for 440 steps": ("schedule.steps=440",),
            "learning rate .0325": ("matrix.lr=0.0325",),
            "AdamW's rates times 1.5": ("aux.embed_lr=1.2", "aux.head_lr=0.05", "aux.scalar_lr=0.0165"),
            "cooldown over the whole run": ("schedule.cooldown_frac=1.0",),
        },
        frozenset({"Contra-Muon", "floor", "neuron variance"}),
        {
            "basis of every step": ("matrix.refresh_every=1",),
            "basis of every fifth step": ("matrix.refresh_every=5",),
            "floor by row": ("matrix.update_floor=0.0", "matrix.row_floor=0.3825"),
            "cautious decay, last": ("matrix.cautious=true", "matrix.decay_last=true"),
            "even rows of the head": (
                'head.step="rownorm"',
                'head.direction="centred_rows"',
                "head.lr=0.05",
            ),
        },
    ),
    "second": Design(
        "1004-1007",
        {
            "basis of every step": ("matrix.refresh_every=1",),
            "planned for 429 steps": ("schedule.steps=429",),
            "learning rate .0425": ("matrix.lr=0.0425",),
            "further beyond, .75": ("around.beyond.strength=[[284.375, 0.0], [298.375, 0.75]]",),
            "two timescales from step 79": ("matrix.begin=79",),
            "slow average keeps .987": ("matrix.slow_beta=0.987",),
            "fast part .55": ("matrix.fast_part=0.55",),
            "SOAP's averages keep .85": ("matrix.covariance_beta=0.85", "matrix.beta2=0.85"),
            "no weight decay": ("matrix.weight_decay=0.0",),
            "neuron variance keeps .9": ("matrix.neuron_beta2=0.9",),
            "K-FAC of the head": (
                'around.head_kfac.params=["proj.weight"]',
                "around.head_kfac.start=188",
                "around.head_kfac.apply=202",
                "around.head_kfac.stop=350",
                "around.head_kfac.strength=[[202.125, 0.25], [235.375, 0.75]]",
                "around.head_kfac.damping=[[202.125, 0.15], [235.375, 0.05]]",
                "around.head_kfac.every=2",
                "around.head_kfac.row_step=1",
            ),
            "AdamW's rates times .75": ("aux.embed_lr=0.6", "aux.head_lr=0.025", "aux.scalar_lr=0.00825"),
            "averages in full": tuple(
                f'readout.average."{pattern}".blend=1.0'
                for pattern in ("blocks.0.*.weight", "blocks.*.weight", "proj.weight")
            ),
            "cooldown to the power .8": ("schedule.cooldown_power=0.8",),
            "EMA-Nesterov": (
                "lookahead.strength=0.3",
                "lookahead.decay=0.93513",
                "lookahead.start=40",
                "lookahead.stop=256",
                'lookahead.scaled_by="embed_before"',
            ),
            "momentum .92": ("matrix.momentum=0.92",),
        },
        frozenset({"K-FAC of the head"}),
    ),
}

Losses = dict[str, dict[int, float]]  # point, or change made alone -> seed -> last validation loss


def worths(design: Design, losses: Losses) -> dict[str, TTest]:
    """How much less loss the runs with each change have: least squares over all runs, a mean a seed beside.

    Raises RecordError where there are too few runs to tell the changes apart.
    """
    points, seeds = design.points(), parse_seeds(design.seeds)
    runs = [(points[at], seed, loss) for at in points for seed, loss in losses.get(at, {}).items()]
    table = np.array(
        [[*(name in has for name in design.changes), *(seed == s for s in seeds)] for has, seed, _ in runs],
        dtype=float,
    )
    free = len(runs) - len(design.changes) - len(seeds)
    if free < 1 or np.linalg.matrix_rank(table) < table.shape[1]:
        raise RecordError(
            f"expected runs that tell {len(design.changes)} changes apart, found {len(runs)}; --train makes "
            "those that are missing"
        )
    y = np.array([loss for *_, loss in runs])
    estimate = np.linalg.lstsq(table, y)[0]
    variance = ((y - table @ estimate) ** 2).sum() / free * np.diag(np.linalg.inv(table.T @ table))
    found = {}
    for name, more, error in zip(design.changes, estimate, np.sqrt(variance), strict=False):
        margin, p = float(stdtrit(free, 0.975) * error), 2 * float(stdtr(free, -abs(more) / error))
        found[name] = TTest(len(runs), -float(more), -more - margin, -more + margin, p, 0, None)
    return dict(sorted(found.items(), key=lambda item: -item[1].mean))


def run(name: str, at: str) -> Losses:
    """Trains a point of a design; its losses."""
    design, folder = DESIGNS[name], RUNS / name / at.replace(" ", "_")
    changes = [word for change in design.settings()[at] for word in ("--set", change)]
    command = ["./run.sh", "--track", "nano", "--recipe", str(HOME / f"{name}.toml"), *changes, "--compile"]
    options = ["--seeds", design.seeds, "--validate-ends", "--out", str(folder)]
    if not last_losses(folder):
        subprocess.run([*command, *options], cwd=ROOT, check=True)
    return {at: last_losses(folder)}


def measured(train: bool) -> dict[str, Losses]:
    """The losses of every design: those kept beside the page, and those trained since."""
    kept = HOME / "numbers.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    losses = {
        name: {at: {int(seed): loss for seed, loss in of_point.items()} for at, of_point in known.items()}
        for name, known in found.items()
    }
    for name, design in DESIGNS.items() if train else ():
        of_design = losses.setdefault(name, {})
        for at in design.settings():
            if at not in of_design:
                of_design |= run(name, at)
    return losses


def tables_of(name: str, losses: Losses, tests: Mapping[str, TTest], slope: float | None) -> list[Table]:
    """A design's tables: the worth of its changes, of those made alone, and its points from the best on."""
    design, title, points = DESIGNS[name], f"{name.capitalize()} design", DESIGNS[name].points()
    first = losses.get("0", {})
    alone = {
        change: t_test([first[seed] - loss for seed, loss in losses[change].items() if seed in first])
        for change in design.alone
        if change in losses
    }
    header = ["change", "runs", "less loss", "95% from", "to", "p", "in steps of Muon", "by --set"]
    found = {
        f"{title}: worth of each change": (tests, design.changes),
        f"Alone, against the {name} design's first point": (alone, design.alone),
    }
    tables = [
        Table(told_of, header, [[*row, "; ".join(changes[row[0]])] for row in in_rows(of_changes, slope)])
        for told_of, (of_changes, changes) in found.items()
        if of_changes
    ]
    means = {at: fmean(losses[at].values()) for at in points if at in losses}
    rows: list[list[Cell]] = [
        [at, len(losses[at]), means[at], ", ".join(sorted(points[at]))]
        for at in sorted(means, key=means.__getitem__)
    ]
    return [*tables, Table(f"{title}: its points", ["point", "seeds", "loss", "has"], rows)]


def verdict_of(name: str, losses: Losses, tests: Mapping[str, TTest]) -> str:
    """What a design decides."""
    there = [at for at in DESIGNS[name].points() if at in losses]
    less, more = (
        [f"with {change}" for change, test in tests.items() if test.decided and test.mean * sign > 0]
        for sign in (1, -1)
    )
    return (
        f"{name.capitalize()} design, {sum(len(losses[at]) for at in there)} runs of {len(there)} points: at "
        f"p below {ALPHA} the loss is lower {told(less)}; higher {told(more)}."
    )


def search(train: bool) -> Findings:
    """The study."""
    found, slope = measured(train), read_track("nano").slope
    if not found:
        raise RecordError(f"expected {HOME / 'numbers.json'}, found none; --train makes it: hours on a CPU")
    tests = {name: worths(DESIGNS[name], losses) for name, losses in found.items()}
    pictures = {
        f"{name}.svg": Picture(
            in_rows(of_design, slope),
            intervals(of_design, "less loss at the last step", "over all runs"), 7.5, 3.8,
        )
        for name, of_design in tests.items()
    }  # fmt: skip
    lacking = {name: sum(at not in found.get(name, {}) for at in design.points())
               for name, design in DESIGNS.items()}  # fmt: skip
    return Findings(
        " ".join(verdict_of(name, found[name], of_design) for name, of_design in tests.items()),
        "seeds " + " and ".join(design.seeds for design in DESIGNS.values()),
        [table for name in tests for table in tables_of(name, found[name], tests[name], slope)],
        pictures,
        found,
        ", ".join(f"{lacks} of 32 points of the {name} design" for name, lacks in lacking.items() if lacks),
    )


STUDIES = (
    Study(
        "own", "stages of other results make soap_muon, the best of the simple methods here, better",
        "this project", search, "--train",
    ),
)  # fmt: skip
