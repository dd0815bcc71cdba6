"""Does a method's place depend on how long it was searched? The best of 8 trials against the best of 24."""

import csv
from dataclasses import dataclass

from matplotlib.figure import Figure

from records import RecordError
from records.judge.paired import TTest, t_test
from records.publish.entry_page import read_standing
from records.publish.pictures import COLOURS, Picture
from records.run.track import RECORDS, read_track
from records.studies.differences import last_losses
from records.studies.of_trainings import Run, made
from records.studies.page import FOLDER, Findings, Study, Table

SHORT, LONG = 8, 24
SEEDS = "0-5"
# Those of the searched methods whose places differ most from the published ones.
METHODS = ("sinksoap", "newton_muon", "soaph", "muloco", "muown", "klsoaph")


@dataclass(frozen=True)
class Trial:
    """A trial of a search: its loss at 450 steps, its values as --set has them."""

    loss: float
    values: tuple[str, ...]


def trials_of(method: str) -> list[Trial]:
    """A search's trials in their order, from the table of all; one without a loss diverged."""
    with open(RECORDS / "nano" / "tuning.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["study"] == method]
    rows.sort(key=lambda row: int(row["trial"]))
    return [Trial(float(row["val_loss"] or "inf"), tuple(row["settings"].split())) for row in rows]


def best(trials: list[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial.loss)


def final_run(method: str, values: tuple[str, ...]) -> Run:
    """The entry with other values, at its own steps."""
    changes = [word for value in values for word in ("--set", value)]
    options = ["--recipe", f"records/nano/{method}.toml", "--seeds", SEEDS, *changes, "--validate-ends"]
    return Run(method, options)


def final_gain(method: str, trial: Trial, train: bool) -> TTest | None:
    """How much less loss the trial's values end with than the entry's, on its seeds; None without runs."""
    if not made("budgets", final_run(method, trial.values), train):
        return None
    entry, own = (last_losses(home / method) for home in (RECORDS / "nano", FOLDER / "budgets"))
    return t_test([entry[seed] - own[seed] for seed in sorted(own.keys() & entry.keys())])


def budgets(train: bool) -> Findings:
    """What sixteen more trials gained, by the final runs of the entry's own seeds."""
    track = read_track("nano")
    rows: list[list] = []
    places: dict[str, tuple[float, float]] = {}
    missing = []
    for method in METHODS:
        trials = trials_of(method)
        short, long = best(trials[:SHORT]), best(trials[:LONG])
        test = final_gain(method, long, train) if len(trials) >= LONG and long != short else None
        if len(trials) < LONG or (long != short and test is None):
            missing.append(method)
            continue
        steps = read_standing(RECORDS / "nano" / method, track).summary.first_significant_step
        gain = test.mean if test else 0.0
        if steps is not None and track.slope:
            places[method] = steps, steps - gain / track.slope * 100
        rows.append(
            [method, short.loss, long.loss, " ".join(long.values) if test else "the same",
             *([gain, test.low, test.high, test.p] if test else [0.0, None, None, None]),
             *places.get(method, (None, None))]
        )  # fmt: skip
    if not rows:
        raise RecordError(
            f"expected {LONG} trials a method in {RECORDS / 'nano' / 'tuning.csv'}, found fewer: go on with "
            f"./run.sh tune NAME --trials {LONG} and the ranges at the head of the recipe"
        )
    orders = [sorted(places, key=lambda method: places[method][at]) for at in (0, 1)]
    gained = [row[0] for row in rows if row[7] is not None and row[7] < 0.01 and row[4] > 0]
    verdict = (
        f"Sixteen more trials help {', '.join(gained) or 'no method'} at p below .01, by the paired final "
        f"runs. The order is {', '.join(orders[0])} after {SHORT} trials and "
        + ("the same" if orders[0] == orders[1] else ", ".join(orders[1])) + f" after {LONG}."
    )  # fmt: skip

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for method in orders[0]:
            axes.plot((SHORT, LONG), places[method], "o-", color=COLOURS[0], linewidth=1.2, markersize=4)
            axes.annotate(method, (LONG, places[method][1]), xytext=(6, -3), textcoords="offset points",
                          fontsize=8)  # fmt: skip
        axes.set_xticks((SHORT, LONG))
        axes.set_xlim(SHORT - 2, LONG + 8)
        axes.set_xlabel("trials of the search")
        axes.set_ylabel("steps to the target")

    header = ["entry", f"best of {SHORT}", f"best of {LONG}", "its values", "less final loss", "95% from",
              "to", "p", "steps", "steps then"]  # fmt: skip
    return Findings(
        verdict, f"trials of seed 1000, final runs of seeds {SEEDS}",
        [Table("More trials", header, rows)], {"places.svg": Picture(places, draw, 6.0, 3.6)},
        {"rows": rows, "places": places}, ", ".join(missing),
    )  # fmt: skip


STUDIES = (
    Study("budgets", "the order of methods does not hang on the number of trials", "this project", budgets,
          "--train"),
)  # fmt: skip
