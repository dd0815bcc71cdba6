"""Scaled trainings of the published results, against the losses of their own scripts.

The first steps of one run with the suite. The whole ones: `pytest -m slow tests/test_trajectory.py`.
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from records.baseline import made_tokens
from records.run.track import RECORDS
from tests.trajectory import Replay, read_scaled, replayed, started
from train_gpt import (
    GPT,
    World,
    apply_update,
    build_optimizers,
    compute_gradients,
    initialise,
    load_recipe,
    set_learning_rates,
)

GOLDEN = Path(__file__).parent / "golden"
SHARED = GOLDEN.parents[2] / "shared" / "golden"
SCALED = sorted((GOLDEN / "trajectories").glob("*.toml"))
RECIPES = sorted(file for track in RECORDS.glob("*/track.toml") for file in track.parent.glob("*.toml"))


def golden(name: str) -> dict:
    """What a result's script computed: beside the tests, or in the shared folder."""
    file = f"trajectory_{name if name.startswith('open') else f'record{name}'}.json"
    path = next((folder / file for folder in (GOLDEN, SHARED) if (folder / file).is_file()), None)
    if path is None:
        pytest.skip(f"{file} is not here (../shared/golden)")
    return json.loads(path.read_text())


def test_a_scaled_training_starts_as_its_script() -> None:
    """Result 34, up to the step at which its momentum is .95; RRE comes later."""
    losses, _ = replayed(*read_scaled(Path("34.toml")), steps=5)
    assert losses == pytest.approx(golden("34")["losses"][:5], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("path", SCALED, ids=lambda path: path.stem)
def test_a_scaled_training_is_its_scripts(path: Path) -> None:
    expected = golden(path.stem)
    losses, final = replayed(*read_scaled(path))
    assert losses == pytest.approx(expected["losses"], rel=1e-9)
    assert final == pytest.approx(expected["final_loss"], rel=1e-9)


@pytest.mark.parametrize("path", SCALED, ids=lambda path: path.stem)
def test_a_scaled_recipe_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


def test_other_numbers_are_another_start() -> None:
    changes = ({}, {"weights_offset": 1}, {"matrix_scale": 6.0})
    plain, offset, scaled = (started(Replay(**said)) for said in changes)
    name = "blocks.1.mlp.fc.weight"
    weights = [dict(model.named_parameters()) for model in (plain, offset, scaled)]
    assert not torch.equal(weights[0][name], weights[1][name])
    torch.testing.assert_close(weights[2][name], 6 * weights[0][name])
    assert torch.equal(weights[2]["proj.weight"], weights[0]["proj.weight"])


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.parent.name == "nano" or place % 2 else [])
        for place, path in enumerate(RECIPES)
        if path.name != "track.toml"
    ],
    ids=lambda path: "/".join(path.relative_to(RECORDS).with_suffix("").parts),
)
@settings(max_examples=1, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_every_recipe_stays_finite_from_a_head_at_zero(path: Path, seed: int) -> None:
    recipe = load_recipe(path)
    layers = 12 if "blocks.11" in path.read_text() else 2
    rows = 8 if any(table["kind"] == "gradient_noise" for table in recipe.around.values()) else 2
    model = GPT(512, layers, 64, 32)
    initialise(model, {key: rule for key, rule in recipe.init.items() if key != "paired_from"}, seed)
    torch.nn.init.zeros_(model.proj.weight)
    optimizers = build_optimizers(model, recipe)
    for step in range(3):
        batch = tuple(made_tokens(seed + 2 * step + part, rows) for part in (0, 1))
        set_learning_rates(optimizers, recipe, step)
        compute_gradients(model, optimizers, batch, 1 if rows == 8 else 2, World(0, 1, torch.device("cpu")))
        apply_update(optimizers)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
