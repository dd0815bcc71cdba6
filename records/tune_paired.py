"""Is a candidate better than a base? Both are trained seed by seed, and no longer than until it is decided.

After each seed from the third on, the differences of the final validation loss are tested (`decides` of
records.judge.paired). The number of seeds is fixed before the first: then two recipes that are equal are told
apart with probability 1%, all looks together. A run lies in a folder named by what was run, so candidates
share the runs of their base, and the same command goes on where it stood.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from records.judge.paired import FIRST_LOOK, TTest, decides, sequential_level, t_test
from records.run.changes import merge, parse_change
from records.run.recipe import parse_seeds, toml_lines
from records.run.recipe_files import find_recipe, read_table
from records.run.track import shipped_tracks
from records.trial import TuneError, runs_in, train


@dataclass(frozen=True)
class Contender:
    """A recipe, changed, and where its runs are kept."""

    recipe: Path
    changes: tuple[str, ...]  # KEY=VALUE
    folder: Path


def contender(
    source: str, track: str | None, changes: Sequence[str], home: Path, arguments: Sequence[str]
) -> Contender:
    """The recipe of that name (of `track` first) or path; its folder in `home` is named by what its runs are.

    Raises RecipeError for an unknown recipe and for a change that is none.
    """
    path = find_recipe(source, shipped_tracks(), track).resolve()
    table = read_table(path)
    for change in changes:
        table = merge(table, parse_change(change))
    name = path.parent.name if path.name == "recipe.toml" else path.stem
    told = "\n".join([*toml_lines(table), *arguments])
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return Contender(path, tuple(changes), home / f"{name}-{digest}")


def final_loss(
    one: Contender, seed: int, command: Sequence[str], arguments: Sequence[str]
) -> tuple[float, int]:
    """The seed's final validation loss, infinite where it diverged, and its planned steps.

    Trained if it was not, beside its place and then moved there: what lies there is whole.
    """
    place = one.folder / f"seed-{seed}"
    if not place.exists():
        beside = one.folder / f"seed-{seed}.{os.getpid()}.tmp"
        changes = dict(change.split("=", 1) for change in one.changes)
        train(command, one.recipe, changes, str(seed), beside, arguments)
        if place.exists():  # another process was as fast
            shutil.rmtree(beside)
        else:
            beside.rename(place)
    (run,) = runs_in(place)
    end = run.validations[-1]
    whole = end.step == run.total_steps and math.isfinite(end.val_loss)
    return end.val_loss if whole else math.inf, run.total_steps


def differences(
    candidate: Contender,
    base: Contender,
    seeds: Sequence[int],
    command: Sequence[str],
    arguments: Sequence[str],
) -> Iterator[float]:
    """How much more loss the base has, seed by seed, each printed; -inf where the candidate diverged.

    Raises TuneError where the base diverged, or where the two are trained for different numbers of steps.
    """
    for seed in seeds:
        theirs, planned = final_loss(base, seed, command, arguments)
        mine, steps = final_loss(candidate, seed, command, arguments)
        if steps != planned:
            raise TuneError(
                f"the base is trained for {planned} steps, the candidate for {steps}: expected the same "
                "number; give it after two dashes: -- --steps N"
            )
        if math.isinf(theirs):
            raise TuneError(
                f"the base diverged at seed {seed}: expected a base that trains; see {base.folder}"
            )
        print(
            f"seed {seed}: base {theirs:.5f}, candidate {mine:.5f}, difference {theirs - mine:+.5f}",
            flush=True,
        )
        yield theirs - mine


def compare_candidate(
    candidate: str,
    base: str,
    track: str | None,
    changes: Sequence[str],
    seeds: str,
    home: Path,
    command: Sequence[str],
    arguments: Sequence[str],
) -> list[float]:
    """Train both until it is decided or the seeds are spent, and print the verdict.

    Returns how much more loss the base has, by seed, as `differences` does, which says what is raised too.
    """
    planned = parse_seeds(seeds)
    if len(planned) < FIRST_LOOK:
        raise TuneError(
            f"--seeds {seeds}: expected at least {FIRST_LOOK} seeds to compare, found {len(planned)}"
        )
    one = contender(candidate, track, changes, home, arguments)
    other = contender(base, track, (), home, arguments)
    if one.folder == other.folder:
        raise TuneError(
            f"the candidate is the base {base}: change it with --set KEY=VALUE or name another recipe"
        )
    found: list[float] = []
    for difference in differences(one, other, planned, command, arguments):
        found.append(difference)
        if math.isinf(difference):
            print(f"worse: the candidate diverged at seed {planned[len(found) - 1]}")
            return found
        if decides(found, len(planned)):
            break
    test = t_test(found)
    print(verdict(test, len(planned)))
    print(f"runs: {one.folder} and {other.folder}")
    return found


def verdict(test: TTest, planned: int) -> str:
    """What the differences show, with the rule that it follows."""
    level = sequential_level(planned)
    rule = f"p {test.p:.2g}, decided below {level:.2g} after any of up to {planned} seeds: 1% for equals"
    if test.p is not None and test.p < level:
        told = f"{'better' if test.mean > 0 else 'worse'} after {test.n} of {planned} seeds"
        early = "; an early stop flatters the difference" if test.n < planned else ""
        return f"{told}: {abs(test.mean):.5f} {'less' if test.mean > 0 else 'more'} loss ({rule}){early}"
    edges = f"95% from {test.low:+.5f} to {test.high:+.5f}"
    return f"not decided by {planned} seeds: {test.mean:+.5f} less loss ({edges}; {rule})"
