"""The effective recipe: defaults filled in, and what is refused."""

import pytest

from optimizers import STEPS
from records.run.effective import parse_recipe
from records.run.recipe import RecipeError
from tests.made_recipes import TRACKS, parse

PLAIN = '[matrix]\nstep = "muon"\n'


def test_defaults_of_track_and_step_function_are_filled_in():
    recipe = parse('[matrix]\nstep = "muon"\nlr = 1\n[aux]\nembed_lr = 0.7\n[schedule]\ncooldown_frac = 0.5')
    assert (recipe.matrix["lr"], recipe.matrix["momentum"], recipe.matrix["polar"]) == (1, 0.95, "simple")
    assert recipe.aux == {**TRACKS["fineweb"].aux, "embed_lr": 0.7}
    assert recipe.schedule["aux_cooldown_frac"] == 0.5


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


@pytest.mark.parametrize("text", ["a=" + "[" * 5000, "a." * 5000 + "b = 1", "= = =", "\0", "a = 1e"])
def test_what_is_no_toml_is_one_line(text):
    with pytest.raises(RecipeError):
        parse_recipe(text, "made", TRACKS, STEPS)
