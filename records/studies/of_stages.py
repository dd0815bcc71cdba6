"""What each stage of the record's stack is worth: the stack without it, on the seeds of its own entry."""

import os
import subprocess

from matplotlib.figure import Figure

from records import RecordError
from records.judge.logs import Entry, read_entry
from records.judge.paired import TTest, t_test
from records.publish.pictures import COLOURS, Picture
from records.run.track import RECORDS, read_track
from records.studies.page import FOLDER, Findings, Study, Table

ROOT = FOLDER.parents[1]
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


def run_without(name: str, options: list[str]) -> None:
    """Train the stack without a stage, validated at its ends; its logs go to the study's folder."""
    recipe = [] if "--recipe" in options else ["--recipe", f"records/nano/{STACK}.toml"]
    command = ["./run.sh", *recipe, *options, "--seeds", SEEDS, "--compile", "--validate-ends"]
    subprocess.run([*command, "--out", os.path.relpath(FOLDER / STACK / name, ROOT)], cwd=ROOT, check=True)


def last_losses(entry: Entry) -> dict[int, float]:
    """The last validation loss of each seed."""
    return {run.seed: run.validations[-1].val_loss for run in entry.runs if run.seed is not None}


def stages(train: bool) -> Findings:
    """The study."""
    whole, slope = read_entry(RECORDS / "nano" / STACK), read_track("nano").slope
    losses, tests, absent = last_losses(whole), dict[str, TTest](), []
    for name, options in WITHOUT.items():
        folder = FOLDER / STACK / name
        if train and not list(folder.glob("*.txt")):
            run_without(name, options)
        if list(folder.glob("*.txt")):
            own = last_losses(read_entry(folder))
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

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, test in enumerate(tests.values()):
            if test.low is not None and test.high is not None:
                axes.plot([test.low, test.high], [place, place], color=COLOURS[0])
            axes.plot(test.mean, place, "o", color=COLOURS[0], markersize=5)
        axes.axvline(0, color="#666", linewidth=1, linestyle="dashed")
        axes.set_yticks(range(len(tests)), [name.replace("_", " ") for name in tests])
        axes.invert_yaxis()
        axes.set_xlabel("more loss at the last step, mean and 95% over paired seeds")

    rows = [
        [name, test.n, test.mean, test.low, test.high, test.p, test.mean / slope * 100 if slope else None]
        for name, test in tests.items()
    ]
    worth = [name for name, test in tests.items() if test.decided and test.mean > 0]
    harmful = [name for name, test in tests.items() if test.decided and test.mean < 0]
    verdict = (
        f"At p below .01 the loss is higher {told(worth)}, lower {told(harmful)}; the others cannot be told "
        f"from nothing. Nothing was searched again without a stage."
    )
    header = ["taken out", "seeds", "more loss", "95% from", "to", "p", "in steps of Muon"]
    numbers = {row[0]: row[1:] for row in rows}
    picture = Picture(numbers, draw, 7.5, 3.4)
    return Findings(
        verdict, f"seeds {SEEDS}", [Table("One stage out at a time", header, rows)],
        {"stages.svg": picture}, numbers, ", ".join(absent),
    )  # fmt: skip


def told(names: list[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in names) or "in no case"


STUDIES = (
    Study(
        STACK, "every stage of the accepted record's stack is worth its place", "published result 46",
        stages, "--train",
    ),
)  # fmt: skip
