"""Recipes: what an entry chooses, as a TOML file, read and checked, every default filled in; and its seeds.

A shipped recipe is `records/<track>/<name>.toml`, that of an entry `records/<track>/<entry>/recipe.toml`.
"""

import difflib
import inspect
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from records import RecordError, printable
from records.run.track import RECORDS, Track, is_name, is_number, shipped_tracks

FACTS = ("description", "base", "published")  # for readers and the leaderboard; nothing computes with them
# A recipe may exchange these.
STAGE_KINDS = ("memory", "precondition", "direction", "normalise", "scale", "land")
COOLDOWN = {  # of the matrices; AdamW's have aux_ in front, and follow the matrices' where nothing is said
    "cooldown_frac": 0.7,
    "cooldown_steps": None,
    "cooldown_power": 1.0,
    "floor": 0.0,
    "steps": None,
    "phases": None,
}
SCHEDULE = (
    COOLDOWN | {f"aux_{key}": None for key in COOLDOWN} | {"warmup_steps": 0, "delay": [], "matrix": {}}
)
MOST_STEPS = 999_999_999  # what a log's lines have room for
MOST_SEEDS = 1000  # of one log
# Numbers outside of [matrix], lowest and highest; every other one is at least 0.
RANGES = {
    **dict.fromkeys(("decay", "floor", "aux_floor", "betas"), (0.0, 1 - 2**-53)),
    **dict.fromkeys(
        ("cooldown_power", "aux_cooldown_power", "cooldown_steps", "aux_cooldown_steps"), (1e-9, math.inf)
    ),
    "slope": (-math.inf, math.inf),
}
TABLES = ("matrix", "aux", "schedule", "init", "lookahead", "around", "readout", "embed", "head")
AUX_OPTIONS = {"bias_correction": True, "master": False}  # beside the track's; in tables by pattern `lr` too
INIT = {"law": "normal", "bias": "zero", "gain_signs": 0.1, "paired_from": 6, "paired_shrink": 0.5}
INIT_RULE = {"std": 0.02, "law": "normal", "factor": 1.0, "slope": 0.3, "bias": "zero"}  # of a pattern
INIT_LAWS = {"law": ("normal", "uniform"), "bias": ("zero", "uniform")}
SCALES = ("matrix", "embed_before")  # of the look-ahead
LOOKAHEAD = {"decay": 0.99, "strength": 0.6, "start": 0, "stop": 0}


class Keyword(Protocol):
    """A hyperparameter of a method: its name, its default, and what a value must be."""

    @property
    def name(self) -> str: ...

    @property
    def default(self) -> Any: ...

    @property
    def expected(self) -> str: ...

    def check(self, value: object, where: str) -> None: ...


class Rows(Protocol):
    """What a method is made of; `exchanged` raises ValueError for stages that it cannot have."""

    @property
    def hyperparameters(self) -> Mapping[str, Keyword]: ...

    def exchanged(self, stages: Mapping[str, str]) -> "Rows": ...


class Method(Protocol):
    """A step function, as far as a recipe knows it."""

    @property
    def row(self) -> Rows: ...


class RecipeError(RecordError):
    """A recipe cannot be read or run. The message says what was expected, what was found and what to do."""


