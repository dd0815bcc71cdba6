"""Recipes by name: `records/<track>/<name>.toml`, an entry's `records/<track>/<entry>/recipe.toml`."""

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from records import printable
from records.run.effective import parse_recipe
from records.run.recipe import Method, Recipe, RecipeError
from records.run.track import RECORDS, Track


def recipe_files(folder: Path) -> dict[str, Path]:
    """Name -> file of the shipped recipes and the entries in a track's folder."""
    entries = {file.parent.name: file for file in sorted(folder.glob("*/recipe.toml"))}
    return shipped_recipes(folder) | entries


def shipped_recipes(folder: Path) -> dict[str, Path]:
    """Name -> file of the recipes in a track's folder."""
    return {file.stem: file for file in sorted(folder.glob("*.toml")) if file.name != "track.toml"}


def find_recipe(source: str | Path, tracks: Mapping[str, Track], track: str | None = None) -> Path:
    """The file of a shipped recipe or entry of these tracks, or the file of that path.

    Of files of one name that of `track` is meant, else the one whose track has no [start]. "record" is the
    recipe of the best published result. Raises RecipeError where there is none, or several are left.
    """
    if source == "record":
        return record_file(RECORDS)
    files = {name: recipe_files(RECORDS / name) for name in tracks}
    homes = [name for name in tracks if str(source) in files[name]]
    if track in homes:
        homes = [track]
    elif len(homes) > 1:
        homes = [name for name in homes if not tracks[name].start]
    found = [files[name][str(source)] for name in homes]
    if len(found) > 1:
        raise RecipeError(f"several recipes are called {source}; name one: {', '.join(map(str, found))}.")
    path = found[0] if found else Path(source)
    if not os.path.isfile(path):  # Path.is_file raises for a name too long
        shipped = [name for recipes in files.values() for name in recipes]
        near = difflib.get_close_matches(str(source), shipped, n=3, cutoff=0.3)
        hint = f"nearest: {', '.join(near)}" if near else "`./run.sh --recipes` lists them"
        raise RecipeError(f"no recipe '{source}'; {hint}. The path of a file works too.")
    return path


def read_table(path: Path) -> dict[str, Any]:
    """What a recipe's file says, as it stands there. Raises RecipeError where it is no TOML in UTF-8."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {path}: expected TOML in UTF-8, found otherwise: {error}") from None


def record_file(records: Path) -> Path:
    """The recipe of the accepted published result with the fewest steps. Raises RecipeError without one."""
    for path in sorted(records.glob("*/published.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        recipes = {
            file.name.partition("_")[0].lstrip("0"): file for file in path.parent.glob("[0-9]*_*.toml")
        }
        accepted = [(r["steps"], recipes[str(r["number"])]) for r in results
                    if r["record"] and str(r["number"]) in recipes]  # fmt: skip
        if accepted:
            return min(accepted)[1]
    raise RecipeError(f"no recipe of a published record below {records}; expected one such as 46_row_floor.")


def list_recipes(
    tracks: Mapping[str, Track], steps: Mapping[str, Method], arounds: Mapping[str, Method] | None = None
) -> Iterator[str]:
    """A line for every shipped recipe and entry: its description, or what keeps it from running."""
    for track in tracks:
        yield f"{track} (default: {tracks[track].recipe})"
        for name, path in recipe_files(RECORDS / track).items():
            try:
                told = read_recipe(path, tracks, steps, arounds=arounds).facts.get("description", "")
            except RecipeError as error:
                told = f"cannot run yet: {error}"
            yield f"  {name:28} {printable(told)}"


def read_recipe(
    source: str | Path,
    tracks: Mapping[str, Track],
    steps: Mapping[str, Method],
    changes: Iterable[str] = (),
    track: str | None = None,
    arounds: Mapping[str, Method] | None = None,
) -> Recipe:
    """The recipe in the TOML file `source`, or of the shipped recipe of that name (of `track` first).

    tracks, steps, arounds: what a recipe may name; without arounds, [around] and [readout] stay as they are
    said. changes: "matrix.lr=0.03" and the like, over what the file says.
    Raises RecipeError for an unknown name, key or hyperparameter, and for a value of the wrong kind.
    """
    path = find_recipe(source, tracks, track)
    name = path.parent.name if path.name == "recipe.toml" else path.stem
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8: byte {error.start}. Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}.") from None
    return parse_recipe(text, name, tracks, steps, changes, track, arounds)
