"""Recipes: what an entry chooses, as a TOML file, read and checked, every default filled in; and its seeds.

A shipped recipe is `records/<track>/<name>.toml`, that of an entry `records/<track>/<entry>/recipe.toml`.
"""

import difflib
import fnmatch
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

RECORDS = Path(__file__).resolve().parents[1]
FACTS = ("description", "base", "published")  # for readers and the leaderboard; nothing computes with them
SCHEDULE = {
    "cooldown_frac": 0.7,
    "aux_cooldown_frac": None,
    "cooldown_power": 1.0,
    "warmup_steps": 0,
    "steps": None,
    "matrix": {},
}
TABLES = ("matrix", "aux", "schedule", "init", "lookahead")
LOOKAHEAD = {"decay": 0.99, "strength": 0.6, "start": 0, "stop": 0}


class RecipeError(ValueError):
    """A recipe cannot be read or run. The message says what was expected, what was found and what to do."""


@dataclass(frozen=True)
class Recipe:
    """Everything an entry chooses, with the track's and the step function's defaults filled in.

    matrix:   `step` and hyperparameters of the hidden matrices; a table in it, named by a pattern such as
              "mlp.*", stands instead for the matrices it matches.
    aux:      AdamW of the embedding, the head and the 1-D parameters.
    schedule: `cooldown_frac`, `aux_cooldown_frac` (AdamW's), `cooldown_power`, `warmup_steps`; `steps`, where
              the cooldown is planned for a longer run than this one; in `matrix`, points [step, value] of
              hyperparameters that change over the run, straight lines between.
    init:     standard deviation by pattern, e.g. {"attn.proj": 0.026}; the rest starts as the baseline.
    lookahead: EMA-Nesterov over all parameters, `strength` times the matrices' schedule from step `start` to
              before `stop`, averages of `decay`; empty: none.
    facts:    description, base (the entry it builds on), published (number of the published result).
    """

    name: str
    track: str
    train_steps: int
    matrix: dict
    aux: dict
    schedule: dict
    init: dict
    lookahead: dict
    facts: dict = field(default_factory=dict)

    def toml(self) -> str:
        """The effective recipe: reading it back gives the same recipe."""
        head = {**self.facts, "name": self.name, "track": self.track, "train_steps": self.train_steps}
        tables = {"matrix": self.matrix, "aux": self.aux, "schedule": self.schedule, "init": self.init}
        tables |= {"lookahead": self.lookahead}
        return "\n".join(toml_lines(head | tables))

    def differences(self, other: str) -> str:
        """What the effective recipe `other` says otherwise (-) and this one instead (+), in one line."""
        lines = difflib.ndiff(other.splitlines(), self.toml().splitlines())
        return "; ".join(line for line in lines if line[0] in "-+")

    def step_names(self) -> list[str]:
        """The step functions it uses, sorted."""
        return sorted({self.matrix["step"], *(value["step"] for value in self.patterns().values())})

    def patterns(self) -> dict[str, dict]:
        """The tables of [matrix] for some matrices only, by pattern."""
        return {key: value for key, value in self.matrix.items() if isinstance(value, dict)}


def toml_lines(table: dict, path: str = "") -> Iterator[str]:
    """The lines of a TOML table: scalars and lists first, then the tables inside; None is left out."""
    name = {key: key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in table}
    for key, value in table.items():
        if not isinstance(value, dict) and value is not None:
            yield f"{name[key]} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield f"\n[{path}{name[key]}]"
            yield from toml_lines(value, f"{path}{name[key]}.")


def recipe_files(folder: Path) -> dict[str, Path]:
    """Name -> file of the shipped recipes and the entries in a track's folder."""
    entries = {file.parent.name: file for file in sorted(folder.glob("*/recipe.toml"))}
    return {file.stem: file for file in sorted(folder.glob("*.toml"))} | entries


def list_recipes(tracks: Mapping[str, object], steps: Mapping[str, Callable]) -> Iterator[str]:
    """A line for every shipped recipe and entry: its description, or what keeps it from running."""
    for track in tracks:
        yield f"{track} (default: {tracks[track].recipe})"
        for name, path in recipe_files(RECORDS / track).items():
            try:
                told = read_recipe(path, tracks, steps).facts.get("description", "")
            except RecipeError as error:
                told = f"cannot run yet: {error}"
            yield f"  {name:28} {told}"


