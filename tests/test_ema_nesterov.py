"""EMA-Nesterov against its two formulas, and as part of a training."""

import copy

import numpy as np
import pytest
import torch

import train_gpt
from optimizers.ema_nesterov import EMANesterov
from records.run.track import shipped_tracks
from train_gpt import build_optimizers, parse_recipe, set_learning_rates


def quadratic(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (torch.linspace(0.1, 2.0, x.numel(), dtype=x.dtype) * x.square()).sum()


def train(x: torch.nn.Parameter, ahead: EMANesterov, betas: list[float]) -> None:
    base = torch.optim.SGD([x], lr=0.3)
    for beta in betas:
        ahead.param_groups[0]["lr"] = beta
        ahead.look_ahead()
        base.zero_grad()
        quadratic(x).backward()
        base.step()
        ahead.step()


def test_the_updates_are_those_of_the_paper():
    x = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    ahead, betas, gamma = EMANesterov([x], decay=0.8), [0.0, 0.6, 0.6, 0.3], 0.8
    curvature = np.linspace(0.1, 2.0, 5)
    expected, m = np.ones(5), np.zeros(5)
    for beta in betas:
        point = expected + beta * m
        new = point - 0.3 * curvature * point
        expected, m = new, gamma * m + (1 - gamma) * (new - expected)
    train(x, ahead, betas)
    np.testing.assert_allclose(x.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(ahead.state[x]["average"].numpy(), m, rtol=1e-12)


def test_looking_nowhere_is_the_other_optimizer_alone():
    x, alone = (torch.nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    train(x, EMANesterov([x]), [0.0] * 6)
    base = torch.optim.SGD([alone], lr=0.3)
    for _ in range(6):
        base.zero_grad()
        quadratic(alone).backward()
        base.step()
    assert torch.equal(x, alone)


def test_looking_back_gives_the_weights_before():
    x = torch.nn.Parameter(torch.ones(5))
    ahead = EMANesterov([x])
    train(x, ahead, [0.5, 0.5])
    before = x.detach().clone()
    ahead.look_ahead()
    assert not torch.equal(x, before)
    ahead.look_back()
    assert torch.equal(x, before)


def test_a_step_without_a_look_ahead_is_refused():
    with pytest.raises(RuntimeError, match="look_ahead"):
        EMANesterov([torch.nn.Parameter(torch.ones(2))]).step()


def test_state_saved_and_loaded_goes_on_alike():
    x = torch.nn.Parameter(torch.ones(5))
    ahead = EMANesterov([x])
    train(x, ahead, [0.5] * 3)
    y = torch.nn.Parameter(x.detach().clone())
    loaded = EMANesterov([y])
    loaded.load_state_dict(copy.deepcopy(ahead.state_dict()))
    train(x, ahead, [0.5] * 3)
    train(y, loaded, [0.5] * 3)
    assert torch.equal(x, y)


def test_half_precision_parameters_average_in_float32():
    x = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    ahead = EMANesterov([x])
    train(x, ahead, [0.5] * 2)
    assert ahead.state[x]["average"].dtype == torch.float32 and x.dtype == torch.bfloat16


def test_a_recipe_looks_ahead_between_its_steps_along_the_matrices_schedule():
    text = 'train_steps = 100\n[matrix]\nstep = "muon"\n'
    text += "[schedule]\ncooldown_frac = 0.5\naux_cooldown_frac = 0.1\n"
    text += "[lookahead]\nstrength = 0.6\nstart = 20\nstop = 80\n"
    recipe = parse_recipe(text, "made", shipped_tracks(), train_gpt.STEPS, track="nano")
    assert recipe.lookahead == {"decay": 0.99, "strength": 0.6, "start": 20, "stop": 80}
    optimizers = build_optimizers(train_gpt.GPT(16, 1, 32, 32, 8), recipe)
    assert isinstance(optimizers[-1], EMANesterov)
    strengths = {}
    for step in (0, 19, 20, 50, 75, 79, 80):
        set_learning_rates(optimizers, recipe, step)
        strengths[step] = optimizers[-1].param_groups[0]["lr"]
    expected = {0: 0, 19: 0, 20: 0.6, 50: 0.6, 75: 0.3, 79: 0.6 * 0.42, 80: 0}
    assert strengths == pytest.approx(expected)


def test_one_call_for_all_parameters_gives_the_digits_of_the_formulas():
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (9,), (4, 6), (3, 3)]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    params.append(torch.nn.Parameter(torch.randn(11, 4, generator=generator).bfloat16()))
    ahead, beta, gamma = EMANesterov(params, lr=0.6, decay=0.9), 0.6, 0.9
    x = [p.detach().clone() for p in params]
    m = [torch.zeros_like(p, dtype=torch.float32) for p in params]
    for _ in range(4):
        ahead.look_ahead()
        for p, x_t, m_t in zip(params, x, m, strict=True):
            assert torch.equal(p, (x_t + beta * m_t).to(p.dtype))
            p.data.add_(0.01 * torch.randn(p.shape, generator=generator).to(p.dtype))
            m_t.lerp_(p.float() - x_t.float(), 1 - gamma)
        ahead.step()
        x = [p.detach().clone() for p in params]
        assert all(torch.equal(ahead.state[p]["average"], m_t) for p, m_t in zip(params, m, strict=True))


def test_a_loaded_average_keeps_its_precision():
    x, y = (torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    ahead, loaded = EMANesterov([x]), EMANesterov([y])
    train(x, ahead, [0.5] * 2)
    loaded.load_state_dict(copy.deepcopy(ahead.state_dict()))
    assert torch.equal(loaded.state[y]["average"], ahead.state[x]["average"])
    train(y, loaded, [0.5])
