"""The effective recipe: what a TOML text says, checked, every default of track and methods filled in."""

import difflib
import inspect
import math
import tomllib
from collections.abc import Iterable, Mapping

from records.run.changes import with_changes
from records.run.recipe import (
    COOLDOWN,
    FACTS,
    MOST_STEPS,
    STAGE_KINDS,
    Keyword,
    Method,
    Recipe,
    RecipeError,
    literal,
    plain_in,
    shown,
    tables_in,
)
from records.run.track import Track, is_name, is_number

SCHEDULE = (
    COOLDOWN | {f"aux_{key}": None for key in COOLDOWN} | {"warmup_steps": 0, "delay": [], "matrix": {}}
)
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
