"""What the README shows works as it stands there."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

import optimizers
from optimizers.explain import method_map
from records.run.effective import parse_recipe
from records.run.track import shipped_tracks
from train_gpt import parse_arguments

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


def test_five_lines_in_ones_own_training():
    model = torch.nn.Module()
    model.blocks = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8))
    model.head = torch.nn.Linear(8, 4)
    names = {"model": model, "torch": torch}
    exec(blocks("python")[0], names)
    before = [p.clone() for p in model.parameters()]
    model.head(model.blocks(torch.randn(5, 8))).square().sum().backward()
    names["optimizer"].step()
    names["adamw"].step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_adding_an_optimizer():
    names: dict = {"__name__": "signum"}
    exec(blocks("python")[1], names)
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    weight.grad = torch.ones(3, 4)
    optimizers.MatrixOptimizer([weight], step=names["signum"], lr=0.5).step()
    assert torch.equal(weight, torch.full((3, 4), -0.5))
    del optimizers.STEPS["signum"]


def test_the_recipe_is_one():
    recipe = parse_recipe(blocks("toml")[0], "readme", shipped_tracks(), optimizers.STEPS)
    assert recipe.step_names() == ["aurora", "soap_muon"]


@pytest.mark.parametrize(
    "line", re.findall(r"^\./run\.sh (--.*?)(?:\s+#.*)?$", "\n".join(blocks("bash")), re.MULTILINE)
)
def test_the_options_of_the_commands_exist(line):
    words = line.split()
    if "--nproc" in words:  # run.sh's own
        del words[words.index("--nproc") : words.index("--nproc") + 2]
    parse_arguments(words, Path())


def test_the_map_of_methods_is_the_codes():
    shown = README.partition("<!-- methods -->")[2].partition("<!-- end of methods -->")[0].strip()
    assert shown == method_map(), "run `python -m optimizers`"