@dataclass(frozen=True)
class Recipe:
    """Everything an entry chooses, with the track's and the step function's defaults filled in.

    matrix:   `step` and hyperparameters of the hidden matrices; a table in it, named by a pattern such as
              "mlp.*", stands instead for the matrices it matches; its `couple` names the pattern of the
              output matrices that its value matrices step together with (Circuit-Muon).
    aux:      AdamW of the embedding, the head and the 1-D parameters; a table in it, named by a pattern such
              as "*.gains", stands instead for the parameters it matches, and may say their `lr`.
    schedule: `cooldown_frac` of the planned `steps`, or `cooldown_steps`; `cooldown_power`, `floor` (the last
              factor); `steps`, where the cooldown is planned for a longer run than this one, a number or
              points [from step, steps] of a plan that changes on the way; `phases`, knots that stand in for
              all of these; the same with aux_ in front for AdamW; `warmup_steps`; `delay`, knots by how many
              steps the schedule's clock is late; in `matrix`, knots of hyperparameters that change over the
              run. A knot is [step, value] or [step, value, shape]: from the knot before, the value moves
              along x^shape, x from 0 to 1, along half a "cosine" or 1/(1 + exp(-(x - a)/b)), ["sigmoid", a,
              b]; without shape along a straight line.
    init:     by pattern, e.g. {"attn.proj": 0.026}, a standard deviation or a table of INIT_RULE; `law` and
              `bias` of the rest, `gain_signs`; see start_parameters. Empty: the baseline's.
    lookahead: EMA-Nesterov over all parameters, `strength` times the matrices' schedule from step `start` to
              before `stop`, averages of `decay`; empty: none. scaled_by = "embed_before": times AdamW's
              schedule of the step before, as results #40 to #46 have it.
    around:   what else surrounds the update, a table by name: its `kind` (else the name is it), `params` and
              `but`, patterns of the parameters it is over, its hyperparameters; a table by pattern in it says
              them otherwise for some. Knots in place of a number change it over the run.
    readout:  the same for what validation reads in place of the trained weights; in their order.
    embed, head: `step` and hyperparameters of the embedding or the head, in place of AdamW, on AdamW's
              schedule; empty: AdamW.
    facts:    description, base (the entry it builds on), published (number of the published result).
    """

    name: str
    track: Track
    train_steps: int
    matrix: dict
    aux: dict
    schedule: dict
    init: dict
    lookahead: dict
    facts: dict = field(default_factory=dict)
    around: dict = field(default_factory=dict)
    readout: dict = field(default_factory=dict)
    embed: dict = field(default_factory=dict)
    head: dict = field(default_factory=dict)

    def toml(self) -> str:
        """The effective recipe: reading it back gives the same recipe."""
        head = {**self.facts, "name": self.name, "track": self.track.name, "train_steps": self.train_steps}
        tables = {"matrix": self.matrix, "aux": self.aux, "schedule": self.schedule, "init": self.init}
        tables |= {"lookahead": self.lookahead, "around": self.around, "readout": self.readout}
        tables |= self.own_steps()
        return "\n".join(toml_lines(head | tables))

    def step_names(self) -> list[str]:
        """The step functions it uses, by name and with their exchanged stages, sorted."""
        tables = [self.matrix, *self.patterns().values(), *self.own_steps().values()]
        return sorted(set(map(step_name, tables)))

    def own_steps(self) -> dict[str, dict]:
        """[embed] and [head], of those that are there."""
        return {key: table for key, table in (("embed", self.embed), ("head", self.head)) if table}

    def surroundings(self) -> dict[str, dict]:
        """The tables of [around], then those of [readout], by name: the order in which they work."""
        return {**self.around, **self.readout}

    def micro_batches(self) -> int:
        """How many a global batch is to have, as what is around the update asks; 1 where it does not."""
        return max((table.get("micro_batches", 1) for table in self.around.values()), default=1)

    def patterns(self) -> dict[str, dict]:
        """The tables of [matrix] for some matrices only, by pattern."""
        return tables_in(self.matrix)


def run_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a run of `then` says otherwise (-) and one of `now` instead (+): recipe (TOML), seeds, track."""
    lines = difflib.ndiff(then["recipe"].splitlines(), now["recipe"].splitlines())
    others = [key for key in now if key != "recipe" and then[key] != now[key]]
    told = "; ".join(line for line in lines if line[0] in "-+")
    return told or "; ".join(f"- {key} {then[key]}; + {now[key]}" for key in others)


def tables_in(table: dict) -> dict[str, dict]:
    """The tables inside a table, by name or pattern."""
    return {key: value for key, value in table.items() if isinstance(value, dict)}


def plain_in(table: dict) -> dict:
    """The rest: what stands in the table itself."""
    return {key: value for key, value in table.items() if not isinstance(value, dict)}


def split(table: dict) -> tuple[dict, dict[str, dict]]:
    """What stands in a table itself, and the tables inside it."""
    return plain_in(table), tables_in(table)


def step_name(table: dict) -> str:
    """ "aurora", or "aurora(precondition=soap)" where the table exchanges stages."""
    stages = ", ".join(f"{kind}={table[kind]}" for kind in STAGE_KINDS if kind in table)
    return f"{table['step']}({stages})" if stages else table["step"]


def toml_lines(table: dict, path: str = "") -> Iterator[str]:
    """The lines of a TOML table: scalars and lists first, then the tables inside; None is left out."""
    name = {key: key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in table}
    for key, value in table.items():
        if not isinstance(value, dict) and value is not None:
            yield f"{name[key]} = {literal(value)}"
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield f"\n[{path}{name[key]}]"
            yield from toml_lines(value, f"{path}{name[key]}.")


def literal(value: object) -> str:
    """A TOML value in ASCII. (JSON writes a character beyond \\uffff as two, which is not TOML.)"""

    def escaped(character: re.Match[str]) -> str:
        code = ord(character[0])
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return re.sub(r"[^ -~]", escaped, json.dumps(value, ensure_ascii=False))


def dotted(table: Mapping[str, object], path: str = "") -> dict[str, object]:
    """The values of a table and of those inside it, by dotted key ("matrix.lr"); keys keep their order."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= dotted(value, f"{path}{key}.") if isinstance(value, Mapping) else {path + key: value}
    return flat


