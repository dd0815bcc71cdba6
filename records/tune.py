"""Search hyperparameters of a recipe: ./run.sh tune RECIPE --trials N [--param KEY:KIND:LOW:HIGH ...]

A trial is one `./run.sh --recipe RECIPE --set KEY=VALUE ...` with seeds that final runs do not use, validated
at its ends only; its value is the mean of the last validation losses of these seeds, infinite where a run
diverges. The folder is the study: `study.journal` (Optuna's), the trials' logs, and at the end `best.toml`
and `trials.svg`. The same command goes on where the study stands; processes started with it at the same time,
on several nodes too where they see the folder, share the trials.

The first trial is the recipe itself, the next ones spread over the ranges (a Sobol sequence), the rest follow
TPE: of the mixtures tried on quadratic bowls with noise, this one came closest to the optimum in 8 trials and
in 16. What follows `--` goes to every run: `./run.sh tune muon --trials 8 -- --steps 300 --nproc 2`.

With --paired nothing is searched: RECIPE, changed by --set, is compared with BASE on common seeds, and that
stops as soon as it is decided: `./run.sh tune muon --paired muon --set matrix.lr=0.03 --seeds 1000-1011`.
"""

import argparse
import math
import os
import shlex
import signal
import socket
import sys
import time
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from records import RecordError
from records.publish.pictures import COLOURS, STYLE
from records.run.changes import merge, parse_change
from records.run.recipe import RecipeError, parse_seeds, toml_lines
from records.run.recipe_files import find_recipe, read_recipe, read_table
from records.run.track import default_track, read_track, shipped_tracks
from records.trial import COMMAND, ROOT, TuneError, train
from records.tune_paired import compare_candidate

SPREAD_TRIALS = 6  # the recipe and five points spread over the ranges


@dataclass(frozen=True)
class Range:
    """Where a recipe's key is searched; `kind` is "log", "linear" or "int"."""

    key: str
    kind: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> "Range":
        """The range KEY:KIND:LOW:HIGH. Raises TuneError for anything else and for one that is empty."""
        try:
            key, kind, low, high = text.split(":")
            value = cls(key, kind, float(low), float(high))
            value.distribution()
        except ValueError as error:
            raise TuneError(
                f"--param {text}: expected KEY:KIND:LOW:HIGH such as matrix.lr:log:0.002:0.08; KIND is "
                f"log, linear or int, LOW is below HIGH ({error})."
            ) from None
        return value

    def __str__(self) -> str:
        return f"{self.key}:{self.kind}:{self.low:g}:{self.high:g}"

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Optuna's word for it. Raises ValueError where the range is none."""
        if self.kind not in ("log", "linear", "int") or not self.low < self.high:
            raise ValueError("no such range")
        if self.kind == "int":
            return optuna.distributions.IntDistribution(int(self.low), int(self.high))
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.kind == "log")

    def place(self, value: float) -> float:
        """Where a value lies between LOW (0) and HIGH (1) on the scale of the search."""
        low, high, value = (math.log(x) if self.kind == "log" else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Search:
    """One study: what is run, where, and over which ranges."""

    recipe: Path
    ranges: tuple[Range, ...]
    seeds: str
    folder: Path
    arguments: tuple[str, ...]  # further ones of ./run.sh
    command: tuple[str, ...]  # ./run.sh

    def setup(self) -> dict[str, str]:
        """What must be the same in every process of the study."""
        return {
            "recipe": self.recipe.read_text(),
            "ranges": " ".join(map(str, self.ranges)),
            "seeds": self.seeds,
            "arguments": shlex.join(self.arguments),
        }


def look_up(recipe: dict, key: str) -> float | None:
    """The number at a dotted key, as --set has it; None where the recipe holds none there."""
    value: object = recipe
    wanted: object = parse_change(f"{key}=0")
    while isinstance(wanted, dict):
        ((part, wanted),) = wanted.items()
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, (int, float)) else None


def default_ranges(recipe: dict) -> tuple[Range, ...]:
    """matrix.lr, and matrix.weight_decay where the recipe has it, from a quarter to four times its value.

    A weight decay of zero is searched from 0 to 0.1. Raises TuneError where the recipe has no learning rate.
    """
    ranges = []
    for key in ("matrix.lr", "matrix.weight_decay"):
        value = look_up(recipe, key)
        if value:
            ranges.append(Range(key, "log", value / 4, value * 4))
        elif value is not None:
            ranges.append(Range(key, "linear", 0.0, 0.1))
    if not ranges:
        raise TuneError("the recipe has no matrix.lr: say what to search with --param.")
    return tuple(ranges)


def check_ranges(recipe: Path, ranges: tuple[Range, ...], track: str | None) -> None:
    """Raises RecipeError where the recipe cannot have the lowest or the highest value of a range."""
    from optimizers import AROUND, STEPS  # torch, which takes seconds to import

    for r in ranges:
        for end in (r.low, r.high):
            end = int(end) if r.kind == "int" else end
            read_recipe(recipe, shipped_tracks(), STEPS, [f"{r.key}={end}"], track, AROUND)


