"""Polar factors: exact where they should be, stable where they must be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers.polar import (
    COEFFICIENTS,
    ONEDNN_SIDE,
    coefficients,
    iterated,
    iterated_on_gram,
    polar,
    soft_polar,
)
from optimizers.stages.direction import contra_direction, operator_norm, orthogonal_direction

METHODS = [*COEFFICIENTS, "svd"]
LEFT = {"simple": 1e-6, "polar_express": 1e-6, "cans": 0.07, "quintic": 0.35, "svd": 1e-10}  # largest |s - 1|


def of_condition(m: int, n: int, condition: float, seed: int = 0, dtype: torch.dtype = torch.float64):
    """m x n with singular values in geometric progression from 1 to 1/condition, and its polar factor."""
    generator = torch.Generator().manual_seed(seed)
    short = min(m, n)
    left = torch.linalg.qr(torch.randn(m, short, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, short, generator=generator, dtype=torch.float64)).Q
    values = condition ** -torch.linspace(0, 1, short, dtype=torch.float64)
    return (left * values @ right.mT).to(dtype), (left @ right.mT).to(dtype)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 999))
def test_singular_values_end_near_one(method, shape, seed):
    X, _ = of_condition(*shape, 10, seed)
    assert (torch.linalg.svdvals(polar(X, method)) - 1).abs().max() < LEFT[method]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(shape=shapes, seed=st.integers(0, 999))
def test_rotating_the_input_rotates_the_factor(method, shape, seed):
    X, _ = of_condition(*shape, 10, seed)
    Q = torch.linalg.qr(torch.randn(shape[0], shape[0], dtype=torch.float64)).Q
    torch.testing.assert_close(polar(Q @ X, method), Q @ polar(X, method), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["simple", "polar_express", "svd"])
@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32)])
def test_converging_methods_give_the_factor_of_the_svd(method, shape):
    X, _ = of_condition(*shape, 100)
    U, _, Vt = torch.linalg.svd(X, full_matrices=False)
    torch.testing.assert_close(polar(X, method), U @ Vt, rtol=0, atol=1e-6)


def test_svd_resolves_small_singular_values_in_float32():
    X, factor = of_condition(32, 16, 1e5, dtype=torch.float32)
    assert (torch.linalg.svdvals(polar(X, "svd")) - 1).abs().max() < 1e-5
    torch.testing.assert_close(polar(X, "svd"), factor, rtol=0, atol=2e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6, 6), (9, 3), (3, 9)])
def test_a_stack_is_its_matrices_one_by_one(method, shape):
    X = torch.randn(2, 3, *shape, dtype=torch.float64)
    one_by_one = torch.stack([torch.stack([polar(matrix, method) for matrix in row]) for row in X])
    torch.testing.assert_close(polar(X, method), one_by_one, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_transposing_the_input_transposes_the_factor(method):
    X = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(polar(X.mT, method), polar(X, method).mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_null_directions_stay_zero(method):
    X = torch.zeros(5, 4)
    assert polar(X, method).count_nonzero() == 0
    X[1, 2] = 3
    expected = X / 3 * torch.linalg.matrix_norm(polar(X, method))
    torch.testing.assert_close(polar(X, method), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_huge_entries_do_not_overflow(method):
    X = torch.randn(6, 4)
    torch.testing.assert_close(polar(1e20 * X, method), polar(X, method), rtol=0, atol=1e-4)


def test_a_matrix_far_below_the_epsilon_fades():
    assert torch.linalg.matrix_norm(polar(1e-20 * torch.randn(6, 4))) < 1e-8


@pytest.mark.parametrize("method", COEFFICIENTS)
@pytest.mark.parametrize("condition", [10, 1e3, 1e5])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4), (torch.bfloat16, 0.7)]
)
def test_gram_form_agrees_with_the_direct_form(method, condition, dtype, tolerance):
    X, _ = of_condition(16, 64, condition, dtype=dtype)
    X = X / torch.linalg.vector_norm(X)
    rows = coefficients(method, dtype=dtype)
    direct, gram = iterated(X, rows).double(), iterated_on_gram(X, rows).double()
    assert torch.linalg.norm(gram - direct) < tolerance * torch.linalg.norm(direct)


@pytest.mark.parametrize("method", COEFFICIENTS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.sampled_from([2, 4, 16, 64]), condition=st.sampled_from([1, 10, 1e3]), seed=st.integers(0, 999))
def test_gram_form_does_not_diverge_in_bfloat16(method, n, condition, seed):
    X, _ = of_condition(n, 4 * n, condition, seed)
    X = (X / torch.linalg.norm(X)).bfloat16()
    Y = iterated_on_gram(X, coefficients(method, dtype=torch.bfloat16))
    assert torch.linalg.svdvals(Y.float()).max() < 1.3


def test_square_matrices_take_the_direct_form_and_long_ones_the_gram_form():
    square, long = torch.randn(8, 8), torch.randn(8, 32)
    assert torch.equal(polar(square), polar(square, gram=False))
    assert torch.equal(polar(long), polar(long, gram=True))


def test_steps_beyond_the_table_repeat_its_last_row():
    rows = coefficients("polar_express", 10)
    assert rows[7:] == [(1.875, -1.25, 0.375)] * 3


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(ValueError, match="simple, quintic, polar_express, cans, svd; found 'exact'"):
        polar(torch.eye(2), "exact")


def test_operator_norm_is_a_close_lower_bound():
    X, _ = of_condition(12, 8, 10)
    assert 0.8 < operator_norm(X).item() <= 1


def test_contra_direction_takes_from_the_largest_singular_direction():
    X, _ = of_condition(8, 8, 100)
    U, _, Vt = torch.linalg.svd(X)
    plain, contra = polar(X), orthogonal_direction(X, "simple", None, 0.4)
    strength = (U.mT @ contra @ Vt.mT).diagonal()
    assert strength[0] < 1 < strength[-1]
    torch.testing.assert_close(torch.linalg.norm(contra), torch.linalg.norm(plain))
    assert torch.equal(contra_direction(plain, X, 0.0), plain)


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
def test_soft_polar_takes_singular_values_to_a_power(shape):
    X, factor = of_condition(*shape, 100)
    s4 = torch.linalg.svdvals(X).pow(4).sum() ** 0.25
    soft, hard = soft_polar(X, 0.1)
    expected = (torch.linalg.svdvals(X) / s4) ** 0.1
    assert ((torch.linalg.svdvals(soft) - expected).abs() / expected).max() < 0.1
    torch.testing.assert_close(hard, factor, rtol=0, atol=1e-6)


def test_soft_polar_refuses_what_it_has_no_table_for():
    with pytest.raises(ValueError, match=r"p in \[0.1\]; found 0.3"):
        soft_polar(torch.eye(2), 0.3)
    with pytest.raises(ValueError, match="found 'rms'"):
        soft_polar(torch.eye(2), 0.1, "rms")


@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (512, 128)])
@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("amd", [True, False])
def test_large_float32_matrices_agree_with_float64(monkeypatch, shape, gram, amd):
    monkeypatch.setattr("optimizers.polar.made_by_amd", lambda: amd)  # oneDNN's products, and MKL's
    X = torch.randn(shape, dtype=torch.float64)
    expected = polar(X, "quintic", gram=gram)
    torch.testing.assert_close(polar(X.float(), "quintic", gram=gram).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 2])  # 2 has one: a sum that cancels
def test_the_gram_form_multiplies_hardly_a_denormal(monkeypatch, seed):
    torch.manual_seed(seed)
    factors = []

    def recorded(A, B):
        factors.extend((A, B))
        return A @ B

    monkeypatch.setattr("optimizers.polar.product", recorded)
    polar(torch.randn(96, 384), gram=True)
    smallest = torch.finfo(torch.float32).tiny
    assert max(((F != 0) & (F.abs() < smallest)).sum() for F in factors) <= 3


@pytest.fixture
def medium_precision():
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("method", COEFFICIENTS)
@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_medium_precision_stays_within_bfloat16s_error(medium_precision, method, shape):
    X, _ = of_condition(*shape, 10, dtype=torch.float32)
    factor = polar(X, method)
    torch.set_float32_matmul_precision("highest")
    expected = polar(X, method)
    assert factor.dtype == torch.float32
    assert torch.linalg.norm(factor - expected) < 0.05 * torch.linalg.norm(expected)


def test_medium_precision_iterates_float32_in_bfloat16(medium_precision):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16 products")
    Y = polar(torch.randn(16, 16), "quintic")
    assert torch.equal(Y, Y.bfloat16().float())


def test_medium_precision_leaves_float64_and_the_svd(medium_precision):
    X = torch.randn(16, 16, dtype=torch.float64)
    factors = polar(X), polar(X.float(), "svd")
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(factors[0], polar(X))
    torch.testing.assert_close(factors[1], polar(X.float(), "svd"), rtol=0, atol=0.02)


@pytest.mark.parametrize("side", [8, ONEDNN_SIDE])
def test_a_compiled_polar_traces_whole_under_any_precision(side, medium_precision):
    torch.compiler.reset()
    X = torch.randn(side, side)
    traced = torch.compile(polar, fullgraph=True, backend="eager")(X)
    torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(traced, polar(X), rtol=0, atol=1e-2)
