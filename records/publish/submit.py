"""`python -m records submit NAME --recipe R LOG...`: an entry of logs that pass every rule, all or nothing.

Everything is made in a temporary folder beside the entries and checked there, then renamed into place; when
the leaderboard cannot follow, the entry goes again.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from records.judge import script_rules
from records.judge.check import check_entry, embedded_recipe
from records.judge.logs import SUFFIXES, Entry, Log, Run, read_entry
from records.judge.tracks import shipped_track
from records.publish.entry_page import PLAIN_NAME, EntryError, entry_page, read_standing, read_toml, verdict
from records.publish.leaderboard import RECORDS, leaderboard_page, read_standings
from records.publish.recipe_table import disagreements
from records.run.track import shipped_tracks

Printed = tuple[tuple[int, float, float | None], ...]
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,150}")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand `submit`."""
    parser = subparsers.add_parser("submit", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="of the new entry: a-z, 0-9, '_', '.', '-'")
    parser.add_argument(
        "--recipe", required=True, metavar="R", help="a recipe file, or the name of one in the track's folder"
    )
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="a log, or a folder of logs")
    parser.add_argument("--archive", type=Path, metavar="F.zip", help="pack the entry for sending elsewhere")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Submit; 1 where the logs break a rule."""
    try:
        folder = submit(args.name, args.recipe, args.logs, args.archive)
    except RuleError as error:
        print(f"records submit: {error}", file=sys.stderr)
        return 1
    track = shipped_tracks()[folder.parent.name]
    print(f"{os.path.relpath(folder)}: {verdict(read_standing(folder, track).summary).replace('**', '')}")
    return 0


class RuleError(EntryError):
    """The logs break a rule of the benchmark."""


def submit(
    name: str, recipe: str, logs: Sequence[Path], archive: Path | None = None, records: Path = RECORDS
) -> Path:
    """Make `records/<track>/<name>/` and the track's leaderboard; returns the entry's folder.

    recipe: a file, or the name of one in the track's folder; what it sets must be what the logs' script says.
    Raises RuleError where a rule is broken, EntryError or LogError where the input cannot be used: then
    nothing has been written.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise EntryError(f"{name!r} is no name of an entry: expected a-z, 0-9, '_', '.', '-', no path")
    if archive and archive.exists():
        raise EntryError(f"{archive} exists: name an archive that does not")
    files = log_files(logs)
    track = shipped_track(Entry(name, records, tuple(read_entry(file).logs[0] for file in files)))
    home = records / track.name
    final = home / name
    if final.exists():
        raise EntryError(f"{final} exists: take another name, or remove that entry first")
    refuse_doubles(files, records)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".submit-", suffix=".tmp", dir=home) as temporary:
        staged = Path(temporary) / name
        staged.mkdir()
        for file in files:
            shutil.copyfile(file, staged / file.name)
        # From here on the copies are read: what is judged is what is kept.
        entry = read_entry(staged)
        broken = [f"{rule.name}: {rule.told}" for rule in check_entry(entry) if not rule.passed]
        if broken:
            raise RuleError("not submitted, a rule is broken:\n  " + "\n  ".join(broken))
        text = effective_recipe(entry.logs[0])  # the others' is the same: that is a rule
        agree(recipe, text, home)
        (staged / "recipe.toml").write_text(text, encoding="utf-8")
        entry_page(read_standing(staged, track), track, home).write()
        staged.rename(final)
        try:
            if archive:
                shutil.move(pack(final, Path(temporary) / "archive.zip"), archive)
            leaderboard_page(home, track, read_standings(home, track)).write()
        except BaseException:
            final.rename(staged)
            if archive:
                archive.unlink(missing_ok=True)
            raise
    return final


def refuse_doubles(files: Sequence[Path], records: Path) -> None:
    """Raises EntryError for a run that stands twice in these logs, or in an entry already."""
    runs: dict[Printed, Path] = {}
    for entry in sorted(records.glob("*/*/recipe.toml")):
        for run in read_entry(entry.parent).runs:
            runs[printed(run)] = run.path
    for file in files:
        refuse_double(read_entry(file).logs[0], runs)


def log_files(paths: Sequence[Path]) -> list[Path]:
    """The log files of files and folders, by name. Raises EntryError for names an entry cannot hold."""
    files: dict[str, Path] = {}
    for path in paths:
        for log in read_entry(path).logs:
            file = log.path
            if file.suffix not in SUFFIXES or not FILE_NAME.fullmatch(file.name):
                raise EntryError(
                    f"{str(file)!r}: expected a file name of letters, digits, '_', '.', '-' that ends in "
                    f"{' or '.join(SUFFIXES)}; rename it"
                )
            if file.name in files:
                raise EntryError(f"{file} and {files[file.name]} have the same name: rename one")
            files[file.name] = file
    return [files[name] for name in sorted(files)]


def refuse_double(log: Log, runs: dict[Printed, Path]) -> None:
    """Raises EntryError for a run of the log that is among `runs`, losses and times alike; adds it."""
    for run in log.runs:
        if printed(run) in runs:
            raise EntryError(f"{log.path} and {runs[printed(run)]} hold the same run: a run counts once")
        runs[printed(run)] = log.path


def printed(run: Run) -> Printed:
    """(step, val_loss, train_time) of its validations: no two runs have the same."""
    return tuple((at.step, at.val_loss, at.train_time) for at in run.validations)


def effective_recipe(log: Log) -> str:
    """The effective recipe that a log's script holds, as TOML."""
    if not embedded_recipe(log):
        raise EntryError(
            f"{log.path.name}: expected a script with RECIPE = Recipe(...), found none that can be read"
        )
    return f"{script_rules.embedded_recipe(log.script or '')}".strip() + "\n"


def agree(recipe: str, effective: str, home: Path) -> None:
    """Raises EntryError where the recipe given sets a key otherwise than the script of the logs."""
    path = Path(recipe)
    if not path.is_file() and PLAIN_NAME.fullmatch(recipe):
        path = home / f"{recipe}.toml"
    if different := disagreements(read_toml(path)[1], tomllib.loads(effective)):
        told = "; ".join(different[:5])
        raise EntryError(f"{path} is not the recipe of these logs: {told}. Give the recipe that was run")


def pack(folder: Path, archive: Path) -> Path:
    """A zip of the folder, below its name; the same files give the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.iterdir()):
            info = zipfile.ZipInfo(f"{folder.name}/{file.name}")
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with file.open("rb") as source, packed.open(info, "w") as target:
                shutil.copyfileobj(source, target)
    return archive
