"""Recipes: what an entry chooses, as a value and as TOML; and its seeds.

Where they lie is in recipe_files, how a text becomes one in effective, what --set does to it in changes.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from records import RecordError
from records.run.track import Track

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
MOST_STEPS = 999_999_999  # what a log's lines have room for
MOST_SEEDS = 1000  # of one log


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
        """The step functions it uses, its track's [start] too, by name and with exchanged stages, sorted."""
        tables = [self.matrix, *self.patterns().values(), *self.own_steps().values()]
        tables += [self.track.start["matrix"]] if self.track.start else []
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
    """The lines of a TOML table: scalars and lists first, then the tables inside; None is left out.

    A table of tables alone has no heading.
    """
    name = {key: key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in table}
    for key, value in table.items():
        if not isinstance(value, dict) and value is not None:
            yield f"{name[key]} = {literal(value)}"
    for key, value in table.items():
        if isinstance(value, dict) and value:
            if any(not isinstance(inner, dict) for inner in value.values()):
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


def shown(value: object) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


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
