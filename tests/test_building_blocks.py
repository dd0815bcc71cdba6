"""The pieces step functions share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import building_blocks as blocks

GOLDEN = Path(__file__).parent / "golden"


def test_norm_is_torchs_where_that_does_not_overflow():
    X = torch.randn(2, 5, 3)
    torch.testing.assert_close(blocks.safe_norm(X)[:, 0, 0], torch.linalg.matrix_norm(X))
    torch.testing.assert_close(blocks.safe_norm(X, -1), torch.linalg.vector_norm(X, dim=-1, keepdim=True))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(exponent=st.integers(-35, 30))
def test_norm_scales_with_its_input_over_the_range_of_float32(exponent):
    X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    scaled = blocks.safe_norm(X * 10.0**exponent).double()
    torch.testing.assert_close(scaled, blocks.safe_norm(X).double() * 10.0**exponent, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-6, 1.0, 1e20])
def test_norm_is_at_least_its_floor(size):
    X = size * torch.eye(3, 4)
    torch.testing.assert_close(blocks.safe_norm(X, -1, 1e-5), torch.full((3, 1), max(size, 1e-5)))


def test_nesterov_momentum_is_the_moving_average_looking_ahead():
    state, G = {}, torch.ones(2, 2)
    assert torch.allclose(blocks.nesterov_momentum(G, state, 0.9, False), torch.full((2, 2), 0.1))
    assert torch.allclose(blocks.nesterov_momentum(G, state, 0.9, True), torch.full((2, 2), 0.1 + 0.9 * 0.19))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.95, torch.tensor(0.95).double()])
def test_nesterov_average_by_difference_is_the_nesterov_average(momentum, nesterov):
    M, G = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    twin = M.clone()
    u = blocks.nesterov_average_by_difference_(M, G, momentum, nesterov)
    torch.testing.assert_close(u, blocks.nesterov_average_(twin, G, momentum, nesterov), rtol=0, atol=1e-14)
    torch.testing.assert_close(M, twin, rtol=0, atol=1e-14)
    assert u.data_ptr() != M.data_ptr()


def test_heavy_ball_momentum_sums():
    state, G = {}, torch.ones(2, 2)
    assert torch.allclose(blocks.heavy_ball_momentum(G, state, 0.9, False), torch.full((2, 2), 1.0))
    assert torch.allclose(blocks.heavy_ball_momentum(G, state, 0.9, True), torch.full((2, 2), 1 + 0.9 * 1.9))


def test_cautious_decay_shrinks_only_where_the_update_does():
    weight, U = torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 1.0]])
    blocks.decay_(weight, U, 0.1, 0.5, cautious=True)
    torch.testing.assert_close(weight, torch.tensor([[1.9, -2.0]]))


def test_floor_grows_small_updates_and_leaves_large_ones():
    weight = torch.full((2, 2), 1.0)
    torch.testing.assert_close(blocks.floored(0.1 * weight, weight, 0.35), 0.35 * weight)
    torch.testing.assert_close(blocks.floored(0.5 * weight, weight, 0.35), 0.5 * weight)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), m=st.integers(1, 9), n=st.integers(1, 9))
def test_neuron_normalisation_keeps_the_norm_and_evens_the_neurons(seed, m, n):
    U = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    even = blocks.neuron_normalized(U, {}, 0.95)
    torch.testing.assert_close(blocks.safe_norm(even), blocks.safe_norm(U))
    sizes = blocks.safe_norm(even, -1 if m >= n else -2)
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
        blocks.apply_update_(weight, U, {}, lr=0.0375, weight_decay=0.0, **options)
        reference = torch.tensor(expected[f"s7_{shape[0]}x{shape[1]}_{prefix}w{t}"])
        assert torch.linalg.norm(weight - reference) < 1e-8 * torch.linalg.norm(reference)


@pytest.mark.parametrize("off", [None, 1, 1.0])
def test_a_brake_of_one_is_no_brake(off):
    start, U = torch.randn(4, 3), torch.randn(4, 3)
    weight = start.clone()
    blocks.apply_update_(weight, U, {}, lr=0.1, weight_decay=0.0, radial_brake=off)
    assert torch.equal(weight, start - 0.1 * U)


def test_hyperball_leaves_a_zero_weight_zero():
    weight = torch.zeros(3, 2)
    blocks.hyperball_(weight, torch.ones(3, 2), 0.1)
    assert weight.count_nonzero() == 0


def test_a_squared_spike_leaves_a_moving_average_that_recovers():
    mean = torch.zeros(1)
    for value in (1e30, *[1.0] * 2500):
        blocks.average_(mean, blocks.squared(torch.tensor([value])), 0.95)
    torch.testing.assert_close(mean, torch.ones(1))


@blocks.step_function
def plain_descent(weight, grad, state, *, lr=0.1, momentum=0.0):
    weight.sub_(lr * grad)


def test_an_unknown_hyperparameter_is_named_with_the_nearest_and_the_known():
    message = "plain_descent has no hyperparameter 'momentun'; did you mean 'momentum'?; known: lr, momentum"
    with pytest.raises(TypeError) as error:
        plain_descent(torch.ones(2, 2), torch.ones(2, 2), {}, momentun=0.9)
    assert str(error.value) == message


@pytest.mark.parametrize("shapes", [((2, 2), (2, 3)), ((4,), (4,))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="expects a weight"):
        plain_descent(torch.ones(shapes[0]), torch.ones(shapes[1]), {})


def test_a_parameter_is_stepped_without_autograd():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    plain_descent(weight, torch.ones(2, 2, dtype=torch.bfloat16), {})
    torch.testing.assert_close(weight.data, torch.full((2, 2), 0.9))
