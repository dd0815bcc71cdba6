"""Circuit-Muon's coupling of two directions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers.norms import inner, safe_norm
from optimizers.stages.circuit import CIRCUIT_DAMPING, by_head, circuit

GOLDEN = Path(__file__).parent / "golden"


def made(shape, seed, t=None):
    """The golden cases' weight, or their direction of step t."""
    noise = np.random.default_rng(seed + 1000 * (t or 0)).standard_normal(shape)
    return torch.tensor(noise * (0.5 if t is None else np.geomspace(1, 0.01, shape[1])))


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_four_steps_equal_record_41(shape):
    expected, heads = np.load(GOLDEN / "circuit_record41.npz"), torch.arange(shape[0]) // 8 + 1
    V, O = made(shape, 7) / heads[:, None], made(shape[::-1], 507) * heads  # noqa: E741
    for t in range(1, 5):
        U_V, U_O = circuit(V, O, made(shape, 7, t), made(shape[::-1], 507, t), 8)
        V, O = V - 0.0375 * U_V, O - 0.0375 * U_O  # noqa: E741
        for name, found in {"dV": U_V, "dO": U_O, "V": V, "O": O}.items():
            reference = torch.tensor(expected[f"s7_{shape[0]}x{shape[1]}_{name}{t}"])
            assert torch.linalg.norm(found - reference) < 1e-8 * torch.linalg.norm(reference), (t, name)


def test_an_output_matrix_of_zeros_takes_the_radial_part_out_of_the_values():
    expected, shape = np.load(GOLDEN / "circuit_record41.npz"), (24, 24)
    U_V, U_O = circuit(made(shape, 7), torch.zeros(shape).double(), made(shape, 7, 1), made(shape, 507, 1), 8)
    np.testing.assert_allclose(U_V, expected["s7_zero_dV"], atol=1e-12)
    np.testing.assert_allclose(U_O, expected["s7_zero_dO"], atol=1e-12)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_both_matrices_of_a_head_grow_alike(seed, scale):
    V, O = scale * made((8, 6), seed), made((6, 8), seed + 1)  # noqa: E741
    U_V, U_O = circuit(V, O, made((8, 6), seed, 1), made((6, 8), seed + 1, 1), 4)
    v, o, u_v, u_o = (by_head(X, 4) for X in (V, O.mT, U_V, U_O.mT))
    apart = inner(v, u_v) - inner(o, u_o)
    whole = safe_norm(v) * safe_norm(u_v) + safe_norm(o) * safe_norm(u_o)
    left = 8 * CIRCUIT_DAMPING / (safe_norm(v).square() + safe_norm(o).square())
    assert (apart.abs() <= left * whole * 2 + 1e-12).all()


def test_a_stack_is_coupled_pair_by_pair():
    V, O = torch.randn(3, 8, 6).double(), torch.randn(3, 6, 8).double()  # noqa: E741
    U_V, U_O = circuit(V, O, O.mT, V.mT, 2)
    for i in range(3):
        apart = circuit(V[i], O[i], O[i].mT, V[i].mT, 2)
        torch.testing.assert_close((U_V[i], U_O[i]), apart)


def test_matrices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="by heads of 3"):
        circuit(torch.ones(4, 2), torch.ones(2, 4), torch.ones(4, 2), torch.ones(2, 4), 3)
