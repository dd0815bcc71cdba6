"""The published methods outside the record's line: equal to their scripts, and what holds for each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optimizers import STEPS

GOLDEN = Path(__file__).parent / "golden"
SQUARE, TALL, WIDE = (24, 24), (48, 16), (16, 48)
ALL = (SQUARE, TALL, WIDE)
IDENTITY = {"start": "identity"}

# golden file, what stands before w1, w2, ... in its keys, shapes, step function, options, steps, tolerance
CASES = [
    ("sinksoap_record26", "", ALL, "sinksoap", {}, 4, 1e-8),
    (
        "soaph_record27",
        "",
        [SQUARE],
        "soaph",
        {},
        4,
        1e-6,
    ),  # first P: rounding over 1e-8
    ("soaph_record27", "pinned_", ALL, "soaph", IDENTITY, 4, 1e-8),
    ("klsoaph_record19", "", [SQUARE], "klsoaph", {}, 5, 1e-8),
    ("klsoaph_record19", "pinned_", ALL, "klsoaph", IDENTITY, 5, 1e-8),
    ("pmuon_record18", "pinned_", ALL, "pmuon", IDENTITY, 4, 1e-8),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def golden_weight(shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal(shape) * 0.5)


def golden_gradient(shape: tuple[int, int], t: int) -> Tensor:
    noise = np.random.default_rng(7 + 1000 * t).standard_normal(shape)
    return torch.from_numpy(noise * np.geomspace(1, 0.01, shape[1]))


def expected(case: str, shape: tuple[int, int], name: str) -> Tensor:
    return torch.from_numpy(np.load(GOLDEN / f"{case}.npz")[f"s7_{shape[0]}x{shape[1]}_{name}"])


@pytest.mark.parametrize(
    ("case", "prefix", "shape", "name", "options", "steps", "tolerance"),
    [
        pytest.param(case, prefix, shape, *rest, id=f"{case}-{prefix}{shape[0]}x{shape[1]}")
        for case, prefix, shapes, *rest in CASES
        for shape in shapes
    ],
)
def test_steps_equal_the_published_script(case, prefix, shape, name, options, steps, tolerance):
    weight, state = golden_weight(shape), {}
    for t in range(1, steps + 1):
        STEPS[name](weight, golden_gradient(shape, t), state, **options)
        reference = expected(case, shape, f"{prefix}w{t}")
        assert torch.linalg.norm(weight - reference) < tolerance * torch.linalg.norm(reference)
