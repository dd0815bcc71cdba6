"""Gradients changed before the optimizers see them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimizers import STEPS
from optimizers.around.gradients import InputNewton, MeanGradient, ridge_inverse, times_runs

GOLDEN = Path(__file__).parent / "golden"


class Net(nn.Module):
    """A tall and a wide layer behind each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.proj = nn.Linear(4, 8).double(), nn.Linear(8, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.fc(x).relu()).square().sum()

    def weights(self) -> list[Tensor]:
        return [self.fc.weight, self.proj.weight]


def newton_of(net: Net, **options: Any) -> InputNewton:
    newton = InputNewton(net.weights(), **options)
    newton.attach(net, {})
    return newton


def gradient(net: Net, around: InputNewton | MeanGradient, update: int, x: Tensor, parts: int = 1) -> None:
    for group in around.param_groups:
        group["update"] = update
    net.zero_grad()
    around.before_gradient()
    for part in x.chunk(parts):
        net(part).backward()
    around.after_gradient()


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradients_of_the_mean():
    net, x = Net(), inputs()
    net(x).backward()
    summed = [p.grad.clone() for p in net.weights()]
    gradient(net, MeanGradient(net.weights(), tokens=12), 0, x)
    for p, G in zip(net.weights(), summed, strict=True):
        torch.testing.assert_close(p.grad, G / 12)


@pytest.mark.parametrize(("shape", "runs"), [((24, 24), 1), ((48, 16), 1), ((16, 48), 4)])
def test_newton_muon_is_result_15s(shape: tuple[int, int], runs: int):
    golden, (m, n) = np.load(GOLDEN / "newton_muon_record15.npz"), shape
    weight, state = torch.from_numpy(np.random.default_rng(7).standard_normal(shape) * 0.5), {}
    C = 0.001 * torch.eye(n // runs).double().repeat(runs, 1, 1)
    K = None
    for t in range(1, 5):
        noise = np.random.default_rng(7 + 1000 * t).standard_normal(shape)
        G = torch.from_numpy(noise * np.geomspace(1, 0.01, n))
        if t % 2 == 0:
            noise = np.random.default_rng(7 + 5000 * t).standard_normal((64, n))
            X = torch.from_numpy(noise * np.geomspace(1, 0.1, n)).unflatten(-1, (runs, -1)).transpose(0, 1)
            K = ridge_inverse(C.lerp_(X.mT @ X / 64, 0.05), 0.2)
        STEPS["muon"](weight, G if K is None else times_runs(G, K), state, lr=0.03, weight_decay=0.025)
        expected = torch.from_numpy(golden[f"s7_{m}x{n}_w{t}"])
        assert torch.linalg.norm(weight - expected) < 1e-8 * torch.linalg.norm(expected)


def test_k_comes_of_the_layers_own_inputs_in_runs_of_a_wide_matrix():
    net, x = Net(), inputs()
    newton = newton_of(net, every=2, weight=1.0, ridge=0.5)
    gradient(net, newton, 0, x)
    plain = [p.grad.clone() for p in net.weights()]
    gradient(net, newton, 1, x, parts=3)
    hidden = net.fc(x).relu().detach()
    for p, G, X in zip(net.weights(), plain, ([x], hidden.chunk(2, dim=-1)), strict=True):
        covariances = [part.mT @ part / 12 for part in X]
        K = [torch.linalg.inv(C + (0.5 * C.trace() / 4 + 1e-8) * torch.eye(4)) for C in covariances]
        torch.testing.assert_close(p.grad, G @ torch.block_diag(*K))


def test_between_two_refreshes_k_stays_and_nothing_is_listened_to():
    net = Net()
    newton = newton_of(net, every=2)
    for update in range(3):
        gradient(net, newton, update, inputs(update))
    K = newton.state[net.fc.weight]["inverse"].clone()
    gradient(net, newton, 2, inputs(9))
    assert torch.equal(newton.state[net.fc.weight]["inverse"], K)


def test_inputs_of_zero_leave_k_finite():
    net = Net()
    newton = newton_of(net, every=1)
    for update in range(3):
        gradient(net, newton, update, torch.zeros(12, 4).double())
    assert all(p.grad.isfinite().all() for p in net.weights())


def test_a_checkpoint_goes_on_bit_for_bit():
    net, other = Net(), Net()
    newton, resumed = (newton_of(own, every=2) for own in (net, other))
    for update in range(3):
        gradient(net, newton, update, inputs(update))
    resumed.load_state_dict(copy.deepcopy(newton.state_dict()))
    for update in range(3, 5):
        for own, around in ((net, newton), (other, resumed)):
            gradient(own, around, update, inputs(update))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.weights(), other.weights(), strict=True))


def test_a_parameter_that_is_no_layers_weight_is_refused():
    net = Net()
    with pytest.raises(ValueError, match=r"input_newton .*shape \(8,\); expected weights of linear layers"):
        InputNewton([net.fc.bias]).attach(net, {})
