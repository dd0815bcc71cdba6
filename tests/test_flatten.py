"""A run as one script."""

import ast
from pathlib import Path

import pytest

from optimizers import STEPS
from records.judge.script_rules import foreign_imports
from records.run.flatten import check_script, flatten

ROOT = Path(__file__).resolve().parents[1]
RECIPE = 'track = "nano"\ntrain_steps = 5\n\n[matrix]\nstep = "muon"'


@pytest.mark.parametrize(
    "steps", [["muon"], ["aurora", "nora"], sorted(STEPS)], ids=lambda steps: str(len(steps))
)
def test_the_script_is_whole(steps):
    script = flatten(ROOT, steps, RECIPE, ["--seeds", "0-3"])
    tree = ast.parse(script)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert {*steps, "GPT", "MatrixOptimizer", "read_shard", "main"} <= defined
    assert not list(foreign_imports(tree))
    assert 'ARGUMENTS = ["--seeds", "0-3"]' in script.replace("'", '"')


def test_only_the_modules_used_are_in_it():
    assert "def nora(" not in flatten(ROOT, ["muon"], RECIPE, [])


def test_a_recipe_with_quotes_stays_what_it_is():
    recipe = RECIPE + "\ndescription = \"it's '''quoted''' \\\\ twice\""
    tree = ast.parse(flatten(ROOT, ["muon"], recipe, []))
    (found,) = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and node.targets[0].id == "RECIPE"
        and isinstance(node.value, ast.Constant)
    ]
    assert found.strip() == recipe


def test_what_would_end_the_script_early_is_refused():
    with pytest.raises(ValueError, match="begins with '='"):
        check_script('"""\n====\n"""')
    with pytest.raises(ValueError, match="define 'muon'"):
        check_script("def muon(): ...\ndef muon(): ...")
