"""A recipe as TOML, and its seeds."""

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records.run.recipe import RecipeError, parse_seeds, toml_lines
from tests.made_recipes import parse

PLAIN = '[matrix]\nstep = "muon"\n'


def test_seeds():
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    for text in ("", "1-", "a", "0,0", "3-1"):
        with pytest.raises(RecipeError, match="--seeds"):
            parse_seeds(text)


@given(st.text())
def test_the_effective_recipe_says_any_description(description):
    recipe = parse(PLAIN)
    toml = dataclasses.replace(recipe, facts={"description": description}).toml()
    assert toml.isascii() and tomllib.loads(toml)["description"] == description


@pytest.mark.parametrize("seeds", ["0-99999999", "0-1000", "9" * 30, "0-" + "9" * 5000])
def test_too_many_seeds_are_refused(seeds):
    with pytest.raises(RecipeError, match="--seeds"):
        parse_seeds(seeds)


def test_a_table_of_tables_alone_has_no_heading():
    table = {"lr": 0.1, "around": {"beyond": {"kind": "x", "deeper": {"most": {"tau": 1}}}}}
    text = "\n".join(toml_lines(table))
    assert "[around]" not in text and "[around.beyond.deeper]" not in text
    assert tomllib.loads(text) == table
