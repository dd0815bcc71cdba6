"""Recipes: what is said, what is filled in, what is refused."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers import STEPS
from records.run.recipe import (
    RecipeError,
    find_recipe,
    list_recipes,
    parse_recipe,
    parse_seeds,
    read_recipe,
    recipe_files,
)
from records.run.track import shipped_tracks

TRACKS = shipped_tracks()
RECORDS = Path(__file__).resolve().parents[1] / "records"
SHIPPED = [file for track in TRACKS for file in recipe_files(RECORDS / track).values()]
HEAD = 'track = "fineweb"\ntrain_steps = 100\n'


def parse(text: str, *changes: str):
    return changed(HEAD + text, *changes)


def changed(text: str, *changes: str):
    return parse_recipe(text, "made", TRACKS, STEPS, changes)


def test_defaults_of_track_and_step_function_are_filled_in():
    recipe = parse('[matrix]\nstep = "muon"\nlr = 1\n[aux]\nembed_lr = 0.7\n[schedule]\ncooldown_frac = 0.5')
    assert (recipe.matrix["lr"], recipe.matrix["momentum"], recipe.matrix["polar"]) == (1, 0.95, "simple")
    assert recipe.aux == {**TRACKS["fineweb"].aux, "embed_lr": 0.7}
    assert recipe.schedule["aux_cooldown_frac"] == 0.5


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


def test_changes_go_over_what_the_file_says():
    base = '[matrix]\nstep = "muon"\n[matrix."mlp.*"]\nlr = 0.5\n[init]\n"mlp.fc" = 0.1'
    changes = (
        "matrix.lr=0.25",
        "aux.betas=[0.5, 0.6]",
        "matrix.polar=cans",
        'init."mlp.fc"=0.2',
        "train_steps=7",
    )
    recipe = parse(base, *changes)
    assert (recipe.matrix["lr"], recipe.matrix["mlp.*"]["lr"], recipe.matrix["polar"]) == (0.25, 0.5, "cans")
    assert recipe.aux["betas"] == [0.5, 0.6] and recipe.init == {"mlp.fc": 0.2} and recipe.train_steps == 7


def test_what_a_change_replaces_takes_its_values_along():
    whole = parse('[matrix]\nstep = "soap_muon"\nlr = 0.5\n[matrix."mlp.*"]\ntrust = true').toml()
    recipe = changed(whole, "matrix.memory=bimaxwell", "matrix.begin=9")
    assert "nesterov" not in recipe.matrix and recipe.matrix["mlp.*"]["trust"] is True
    other = changed(whole, "matrix.precondition=none")
    assert "trust" not in other.matrix["mlp.*"] and other.matrix["lr"] == 0.5
    assert "beta2" not in changed(whole, "matrix.step=muon").matrix
    assert "head_lr" not in changed(whole, "head.step=rownorm", "head.lr=0.1").aux
    with pytest.raises(RecipeError, match=r"\[matrix\] with step 'muon' has no 'beta2'"):
        changed(whole, "matrix.step=muon", "matrix.beta2=0.5")


def test_a_pattern_takes_over_the_values_of_the_same_step_only():
    patterns = '[matrix."attn.q"]\nweight_decay = 1.0\n[matrix."mlp.*"]\nstep = "nora"'
    recipe = parse(f'[matrix]\nstep = "muon"\nlr = 0.3\n{patterns}')
    assert recipe.matrix["attn.q"]["lr"] == 0.3 and recipe.matrix["mlp.*"]["lr"] == 0.005
    assert recipe.step_names() == ["muon", "nora"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"\[matrix\] says step = None"),
        ('[matrix]\nstep = "auroro"', "nearest: 'aurora'"),
        ('[matrix]\nstep = "muon"\nmomentun = 1', "did you mean 'momentum'"),
        ('[matrix]\nstep = "muon"\nnesterov = 1', "nesterov = 1; expected true or false"),
        ('[matrix]\nstep = "muon"\nlr = true', "lr = True"),
        (
            '[matrix]\nstep = "muon"\n[matrix."mlp.*"]\nmode = "r"',
            r'\[matrix."mlp.\*"\] with step .muon. has no .mode',
        ),
        ('[matrix]\nstep = "muon"\n[aux]\nembed_rl = 1', "did you mean 'embed_lr'"),
        ('[matrix]\nstep = "muon"\n[aux]\nbetas = 0.9', "betas = 0.9; expected a value such as "),
        ('[matrix]\nstep = "muon"\n[schedule]\ncooldown_frac = 1.5', "cooldown_frac is 1.5"),
        ('[matrix]\nstep = "muon"\n[schedule.matrix]\npolar = [[0, 1]]', "has no 'polar'"),
        ('[matrix]\nstep = "muon"\n[schedule.matrix]\nmomentum = [[9, 1], [0, 1]]', "steps rising"),
        ('seed = 3\n[matrix]\nstep = "muon"', "the recipe has no 'seed'"),
        ("[matrix", "is not TOML"),
        ("[matrix]\nstep = 3", "says step = 3"),
        ("matrix = 3", r"expected a table \[matrix\]"),
    ],
)
def test_what_nothing_uses_is_refused(text, told):
    with pytest.raises(RecipeError, match=told):
        parse(text)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(RecipeError, match="nearest: 36_muon"):
        read_recipe("36_moun", TRACKS, STEPS)


def test_a_recipe_without_its_step_function_is_listed_as_such():
    without = {name: step for name, step in STEPS.items() if name != "nora"}
    lines = [line for line in list_recipes(TRACKS, without) if line.strip().startswith("nora ")]
    assert len(lines) == 2 and all("cannot run yet" in line for line in lines)


def test_seeds():
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    for text in ("", "1-", "a", "0,0", "3-1"):
        with pytest.raises(RecipeError, match="--seeds"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[schedule]\nsteps = 99", "at least the 100 steps"),
        ('[schedule]\nsteps = "long"', "steps"),
        ("[lookahead]\nstrenght = 0.5", "did you mean 'strength'"),
    ],
)
def test_a_schedule_or_lookahead_that_cannot_be_is_refused(text, told):
    with pytest.raises(RecipeError, match=told):
        parse('[matrix]\nstep = "muon"\n' + text)


def test_a_lookahead_lasts_to_the_end_unless_told():
    recipe = parse('[matrix]\nstep = "muon"\n[lookahead]\nstart = 20')
    assert recipe.lookahead == {"decay": 0.99, "strength": 0.6, "start": 20, "stop": 100}
    assert parse('[matrix]\nstep = "muon"').lookahead == {}


# -- what a stranger may write

PLAIN = '[matrix]\nstep = "muon"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[aux]\nbetas = [0.9]", "betas = [0.9]; expected a value such as [0.8, 0.95]"),
        ("[aux]\nbetas = [0.9, 1.0]", "betas = [0.9, 1.0]"),
        ("[aux]\nembed_lr = -0.1", "embed_lr = -0.1"),
        ("[aux]\neps = nan", "eps = nan"),
        ("[aux]\nhead_lr = inf", "head_lr = inf"),
        ("[aux]\nweight_decay = true", "weight_decay = True"),
        ('[init]\n"mlp.fc" = "big"', "std = 'big'"),
        ('[init]\n"mlp.fc" = -0.1', "std = -0.1"),
        ('[init]\n"mlp.fc" = nan', "std = nan"),
        ("[schedule]\ncooldown_power = -1", "cooldown_power = -1"),
        ("[schedule]\ncooldown_power = 0", "cooldown_power = 0"),
        ("[schedule]\nwarmup_steps = -3", "warmup_steps = -3"),
        ("[schedule]\nfloor = 2.0", "floor = 2.0"),
        ("[schedule]\nmatrix = 3", "matrix = 3"),
        ('[schedule.matrix]\nmomentum = [[0, "a"]]', "expected points"),
        ("[schedule.matrix]\nmomentum = 0.5", "expected points"),
        ('[matrix."mlp.*"]\nprecondition = []', "expected the name of a stage"),
        ("[schedule.matrix]\nmomentum = [[0, 0.9], [5, 2]]", "values each a number in [0, 1)"),
        ("[schedule.matrix]\nmomentum = [[0, 0.9], [5, nan]]", "expected points"),
        ("[schedule.matrix]\nweight_decay = [[0, 0.1], [5, -1]]", "values each a number in [0, inf)"),
        ("[schedule]\nphases = [[0, 1], [5, -1]]", "expected factors from 0"),
        ("[schedule]\nsteps = [[0, 0]]", "expected numbers of steps from 1"),
        ("[lookahead]\nstrength = -1.0", "strength = -1.0"),
        ("[lookahead]\ndecay = 1.0", "decay = 1.0"),
        ("[lookahead]\nstart = 5\nstop = 5", "start = 5 and stop = 5; expected start below stop"),
    ],
)
def test_nonsense_is_refused_with_key_and_value(text, told):
    with pytest.raises(RecipeError) as refused:
        parse(PLAIN + text)
    assert told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("name", '"a/../../escaped"', "name 'a/../../escaped': expected letters"),
        ("name", '""', "name '': expected"),
        ("name", '".."', "name '..': expected"),
        ("name", '"a\\u001b[31m"', r"name 'a\x1b[31m'"),
        ("name", '"' + "a" * 101 + '"', "at most 100"),
        ("name", "5", "name 5: expected"),
        ("description", "2020-01-01", "expected a value such as ''"),
        ("base", "[]", "base = []"),
        ("published", '"36"', "published = '36'"),
        ("matrix.precondition", "{}", "[matrix] says precondition = {}; expected the name of a stage"),
        ("schedule.matrix.momentum", '"\\u001b[31m"', r"momentum is '\x1b[31m'; expected points"),
        ("train_steps", "1000000000", "at most 999,999,999"),
        ("train_steps", "5.0", "train_steps = 5.0"),
    ],
)
def test_what_names_and_describes_a_recipe_is_checked(key, value, told):
    with pytest.raises(RecipeError) as refused:
        parse(PLAIN, f"{key}={value}")
    assert told in str(refused.value)


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


@pytest.mark.parametrize("text", ["a=" + "[" * 5000, "a." * 5000 + "b = 1", "= = =", "\0", "a = 1e"])
def test_what_is_no_toml_is_one_line(text):
    with pytest.raises(RecipeError):
        parse_recipe(text, "made", TRACKS, STEPS)


@given(st.text())
def test_the_effective_recipe_says_any_description(description):
    recipe = parse(PLAIN)
    toml = dataclasses.replace(recipe, facts={"description": description}).toml()
    assert toml.isascii() and tomllib.loads(toml)["description"] == description


@given(st.text(max_size=40))
def test_any_change_is_taken_or_refused_in_one_line(change):
    for text in (change, f"matrix.lr={change}", f"name={change}"):
        try:
            parse(PLAIN, text)
        except RecipeError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("seeds", ["0-99999999", "0-1000", "9" * 30, "0-" + "9" * 5000])
def test_too_many_seeds_are_refused(seeds):
    with pytest.raises(RecipeError, match="--seeds"):
        parse_seeds(seeds)


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
