"""The benchmark of optimizers counts the work it says and writes what it measured."""

import json
from fractions import Fraction

import pytest
import torch

from optimizers import MatrixOptimizer, benchmark


def optimizer_on(shapes, **options):
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return MatrixOptimizer(params, **options), params


@pytest.mark.parametrize("side", [8, 128])  # torch's own product and oneDNN's
def test_counts_the_products_of_newton_schulz(side):
    optimizer, params = optimizer_on([(side, side)] * 2, step="muon", polar_steps=3)
    assert benchmark.product_flops(optimizer, params) == 2 * 3 * 6 * side**3


def test_counting_leaves_gradients_and_the_choice_of_compiling():
    optimizer, params = optimizer_on([(8, 8), (8, 4)], step="rmnp", compile=True)
    assert benchmark.product_flops(optimizer, params) == 0
    assert optimizer.compile is True and all(param.grad is not None for param in params)


def test_a_share_must_divide_the_matrices():
    assert len(benchmark.hidden_matrices(Fraction(1, 12), "cpu")) == 6
    with pytest.raises(ValueError, match="1/12"):
        benchmark.hidden_matrices(Fraction(1, 5), "cpu")


def test_writes_the_figures_scaled_to_all_matrices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "HIDDEN_MATRICES", {(8, 8): 12})
    monkeypatch.setattr(benchmark, "bare_copy", lambda device: (lambda: None, 1.0))
    monkeypatch.setattr(benchmark, "bare_products", lambda device: (lambda: None, 1.0))
    file = tmp_path / "figures.json"
    benchmark.main(["--only", "nora", "--share", "1/4", "--repeats", "1", "--json", str(file)])
    figures = json.loads(file.read_text())
    rows = {row["name"]: row for row in figures["optimizers"]}
    assert figures["share_measured"] == "1/4" and figures["torch"] == torch.__version__
    assert rows["nora"]["bytes"] == 12 * 64 * 4 * 5 and rows["nora"]["state_bytes_per_parameter"] == 4
    assert rows["nora"]["ms"] > 0 and "nora" in capsys.readouterr().out


def test_begins_no_round_after_the_patience(monkeypatch):
    monkeypatch.setattr(benchmark, "HIDDEN_MATRICES", {(8, 8): 12})
    monkeypatch.setattr(benchmark, "bare_copy", lambda device: (lambda: None, 1.0))
    monkeypatch.setattr(benchmark, "bare_products", lambda device: (lambda: None, 1.0))
    group = {"muon": lambda params: MatrixOptimizer(params, step="muon")}
    for patience, rounds in ((0.0, 1), (60.0, 3)):
        assert benchmark.measure(group, Fraction(1, 12), 3, patience, "cpu")[0].rounds == rounds


def test_the_medium_contender_restores_the_precision():
    weight, gradient = torch.randn(2, 16, 16)
    highest, medium = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    for kind, param in ((MatrixOptimizer, highest), (benchmark.MediumMatrixOptimizer, medium)):
        param.grad = gradient
        kind([param], step="muon", lr=0.1).step()
    assert torch.get_float32_matmul_precision() == "highest"
    torch.testing.assert_close(medium, highest, rtol=0, atol=0.01)