def recipe_files(folder: Path) -> dict[str, Path]:
    """Name -> file of the shipped recipes and the entries in a track's folder."""
    entries = {file.parent.name: file for file in sorted(folder.glob("*/recipe.toml"))}
    return shipped_recipes(folder) | entries


def shipped_recipes(folder: Path) -> dict[str, Path]:
    """Name -> file of the recipes in a track's folder."""
    return {file.stem: file for file in sorted(folder.glob("*.toml")) if file.name != "track.toml"}


def find_recipe(source: str | Path, tracks: Iterable[str], track: str | None = None) -> Path:
    """The file of a shipped recipe or entry of these tracks, that of `track` first; or the file of that path.

    Files of a track with [start] come last. "record" is the recipe of the best published result. Raises
    RecipeError where there is none, or several that `track` does not decide between.
    """
    if source == "record":
        return record_file(RECORDS)
    files = {name: recipe_files(RECORDS / name) for name in tracks}
    of_name = {name: recipes[str(source)] for name, recipes in files.items() if str(source) in recipes}
    started = {name for name, known in shipped_tracks().items() if known.start}
    found = [path for name, path in of_name.items() if name not in started] or list(of_name.values())
    if track in files and str(source) in files[track]:
        found = [files[track][str(source)]]
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


def parse_recipe(
    text: str,
    name: str,
    tracks: Mapping[str, Track],
    steps: Mapping[str, Method],
    changes: Iterable[str] = (),
    track: str | None = None,
    arounds: Mapping[str, Method] | None = None,
) -> Recipe:
    """The recipe that a TOML text says, of `track` (else the first) if it names none; see read_recipe."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise RecipeError(f"recipe {name} is not TOML: {error}.") from None
    table = with_changes(table, changes, steps)
    check_keys("the recipe", table, [*FACTS, "name", "track", "train_steps", *TABLES])
    track = table.get("track", track or next(iter(tracks)))
    if not isinstance(track, str) or track not in tracks:
        raise RecipeError(f"recipe {name} says track = {track!r}; expected one of {', '.join(tracks)}.")
    train_steps, default = table.get("train_steps"), tracks[track].aux
    if type(train_steps) is not int or not 1 <= train_steps <= MOST_STEPS:
        raise RecipeError(
            f"recipe {name} says train_steps = {shown(train_steps)}; expected a whole number above 0, "
            f"at most {MOST_STEPS:,}."
        )
    for key in TABLES:
        if not isinstance(value := table.get(key, {}), dict):
            raise RecipeError(f"recipe {name} says {key} = {value!r}; expected a table [{key}].")
    matrix, aux, schedule, init, lookahead, around, readout, *ends = (table.get(key, {}) for key in TABLES)
    plain = plain_in(matrix)
    effective = hyperparameters("[matrix]", plain, steps)
    for pattern, value in matrix.items():
        if isinstance(value, dict):  # another step function starts from its own defaults
            if pattern in STAGE_KINDS:
                raise RecipeError(f"[matrix] says {pattern} = {shown(value)}; expected the name of a stage.")
            where = f'[matrix."{pattern}"]'
            inherited = plain if value.get("step", plain["step"]) == plain["step"] else {}
            effective[pattern] = hyperparameters(where, value, steps, inherited)
    others = tables_in(effective)
    for pattern, value in others.items():
        if (partner := value.get("couple")) is not None and (partner not in others or partner == pattern):
            raise RecipeError(
                f'[matrix."{pattern}"] says couple = {partner!r}; expected another pattern of [matrix].'
            )
    embed, head = (
        hyperparameters(f"[{key}]", end, steps) if end else {}
        for key, end in zip(("embed", "head"), ends, strict=True)
    )
    aux = parse_aux(aux, default, [key for key, end in (("embed", embed), ("head", head)) if end])
    check_init(init)
    check_start(tracks[track], init, steps)
    schedule = parse_schedule(schedule, train_steps, effective)
    for hidden in (effective, *others.values()):
        check_moves(schedule["matrix"], hidden, steps)
    check_keys("[lookahead]", lookahead, [*LOOKAHEAD, "scaled_by"])
    check_kinds("[lookahead]", lookahead, LOOKAHEAD)
    if (scale := lookahead.get("scaled_by", SCALES[0])) not in SCALES:
        raise RecipeError(f"[lookahead] says scaled_by = {scale!r}; expected {' or '.join(SCALES)}.")
    lookahead = LOOKAHEAD | {"stop": train_steps} | lookahead if lookahead else {}
    if lookahead and lookahead["start"] >= lookahead["stop"]:
        start, stop = lookahead["start"], lookahead["stop"]
        raise RecipeError(f"[lookahead] says start = {start} and stop = {stop}; expected start below stop.")
    facts = {key: table[key] for key in FACTS if key in table}
    check_kinds("the recipe", facts, {"description": "", "base": "", "published": 1})
    name = table.get("name", name)
    if not isinstance(name, str) or not is_name(name):  # it becomes part of a file's name
        raise RecipeError(
            f"recipe name {shown(name)}: expected letters, digits, '_', '-', '.', at most 100, the first no "
            "sign; rename the file or say name = '...' in it."
        )
    around, readout = (
        {key: parse_around(f"[{where}.{key}]", key, value, arounds) for key, value in said.items()}
        for where, said in (("around", around), ("readout", readout))
    )
    if twice := [key for key in around if key in readout]:
        raise RecipeError(f"[around.{twice[0]}] and [readout.{twice[0]}]: expected two names.")
    tables = (effective, aux, schedule, init, lookahead, facts, around, readout, embed, head)
    return Recipe(name, tracks[track], train_steps, *tables)


def parse_aux(said: dict, default: dict, elsewhere: list[str]) -> dict:
    """The effective [aux]: the track's default where nothing is said; options by pattern over the rest.

    elsewhere: which of "embed" and "head" has a step function of its own; AdamW has no rate for it.
    """
    for part in elsewhere:
        if f"{part}_lr" in said:
            raise RecipeError(f"[aux] says {part}_lr, but [{part}] replaces AdamW; expected one of them.")
    default = {key: value for key, value in default.items() if key.removesuffix("_lr") not in elsewhere}
    plain, options = plain_in(said), {key: default[key] for key in ("betas", "eps", "weight_decay")}
    check_keys("[aux]", plain, [*default, *AUX_OPTIONS])
    check_kinds("[aux]", plain, default | AUX_OPTIONS)
    for pattern, table in tables_in(said).items():
        known = {"lr": 0.1} | options | AUX_OPTIONS
        check_keys(f'[aux."{pattern}"]', table, list(known))
        check_kinds(f'[aux."{pattern}"]', table, known)
    return default | said


def check_start(track: Track, init: dict, steps: Mapping[str, Method]) -> None:
    """Raises RecipeError where a track's [start] leaves a value out, and for an [init] beside it: the models
    that it trains start alike.
    """
    if not track.start:
        return
    if init:
        raise RecipeError(f"[init] is not free on track {track.name}: its [start] trains every model first.")
    said = track.start["matrix"]
    effective = hyperparameters("[start.matrix]", said, steps)
    unsaid = {key: value for key, value in effective.items() if key not in said and value is not None}
    if lacking := [f"{key} = {literal(value)}" for key, value in unsaid.items()]:
        raise RecipeError(f"[start.matrix] of track {track.name} leaves values out: {', '.join(lacking)}.")


def check_init(init: dict) -> None:
    """Raises RecipeError for what [init] cannot say. A key that is not in INIT is a pattern."""
    own = {key: value for key, value in init.items() if key in INIT}
    rules = {key: value if isinstance(value, dict) else {"std": value}
             for key, value in init.items() if key not in INIT}  # fmt: skip
    for where, table, known in (
        ("[init]", own, INIT), *((f'[init."{key}"]', rule, INIT_RULE) for key, rule in rules.items())
    ):  # fmt: skip
        check_keys(where, table, list(known))
        check_kinds(where, table, known)
        for key, value in table.items():
            if key in INIT_LAWS and value not in INIT_LAWS[key]:
                raise RecipeError(f"{where} says {key} = {value!r}; expected {' or '.join(INIT_LAWS[key])}.")
            if key not in INIT_LAWS and not is_number(value, 0):
                raise RecipeError(f"{where} says {key} = {value!r}; expected a number, 0 or above.")
        if "std" in table and "law" in table:
            raise RecipeError(f"{where} says std and law; expected one of them (std is a normal law's).")


def parse_around(where: str, name: str, said: object, kinds: Mapping[str, Method] | None) -> dict:
    """The effective table of [around] or [readout] `name`: kind, parameters, hyperparameters, by pattern too.

    Raises RecipeError for a kind or key that is not known, and for a value out of its range.
    """
    if not isinstance(said, dict):
        raise RecipeError(f"{where} is {said!r}; expected a table.")
    if kinds is None:
        return said
    kind = said.get("kind", name)
    if not isinstance(kind, str) or kind not in kinds:
        raise RecipeError(f"{where} is of kind {kind!r}; known: {', '.join(kinds)}. Say it: kind = '...'.")
    over = {key: said.get(key, default) for key, default in (("params", ["*"]), ("but", []))}
    for key, patterns in over.items():
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise RecipeError(f"{where} says {key} = {patterns!r}; expected patterns: ['mlp.*.weight'].")
    known = kinds[kind].row.hyperparameters
    plain = {key: value for key, value in plain_in(said).items() if key not in ("kind", *over)}
    effective = {"kind": kind} | over | filled(f"{where} of kind '{kind}'", plain, known)
    for pattern, table in tables_in(said).items():
        here = f'{where[:-1]}."{pattern}"]'
        check_keys(here, table, list(known))
        effective[pattern] = {key: checked_value(here, known[key], value) for key, value in table.items()}
    return effective


def filled(where: str, said: dict, known: Mapping[str, Keyword]) -> dict:
    """Every hyperparameter: the value said, else the default; numbers may be knots instead.

    Raises RecipeError for a key that is not known, a value out of its range, and one that is missing.
    """
    check_keys(where, said, list(known))
    for name, keyword in known.items():
        if name not in said and keyword.default is inspect.Parameter.empty:
            raise RecipeError(f"{where} needs {name}: give it a value, {keyword.expected}.")
    values = {name: said.get(name, keyword.default) for name, keyword in known.items()}
    return {
        name: checked_value(where, known[name], value) if name in said else as_toml(value)
        for name, value in values.items()
    }


def checked_value(where: str, keyword: Keyword, value: object) -> object:
    """The value of a hyperparameter, or knots of values. Raises RecipeError where it is out of its range."""
    values = [value]
    if isinstance(value, list) and is_knots(value):
        check_knots(f"{where} {keyword.name}", value)
        values = [knot[1] for knot in value]
    for each in values:
        try:
            keyword.check(each, where)
        except (TypeError, ValueError):
            raise RecipeError(
                f"{where} says {keyword.name} = {value!r}; expected {keyword.expected}."
            ) from None
    return as_toml(value)


def as_toml(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def parse_schedule(said: dict, train_steps: int, matrix: dict) -> dict:
    """The effective [schedule]: every key, AdamW's as the matrices' where nothing else is said."""
    check_keys("[schedule]", said, list(SCHEDULE))
    kinds = {"cooldown_steps": 1.0, "delay": [], "phases": [], "matrix": {}, "warmup_steps": 0}
    for key, value in said.items():
        plain = key.removeprefix("aux_")
        if plain != "steps" or not isinstance(value, list):
            like = kinds.get(plain, 1 if plain == "steps" else COOLDOWN.get(plain, SCHEDULE.get(plain)))
            check_kinds("[schedule]", {key: value}, {key: like})
    for prefix in ("", "aux_"):
        both = [f"{prefix}{key}" for key in ("cooldown_frac", "cooldown_steps") if f"{prefix}{key}" in said]
        if len(both) == 2:
            raise RecipeError(f"[schedule] says both {both[0]} and {both[1]}; expected one of them.")
        others = [key for key in said if key.startswith(prefix) and key.removeprefix(prefix) in COOLDOWN]
        if f"{prefix}phases" in said and len(others) > 1:
            other = next(key for key in others if key != f"{prefix}phases")
            raise RecipeError(f"[schedule] says {prefix}phases and {other}, which phases replace; drop one.")
    schedule = SCHEDULE | said
    own = {key for key in COOLDOWN if f"aux_{key}" in said}
    for key in COOLDOWN.keys() - own:
        apart = bool(own) if key == "phases" else key == "cooldown_steps" and "cooldown_frac" in own
        schedule[f"aux_{key}"] = None if apart else schedule[key]
    for prefix in ("", "aux_"):
        replaced = COOLDOWN.keys() - {"phases"} if schedule[f"{prefix}phases"] else set()
        replaced |= {"cooldown_frac"} if schedule[f"{prefix}cooldown_steps"] else set()
        schedule |= {f"{prefix}{key}": None for key in replaced}
        plan = schedule[f"{prefix}steps"]
        points = plan if isinstance(plan, list) else [[0, plan or train_steps]]
        check_knots(f"[schedule] {prefix}steps", points, shapes=False)
        if (low := min(point[1] for point in points)) < 1:
            raise RecipeError(f"[schedule] {prefix}steps go down to {low}; expected numbers of steps from 1.")
        if plan is not None and not isinstance(plan, list) and plan < train_steps:
            raise RecipeError(
                f"[schedule] {prefix}steps is {plan}; expected at least the {train_steps} steps of the run."
            )
        frac, steps = (schedule[f"{prefix}{key}"] for key in ("cooldown_frac", "cooldown_steps"))
        if frac is not None and not 0 < frac <= 1:
            raise RecipeError(
                f"[schedule] {prefix}cooldown_frac is {frac}; "
                "expected a part of the run, above 0 and at most 1."
            )
        if steps is not None and not 0 < steps < math.inf:
            raise RecipeError(f"[schedule] {prefix}cooldown_steps is {steps}; expected a number above 0.")
        if schedule[f"{prefix}phases"] is not None:
            check_knots(f"[schedule] {prefix}phases", schedule[f"{prefix}phases"])
            if (low := min(knot[1] for knot in schedule[f"{prefix}phases"])) < 0:
                raise RecipeError(f"[schedule] {prefix}phases go down to {low}; expected factors from 0.")
    if schedule["delay"]:
        check_knots("[schedule] delay", schedule["delay"])
    groups = [matrix, *(value for value in matrix.values() if isinstance(value, dict))]
    movable = {key for group in groups for key, value in group.items()
               if isinstance(value, int | float) and not isinstance(value, bool) and key != "lr"}  # fmt: skip
    check_keys("[schedule.matrix]", schedule["matrix"], sorted(movable))
    for key, knots in schedule["matrix"].items():
        check_knots(f"[schedule.matrix] {key}", knots)
    return schedule


def check_moves(moves: Mapping[str, list[list]], table: dict, steps: Mapping[str, Method]) -> None:
    """Raises RecipeError where knots leave the range of a hyperparameter of the table's step."""
    stages = {kind: table[kind] for kind in STAGE_KINDS if kind in table}
    known = steps[table["step"]].row.exchanged(stages).hyperparameters
    for key in moves.keys() & known.keys():
        try:
            for knot in moves[key]:
                known[key].check(float(knot[1]), key)  # as a number between two knots
        except (TypeError, ValueError):
            raise RecipeError(
                f"[schedule.matrix] says {key} = {shown(moves[key])}; expected points with values each "
                f"{known[key].expected}."
            ) from None