def read_recipe(
    source: str | Path,
    tracks: Mapping[str, object],
    steps: Mapping[str, Callable],
    changes: Iterable[str] = (),
    track: str | None = None,
) -> Recipe:
    """The recipe in the TOML file `source`, or of the shipped recipe of that name (of `track` first).

    tracks, steps: what a recipe may name. changes: "matrix.lr=0.03" and the like, over what the file says.
    Raises RecipeError for an unknown name, key or hyperparameter, and for a value of the wrong kind.
    """
    order = sorted(tracks, key=lambda name: name == track)  # a name on several tracks: that of `track` counts
    shipped = {name: file for t in order for name, file in recipe_files(RECORDS / t).items()}
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        near = difflib.get_close_matches(str(source), shipped, n=3, cutoff=0.3)
        hint = f"nearest: {', '.join(near)}" if near else "`./run.sh --recipes` lists them"
        raise RecipeError(f"no recipe '{source}'; {hint}. The path of a file works too.")
    name = path.parent.name if path.name == "recipe.toml" else path.stem
    return parse_recipe(path.read_text(), name, tracks, steps, changes, track)


def parse_recipe(
    text: str,
    name: str,
    tracks: Mapping[str, object],
    steps: Mapping[str, Callable],
    changes: Iterable[str] = (),
    track: str | None = None,
) -> Recipe:
    """The recipe that a TOML text says, of `track` (else the first) if it names none; see read_recipe."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name} is not TOML: {error}.") from None
    for change in changes:
        table = merge(table, parse_change(change))
    check_keys("the recipe", table, [*FACTS, "name", "track", "train_steps", *TABLES])
    track = table.get("track", track or next(iter(tracks)))
    if not isinstance(track, str) or track not in tracks:
        raise RecipeError(f"recipe {name} says track = {track!r}; expected one of {', '.join(tracks)}.")
    train_steps, default = table.get("train_steps"), tracks[track].aux
    if type(train_steps) is not int or train_steps < 1:
        raise RecipeError(
            f"recipe {name} says train_steps = {train_steps!r}; expected a whole number above 0."
        )
    for key in TABLES:
        if not isinstance(value := table.get(key, {}), dict):
            raise RecipeError(f"recipe {name} says {key} = {value!r}; expected a table [{key}].")
    matrix, aux, schedule, init, lookahead = (table.get(key, {}) for key in TABLES)
    plain = {key: value for key, value in matrix.items() if not isinstance(value, dict)}
    effective = hyperparameters("[matrix]", plain, steps)
    for pattern, value in matrix.items():
        if isinstance(value, dict):  # another step function starts from its own defaults
            inherited = plain if value.get("step", plain["step"]) == plain["step"] else {}
            effective[pattern] = hyperparameters(f'[matrix."{pattern}"]', inherited | value, steps)
    check_keys("[aux]", aux, list(default))
    check_kinds("[aux]", aux, default)
    check_keys("[schedule]", schedule, list(SCHEDULE))
    schedule = SCHEDULE | schedule
    if schedule["aux_cooldown_frac"] is None:
        schedule["aux_cooldown_frac"] = schedule["cooldown_frac"]
    check_kinds("[schedule]", schedule, SCHEDULE | {"aux_cooldown_frac": 0.7})
    check_kinds("[schedule]", {"steps": schedule["steps"] or train_steps}, {"steps": 1})
    if (schedule["steps"] or train_steps) < train_steps:
        raise RecipeError(
            f"[schedule] steps is {schedule['steps']}; expected at least the {train_steps} steps of the run."
        )
    for key in ("cooldown_frac", "aux_cooldown_frac"):
        if not 0 < schedule[key] <= 1:
            raise RecipeError(
                f"[schedule] {key} is {schedule[key]}; expected a part of the run, above 0 and at most 1."
            )
    numbers = [key for key, value in effective.items() if isinstance(value, int | float) and key != "lr"]
    check_keys("[schedule.matrix]", schedule["matrix"], numbers)
    for key, points in schedule["matrix"].items():
        if not points or any(len(point) != 2 for point in points) or sorted(points) != points:
            raise RecipeError(
                f"[schedule.matrix] {key} is {points}; expected points [[step, value], ...], steps rising."
            )
    check_keys("[lookahead]", lookahead, list(LOOKAHEAD))
    check_kinds("[lookahead]", lookahead, LOOKAHEAD)
    lookahead = LOOKAHEAD | {"stop": train_steps} | lookahead if lookahead else {}
    facts = {key: table[key] for key in FACTS if key in table}
    name = table.get("name", name)
    return Recipe(name, track, train_steps, effective, default | aux, schedule, init, lookahead, facts)


def hyperparameters(where: str, table: dict, steps: Mapping[str, Callable]) -> dict:
    """`step` and its defaults, the table's values over them. Raises RecipeError for what it does not take."""
    step = table.get("step")
    if not isinstance(step, str) or step not in steps:
        near = difflib.get_close_matches(str(step), steps, n=1, cutoff=0.0)
        raise RecipeError(f"{where} says step = {step!r}; nearest: '{near[0]}'. Known: {', '.join(steps)}.")
    parameters = inspect.signature(steps[step]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    check_keys(f"{where} with step '{step}'", table, ["step", *defaults])
    chosen = {
        key: list(value) if isinstance(value, tuple) else value for key, value in (defaults | table).items()
    }
    for key, value in chosen.items():
        if value is inspect.Parameter.empty:
            raise RecipeError(f"{where} with step '{step}' needs {key}: give it a value.")
    check_kinds(f"{where} with step '{step}'", table, defaults | {"lr": 0.01})
    return {"step": step} | chosen


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern names a module, from its block on ("mlp.*") or in full ("blocks.0.mlp.fc")."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (re.sub(r"^blocks\.\d+\.", "", module), module))


def check_keys(where: str, table: dict, known: list[str]) -> None:
    """Raises RecipeError for the first key that is not known, with the nearest one that is."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"did you mean '{near[0]}'? Known: {', '.join(known)}." if known else "It takes none."
            raise RecipeError(f"{where} has no '{key}'; {hint}")


def check_kinds(where: str, table: dict, like: dict) -> None:
    """Raises RecipeError where a value is not of its default's kind (whole numbers may stand for floats)."""
    for key, value in table.items():
        kinds = {
            bool: (bool,),
            str: (str,),
            float: (int, float),
            int: (int, float),
            list: (list,),
            dict: (dict,),
        }
        expected = kinds.get(type(like.get(key)))
        if expected and (not isinstance(value, expected) or isinstance(value, bool) != (expected == (bool,))):
            raise RecipeError(f"{where} says {key} = {value!r}; expected a value such as {like[key]!r}.")


def parse_change(change: str) -> dict:
    """The tables that "matrix.lr=0.03" stands for; a value that is not TOML is taken as a string."""
    key, found, value = change.partition("=")
    for text in (value, json.dumps(value)) if found else ():
        try:
            return tomllib.loads(f"{key} = {text}")
        except tomllib.TOMLDecodeError:
            continue
    raise RecipeError(f"--set {change}: expected KEY=VALUE, such as matrix.lr=0.03.")


def merge(table: dict, changes: dict) -> dict:
    """`table` with the changes over it, table by table."""
    both = {key for key in changes if isinstance(changes[key], dict) and isinstance(table.get(key), dict)}
    return table | {key: merge(table[key], value) if key in both else value for key, value in changes.items()}


def parse_seeds(text: str) -> list[int]:
    """ "0-4" or "0,3" as a list. Raises RecipeError for anything else and for a seed named twice."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text, re.ASCII):
        raise RecipeError(f"--seeds {text}: expected seeds such as 0-4 or 0,3.")
    ends = [(part.split("-")[0], part.split("-")[-1]) for part in text.split(",")]
    seeds = [seed for first, last in ends for seed in range(int(first), int(last) + 1)]
    if not seeds or len(seeds) != len(set(seeds)):
        raise RecipeError(f"--seeds {text}: {'a seed stands twice' if seeds else 'no seed in it'}.")
    return seeds
