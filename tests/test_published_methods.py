"""The published methods outside the record's line: equal to their scripts, and what holds for each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optimizers import STEPS
from optimizers.stage import exchanged
from optimizers.stages.power import singular_values_to

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
    *(
        ("dynmuon_record28", prefix, ALL, "dynmuon", {"power": power}, 4, 1e-8)
        for prefix, power in {"p025_": 0.25, "pm025_": -0.25, "p0_": 0.0}.items()
    ),
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


def rising(power: float, steps: int = 5) -> list[float]:
    """Muown's growth as the steps 1 to 4 of the golden files see it."""
    return [(max(t - 2, 0) / (steps - 1)) ** power for t in range(1, 5)]


@pytest.mark.parametrize("shape", ALL)
@pytest.mark.parametrize("prefix", ["", "zero_", "part_"])
def test_muown_equals_record_23_from_rows_of_zeros_too(prefix, shape):
    weight, state = golden_weight(shape), {}
    weight[: {"": 0, "zero_": shape[0], "part_": 3}[prefix]] = 0
    for t, growth in enumerate(rising(1.2), 1):
        STEPS["muown"](weight, golden_gradient(shape, t), state, target=8.32, growth=growth)
        reference = expected("muown_record23", shape, f"{prefix}w{t}")
        torch.testing.assert_close(weight, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", ALL)
@pytest.mark.parametrize("prefix", ["", "zero_"])
def test_muown_with_contra_and_neuron_variance_equals_record_31(prefix, shape):
    weight, state = golden_weight(shape) * (prefix == ""), {}
    options = {"lr": 0.0045, "momentum": 0.946, "neuron_beta2": 0.8, "target": 8.32}
    for t, growth in enumerate(rising(0.9), 1):
        options["contra"] = torch.tensor(0.65 * (1 - min(1, (t - 1) / 3)), dtype=torch.float64)
        STEPS["muown"](weight, golden_gradient(shape, t), state, growth=growth, **options)
        reference = expected("muown_record31", shape, f"{prefix}w{t}")
        torch.testing.assert_close(weight, reference, rtol=0, atol=1e-9)


def test_muown_leaves_every_row_at_the_length_of_its_gain():
    weight, state = noise(6, 9), {}
    for t in range(3):
        STEPS["muown"](weight, noise(6, 9, seed=t + 1), state)
        torch.testing.assert_close(torch.linalg.norm(weight, dim=-1, keepdim=True), state["gain"].abs())


def test_muown_without_learning_rate_keeps_the_weight_while_its_norms_grow():
    weight, start, state = noise(6, 9), noise(6, 9), {}
    for growth in (0.0, 0.5, 1.0):
        STEPS["muown"](weight, noise(6, 9, seed=1), state, lr=0.0, growth=growth)
        torch.testing.assert_close(weight, start, rtol=0, atol=1e-12)


def test_dynmuon_of_power_0_is_muon_with_heavy_ball():
    weight, twin, state, twin_state = noise(6, 9), noise(6, 9), {}, {}
    muon = exchanged(STEPS["muon"], {"memory": "heavy_ball"})
    for t in range(3):
        G = noise(6, 9, seed=t + 1)
        STEPS["dynmuon"](weight, G, state, power=torch.tensor(0.0).double(), weight_decay=0.0, divisor=1.0)
        muon(twin, G, twin_state)
    torch.testing.assert_close(weight, twin, rtol=0, atol=1e-6)


@pytest.mark.parametrize("power", [0.25, -0.25])
def test_dynmuon_raises_singular_values_near_the_norm_to_the_power(power):
    left, right = torch.linalg.qr(noise(7, 7)).Q[:, :1], torch.linalg.qr(noise(5, 5)).Q[:1]
    D = 3.0 * left @ right
    torch.testing.assert_close(singular_values_to(power, D, "svd", None), 3.0**power * left @ right)