def is_knots(value: object) -> bool:
    """Whether a value is meant as knots, right or wrong."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def is_shape(shape: object) -> bool:
    """Whether it is a power above 0, "cosine", or ["sigmoid", a, b] with b above 0."""
    if isinstance(shape, list):
        return len(shape) == 3 and shape[0] == "sigmoid" and all(map(is_number, shape[1:])) and shape[2] > 0
    return shape == "cosine" or (is_number(shape, 0) and shape != 0)


def check_knots(where: str, knots: object, shapes: bool = True) -> None:
    """Raises RecipeError unless these are [[step, value], [step, value, shape], ...], steps rising."""
    expected = "[[step, value], ...], steps rising" + (
        ", shape a power, 'cosine' or ['sigmoid', a, b]" if shapes else ""
    )

    def is_knot(knot: object) -> bool:
        if not isinstance(knot, list) or len(knot) not in (2, 2 + shapes):
            return False
        return all(map(is_number, knot[:2])) and (len(knot) == 2 or is_shape(knot[2]))

    good = isinstance(knots, list) and knots != [] and all(map(is_knot, knots))
    steps = [knot[0] for knot in knots] if isinstance(knots, list) and good else []
    if not good or steps != sorted(set(steps)):
        raise RecipeError(f"{where} is {shown(knots)}; expected points {expected}.")


def hyperparameters(
    where: str, table: dict, steps: Mapping[str, Method], inherited: Mapping[str, object] | None = None
) -> dict:
    """`step`, the stages exchanged, and every hyperparameter: the table's value, else the inherited, else the
    default.

    Raises RecipeError for a step, a stage or a key that is not known, and for a value out of its range.
    """
    said = dict(inherited or {}) | table
    step = said.get("step")
    if not isinstance(step, str) or step not in steps:
        near = difflib.get_close_matches(str(step), steps, n=1, cutoff=0.0)
        raise RecipeError(f"{where} says step = {step!r}; nearest: '{near[0]}'. Known: {', '.join(steps)}.")
    stages = {kind: said[kind] for kind in STAGE_KINDS if kind in said}
    for kind, stage in stages.items():
        if not isinstance(stage, str):
            raise RecipeError(f"{where} says {kind} = {shown(stage)}; expected the name of a stage.")
    try:
        known = steps[step].row.exchanged(stages).hyperparameters
    except ValueError as error:
        raise RecipeError(f"{where}: {error}.") from None
    pairing = [] if inherited is None else ["couple"]  # two patterns' matrices may step together
    check_keys(f"{where} with step '{step}'", table, ["step", *STAGE_KINDS, *pairing, *known])
    for name in inherited or ():
        if name not in known and (apart := [own for own in known if own.endswith(f"_{name}")]):
            raise RecipeError(f"{where}: is [matrix] {name} its {' or '.join(apart)}? Say it there.")
    effective: dict = {"step": step} | stages | {key: table[key] for key in pairing if key in table}
    for name, keyword in known.items():
        value = said.get(name, keyword.default)
        if value is inspect.Parameter.empty:
            raise RecipeError(f"{where} with step '{step}' needs {name}: give it a value.")
        if name in said:
            try:
                keyword.check(value, where)
            except (TypeError, ValueError):
                raise RecipeError(f"{where} says {name} = {value!r}; expected {keyword.expected}.") from None
        effective[name] = list(value) if isinstance(value, tuple) else value
    return effective


def with_changes(said: dict, changes: Iterable[str], steps: Mapping[str, Method]) -> dict:
    """A recipe's table with the changes over it; what a change replaces goes: the values of another step or
    stage, AdamW's rate of an embedding or head that gets a step.
    """
    table = said
    for change in changes:
        table = merge(table, parse_change(change))
    for key in ("matrix", "embed", "head"):
        if isinstance(said.get(key), dict) and isinstance(table[key], dict):
            table = table | {key: without_replaced(said[key], table[key], steps)}
    then, now = said.get("aux"), table.get("aux")
    if isinstance(then, dict) and isinstance(now, dict):
        rates = [f"{key}_lr" for key in ("embed", "head") if key in table and key not in said]
        kept = {key: value for key, value in now.items() if key not in rates or then.get(key) != value}
        table = table | {"aux": kept}
    return table


def without_replaced(
    then: dict, now: dict, steps: Mapping[str, Method], around: tuple[dict, dict] = ({}, {})
) -> dict:
    """A table of matrices after changes: values of a step or stage that a change replaced go with it.

    around: for a table by pattern, what stood and what stands in the table around it.
    """
    rows = [around[0] | plain_in(then), around[1] | plain_in(now)]
    gone = row_keys(rows[0], steps) - row_keys(rows[1], steps)
    kept = {key: value for key, value in now.items() if key not in gone or then.get(key) != value}
    inside = {key: (then[key], value) for key, value in tables_in(now).items() if key in tables_in(then)}
    return kept | {key: without_replaced(*both, steps, (rows[0], rows[1])) for key, both in inside.items()}


def row_keys(table: dict, steps: Mapping[str, Method]) -> set[str]:
    """The hyperparameters of a table's step with the stages it exchanges; none where that is no row."""
    stages = {kind: table[kind] for kind in STAGE_KINDS if kind in table}
    try:
        return set(steps[table["step"]].row.exchanged(stages).hyperparameters)
    except (KeyError, TypeError, ValueError):
        return set()


