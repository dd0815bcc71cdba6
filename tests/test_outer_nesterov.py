"""MuLoCo's outer step."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimizers.around.outer_nesterov import OuterNesterov

GOLDEN = Path(__file__).parent / "golden"
SHAPES = [(24, 24), (48, 16), (16, 48)]


def made(p: Tensor, **options: Any) -> OuterNesterov:
    outer = OuterNesterov([p], **options)
    outer.attach(nn.Module(), {})
    return outer


def update(outer: OuterNesterov, p: Tensor, number: int, move: Tensor) -> None:
    """Update `number`, from 0, which adds `move`."""
    for group in outer.param_groups:
        group["update"] = number
    with torch.no_grad():
        p += move
    outer.step()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_result_13s(shape: tuple[int, int]):
    golden = np.load(GOLDEN / "muloco_record13.npz")
    p = nn.Parameter(torch.from_numpy(np.random.default_rng(7).standard_normal(shape) * 0.5))
    outer = made(p, every=2)
    for t in range(1, 9):
        G = np.random.default_rng(7 + 1000 * t).standard_normal(shape) * np.geomspace(1, 0.01, shape[1])
        update(outer, p, t - 1, -0.1 * torch.from_numpy(G))
        expected = torch.from_numpy(golden[f"s7_{shape[0]}x{shape[1]}_w{t}"])
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-10)


def test_the_way_is_lengthened_by_a_twentieth_at_first_and_two_fifths_in_the_long_run():
    p, lengths = nn.Parameter(torch.zeros(2).double()), []
    outer = made(p, every=3)
    for number in range(60):
        if number % 3 == 0:
            before = p.detach().clone()
        update(outer, p, number, torch.ones(2).double())
        lengths.append((p.detach() - before)[0].item() / 3)
    assert [lengths[2], lengths[-1]] == pytest.approx([1.05, 1.4])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_state_survives_a_checkpoint_bit_for_bit(dtype: torch.dtype):
    p = nn.Parameter(torch.randn(3, 4).to(dtype))
    outer = made(p, every=2)
    for number in range(3):
        update(outer, p, number, torch.full((3, 4), 0.3, dtype=dtype))
    q = nn.Parameter(p.detach().clone())
    other = made(q, every=2)
    other.load_state_dict(copy.deepcopy(outer.state_dict()))
    for number in range(3, 7):
        for own, w in ((outer, p), (other, q)):
            update(own, w, number, torch.full((3, 4), 0.3, dtype=dtype))
    assert torch.equal(p, q)
