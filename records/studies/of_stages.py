"""What a stage is worth: the record's stack without it; the best of the simple methods with it."""

import json
import math
import os
import subprocess

from records import RecordError
from records.judge.logs import read_entry
from records.judge.paired import TTest, sequential_level, t_test
from records.publish.pictures import Picture
from records.run.recipe import parse_seeds
from records.run.track import RECORDS, read_track
from records.studies.differences import in_rows, intervals, last_losses
from records.studies.page import FOLDER, Findings, Study, Table
from records.trial import COMMAND, ROOT
from records.tune_paired import compare_candidate

STACK, SEEDS = "row_floor", "0-5"
# What is taken out: name -> the options of ./run.sh.
WITHOUT = {
    "without_soap": ["--recipe", "records/studies/row_floor/without_soap.toml"],
    "without_trust": ["--set", 'matrix."attn.proj".trust=false'],
    "soap_every_10": ["--set", "matrix.refresh_every=10"],
    "without_floor": ["--set", "matrix.row_floor=0"],
    "without_decay": ["--set", "matrix.weight_decay=0"],
    "without_brake": ["--set", "matrix.radial_brake=1"],
    "without_lookahead": ["--set", "lookahead.strength=0"],
    "without_init": ["--recipe", "records/studies/row_floor/without_init.toml"],
    "without_aux": ["--recipe", "records/studies/row_floor/without_aux.toml"],
    "without_schatten4": ["--set", 'matrix.norm="frobenius"'],
}

BASE, OWN_SEEDS = "soap_muon", "1000-1005"
EVERY_STEP = ("matrix.refresh_every=1",)
TWO_TIMESCALES = ('matrix.memory="bimaxwell"', "matrix.begin=155")
BRAKE, SCHATTEN4 = ("matrix.radial_brake=0.5",), ('matrix.norm="schatten4"',)
# What is put in: name -> changes of the base, whose run has 400 steps.
WITH: dict[str, tuple[str, ...]] = {
    "basis of every step": EVERY_STEP,
    "radial brake": BRAKE,
    "Schatten-4 norm": SCHATTEN4,
    "two-timescale momentum": TWO_TIMESCALES,
    "basis of every step, two-timescale momentum": EVERY_STEP + TWO_TIMESCALES,
    "these two, radial brake, Schatten-4 norm": EVERY_STEP + TWO_TIMESCALES + BRAKE + SCHATTEN4,
    "floor by row": ("matrix.update_floor=0", "matrix.row_floor=0.3825"),
    "no floor": ("matrix.update_floor=0",),
    "no Contra-Muon": ("matrix.contra=0",),
    "cautious decay, last": ("matrix.cautious=true", "matrix.decay_last=true"),
    "tail average": ("readout.average.start=316", "readout.average.tau=15"),
    "momentum up and down": ("schedule.matrix.momentum=[[0, 0.85], [46, 0.95], [360, 0.95], [400, 0.85]]",),
    "cooldown to the power 1.2": ("schedule.cooldown_power=1.2",),
    "balanced squares": ('matrix.precondition="balanced_squares"',),  # in SOAP's place
    "streaming powers": ('matrix.precondition="streaming_powers"',),
    "Kronecker factors": ('matrix.precondition="kron"',),
    "balanced direction": ('matrix.direction="balanced"',),
    "rows' variance": ('matrix.normalise="row_variance"',),
    "even rows": ('matrix.normalise="unit_rows"',),
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
    "even rows of the head": ('head.step="rownorm"', 'head.direction="centred_rows"', "head.lr=0.05"),
    "uniform start": ('init.law="uniform"', 'init.bias="uniform"', "init.gain_signs=0.125"),
}


def run_without(name: str, options: list[str]) -> None:
    """Train the stack without a stage, validated at its ends; its logs go to the study's folder."""
    recipe = [] if "--recipe" in options else ["--recipe", f"records/nano/{STACK}.toml"]
    command = ["./run.sh", *recipe, *options, "--seeds", SEEDS, "--compile", "--validate-ends"]
    subprocess.run([*command, "--out", os.path.relpath(FOLDER / STACK / name, ROOT)], cwd=ROOT, check=True)


