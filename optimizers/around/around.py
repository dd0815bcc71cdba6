"""Around an update: the hooks that a recipe's [around] and [readout] tables fill."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from optimizers.own_precision import OwnPrecision
from optimizers.stage import Row, row_of_function

Weights = dict[Tensor, Tensor]  # parameter -> what stands in for it


class Around(OwnPrecision):
    """Something around the update of all parameters. A step of the trainer:

        every before_gradient()    may move the weights to where the gradient is to be taken
        forward and backward
        every after_gradient()     may put them back, and change the gradients
        every optimizer's step()   for these objects: after the update, which the other optimizers made
        readout(), at validation   says what validation reads in place of the weights; training never sees it

    `row` has the hyperparameters. In every group `update` is the number of the update being made, from 0;
    who trains sets it before each.
    """

    row: ClassVar[Row]

    @property
    def updates(self) -> int:
        """How many updates the weights have had, or will have had at the end of this one."""
        return self.param_groups[0].get("update", -1) + 1

    def before_gradient(self) -> None:
        """Moves the weights to the point of the gradient."""

    def after_gradient(self) -> None:
        """Puts the weights back where the update starts; changes the gradients."""

    def abandon(self) -> None:
        """Puts the weights back as they were at before_gradient: no update is made."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """After the update."""

    def readout(self, weights: Weights) -> None:
        """Writes into `weights` what validation is to read, on top of what stands there (else the weight)."""

    def attach(self, model: nn.Module, others: dict[str, torch.optim.Optimizer]) -> None:
        """Finds what it leans on: in the model, or among the recipe's other optimizers by their names."""


AROUND: dict[str, type[Around]] = {}
Class = TypeVar("Class", bound=type[Around])


def around(name: str) -> Callable[[Class], Class]:
    """Decorator: registers the class under the name that a recipe gives it."""

    def register(kind: Class) -> Class:
        kind.row = row_of_function(kind.__init__)
        AROUND[name] = kind
        return kind

    return register


def wide(p: Tensor) -> Tensor:
    """The parameter in float32 at least: what averages and differences are computed in."""
    return p.to(torch.promote_types(p.dtype, torch.float32))


def matrix_norm(X: Tensor) -> Tensor:
    """|X| over all entries, 0-d."""
    return torch.linalg.vector_norm(X)


def arounds_in(optimizers: Iterable[torch.optim.Optimizer]) -> list[Around]:
    return [optimizer for optimizer in optimizers if isinstance(optimizer, Around)]


def read_losses(
    optimizers: Iterable[torch.optim.Optimizer], validate: Callable[[], float], each: bool = False
) -> tuple[dict[str, float], str]:
    """`val_loss` through all readouts and, where some are read, `raw_val_loss` of the trained weights; and a
    column " readout:" with their names. each: the loss through every readout alone, too.
    """
    with_readout = {around.param_groups[0]["name"]: around for around in arounds_in(optimizers)
                    if read_out([around])}  # fmt: skip
    raw = validate()
    if not with_readout:
        return {"val_loss": raw}, ""
    losses = {"val_loss": loss_of(read_out(with_readout.values()), validate), "raw_val_loss": raw}
    for name, around in with_readout.items() if each else ():
        losses[f"{name}_val_loss"] = loss_of(read_out([around]), validate)
    return losses, f" readout:{'+'.join(with_readout)}"


@torch.no_grad()
def read_out(arounds: Iterable[Around]) -> Weights:
    """What validation reads in place of which parameters; empty where it reads the trained weights."""
    weights: Weights = {}
    for around in arounds:
        around.readout(weights)
    return weights


def loss_of(weights: Weights, validate: Callable[[], float]) -> float:
    with swapped(weights):
        return validate()


@contextmanager
def swapped(weights: Weights) -> Iterator[None]:
    """Inside, parameters hold these weights, rounded to their own type; afterwards their own, bit for bit."""
    with torch.no_grad():
        own = {p: p.clone() for p in weights}
        for p, value in weights.items():
            p.copy_(value)
        try:
            yield
        finally:
            for p, value in own.items():
                p.copy_(value)
