"""python -m records check ENTRY: the benchmark's rules, one line each. Exit code 0 if all are kept."""

import argparse
import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from records.judge import script_rules
from records.judge.fixed_parts import changed_parts, other_changes, read_versions
from records.judge.logs import Entry, Log, read_entry
from records.judge.statistics import Summary, summarize_entry, threshold
from records.judge.tracks import changed_track, shipped_track
from records.judge.warnings import (
    different_recipes,
    different_scripts,
    different_total_steps,
    not_finite,
    runs_that_end_early,
    same_curve_twice,
    script_digest,
    seeds_missing,
)
from records.run.track import Track

VAL_SHARDS = Path(__file__).with_name("val_shards.toml")
_VAL_SHARD = re.compile(r"shard (\S*_val_\S*): .*digest ([0-9a-f]{16})")


@dataclass(frozen=True)
class Rule:
    """One rule of the benchmark, kept or not, and what there is to say about it."""

    name: str
    passed: bool
    told: str


def register(subparsers) -> None:
    """Add the subcommand `check`."""
    parser = subparsers.add_parser("check", description=__doc__)
    parser.add_argument("entry", metavar="ENTRY", help="a log, or a folder of logs")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the rules; 1 where one is broken."""
    entry = read_entry(args.entry)
    rules = check_entry(entry)
    for rule in rules:
        print(f"{'pass' if rule.passed else 'FAIL'}  {rule.name}: {rule.told}")
    broken = sum(not rule.passed for rule in rules)
    print(f"{entry.name}: {'all rules kept' if not broken else f'{broken} of {len(rules)} rules broken'}")
    return 1 if broken else 0


def check_entry(entry: Entry, root: Path = script_rules.ROOT) -> tuple[Rule, ...]:
    """All rules for an entry, against the trainer and the tracks of the project at `root`.

    Raises TrackError where the logs name no single track of this project.
    """
    track = shipped_track(entry)
    summary = summarize_entry(entry, track.target, track.sigma)
    n = f"{summary.n} run{'' if summary.n == 1 else 's'}"
    return (
        _rule("same script", f"one script and one recipe for {n}", one_script(entry)),
        _rule("script within the rules", _told_free(entry, root, track), script_within_rules(entry, track)),
        _rule("no decision on validation loss", "none found in the script", no_decisions(entry)),
        _rule("one step for all runs", _told_step(summary), one_step(entry, summary)),
        _rule("significance", _told_significance(summary), significance(summary)),
        _rule("logs complete", f"{n}, each to its end and finite", complete(entry, track)),
    )


def _rule(name: str, told: str, complaints: Iterator[str]) -> Rule:
    broken = list(complaints)
    return Rule(name, not broken, "; ".join(broken) or told)


def one_script(entry: Entry) -> Iterator[str]:
    """Rule 4: the log holds the script that was run, and all logs hold the same."""
    if not entry.runs:
        yield "no run found"
    yield from _together(
        (
            f"no script at the head ({why[0]})"
            if (why := _script_problems(log))
            else "no script at the head",
            log,
        )
        for log in entry.logs
        if log.script is None
    )
    yield from different_scripts(entry)
    yield from different_recipes(entry)
    for log in entry.logs:
        if not script_rules.plain_arguments(log.script or ""):
            yield f"{log.path.name}: expected one line ARGUMENTS = [...] with strings only, found otherwise"
        if (embedded := embedded_recipe(log)) is not None and embedded != log.recipe:
            yield f"{log.path.name}: the recipe in the script is not the effective recipe that the log states"


def _script_problems(log: Log) -> list[str]:
    return [problem for problem in log.problems if "script" in problem]


def embedded_recipe(log: Log) -> dict | None:
    """The effective recipe that a log's script holds; None without one, {} where it cannot be read."""
    text = script_rules.embedded_recipe(log.script or "")
    try:
        return None if text is None else tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


def script_within_rules(entry: Entry, track: Track) -> Iterator[str]:
    """Rules 1 and 4: no third-party optimizer; track, data, model and validation as in this checkout."""
    parts, values = partial(changed_parts, versions=read_versions()), partial(changed_track, track=track)
    yield from _each_script(entry, script_rules.foreign_imports, parts, values)
    known = val_digest(track)
    for name, digest, log in stated_val_shards(entry):
        if known and digest != known:
            yield f"{log.path.name}: validated on {name} of digest {digest}, expected {known}"


