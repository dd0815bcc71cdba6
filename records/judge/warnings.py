"""What is doubtful about an entry: each warning one sentence that names the files it is about."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import TypeVar, cast

from records.judge.logs import Entry, Log, Run
from records.run.recipe import dotted, shown

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

NAMES = 6  # files named in one warning; the others are counted
CONDITIONS = (
    "world_size",
    "threads",
    "compiled",
    "micro_batch",
    "batch_tokens",
)  # facts, beside device and version
_SETTING = re.compile(r"Using (\w+)=(.*)")  # published logs state their settings so
# The line that may differ between the scripts of one entry: it says which seeds were run.
_ARGUMENTS = re.compile(r"^ARGUMENTS = .*\n?", re.MULTILINE)


def entry_warnings(entry: Entry) -> tuple[str, ...]:
    """All doubts about an entry: complaints of the parser first, then what does not fit together."""
    return (*entry.problems, *(warning for doubts in DOUBTS for warning in doubts(entry)))


def script_digest(log: Log) -> str | None:
    """SHA-256 of a log's script without the line of its arguments; None without a script."""
    if log.script is None:
        return None
    return hashlib.sha256(_ARGUMENTS.sub("", log.script).encode()).hexdigest()


def settings(log: Log) -> dict[str, object]:
    """The effective recipe with dotted keys, or what `Using key=value` facts say; never the seed."""
    stated = [match for fact in log.facts if (match := _SETTING.fullmatch(fact))]
    return dotted(log.recipe) or {match[1]: match[2] for match in stated if match[1] != "seed"}


def conditions(entry: Entry) -> dict[str, tuple[str, ...]]:
    """What the logs state that a run's luck may hang on beside its seed: fact -> its values, each once."""
    found: dict[str, dict[str, None]] = {}
    for log in _logs(entry):
        facts = {key: value for key, _, value in (f.partition(": ") for f in _before_recipe(log.facts))}
        version = next((fact for fact in log.facts if fact.startswith("PyTorch ")), None)
        stated = {"device": log.device, "version": version, "initialisation": initialisation(log)}
        stated |= {key: facts.get(key) for key in CONDITIONS}
        for key, value in stated.items():
            if value is not None:
                found.setdefault(key, {})[value] = None
    return {key: tuple(sorted(values)) for key, values in found.items()}


def initialisation(log: Log) -> str | None:
    """What the effective recipe's [init] says; None where the log states no recipe."""
    said = dotted({"init": log.recipe.get("init", {})})
    told = ", ".join(f"{key} = {shown(value)}" for key, value in said.items()) or "the track's"
    return told if log.recipe else None


def different_scripts(entry: Entry) -> Iterator[str]:
    groups = _groups(_logs(entry), script_digest)
    if len(groups) > 1:
        told = (
            f"{'no script' if digest is None else digest[:8]} in {_files(g)}" for digest, g in groups.items()
        )
        yield f"different scripts: {'; '.join(told)}"


def different_recipes(entry: Entry) -> Iterator[str]:
    logs = _logs(entry)
    said = [settings(log) for log in logs]
    for key in sorted({key for one in said for key in one}):
        stated = [(one.get(key, "nothing"), log) for one, log in zip(said, logs, strict=True)]
        groups = _groups(stated, lambda pair: _as_key(pair[0])).values()
        if len(groups) > 1:
            told = (f"{group[0][0]!r:.60} in {_files(log for _, log in group)}" for group in groups)
            yield f"different recipes, {key}: {'; '.join(told)}"


def different_devices(entry: Entry) -> Iterator[str]:
    groups = _groups(_logs(entry), lambda log: (log.device, log.world_size))
    if len(groups) > 1:
        told = (
            f"{device or 'unknown'} x {n or '?'} in {_files(group)}" for (device, n), group in groups.items()
        )
        yield f"different devices: {'; '.join(told)}"


def different_total_steps(entry: Entry) -> Iterator[str]:
    groups = _groups(entry.runs, lambda run: run.total_steps)
    if len(groups) > 1:
        told = (f"{total} in {_files(group)}" for total, group in groups.items())
        yield f"different total steps: {'; '.join(told)}"


def same_curve_twice(entry: Entry) -> Iterator[str]:
    """Step 0 does not count: it is the same loss in every run of a model whose head starts at zero."""
    trained = [run for run in entry.runs if run.validations[-1].step > 0]
    for group in _groups(trained, lambda run: tuple(v for v in run.curve.items() if v[0] > 0)).values():
        if len(group) > 1:
            yield f"the same curve {len(group)} times: {_runs(entry, group)}"


