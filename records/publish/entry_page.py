"""An entry's own page: `records/<track>/<entry>/README.md` and its figure, made from its recipe and logs."""

import ast
import math
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from records import RecordError
from records.judge.logs import Entry, read_entry
from records.judge.script_rules import plain_arguments
from records.judge.statistics import Summary, summarize_entry, threshold
from records.judge.tracks import track_name
from records.judge.warnings import ranges
from records.publish.pages import FIGURE, Page, escape, fenced, table
from records.publish.pictures import Curve, curves_picture
from records.publish.recipe_table import flat, side_by_side
from records.run.track import Track

# Of an entry: no path, no markup, the same on every disk.
PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")


class EntryError(RecordError):
    """A folder that is no entry, or a recipe that cannot be read: expected, found, what to do."""


@dataclass(frozen=True)
class Standing:
    """An entry as the leaderboard sees it. `date` (YYYY-MM-DD) is its last log's, None where none says."""

    name: str
    folder: Path
    recipe_text: str
    recipe: dict
    entry: Entry
    summary: Summary
    date: str | None

    @property
    def optimizer(self) -> str:
        """The step functions of the hidden matrices, as the recipe names them."""
        matrix = self.recipe.get("matrix", {})
        tables = [matrix, *(value for value in matrix.values() if isinstance(value, dict))]
        return ", ".join(dict.fromkeys(str(t["step"]) for t in tables if "step" in t)) or "?"

    @property
    def devices(self) -> str:
        return ", ".join(dict.fromkeys(log.device or "?" for log in self.entry.logs))


def read_standing(folder: Path, track: Track) -> Standing:
    """Read the entry in `folder`. Raises EntryError for its recipe or track, LogError for its logs."""
    text, recipe = read_toml(folder / "recipe.toml")
    entry = read_entry(folder)
    if (found := track_name(entry)) != track.name:
        raise EntryError(f"{folder}: expected logs of track {track.name}, found {found}; move the entry")
    dates = [log.date for log in entry.logs if log.date]
    summary = summarize_entry(entry, track.target, track.sigma)
    return Standing(folder.name, folder, text, recipe, entry, summary, max(dates, default=None))


def read_toml(path: Path) -> tuple[str, dict]:
    """A recipe file's text and table; no value checked. Raises EntryError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
        flat(table)  # nothing later can be surprised by tables a thousand deep
    except OSError as error:
        raise EntryError(f"{path}: expected a recipe, cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML
        raise EntryError(f"{path}: expected a recipe in TOML: {error}") from None
    if not isinstance(table.get("matrix", {}), dict):
        raise EntryError(f"{path}: expected a table [matrix], found matrix = {table['matrix']!r}")
    return text, table


def mean_curve(name: str, summary: Summary) -> Curve:
    """Mean, lowest and highest loss of an entry's runs at each step common to them."""
    steps = [at for at in summary.steps if math.isfinite(at.mean)]
    return Curve(
        name,
        tuple(at.step for at in steps),
        tuple(at.mean for at in steps),
        tuple(at.min for at in steps),
        tuple(at.max for at in steps),
    )


def entry_page(standing: Standing, track: Track, neighbours: Path) -> Page:
    """The README and figure of an entry; `neighbours` is the track's folder, where its base is looked up."""
    summary = standing.summary
    curve = mean_curve(standing.name, summary)
    parts = [f"# {escape(standing.name)}\n"]
    if description := standing.recipe.get("description"):
        parts.append(escape(description) + "\n")
    parts += [
        verdict(summary) + "\n",
        table(("", ""), facts(standing, track)),
        repeat_command(standing, track),
        "## Runs\n",
        runs_table(summary),
    ]
    if curve.steps:
        alt = "validation loss over steps, mean and range of the runs"
        parts += ["## Curves\n", f"![{alt}]({FIGURE})\n"]
    if summary.warnings:
        parts += ["## Warnings\n", "\n".join(f"- {escape(warning)}" for warning in summary.warnings) + "\n"]
    parts += ["## Effective recipe\n", fenced(standing.recipe_text, "toml")]
    if "base" in standing.recipe:
        parts += difference(standing, neighbours)
    parts.append("Made from the logs in this folder by `python -m records`; do not edit.\n")
    pictures = {FIGURE: curves_picture([curve], track.target)} if curve.steps else {}
    return Page(standing.folder, "\n".join(part for part in parts if part), pictures)