def val_digest(track: Track) -> str:
    """The digest of a track's validation shard; empty where it is not known."""
    return tomllib.loads(VAL_SHARDS.read_text(encoding="utf-8")).get(track.name, "")


def stated_val_shards(entry: Entry) -> Iterator[tuple[str, str, Log]]:
    """Name and digest of the validation shard, of each log that states it."""
    for log in entry.logs:
        for found in filter(None, map(_VAL_SHARD.fullmatch, log.facts)):
            yield found[1], found[2], log


def no_decisions(entry: Entry) -> Iterator[str]:
    """Rule 3. The script is searched as `script_rules.decisions_on_val_loss` says, no further."""
    yield from _each_script(entry, script_rules.decisions_on_val_loss)


def one_step(entry: Entry, summary: Summary) -> Iterator[str]:
    """Rule 3: the step claimed is the same for all runs, and all runs were to train equally long."""
    yield from different_total_steps(entry)
    if not summary.steps:
        yield "no validation is common to all runs"


def significance(summary: Summary) -> Iterator[str]:
    """Rule 2."""
    if summary.first_significant_step is None:
        yield _told_significance(summary)


def complete(entry: Entry, track: Track) -> Iterator[str]:
    """Every run planned is there, once, with its seed, whole, finite and validated as the track says."""
    if all(run.seed is None for run in entry.runs):
        yield "no seeds are stated"
    for doubts in (seeds_missing, runs_that_end_early, not_finite, same_curve_twice):
        yield from doubts(entry)
    for run in entry.runs:
        asked = {*range(track.val_every, run.total_steps + 1, track.val_every), run.total_steps}
        last = run.validations[-1].step
        if lacking := sorted(step for step in asked - run.curve.keys() if step <= last):
            yield f"no validation at step {lacking[0]} ({len(lacking)} lacking) in {run.name}"
    yield from entry.problems


def _each_script(entry: Entry, *looks: Callable[[ast.Module], Iterable[str]]) -> Iterator[str]:
    """What is found in the different scripts of an entry (the line of their arguments is no difference)."""
    logs: dict[str | None, list[Log]] = {}
    for log in entry.logs:
        logs.setdefault(script_digest(log), []).append(log)
    for same in logs.values():
        if same[0].script is None:
            complaints = ["no script to look at"]
        elif isinstance(tree := script_rules.parse(same[0].script), str):
            complaints = [tree]
        else:
            try:
                complaints = [complaint for look in looks for complaint in look(tree)]
            except RecursionError:
                complaints = ["it is nested too deeply to be looked through"]
        yield from _together((complaint, log) for complaint in complaints for log in same)


def _together(complaints: Iterable[tuple[str, Log]]) -> Iterator[str]:
    """Equal complaints about several files as one."""
    files: dict[str, list[str]] = {}
    for complaint, log in complaints:
        files.setdefault(complaint, []).append(log.path.name)
    for complaint, names in files.items():
        yield f"{complaint} [{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}]"


def _told_free(entry: Entry, root: Path, track: Track) -> str:
    told = "no third-party optimizer; track, data, model and validation as in this checkout"
    stated = [log for _, _, log in stated_val_shards(entry)]
    if stated and not val_digest(track):
        told += f"; the digest of {track.name}'s validation shard is not known, so not compared"
    elif lacking := [log for log in entry.logs if log not in stated]:
        told += f"; {len(lacking)} of {len(entry.logs)} logs do not say which validation shard they used"
    scripts, versions = {script_digest(log): log.script for log in entry.logs if log.script}, read_versions()
    for script in scripts.values():
        tree = script_rules.parse(script)
        if not isinstance(tree, str) and (others := other_changes(tree, versions, root)):
            return f"{told}; to be read, since free but other than here: {', '.join(others)}"
    return told


def _told_step(summary: Summary) -> str:
    totals = sorted({run.total_steps for run in summary.runs})
    claimed = summary.first_significant_step
    return f"{f'step {claimed}' if claimed is not None else 'none claimed'} of {', '.join(map(str, totals))}"


def _told_significance(summary: Summary) -> str:
    at, asked = summary.judged, threshold(summary.sigma)
    if at is None:
        return "no validation is common to all runs"
    rule = f"{at.statistic:.5f} {'>=' if at.significant else '<'} {asked:.5f}"
    return f"step {at.step}: ({summary.target} - {at.mean:.5f}) sqrt({at.n}) = {rule}" + (
        "" if at.significant else " (the last common step)"
    )