def seeds_missing(entry: Entry) -> Iterator[str]:
    """Runs without a seed, gaps in the sequence, planned seeds not run, seeds run twice."""
    seeds = sorted({run.seed for run in entry.runs if run.seed is not None})
    unknown = [run for run in entry.runs if run.seed is None]
    if seeds and unknown:
        yield f"no seed is stated for {_runs(entry, unknown)}"
    if seeds and (gaps := _gaps(seeds)):
        files = _files(log for log in entry.logs if any(run.seed is not None for run in log.runs))
        yield f"seeds missing from the sequence {_listed(ranges(seeds))}: {_listed(ranges(gaps))} ({files})"
    for log in entry.logs:
        if not_run := sorted(planned_seeds(log) - {run.seed for run in log.runs}):
            yield f"planned seeds that were not run: {_listed(ranges(not_run))} in {log.path.name}"
    for seed, group in _groups(
        (run for run in entry.runs if run.seed is not None), lambda run: run.seed
    ).items():
        if len(group) > 1:
            yield f"seed {seed} was run {len(group)} times: {_runs(entry, group)}"


def seeds_begin_late(entry: Entry) -> Iterator[str]:
    """One run with a seed of its own is what a hand-picked run looks like."""
    seeded = [(run.seed, run) for run in entry.runs if run.seed is not None]
    seed, first = min(seeded, key=lambda pair: pair[0], default=(0, None))
    if first and seed > 1:
        yield f"the seeds begin at {seed}, not at 0 or 1: {_runs(entry, [first])}"


def runs_that_end_early(entry: Entry) -> Iterator[str]:
    for run in entry.runs:
        if run.validations[-1].step < run.total_steps:
            at = f"at step {run.validations[-1].step} of {run.total_steps}"
            yield f"ends early, {at}: {_runs(entry, [run])}"


def not_finite(entry: Entry) -> Iterator[str]:
    for run in entry.runs:
        if steps := [step for step, loss in run.curve.items() if abs(loss) == float("inf") or loss != loss]:
            yield f"val_loss is not finite from step {steps[0]} on: {_runs(entry, [run])}"


def fewer_common_validations(entry: Entry) -> Iterator[str]:
    runs = entry.runs
    counts = Counter(step for run in runs for step in run.curve)
    common = {step for step, count in counts.items() if count == len(runs)}
    if len(common) < len(counts):
        late = [run for run in runs if len(run.curve) < len(counts)]
        extra = sorted(set(counts) - common)
        yield (
            f"only {len(common)} validations are common to all runs; not in all: steps {_listed(extra)}; "
            f"lacking in {_runs(entry, late)}"
        )


def second_loss(entry: Entry) -> Iterator[str]:
    groups = defaultdict(list)
    for run in entry.runs:
        for name in run.other_losses:
            groups[name].append(run)
    for name, group in groups.items():
        yield f"a second loss, {name}, stands beside val_loss (val_loss is judged): {_files(group)}"


DOUBTS: tuple[Callable[[Entry], Iterator[str]], ...] = (
    different_scripts,
    different_recipes,
    different_devices,
    different_total_steps,
    same_curve_twice,
    seeds_missing,
    seeds_begin_late,
    runs_that_end_early,
    not_finite,
    fewer_common_validations,
    second_loss,
)


def planned_seeds(log: Log) -> set[int]:
    """The seeds of the fact `seeds: 0-4` or `seeds: 0,3`; empty where there is none."""
    for fact in _before_recipe(log.facts):
        if match := re.fullmatch(r"seeds: *(\d{1,9}(?:-\d{1,9})?(?:, ?\d{1,9}(?:-\d{1,9})?)*)", fact):
            parts = [[int(n) for n in part.split("-")] for part in match[1].split(",")]
            return {seed for part in parts for seed in range(part[0], min(part[-1], part[0] + 10_000) + 1)}
    return set()


def _before_recipe(facts: Sequence[str]) -> Iterator[str]:
    return takewhile(lambda fact: fact != "effective recipe:", facts)


def _logs(entry: Entry) -> list[Log]:
    return [log for log in entry.logs if log.runs]


def _groups(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def _as_key(value: object) -> Hashable:
    """A value of a recipe as what is equal where it is: 276 and 276.0, in lists too."""
    return tuple(map(_as_key, value)) if isinstance(value, list) else cast(Hashable, value)


def _gaps(seeds: list[int]) -> list[int]:
    """The numbers missing between the first and the last; the first of them where they are very many."""
    gaps: list[int] = []
    for before, after in zip(seeds, seeds[1:], strict=False):
        gaps += range(before + 1, min(after, before + 1001))
    return gaps


def ranges(numbers: Iterable[int]) -> list[str]:
    """[0, 1, 2, 5] -> ["0-2", "5"]."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return [str(a) if a == b else f"{a}-{b}" for a, b in parts]


def _listed(items: list) -> str:
    more = f" and {len(items) - NAMES} more" if len(items) > NAMES else ""
    return ", ".join(map(str, items[:NAMES])) + more


def _files(items: Iterable[Log | Run]) -> str:
    return _listed(list(dict.fromkeys(item.path.name for item in items)))


def _runs(entry: Entry, runs: list[Run]) -> str:
    """The runs by their files, with the place in the file where it holds several."""
    several = {log.path for log in entry.logs if len(log.runs) > 1}
    return _listed([run.name if run.path in several else run.path.name for run in runs])
