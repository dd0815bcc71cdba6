"""Recipes by name: which file is meant, and that all that are shipped can be read."""

import tomllib
from pathlib import Path

import pytest

from optimizers import STEPS
from records.run.effective import parse_recipe
from records.run.recipe import RecipeError
from records.run.recipe_files import find_recipe, list_recipes, read_recipe, recipe_files
from records.run.track import shipped_tracks

TRACKS = shipped_tracks()
RECORDS = Path(__file__).resolve().parents[1] / "records"
SHIPPED = [file for track in TRACKS for file in recipe_files(RECORDS / track).values()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_reads_and_says_itself_again(path):
    recipe = read_recipe(path, TRACKS, STEPS)
    assert recipe.track.name == path.relative_to(RECORDS).parts[0]
    assert parse_recipe(recipe.toml(), "other", TRACKS, STEPS) == recipe
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) <= 40 or path.name == "recipe.toml"
    assert "description" in recipe.facts
    tomllib.loads(recipe.toml())


@pytest.mark.parametrize("track", TRACKS)
def test_the_default_recipe_of_a_track_is_shipped(track):
    assert read_recipe(TRACKS[track].recipe, TRACKS, STEPS, track=track).track.name == track


def test_a_name_on_two_tracks_is_that_of_the_preferred_one():
    for track in ("nano", "fineweb"):
        assert read_recipe("nora", TRACKS, STEPS, track=track).track.name == track


def test_a_name_on_two_tracks_is_not_guessed():
    with pytest.raises(RecipeError, match="several recipes are called nora; name one: .*fineweb/nora.toml, "):
        read_recipe("nora", TRACKS, STEPS)


def test_a_recipe_that_names_no_track_is_of_the_one_asked_for(tmp_path):
    (tmp_path / "mine.toml").write_text('train_steps = 5\n[matrix]\nstep = "muon"')
    told = [
        read_recipe(tmp_path / "mine.toml", TRACKS, STEPS, track=track).track.name for track in (None, "nano")
    ]
    assert told == ["fineweb", "nano"]


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(RecipeError, match="nearest: 36_muon"):
        read_recipe("36_moun", TRACKS, STEPS)


def test_a_recipe_without_its_step_function_is_listed_as_such():
    without = {name: step for name, step in STEPS.items() if name != "nora"}
    lines = [line for line in list_recipes(TRACKS, without) if line.strip().startswith("nora ")]
    assert len(lines) == 2 and all("cannot run yet" in line for line in lines)


def test_a_file_name_that_is_no_name_says_where_else_to_name_it(tmp_path):
    file = tmp_path / "my recipe.toml"
    file.write_text('track = "nano"\ntrain_steps = 5\n[matrix]\nstep = "muon"\n')
    with pytest.raises(RecipeError, match="name 'my recipe'.*say name = "):
        read_recipe(file, TRACKS, STEPS)
    assert read_recipe(file, TRACKS, STEPS, ["name=mine"]).name == "mine"


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    (tmp_path / "a.toml").write_bytes(b'description = "\xff"')
    with pytest.raises(RecipeError, match=r"a\.toml is not UTF-8: byte 15"):
        read_recipe(tmp_path / "a.toml", TRACKS, STEPS)


@pytest.mark.parametrize(
    "case", sorted((RECORDS.parents[1] / "shared" / "cases").glob("recipe_*.toml")) or [None]
)
def test_the_known_cases_are_refused(case):
    if case is None:
        pytest.skip("../shared/cases is not there")
    with pytest.raises(RecipeError):
        read_recipe(case, TRACKS, STEPS)


def test_a_name_means_the_recipe_of_a_track_without_start_first():
    assert find_recipe("muon", TRACKS).parent.parent.name == "nano"
    assert find_recipe("muon", TRACKS, "warm").parent.parent.name == "warm"