def open_study(search: Search) -> optuna.Study:
    """The study of the folder, made where there is none. Raises TuneError where it is another search's."""
    search.folder.mkdir(parents=True, exist_ok=True)
    journal = JournalFileBackend(str(search.folder / "study.journal"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal), study_name="tune", load_if_exists=True
    )
    setup, known = search.setup(), study.user_attrs.get("setup")
    if known is None:
        study.set_user_attr("setup", setup)
        recipe = tomllib.loads(setup["recipe"])
        start = {r.key: value for r in search.ranges if (value := look_up(recipe, r.key)) is not None}
        if all(r.low <= start.get(r.key, r.low) <= r.high for r in search.ranges):
            study.enqueue_trial(start, skip_if_exists=True)
    elif known != setup:
        differing = ", ".join(key for key in setup if known.get(key) != setup[key])
        raise TuneError(
            f"{search.folder} holds a study with other {differing}: go on as then, or give another --out."
        )
    return study


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def take_back_dead_trials(study: optuna.Study) -> None:
    """Queue again the running trials whose process on this machine is no more."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        host, process = trial.user_attrs.get("process", [None, None])
        if host == socket.gethostname() and not is_alive(process):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            study.enqueue_trial(trial.params)


def count_spent(study: optuna.Study, before: float = math.inf) -> int:
    """Trials that are done or running, of those with a number below `before`; not the interrupted ones."""
    states = (TrialState.COMPLETE, TrialState.RUNNING)
    return sum(trial.number < before for trial in study.get_trials(deepcopy=False, states=states))


def choose_sampler(started: int) -> optuna.samplers.BaseSampler:
    """Spread points first, then TPE; seeded by the number of trials, so that no process repeats another's."""
    if started < SPREAD_TRIALS:
        return optuna.samplers.QMCSampler(
            seed=0,
            scramble=True,
            independent_sampler=optuna.samplers.RandomSampler(seed=started),
            warn_independent_sampling=False,
        )
    return optuna.samplers.TPESampler(seed=started, n_startup_trials=1, multivariate=True)


def settings(params: dict[str, float]) -> dict[str, float]:
    """The values as they are run and written: four significant digits."""
    return {key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in params.items()}


def tune(search: Search, trials: int) -> optuna.Study:
    """Run trials until the study has as many, counting those that other processes are running now."""
    study = open_study(search)
    while True:
        take_back_dead_trials(study)
        spent = count_spent(study)
        if spent >= trials:
            return study
        study.sampler = choose_sampler(spent)
        trial = study.ask({r.key: r.distribution() for r in search.ranges})
        if count_spent(study, trial.number) >= trials:  # another process took the last one in between
            study.tell(trial, state=TrialState.FAIL)
            return study
        trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
        values, start = settings(trial.params), time.monotonic()
        try:
            folder = search.folder / f"trial-{trial.number:03d}"
            loss = train(search.command, search.recipe, values, search.seeds, folder, search.arguments)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)  # not spent: the next process runs it
            raise
        trial.set_user_attr("seconds", seconds := round(time.monotonic() - start, 1))
        study.tell(trial, loss)
        told = " ".join(f"{key}={value:g}" for key, value in values.items())
        best = study.best_trial
        print(
            f"trial {trial.number} ({spent + 1} of {trials}): {told} val_loss {show(loss)} in "
            f"{seconds:.0f} s, best {show(loss_of(best))} (trial {best.number})",
            flush=True,
        )


def loss_of(trial: FrozenTrial) -> float:
    """What a complete trial reached; infinite where it diverged."""
    return math.inf if trial.value is None else trial.value


def show(loss: float) -> str:
    """A trial's value for people."""
    return f"{loss:.5f}" if math.isfinite(loss) else "diverged"


