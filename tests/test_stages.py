"""Each stage by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers.norms import safe_norm
from optimizers.stages.land import decay, decay_, floored, hyperball, tangent
from optimizers.stages.memory import heavy_ball, nesterov
from optimizers.stages.normalise import neuron_variance

GOLDEN = Path(__file__).parent / "golden"


def test_nesterov_momentum_is_the_moving_average_looking_ahead():
    state, G = {}, torch.ones(2, 2)
    assert torch.allclose(nesterov(G, state, momentum=0.9, nesterov=False), torch.full((2, 2), 0.1))
    assert torch.allclose(
        nesterov(G, state, momentum=0.9, nesterov=True), torch.full((2, 2), 0.1 + 0.9 * 0.19)
    )


@pytest.mark.parametrize("nesterov_too", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_a_momentum_that_is_a_tensor_gives_the_same_average(momentum, nesterov_too):
    one, other = {}, {}
    for _ in range(3):
        G = torch.randn(2, 4, 3, dtype=torch.float64)
        u = nesterov(G, one, momentum=momentum, nesterov=nesterov_too)
        v = nesterov(G, other, momentum=torch.tensor(momentum, dtype=torch.float64), nesterov=nesterov_too)
        torch.testing.assert_close(u, v, rtol=0, atol=1e-14)
        torch.testing.assert_close(one["momentum"], other["momentum"], rtol=0, atol=1e-14)
        assert u.data_ptr() != one["momentum"].data_ptr()


def test_heavy_ball_momentum_sums():
    state, G = {}, torch.ones(2, 2)
    assert torch.allclose(heavy_ball(G, state, momentum=0.9, nesterov=False), torch.full((2, 2), 1.0))
    assert torch.allclose(
        heavy_ball(G, state, momentum=0.9, nesterov=True), torch.full((2, 2), 1 + 0.9 * 1.9)
    )


def test_cautious_decay_shrinks_only_where_the_update_does():
    weight, U = torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 1.0]])
    decay_(weight, U, 0.1, 0.5, cautious=True)
    torch.testing.assert_close(weight, torch.tensor([[1.9, -2.0]]))


def test_floor_grows_small_updates_and_leaves_large_ones():
    weight = torch.full((2, 2), 1.0)
    torch.testing.assert_close(floored(0.1 * weight, weight, 0.35), 0.35 * weight)
    torch.testing.assert_close(floored(0.5 * weight, weight, 0.35), 0.5 * weight)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), m=st.integers(1, 9), n=st.integers(1, 9))
def test_neuron_normalisation_keeps_the_norm_and_evens_the_neurons(seed, m, n):
    U = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    even = neuron_variance(U, {}, neuron_beta2=0.95)
    torch.testing.assert_close(safe_norm(even), safe_norm(U))
    sizes = safe_norm(even, -1 if m >= n else -2)
    torch.testing.assert_close(sizes, sizes.mean().expand_as(sizes))


@pytest.mark.parametrize(("prefix", "size"), [("", 1.0), ("small_", 0.1)])
@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_radial_brake_equals_record_29(prefix, size, shape):
    expected = np.load(GOLDEN / "radial_brake_record29.npz")
    weight = torch.tensor(np.random.default_rng(7).standard_normal(shape) * 0.5)
    for t in range(1, 5):
        noise = np.random.default_rng(7 + 1000 * t).standard_normal(shape)
        U = size * torch.tensor(noise * np.geomspace(1, 0.01, shape[1]))
        options = {"update_floor": 0.3825, "radial_brake": 0.5}
        decay(weight, U, lr=0.0375, **options)
        reference = torch.tensor(expected[f"s7_{shape[0]}x{shape[1]}_{prefix}w{t}"])
        assert torch.linalg.norm(weight - reference) < 1e-8 * torch.linalg.norm(reference)


@pytest.mark.parametrize("off", [None, 1, 1.0])
def test_a_brake_of_one_is_no_brake(off):
    start, U = torch.randn(4, 3), torch.randn(4, 3)
    weight = start.clone()
    decay(weight, U, lr=0.1, radial_brake=off)
    assert torch.equal(weight, start - 0.1 * U)


def test_hyperball_leaves_a_zero_weight_zero():
    weight = torch.zeros(3, 2)
    hyperball(weight, torch.ones(3, 2), lr=0.1)
    assert weight.count_nonzero() == 0


def test_a_tangent_step_moves_nothing_along_the_weight():
    start, U = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    W = start.clone()
    tangent(W, U, lr=0.1)
    assert ((W - start) * start).sum().abs() < 1e-12
