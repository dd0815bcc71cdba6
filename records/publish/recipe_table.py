"""Recipes as flat tables of dotted keys ("matrix.lr"), to compare what several of them say."""

from collections.abc import Mapping, Sequence

from records.run.recipe import FACTS, dotted

# About the recipe, not of it: no number of the run comes from these.
NAMES = ("name", *FACTS)


def flat(recipe: Mapping[str, object]) -> dict[str, object]:
    """Dotted key -> value, without the keys that only name or describe."""
    return {key: value for key, value in dotted(recipe).items() if key not in NAMES}


def side_by_side(recipes: Sequence[Mapping[str, object]]) -> list[tuple[str, list[object | None], bool]]:
    """(key, its value in each recipe or None, whether they differ) for every key of any of them."""
    tables = [flat(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [table.get(key) for table in tables]) for key in keys]
    return [(key, values, any(value != values[0] for value in values)) for key, values in rows]


def disagreements(stated: Mapping[str, object], effective: Mapping[str, object]) -> list[str]:
    """Where an effective recipe says otherwise than a recipe that need not state every key: one line each."""
    said = flat(effective)
    return [
        f"{key} is {value!r} in the recipe, {said[key]!r} in the logs" if key in said
        else f"{key} = {value!r} in the recipe, not in the logs"
        for key, value in flat(stated).items()
        if key not in said or said[key] != value
    ]  # fmt: skip
