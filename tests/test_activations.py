"""Covariances and sizes of a layer's inputs: what is added, and when."""

import pytest
import torch
from torch import Tensor, nn

from optimizers.activations import InputCovariance, UnitSquares


def layer_and_inputs() -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(12, 5).double(), torch.randn(3, 4, 12, dtype=torch.float64)


@pytest.mark.parametrize("blocks", [1, 3])
def test_it_is_the_mean_of_x_xT_in_every_block(blocks: int) -> None:
    layer, x = layer_and_inputs()
    covariance = InputCovariance(layer, blocks)
    covariance.start()
    for part in x:
        layer(part)
    rows = x.flatten(0, 1).unflatten(-1, (blocks, -1))
    torch.testing.assert_close(covariance.mean(), torch.einsum("rbi,rbj->bij", rows, rows) / 12)


def test_every_second_row_is_counted_from_the_first_of_each_pass() -> None:
    layer, x = layer_and_inputs()
    covariance = InputCovariance(layer, every=3)
    covariance.start()
    layer(x[0]), layer(x[1])
    rows = torch.stack([x[0, 0], x[0, 3], x[1, 0], x[1, 3]])
    torch.testing.assert_close(covariance.mean()[0], rows.mT @ rows / 4)


def test_passes_before_the_start_and_after_the_mean_do_not_count() -> None:
    layer, x = layer_and_inputs()
    covariance = InputCovariance(layer)
    layer(x[0])
    covariance.start()
    layer(x[1])
    first = covariance.mean()
    layer(x[2])
    covariance.start()
    layer(x[1])
    assert torch.equal(covariance.mean(), first)


def test_a_compiled_layer_adds_the_same() -> None:
    torch.compiler.reset()
    layer, x = layer_and_inputs()
    covariance = InputCovariance(layer, blocks=2)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    means = []
    for forward in (layer, compiled):
        forward(x)
        covariance.start()
        forward(x)
        means.append(covariance.mean())
    torch.testing.assert_close(*means)


def test_a_layer_that_is_never_called_is_told() -> None:
    layer, x = layer_and_inputs()
    covariance = InputCovariance(layer)
    covariance.start()
    nn.functional.linear(x, layer.weight)
    with pytest.raises(RuntimeError, match="called as a module"):
        covariance.mean()


def test_the_module_around_a_layer_may_be_called_in_its_place() -> None:
    layer, x = layer_and_inputs()
    around = nn.Sequential(layer)
    covariance = InputCovariance(layer, within=around)
    covariance.start()
    around(x)
    rows = x.flatten(0, 1)
    torch.testing.assert_close(covariance.mean()[0], rows.mT @ rows / 12)


@pytest.mark.parametrize("compiled", [False, True])
def test_squares_of_units_are_those_of_the_passes_between_start_and_stop(compiled: bool) -> None:
    torch.compiler.reset()
    layer, x = layer_and_inputs()
    squares = UnitSquares(layer)
    forward = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    forward(x)  # nobody listens yet
    for _ in range(2):
        squares.start()
        forward(x[:1])
        forward(x[1:])
        found = squares.stop()
        forward(x)
        torch.testing.assert_close(found, x.flatten(0, 1).square().sum(0), rtol=1e-6, atol=0)