def verdict(summary: Summary) -> str:
    """One sentence: what the runs show about the target."""
    at, target = summary.judged, f"{summary.target:g}"
    if at is None or not math.isfinite(at.mean):
        return f"**No result**: no step common to all runs has a finite loss (target {target})."
    needed = f"{at.statistic:.5f}, needed {threshold(summary.sigma):.5f}; p = {at.p:.1g}"
    runs = f"{at.n} run{'s' * (at.n > 1)}"
    if at.significant:
        return (
            f"**{at.step} steps** to validation loss {target}: mean {at.mean:.5f} over {runs}, "
            f"(target - mean) sqrt(n) = {needed}."
        )
    return (
        f"**Target {target} not shown**: mean {at.mean:.5f} over {runs} at the last common step {at.step}, "
        f"(target - mean) sqrt(n) = {needed}."
    )


def facts(standing: Standing, track: Track) -> list[tuple[str, str]]:
    summary = standing.summary
    deviation = summary.judged.std if summary.judged else math.nan
    rows = [
        ("track", f"[{escape(track.name)}](../README.md)"),
        ("optimizer of the matrices", escape(standing.optimizer)),
        ("trained to step", ", ".join(str(n) for n in sorted({run.total_steps for run in summary.runs}))),
        ("mean first crossing", number(summary.first_crossing_step, ".1f")),
        ("standard deviation over runs", number(deviation, ".5f")),
        ("ms/step", number(summary.ms_per_step, ".2f")),
        ("device", escape(standing.devices)),
        ("date", escape(standing.date or "?")),
    ]
    return [*rows, ("base", escape(standing.recipe["base"]))] if "base" in standing.recipe else rows


def repeat_command(standing: Standing, track: Track) -> str:
    """The command that runs the entry again, where its seeds are known."""
    if None in standing.summary.seeds or not standing.summary.runs:
        return ""
    seeds = seed_ranges(standing.summary.seeds).replace(" ", "")
    options = f" {shlex.join(extra)}" if (extra := further_arguments(standing.entry)) else ""
    return f"Repeat it: `./run.sh --track {track.name} --recipe {standing.name} --seeds {seeds}{options}`\n"


def further_arguments(entry: Entry) -> list[str]:
    """What the first log's script was started with beside its seeds; empty where the script does not say."""
    script = entry.logs[0].script or ""
    if not plain_arguments(script):
        return []
    said = [line for line in script.splitlines() if line.startswith("ARGUMENTS = ")]
    words = ast.literal_eval(said[0].removeprefix("ARGUMENTS = ")) if said else []
    at = words.index("--seeds") if "--seeds" in words else len(words)
    return words[:at] + words[at + 2 :]


def runs_table(summary: Summary) -> str:
    step = summary.judged.step if summary.judged else None
    rows = []
    for run, crossing in zip(summary.runs, summary.crossings, strict=True):
        last = run.validations[-1]
        rows.append(
            (
                "?" if run.seed is None else run.seed,
                number(None if step is None else run.curve.get(step), ".5f"),
                f"{last.val_loss:.5f} at {last.step}",
                number(crossing.interpolated if crossing else None, ".1f"),
                f"{escape(run.path.name)}, run {run.index + 1}",
            )
        )
    judged = f"val_loss at step {step}" if step is not None else "val_loss"
    return table(("seed", judged, "last val_loss", "first crossing", "log"), rows, right=(0, 1, 2, 3))


def difference(standing: Standing, neighbours: Path) -> list[str]:
    """What the recipe changes of its base, an entry or a shipped recipe of the same track."""
    base = str(standing.recipe["base"])
    parts = [f"## Difference from {escape(base)}\n"]
    files = [neighbours / base / "recipe.toml", neighbours / f"{base}.toml"]
    # A recipe is a stranger's text: its base names a neighbour, never a path.
    path = next((f for f in files if PLAIN_NAME.fullmatch(base) and f.is_file()), None)
    if path is None:
        return [*parts, "No entry and no recipe of that name is here to compare with.\n"]
    all_said = path.name == "recipe.toml"  # a shipped recipe leaves defaults unsaid
    rows = [
        (escape(key), shown(mine), shown(theirs))
        for key, (mine, theirs), differs in side_by_side([standing.recipe, read_toml(path)[1]])
        if differs and (all_said or theirs is not None)
    ]
    return [*parts, table(("key", "this entry", escape(base)), rows) if rows else "None.\n"]


def shown(value: object) -> str:
    return "" if value is None else escape(value)


def number(value: float | None, form: str) -> str:
    """A number in this form; "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def seed_ranges(seeds: Sequence[int | None]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"; a run without a seed -> "?"."""
    unknown = sum(seed is None for seed in seeds)
    known = ranges(seed for seed in seeds if seed is not None)
    return ", ".join(known + ([f"{unknown} unknown"] if unknown else []))
