"""What `--set matrix.lr=0.03` and the like change in a recipe's table."""

import json
import tomllib
from collections.abc import Iterable, Mapping

from records.run.recipe import STAGE_KINDS, Method, RecipeError, plain_in, shown, tables_in


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
