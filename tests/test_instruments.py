"""The instruments: equal to what is reckoned directly on small matrices."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimizers import STEPS, MatrixOptimizer
from optimizers.instruments import exact_polar, measure, measured, neurons, singular_values
from optimizers.polar import polar

SHAPES = [(6, 6), (9, 4), (4, 9)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct(
    u: np.ndarray, before: np.ndarray, after: np.ndarray, lr: float, decay: float, scale: float
) -> dict[str, float]:
    """The definitions, one row and one singular value after the other."""
    m, n = u.shape
    U = (before * (1 - lr * decay) - after) / lr
    left, _, right = np.linalg.svd(u, full_matrices=False)
    P = left @ right

    def rows(X: np.ndarray) -> np.ndarray:
        return np.array([math.sqrt(sum(x * x for x in row)) for row in X])

    def degrees(a: np.ndarray, b: np.ndarray) -> float:
        return math.acos(np.vdot(a, b) / math.sqrt(np.vdot(a, a) * np.vdot(b, b)))

    s = np.linalg.svd(U / scale, compute_uv=False)
    gram = u @ u.T
    found = {
        "row_variation": rows(U).std() / rows(U).mean(),
        "leverage_variation": (rows(P) ** 2).std() / (rows(P) ** 2).mean(),
        "polar_alignment": (U * P).sum() / math.sqrt((U**2).sum() * (P**2).sum()),
        "polar_error": max(abs(x - 1) for x in s),
        "polar_error_rms": math.sqrt(sum((x - 1) ** 2 for x in s) / len(s)),
        "weight_norm": math.sqrt((after**2).sum()),
        "weight_change": math.sqrt((after**2).sum()) - math.sqrt((before**2).sum()),
        "row_norm_min": rows(after).min(),
        "row_norm_mean": rows(after).mean(),
        "row_norm_max": rows(after).max(),
        "angle": degrees(before, after),
        "row_angle": np.mean([degrees(a, b) for a, b in zip(before, after, strict=True)]),
        "row_angle_max": max(degrees(a, b) for a, b in zip(before, after, strict=True)),
        "radial_part": sum(np.dot(a, w) ** 2 / np.dot(w, w) for a, w in zip(u, before, strict=True))
        / (u**2).sum(),
        "update_to_weight": lr * math.sqrt((U**2).sum() / (before**2).sum()),
        "dominance": np.mean(
            [gram[i, i] / np.mean([abs(gram[i, j]) for j in range(m) if j != i]) for i in range(m)]
        ),
        "step_scale": math.sqrt((U**2).sum() / (P**2).sum()),
        "step_scale_spread": (rows(U.T) / rows(P.T)).std() / (rows(U.T) / rows(P.T)).mean(),
    }
    if m > n:
        found["leverage_correlation"] = np.corrcoef(rows(P) ** 2, rows(u))[0, 1]
    for name, X in (("momentum", u), ("update", U), ("weight", before)):
        values = np.linalg.svd(X, compute_uv=False)
        found[f"{name}_stable_rank"] = (values**2).sum() / values[0] ** 2
        found[f"{name}_condition"] = values[0] / values[-1]
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_equals_its_definition(shape):
    u, before, after = (torch.stack([noise(*shape, seed=k), noise(*shape, seed=k + 9)]) for k in range(3))
    after = before + 0.01 * after
    found = measure(u, before, after, lr=0.03, decay=0.1, scale=1.5)
    for k in range(2):
        expected = direct(*(X[k].numpy() for X in (u, before, after)), 0.03, 0.1, 1.5)
        told = {name: value for name, value in found[k].numbers.items() if value is not None}
        assert told == pytest.approx(expected, rel=1e-8)


def test_the_polar_factor_is_the_svds_whatever_the_condition():
    for values in ((1, 0.5, 0.2), (1, 1e-3, 1e-9), (1, 1e-2, 0)):
        left, right = torch.linalg.qr(noise(5, 3)).Q, torch.linalg.qr(noise(3, 3, seed=1)).Q
        X = (left * torch.tensor(values, dtype=torch.float64)) @ right.mT
        there = torch.tensor(values) > 0
        P, S = exact_polar(X[None].clone())
        torch.testing.assert_close(P[0], left[:, there] @ right.mT[there], rtol=0, atol=1e-6)
        torch.testing.assert_close(S[0], torch.tensor(values).double(), rtol=1e-6, atol=1e-15)
        torch.testing.assert_close(singular_values(X[None]), S, rtol=1e-6, atol=1e-15)


def test_zeros_are_undefined_and_not_an_error():
    (found,) = measure(*(torch.zeros(1, 3, 3) for _ in range(3)), lr=0.0)
    assert found.numbers["momentum_stable_rank"] is None
    assert found.numbers["weight_norm"] == 0


def test_a_step_within_the_weights_rounding_is_none():
    before = noise(1, 5, 4).float()
    (found,) = measure(torch.zeros(1, 5, 4), before, before * (1 - 1e-4), lr=0.01, decay=0.01)
    assert found.numbers["update_stable_rank"] is None
    assert found.numbers["update_to_weight"] == 0


def stepped(step: str, **options) -> tuple[dict, nn.Parameter, list[Tensor]]:
    """The measurement of a third update, the weight after it, and its three gradients."""
    weight = nn.Parameter(0.5 * noise(6, 4))
    optimizer = MatrixOptimizer([("w", weight)], step=step, **options)
    gradients = [noise(6, 4, seed=k + 1) for k in range(3)]
    for grad in gradients:
        weight.grad = grad
        with measured(optimizer) as found:
            optimizer.step()
    return found, weight, gradients


def test_muons_momentum_is_its_nesterov_mix_and_its_update_the_factor():
    found, _, gradients = stepped("muon", lr=0.1, weight_decay=0.2, polar="svd")
    numbers = found["w"].numbers
    M = sum(0.05 * 0.95 ** (2 - k) * G for k, G in enumerate(gradients))
    u = 0.05 * gradients[2] + 0.95 * M
    torch.testing.assert_close(found["w"].rows["momentum"], u.norm(dim=1).float())
    torch.testing.assert_close(found["w"].rows["leverage"], polar(u, "svd").square().sum(1).float())
    assert numbers["polar_alignment"] == pytest.approx(1)
    assert numbers["polar_error"] == pytest.approx(0, abs=1e-8)
    assert numbers["step_scale"] == pytest.approx(math.sqrt(6 / 4))


def test_row_normalisation_leaves_rows_alike_and_nora_the_weights_direction():
    assert stepped("rmnp", lr=0.1)[0]["w"].numbers["row_variation"] == pytest.approx(0, abs=1e-8)
    assert stepped("rownorm", lr=0.1)[0]["w"].numbers["step_scale_spread"] > 0.01


@pytest.mark.parametrize("step", sorted(STEPS))
def test_measuring_works_for_every_method_and_changes_nothing(step):
    found, weight, gradients = stepped(step)
    twin = nn.Parameter(0.5 * noise(6, 4))
    optimizer = MatrixOptimizer([("w", twin)], step=step)
    for grad in gradients:
        twin.grad = grad
        optimizer.step()
    assert torch.equal(weight, twin)
    assert found["w"].numbers["angle"] is not None


def test_a_stack_of_matrices_has_a_name_for_each():
    weight = nn.Parameter(noise(2, 3, 4))
    weight.grad = noise(2, 3, 4, seed=1)
    optimizer = MatrixOptimizer([("w", weight)], step="muon")
    with measured(optimizer) as found:
        optimizer.step()
    assert list(found) == ["w[0]", "w[1]"]


def test_dead_and_faint_units_are_counted():
    numbers = neurons(torch.tensor([1.0, 1.0, 0.0, 1e-4, 1.0, 2.0], dtype=torch.float64))
    assert (numbers["units"], numbers["dead"], numbers["faint"]) == (6, 1, 2)
