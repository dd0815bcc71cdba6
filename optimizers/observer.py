"""Measures a training every so many updates, whatever its method and number of ranks, and hands it on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from optimizers.activations import UnitSquares
from optimizers.instruments import Numbers, measured, neurons
from optimizers.matrix_optimizer import MatrixOptimizer

# Of one update, on rank 0: its number, numbers by matrix or layer, numbers of each neuron by matrix.
Write = Callable[[int, Mapping[str, Numbers], Mapping[str, Mapping[str, Tensor]]], None]


class Observer:
    """Instruments around updates and validations.

        observer = Observer(optimizers, {"blocks.0.mlp": block.mlp.proj}, every=25, write=write)
        with observer.updating(step): ...step every optimizer...
        with observer.validating(step): ...forward passes over the validation tokens...

    optimizers: those of the model; the MatrixOptimizer among them is measured. layers: which units feed.
    Made before the first pass of a compiled model, as UnitSquares says.
    Of several ranks each measures what it owns; gathering is a collective, `write` is called on rank 0.
    """

    def __init__(
        self,
        optimizers: list[torch.optim.Optimizer],
        layers: Mapping[str, nn.Module],
        every: int,
        write: Write,
    ) -> None:
        self.matrix = next(each for each in optimizers if isinstance(each, MatrixOptimizer))
        self.every, self.write = every, write
        self.units = {name: UnitSquares(layer) for name, layer in layers.items()}

    @contextmanager
    def updating(self, step: int) -> Iterator[None]:
        """Around update `step`; measured where `every` divides it."""
        if step % self.every:
            yield
            return
        with measured(self.matrix) as found:
            yield
        numbers: dict[str, Numbers] = {}
        rows: dict[str, Mapping[str, Tensor]] = {}
        for part in gathered({name: (each.numbers, each.rows) for name, each in found.items()}):
            for name, (of_matrix, by_row) in part.items():
                numbers[name] = of_matrix
                rows[name] = by_row
        self._write(step, numbers, rows)

    @contextmanager
    def validating(self, step: int) -> Iterator[None]:
        """Around the validation before update `step`; measured where `every` divides it."""
        if step % self.every:
            yield
            return
        for units in self.units.values():
            units.start()
        try:
            yield
        finally:
            found = {name: units.stop().cpu() for name, units in self.units.items()}
        squares: dict[str, Tensor] = {}
        for part in gathered(found):
            for name, of_rank in part.items():
                squares[name] = squares[name] + of_rank if name in squares else of_rank
        norms = {name: total.sqrt() for name, total in squares.items()}
        rows = {name: {"activation": of_layer.float()} for name, of_layer in norms.items()}
        self._write(step, {name: neurons(of_layer) for name, of_layer in norms.items()}, rows)

    def _write(
        self, step: int, numbers: Mapping[str, Numbers], rows: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.write(step, dict(sorted(numbers.items())), rows)


def gathered(own: Any) -> list[Any]:
    """What every rank has, on rank 0; elsewhere nothing of use. A collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, everyone)
    return everyone or []
