"""What --set changes in a recipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records.run.recipe import RecipeError
from tests.made_recipes import changed, parse

PLAIN = '[matrix]\nstep = "muon"\n'


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


@given(st.text(max_size=40))
def test_any_change_is_taken_or_refused_in_one_line(change):
    for text in (change, f"matrix.lr={change}", f"name={change}"):
        try:
            parse(PLAIN, text)
        except RecipeError as error:
            assert str(error).isprintable()
