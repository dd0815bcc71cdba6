"""SinkGD, SCALE, SWAN, MOGA, Moonlight, row normalisation: equal to code that is public, and what holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optimizers.stage import named_step

GOLDEN = Path(__file__).parent / "golden"
SHAPES = ((24, 24), (48, 16), (16, 48))
PLAIN = {"lr": 0.01, "weight_decay": 0.1}
CASES = {  # golden file -> step function, options
    "scale": ("scale", PLAIN),
    "scale_head": ("scale(memory=nesterov)", PLAIN | {"nesterov": False, "momentum": 0.9}),
    "scale_embed": ("scale(direction=columns, scale=column_rms)", PLAIN),
    "sinkgd": ("sinkgd", {"lr": 0.01}),
    "swan": ("swan", {"lr": 0.02, "weight_decay": 0.1}),
    "moga_row": ("rmnp(scale=width)", {"lr": 0.02, "eps": 1e-7}),
    "moga_col": ("rmnp(direction=columns, scale=column_width)", {"lr": 0.02, "weight_decay": 0.1}),
    "moonlight": ("muon(scale=rms)", {"lr": 0.01, "weight_decay": 0.1, "polar": "quintic"}),
    "nora_plain": ("nora", {"weight_decay": 0.1, "nesterov": False}),
    "rownorm": ("rownorm", {"weight_decay": 0.1}),
    "rownorm_center": ("rownorm(direction=centred_rows)", {"weight_decay": 0.1}),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def update(name: str, grad: Tensor, **options) -> Tensor:
    """What the first step subtracts at learning rate 1."""
    weight = torch.zeros_like(grad)
    named_step(name)(weight, grad, {}, **{"lr": 1.0, "weight_decay": 0.0} | options)
    return -weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_four_steps_equal_the_public_code(case, shape):
    name, options = CASES[case]
    weight, state = torch.tensor(np.random.default_rng(7).standard_normal(shape) * 0.5), {}
    with np.load(GOLDEN / f"{case}.npz") as golden:
        for t in range(1, 5):
            grad = np.random.default_rng(7 + 1000 * t).standard_normal(shape)
            grad *= np.geomspace(1, 0.01, shape[1])
            named_step(name)(weight, torch.tensor(grad), state, **options)
            expected = torch.tensor(golden[f"s7_{shape[0]}x{shape[1]}_w{t}"])
            assert torch.linalg.norm(weight - expected) < 1e-8 * torch.linalg.norm(expected)


def test_sinkgds_columns_have_rms_1_and_its_rows_nearly():
    X = update("sinkgd", noise(30, 20))
    torch.testing.assert_close(X.square().mean(0), torch.ones(20).double())
    torch.testing.assert_close(X.square().mean(1), torch.ones(30).double(), rtol=2e-3, atol=0)


def test_sinkgd_does_not_see_scales_of_rows_and_columns():
    G, rows, columns = noise(12, 9), noise(12, 1, seed=1).exp(), noise(9, seed=2).exp()
    twin = update("sinkgd", rows * G * columns, iterations=200)
    torch.testing.assert_close(twin, update("sinkgd", G, iterations=200))


def test_scale_does_not_see_a_rows_size_and_keeps_nothing():
    G, state = noise(5, 7), {}
    torch.testing.assert_close(update("scale", noise(5, 1, seed=1).exp() * G), update("scale", G))
    named_step("scale")(noise(5, 7), G, state)
    assert state == {}


def test_swan_whitens_standardised_rows():
    G = noise(6, 30)
    g = (G - G.mean(1, keepdim=True)) / G.std(1, correction=0, keepdim=True)
    left, _, right = torch.linalg.svd(g, full_matrices=False)
    expected = left @ right * (30**0.5)  # at |g| = sqrt(6 * 30)
    torch.testing.assert_close(update("swan", G, iterations=20), expected, rtol=1e-5, atol=1e-5)


def test_moga_halves_the_entries_where_the_width_doubles():
    narrow, wide = (update("rmnp(scale=width)", noise(6, n)).square().mean().sqrt() for n in (8, 16))
    torch.testing.assert_close(narrow, 2 * wide)


def test_the_heads_rows_sum_to_zero_whatever_is_added_to_all_of_them():
    G, name = noise(9, 4), "rownorm(direction=centred_rows)"
    U = update(name, G)
    torch.testing.assert_close(U.sum(0), torch.zeros(4).double())
    torch.testing.assert_close(update(name, G + noise(4, seed=1)), U)


def test_polar_adamw_starts_at_the_polar_factor_of_the_gradients_signs():
    G = noise(6, 9)
    U = update("muon(memory=none, precondition=adam)", G, polar="svd")
    torch.testing.assert_close(U, update("muon(memory=none)", G.sign(), polar="svd"), rtol=1e-5, atol=1e-6)