def stages_out(train: bool) -> Findings:
    """The study of what is taken out."""
    whole, slope = read_entry(RECORDS / "nano" / STACK), read_track("nano").slope
    losses, tests, absent = last_losses(RECORDS / "nano" / STACK), dict[str, TTest](), []
    for name, options in WITHOUT.items():
        folder = FOLDER / STACK / name
        if train and not last_losses(folder):
            run_without(name, options)
        if own := last_losses(folder):
            tests[name] = t_test([own[seed] - losses[seed] for seed in sorted(own.keys() & losses.keys())])
        else:
            absent.append(name)
    if not tests:
        raise RecordError(f"expected runs in {FOLDER / STACK}, found none; --train makes them")
    last = [run.validations[-1] for run in whole.runs]
    tests["without_average"] = t_test(
        [v.raw_val_loss - v.val_loss for v in last if v.raw_val_loss is not None]
    )
    tests = dict(sorted(tests.items(), key=lambda item: -item[1].mean))
    rows = in_rows(tests, slope)
    worth = [name for name, test in tests.items() if test.decided and test.mean > 0]
    harmful = [name for name, test in tests.items() if test.decided and test.mean < 0]
    verdict = (
        f"At p below .01 the loss is higher {told(worth)}, lower {told(harmful)}; the others cannot be told "
        f"from nothing. Nothing was searched again without a stage."
    )
    header = ["taken out", "seeds", "more loss", "95% from", "to", "p", "in steps of Muon"]
    numbers = {row[0]: row[1:] for row in rows}
    picture = Picture(numbers, intervals(tests, "more loss at the last step"), 7.5, 3.4)
    return Findings(
        verdict, f"seeds {SEEDS}", [Table("One stage out at a time", header, rows)],
        {"stages.svg": picture}, numbers, ", ".join(absent),
    )  # fmt: skip


def differences_by_seed(train: bool) -> dict[str, list[float]]:
    """How much more loss the base has than each candidate, by seed: kept beside the page, or made anew."""
    kept, base = FOLDER / "own" / "numbers.json", str(RECORDS / "nano" / f"{BASE}.toml")
    found: dict[str, list[float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name, changes in WITH.items():
        if train and name not in found:
            home, options = ROOT / "logs" / "tune" / "own", ["--compile"]
            found[name] = compare_candidate(base, base, changes, OWN_SEEDS, home, COMMAND, options)
    if not found:
        raise RecordError(f"expected {kept}, found none; --train makes it in two or three hours")
    return {name: found[name] for name in WITH if name in found}


def stages_in(train: bool) -> Findings:
    """The study of what is put in."""
    found, slope = differences_by_seed(train), read_track("nano").slope
    diverged = [name for name, values in found.items() if not math.isfinite(sum(values))]
    tests = {name: t_test(values) for name, values in found.items() if name not in diverged}
    tests = dict(sorted(tests.items(), key=lambda item: -item[1].mean))
    level = sequential_level(len(parse_seeds(OWN_SEEDS)))
    decided = [name for name, test in tests.items() if test.p is not None and test.p < level]
    better = [name for name in decided if tests[name].mean > 0]
    worse = [name for name in decided if tests[name].mean < 0] + diverged
    verdict = (
        f"{len(found)} candidates beside {BASE}, whose learning rate they keep. Better: {told(better)}; "
        f"worse: {told(worse)}; the others are not decided (p below {level:.2g} after any seed: 1% for "
        "equals)."
    )
    header = ["put in", "seeds", "less loss", "95% from", "to", "p", "in steps of Muon", "changes"]
    rows = [[*row, "; ".join(WITH[row[0]])] for row in in_rows(tests, slope)]
    return Findings(
        verdict, f"seeds {OWN_SEEDS}, fewer where it was decided before",
        [Table(f"Put into {BASE}", header, rows)],
        {"stages.svg": Picture(found, intervals(tests, "less loss at the last step"), 7.5, 3.8)},
        found, "; ".join(name for name in WITH if name not in found),
    )  # fmt: skip


def told(names: list[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in names) or "in no case"


STUDIES = (
    Study(
        STACK, "every stage of the accepted record's stack is worth its place", "published result 46",
        stages_out, "--train",
    ),
    Study(
        "own", f"stages of other results make {BASE}, the best of the simple methods here, better",
        "this project", stages_in, "--train",
    ),
)  # fmt: skip
