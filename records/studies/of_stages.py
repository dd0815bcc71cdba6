"""What each stage of a stack is worth: the stack without it, on the same seeds."""

import os
import subprocess
from collections.abc import Sequence
from functools import partial

from records import RecordError
from records.judge.logs import read_entry
from records.judge.paired import TTest, t_test
from records.publish.pictures import Picture
from records.run.track import RECORDS, read_track
from records.studies.differences import in_rows, intervals, last_losses, told
from records.studies.page import FOLDER, Findings, Study, Table
from records.trial import ROOT

SEEDS = "0-5"
OUT_OF_OWN = {
    "without_soap": ["--set", "matrix.soap_part=0"],
    "soap_every_10": ["--set", "matrix.refresh_every=10"],
    "without_two_timescales": ["--set", "matrix.begin=340"],
    "without_neuron_variance": ["--set", "matrix.normalise=none"],
    "without_beyond": ["--set", "around.beyond.strength=0"],
    "planned_for_its_end": ["--set", "schedule.steps=340"],
    "without_decay": ["--set", "matrix.weight_decay=0"],
    "cooldown_linear": ["--set", "schedule.cooldown_power=1"],
    "momentum_95": ["--set", "matrix.momentum=0.95"],
}
ENTRIES = {  # study -> the entry that it takes apart
    "row_floor": "nano/row_floor",
    "own_soap_bimaxwell": "nano/own_soap_bimaxwell",
    "own_on_warm": "warm/own_soap_bimaxwell",
}
# Study -> what is taken out -> the options of ./run.sh.
WITHOUT: dict[str, dict[str, list[str]]] = {
    "row_floor": {
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
    },
    "own_soap_bimaxwell": {
        **OUT_OF_OWN,
        "with_soap_muon_in_its_place": ["--recipe", "records/nano/soap_muon.toml", "--steps", "340"],
    },
    "own_on_warm": {
        **OUT_OF_OWN,
        "with_soap_muon_in_its_place": ["--recipe", "records/warm/soap_muon.toml", "--steps", "340"],
        "with_extrapolated_in_its_place": [
            "--recipe",
            "records/studies/own_on_warm/with_extrapolated_in_its_place.toml",
        ],
    },
}


def run_without(study: str, name: str, options: Sequence[str]) -> None:
    """Train the stack without a stage, validated at its ends; its logs go to the study's folder."""
    recipe = [] if "--recipe" in options else ["--recipe", f"records/{ENTRIES[study]}.toml"]
    command = ["./run.sh", *recipe, *options, "--seeds", SEEDS, "--compile", "--validate-ends"]
    subprocess.run([*command, "--out", os.path.relpath(FOLDER / study / name, ROOT)], cwd=ROOT, check=True)


def stages_out(study: str, train: bool) -> Findings:
    """The study of what is taken out of an entry."""
    home = RECORDS / ENTRIES[study]
    whole, slope = read_entry(home), read_track(home.parent.name).slope
    losses, tests, absent = last_losses(home), dict[str, TTest](), []
    for name, options in WITHOUT[study].items():
        folder = FOLDER / study / name
        if train and not last_losses(folder):
            run_without(study, name, options)
        if own := last_losses(folder):
            tests[name] = t_test([own[seed] - losses[seed] for seed in sorted(own.keys() & losses.keys())])
        else:
            absent.append(name)
    if not tests:
        raise RecordError(f"expected runs in {FOLDER / study}, found none; --train makes them")
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


CLAIMS = {
    "row_floor": ("every stage of the accepted record's stack is worth its place", "published result 46"),
    "own_soap_bimaxwell": ("every stage of the first entry here is worth its place", "this project"),
    "own_on_warm": ("every stage of nano's first entry is worth its place on warm too", "this project"),
}
STUDIES = tuple(
    Study(study, *claim, partial(stages_out, study), "--train") for study, claim in CLAIMS.items()
)