def check_keys(where: str, table: dict, known: list[str]) -> None:
    """Raises RecipeError for the first key that is not known, with the nearest one that is."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"did you mean '{near[0]}'? Known: {', '.join(known)}." if known else "It takes none."
            raise RecipeError(f"{where} has no '{key}'; {hint}")


def check_kinds(where: str, table: dict, like: dict) -> None:
    """Raises RecipeError where a value is not of its default's kind (whole numbers may stand for floats) or
    out of its range.
    """
    for key, value in table.items():
        kind, default = type(like.get(key)), like.get(key)
        low, high = RANGES.get(key, (0.0, math.inf))
        numbers = [value]
        if kind is list and isinstance(default, list) and default:
            numbers = value if isinstance(value, list) and len(value) == len(default) else [None]
        if kind in (float, int, list) and (kind is not list or default):
            good = all(
                isinstance(number, int | float) and not isinstance(number, bool)
                and math.isfinite(number) and low <= number <= high
                for number in numbers
            )  # fmt: skip
            span = f", {low:g} to {high:g}" if key in RANGES else ", 0 or above"
        else:
            good, span = like.get(key) is None or type(value) is kind, ""
        if not good:
            raise RecipeError(
                f"{where} says {key} = {shown(value)}; expected a value such as {default!r}{span}."
            )


def shown(value: object) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def parse_change(change: str) -> dict:
    """The tables that "matrix.lr=0.03" stands for; a value that is not TOML is taken as a string."""
    key, found, value = change.partition("=")
    for text in (value, json.dumps(value)) if found else ():
        try:
            return tomllib.loads(f"{key} = {text}")
        except (tomllib.TOMLDecodeError, RecursionError, ValueError):
            continue
    raise RecipeError(f"--set {shown(change)}: expected KEY=VALUE, such as matrix.lr=0.03.")


def merge(table: dict, changes: dict) -> dict:
    """`table` with the changes over it, table by table."""
    both = {key for key in changes if isinstance(changes[key], dict) and isinstance(table.get(key), dict)}
    return table | {key: merge(table[key], value) if key in both else value for key, value in changes.items()}


def parse_seeds(text: str) -> list[int]:
    """ "0-4" or "0,3" as a list. Raises RecipeError for anything else and for a seed named twice."""
    if not re.fullmatch(r"\d{1,18}(-\d{1,18})?(,\d{1,18}(-\d{1,18})?)*", text, re.ASCII):
        raise RecipeError(f"--seeds {shown(text)[1:-1]}: expected seeds such as 0-4 or 0,3.")
    ends = [(int(part.split("-")[0]), int(part.split("-")[-1])) for part in text.split(",")]
    if (count := sum(max(last - first + 1, 0) for first, last in ends)) > MOST_SEEDS:
        raise RecipeError(
            f"--seeds {shown(text)[1:-1]}: {count:,} seeds; expected at most {MOST_SEEDS:,} in one log."
        )
    seeds = [seed for first, last in ends for seed in range(first, last + 1)]
    if not seeds or len(seeds) != len(set(seeds)):
        raise RecipeError(f"--seeds {text}: {'a seed stands twice' if seeds else 'no seed in it'}.")
    return seeds
