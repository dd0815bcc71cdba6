"""The published methods outside the record's line: equal to their scripts, and what holds for each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optimizers import STEPS, stages
from optimizers.stage import exchanged
from optimizers.stages.power import singular_values_to
from optimizers.stages.shampoo import inverse_fourth_root

GOLDEN = Path(__file__).parent / "golden"
SQUARE, TALL, WIDE = (24, 24), (48, 16), (16, 48)
ALL = (SQUARE, TALL, WIDE)
IDENTITY = {"start": "identity"}
RECORD_21 = {
    "lr": 0.0015, "weight_decay": 0.2, "beta2": 0.95, "root_eps": 1e-12, "graft_eps": 1e-10,
    "refresh_every": 5,
}  # fmt: skip

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
    ("shampoo_record35", "", ALL, "shampoo_adam", {}, 4, 1e-8),
    ("shampoo_record21", "", ALL, "shampoo_adam", RECORD_21, 11, 1e-8),
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


@pytest.mark.parametrize("shape", ALL)
def test_psgd_kron_equals_record_33_on_its_probes(shape, monkeypatch):
    def probe(seed: Tensor, step: Tensor, draw: int, weight: Tensor) -> Tensor:
        generator = np.random.default_rng(7 + 1000 * int(step) + draw + 1)
        return torch.from_numpy(generator.standard_normal(tuple(weight.shape)))

    monkeypatch.setattr(stages.kron, "standard_normal", probe)
    weight, state = golden_weight(shape), {}
    for t in range(1, 9):
        STEPS["psgd_kron"](weight, golden_gradient(shape, t), state)
        torch.testing.assert_close(weight, expected("psgd_kron_record33", shape, f"w{t}"), rtol=0, atol=1e-8)


def test_psgds_factors_stay_triangular_and_their_common_scale_does_not_count():
    weight, state = noise(6, 9), {}
    for t in range(3):
        STEPS["psgd_kron"](weight, noise(6, 9, seed=t + 1), state)
    for name in ("row_factor", "column_factor"):
        assert torch.equal(state[name], state[name].triu())
    twin, other = weight.clone(), {key: value.clone() for key, value in state.items()}
    other["row_factor"] *= 3
    other["column_factor"] /= 3
    G = noise(6, 9, seed=9)
    STEPS["psgd_kron"](weight, G, state)
    STEPS["psgd_kron"](twin, G, other)
    torch.testing.assert_close(weight, twin, rtol=0, atol=1e-12)


def test_psgd_whitens_a_constant_covariance():
    weight, state = noise(4, 6), {}
    left, right = noise(4, 4, seed=1), noise(6, 6, seed=2)
    for t in range(600):
        G = left @ noise(4, 6, seed=t + 3) @ right
        STEPS["psgd_kron"](weight, G, state, momentum=0.0, factor_lr=0.1)
    gradients = torch.stack([left @ noise(4, 6, seed=1000 + i) @ right for i in range(400)])
    Q0, Q1 = state["row_factor"], state["column_factor"]
    white = (Q0.mT @ Q0 @ gradients @ Q1.mT @ Q1).flatten(1)
    spread = torch.linalg.eigvalsh(white.mT @ white / len(white))
    raw = torch.linalg.eigvalsh(gradients.flatten(1).mT @ gradients.flatten(1) / len(gradients))
    assert spread[-1] / spread[0] < 1e-4 * raw[-1] / raw[0]


@pytest.mark.parametrize("options", [{}, RECORD_21])
def test_shampoos_step_has_the_norm_of_adams(options):
    weight, state = noise(8, 5), {}
    twin, adam = noise(8, 5), {}
    betas = (0.9, options.get("beta2", 0.9))
    for t in range(11):
        G, before, twin_before = noise(8, 5, seed=t + 1), weight.clone(), twin.clone()
        STEPS["shampoo_adam"](weight, G, state, **{**options, "lr": 1.0, "weight_decay": 0.0})
        STEPS["adamw"](twin, G, adam, lr=1.0, betas=betas, eps=options.get("graft_eps", 1e-15))
        sizes = [torch.linalg.norm(weight - before), torch.linalg.norm(twin - twin_before)]
        torch.testing.assert_close(*sizes)


def test_the_inverse_fourth_root_is_one():
    X = noise(6, 9)
    root = inverse_fourth_root(X @ X.mT, 0.0)
    torch.testing.assert_close(torch.linalg.matrix_power(root, 4) @ X @ X.mT, torch.eye(6).double())
    assert torch.equal(inverse_fourth_root(torch.zeros(3, 3), 0.0), torch.zeros(3, 3))
