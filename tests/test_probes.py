"""Random numbers inside a step."""

import pytest
import torch
from torch import Tensor

from optimizers.probes import standard_normal


def drawn(seed: int, step: int = 1, draw: int = 0, shape: tuple[int, ...] = (300, 200)) -> Tensor:
    return standard_normal(torch.tensor([[seed]]), torch.tensor([[step]]), draw, torch.zeros(shape).double())


def test_moments_are_those_of_the_normal_distribution() -> None:
    x = drawn(5)
    moments = [x.mean(), x.square().mean(), x.pow(3).mean(), x.pow(4).mean()]
    torch.testing.assert_close(torch.stack(moments), torch.tensor([0.0, 1, 0, 3]).double(), rtol=0, atol=0.1)
    below = [(x < quantile).double().mean().item() for quantile in (-1.2816, 0.0, 1.2816)]
    assert below == pytest.approx([0.1, 0.5, 0.9], abs=0.005)


@pytest.mark.parametrize("other", [(6, 1, 0), (5, 2, 0), (5, 1, 1), (5 + 2**31, 1, 0)])
def test_seeds_steps_and_draws_are_uncorrelated(other: tuple[int, int, int]) -> None:
    assert (drawn(5) * drawn(*other)).mean().abs() < 0.02


def test_neighbours_are_uncorrelated() -> None:
    x = drawn(5)
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1])):
        assert (a * b).mean().abs() < 0.02


def test_a_stack_draws_what_each_of_its_matrices_draws() -> None:
    seeds, steps = torch.tensor([3, 2**32 - 1]).view(2, 1, 1), torch.tensor([4.0, 4.0]).view(2, 1, 1)
    stack = standard_normal(seeds, steps, 1, torch.zeros(2, 6, 4))
    for seed, own in zip((3, 2**32 - 1), stack, strict=True):
        assert torch.equal(own, drawn(seed, 4, 1, (6, 4)).float().to(own.dtype)) or torch.allclose(
            own, drawn(seed, 4, 1, (6, 4)).float(), atol=1e-5
        )


def test_float32_has_no_infinite_number() -> None:
    x = standard_normal(torch.tensor([[1]]), 0, 0, torch.zeros(2000, 1000))
    assert x.isfinite().all() and x.abs().max() < 7
