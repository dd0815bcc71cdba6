"""Norms that neither overflow nor vanish."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers.norms import average_, safe_norm, squared


def test_norm_is_torchs_where_that_does_not_overflow():
    X = torch.randn(2, 5, 3)
    torch.testing.assert_close(safe_norm(X)[:, 0, 0], torch.linalg.matrix_norm(X))
    torch.testing.assert_close(safe_norm(X, -1), torch.linalg.vector_norm(X, dim=-1, keepdim=True))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(exponent=st.integers(-35, 30))
def test_norm_scales_with_its_input_over_the_range_of_float32(exponent):
    X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    scaled = safe_norm(X * 10.0**exponent).double()
    torch.testing.assert_close(scaled, safe_norm(X).double() * 10.0**exponent, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-6, 1.0, 1e20])
def test_norm_is_at_least_its_floor(size):
    X = size * torch.eye(3, 4)
    torch.testing.assert_close(safe_norm(X, -1, 1e-5), torch.full((3, 1), max(size, 1e-5)))


def test_a_squared_spike_leaves_a_moving_average_that_recovers():
    mean = torch.zeros(1)
    for value in (1e30, *[1.0] * 2500):
        average_(mean, squared(torch.tensor([value])), 0.95)
    torch.testing.assert_close(mean, torch.ones(1))
