"""The noise of gradients, and IsoMuon's step in its metric."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimizers import STEPS, MatrixOptimizer
from optimizers.around.gradient_noise import GradientNoise
from optimizers.stages.noise import metric

GOLDEN = Path(__file__).parent / "golden"


def micro_gradients(shape: tuple[int, int], t: int) -> list[Tensor]:
    """Of step t, as index_open_frontier.json says."""
    (m, n), draw = shape, np.random.default_rng
    G = draw(7 + 1000 * t).standard_normal(shape) * np.geomspace(1, 0.01, n)
    r = draw(7 + 1000 * t + 500).uniform(0.2, 3, (4, m, 1))
    noises = [draw(7 + 1000 * t + 10 * (k + 1)).standard_normal(shape) for k in range(4)]
    return [torch.from_numpy(G / 4 + r[k] * noises[k] * np.geomspace(0.5, 0.02, n)) for k in range(4)]


def updated(noise: GradientNoise, matrix: MatrixOptimizer, p: Tensor, t: int, micro: list[Tensor]) -> None:
    for group in noise.param_groups:
        group["update"] = t
    noise.before_gradient()
    for g in micro:
        (p * g).sum().backward()
    noise.after_gradient()
    matrix.step()
    matrix.zero_grad()


def made(p: Tensor, **options) -> tuple[GradientNoise, MatrixOptimizer]:
    noise, matrix = GradientNoise([p], **options), MatrixOptimizer([p], step="isomuon")
    noise.attach(nn.Module(), {"matrix": matrix})
    return noise, matrix


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_isomuon_is_the_open_results(shape):
    golden = np.load(GOLDEN / "open_isomuon.npz")
    p = nn.Parameter(torch.from_numpy(np.random.default_rng(7).standard_normal(shape) * 0.5))
    noise, matrix = made(p, micro_batches=4)
    for t in range(6):
        updated(noise, matrix, p, t, micro_gradients(shape, t + 1))
        expected = torch.from_numpy(golden[f"s7_{shape[0]}x{shape[1]}_w{t + 1}"])
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-8)


def test_without_noise_it_is_muon():
    weight, G = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    twin = weight.clone()
    STEPS["isomuon"](weight, G, {}, lr=0.1, weight_decay=0.0, polar="svd")
    STEPS["muon"](twin, G, {}, lr=0.1, polar="svd")
    torch.testing.assert_close(weight, twin)


def test_noise_is_frozen_after_its_last_update():
    p = nn.Parameter(torch.randn(6, 4).double())
    noise, matrix = made(p, micro_batches=2, stop=2)
    held = []
    for t in range(4):
        updated(noise, matrix, p, t, [torch.randn(6, 4).double() for _ in range(2)])
        held.append(matrix.state[p]["row_noise"].clone())
    assert not torch.equal(held[0], held[1])
    assert torch.equal(held[1], held[3])


def test_another_number_of_micro_batches_is_refused():
    p = nn.Parameter(torch.randn(6, 4).double())
    noise, matrix = made(p, micro_batches=4)
    with pytest.raises(ValueError, match="expected 4 micro-batches, found 2; see --micro-batch"):
        updated(noise, matrix, p, 0, [torch.randn(6, 4).double() for _ in range(2)])


def test_the_metric_stays_within_its_limit_and_is_1_for_even_noise():
    h = torch.tensor([[1e-30], [1.0], [1e6]])
    assert metric(h, 0.5, 2.0).min() == 0.5 and metric(h, 0.5, 2.0).max() == pytest.approx(1.732, abs=1e-3)
    assert torch.equal(metric(torch.ones(3, 1), 0.5, 2.0), torch.ones(3, 1))
    assert metric(torch.zeros(3, 1), 0.5, 2.0).isfinite().all()


@pytest.mark.parametrize("empty", [slice(None), slice(0, 1)], ids=["all", "a row"])
def test_gradients_of_zero_stay_finite(empty):
    p = nn.Parameter(torch.randn(6, 4))
    noise, matrix = made(p, micro_batches=2)
    for t in range(3):
        micro = [torch.randn(6, 4) for _ in range(2)]
        for g in micro:
            g[empty] = 0
        updated(noise, matrix, p, t, micro)
    assert p.isfinite().all()
    assert all(value.isfinite().all() for value in matrix.state[p].values())