def table(trials: list[FrozenTrial], ranges: tuple[Range, ...]) -> str:
    """The trials from the best to the worst, a line each."""
    keys = [r.key for r in ranges]
    rows = [["trial", "val_loss", "seconds", *keys]]
    for trial in trials:
        values = settings(trial.params)
        told = (str(trial.number), show(loss_of(trial)), f"{trial.user_attrs['seconds']:.0f}")
        rows.append([*told, *(f"{values[key]:g}" for key in keys)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def draw(trials: list[FrozenTrial], ranges: tuple[Range, ...], path: Path) -> None:
    """The final validation loss over each searched key; diverged trials are crosses at the upper edge."""
    finite = [trial for trial in trials if math.isfinite(loss_of(trial))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * len(ranges), 3.2), layout="constrained")
        for place, r in enumerate(ranges, 1):
            axes = figure.add_subplot(1, len(ranges), place, xlabel=r.key, xlim=(r.low, r.high))
            if r.kind == "log":
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
            found = [trial.params[r.key] for trial in finite]
            diverged = [trial.params[r.key] for trial in trials if trial not in finite]
            axes.plot(found, [loss_of(trial) for trial in finite], "o", color=COLOURS[0])
            axes.plot(found[0], loss_of(finite[0]), "o", color=COLOURS[1], label="best")
            upper, top = axes.get_xaxis_transform(), [0.98] * len(diverged)
            axes.plot(diverged, top, "x", color=COLOURS[6], transform=upper, label="diverged")
        figure.axes[0].set_ylabel("final validation loss")
        figure.axes[0].legend()
        figure.savefig(path, metadata={"Date": None})


def best_recipe(search: Search, best: FrozenTrial, trials: int) -> str:
    """The recipe with the best trial's values as TOML, headed by where they come from."""
    recipe = tomllib.loads(search.recipe.read_text())
    for key, value in settings(best.params).items():
        recipe = merge(recipe, parse_change(f"{key}={value}"))
    keys = ", ".join(r.key for r in search.ranges)
    told = recipe.get("description", search.recipe.stem)
    recipe["description"] = f"{told} ({keys} tuned in {trials} trials)"
    head = (
        f"# Tuned by ./run.sh tune: trial {best.number}, the best of {trials}.",
        f"# Mean final validation loss: {loss_of(best):.5f}, seeds {search.seeds}.",
        f"# Study: {search.folder.name}, of the recipe {search.recipe.name}.",
        f"# Searched: {' '.join(map(str, search.ranges))}",
        f"# Further arguments: {shlex.join(search.arguments) or 'none'}",
    )
    return "\n".join([*head, *toml_lines(recipe), ""])


def report(study: optuna.Study, search: Search) -> int:
    """Print the table, write `best.toml` and `trials.svg`; the exit code."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
    trials = sorted(complete, key=lambda trial: (loss_of(trial), trial.number))
    if running:
        print(f"{running} trials are still running in other processes; the last of these reports on all.")
    if not trials:
        return 0
    print(table(trials, search.ranges))
    best = trials[0]
    if math.isinf(loss_of(best)):
        print("error: every trial diverged: search lower learning rates with --param.", file=sys.stderr)
        return 1
    for r in search.ranges:
        if not 0.05 < r.place(best.params[r.key]) < 0.95:
            print(f"the best {r.key} lies at the edge of {r}: a wider --param may hold a better one.")
    draw(trials, search.ranges, search.folder / "trials.svg")
    temporary = search.folder / f"best.toml.{os.getpid()}.tmp"
    temporary.write_text(best_recipe(search, best, len(trials)))
    temporary.replace(search.folder / "best.toml")
    print(f"best recipe: {search.folder / 'best.toml'}; figure: {search.folder / 'trials.svg'}")
    return 0


def on_gpu() -> bool:
    """Whether runs train on a GPU here."""
    from optimizers.world import has_gpu  # torch, as above

    return has_gpu(checked=False)


def main(argv: list[str] | None = None, command: tuple[str, ...] = COMMAND) -> int:
    """The command line; `command` stands for ./run.sh. Returns the exit code, 2 for unusable input."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="./run.sh tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a shipped recipe, an entry or a TOML file")
    add("--track", metavar="NAME|FILE", help="the track (the recipe's)")
    add("--trials", type=int, metavar="N", help="trials of the whole study")
    add(
        "--param",
        action="append",
        default=[],
        metavar="KEY:KIND:LOW:HIGH",
        help="what to search; KIND is log, linear or int (matrix.lr and weight_decay, around the recipe's)",
    )
    add("--paired", metavar="BASE", help="compare with this recipe on common seeds, and search nothing")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="with --paired: change the recipe")
    add(
        "--seeds",
        help="seeds of every trial (1000), of a comparison at most (1000-1011); final runs use 0 and up",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the study (logs/tune/TRACK-RECIPE, logs/tune/paired)",
    )
    options = parser.parse_args(argv[:split])
    if (options.trials is None) == (options.paired is None):
        parser.error("expected --trials N to search, or --paired BASE to compare")
    if options.trials is not None and options.trials < 1:
        parser.error(f"--trials {options.trials}: expected a number above 0")
    if (options.param and options.paired) or (options.set and not options.paired):
        parser.error("--param belongs to a search (--trials), --set to a comparison (--paired)")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate TPE, QMC
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = (*(["--track", options.track] if options.track else []), *argv[split + 1 :])
    try:
        track = read_track(options.track).name if options.track else None
        first = track or default_track(on_gpu())  # whose recipe is meant where several have the name
        if options.paired:
            home, seeds = options.out or ROOT / "logs" / "tune" / "paired", options.seeds or "1000-1011"
            against = options.recipe, options.paired, first, options.set
            compare_candidate(*against, seeds, home, command, arguments)
            return 0
        path = find_recipe(options.recipe, shipped_tracks(), first).resolve()
        recipe = read_table(path)
        name = path.parent.name if path.name == "recipe.toml" else path.stem
        search = Search(
            recipe=path,
            ranges=tuple(map(Range.parse, options.param)) or default_ranges(recipe),
            seeds=options.seeds or "1000",
            folder=options.out or ROOT / "logs" / "tune" / f"{track or recipe.get('track')}-{name}",
            arguments=arguments,
            command=command,
        )
        if not options.track or track in shipped_tracks():
            check_ranges(path, search.ranges, track)
            parse_seeds(search.seeds)
        return report(tune(search, options.trials), search)
    except (RecordError, RecipeError, OSError, tomllib.TOMLDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stood", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
