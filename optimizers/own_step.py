"""A step function on whole parameters that every rank holds: the embedding's and the head's, for AdamW."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from optimizers.own_precision import OwnPrecision
from optimizers.stage import KINDS, Step, exchanged, named_step

PARTS = {"embed": "embed.weight", "head": "proj.weight"}  # what a model calls them


class OwnStep(OwnPrecision):
    """One step function on matrices [m, n], with gradients that are the same on every rank.

    Every rank takes the whole step, as with AdamW: nothing is sent, and a step that is no more than norms of
    rows costs less than its weight would on the way. Half-precision parameters are stepped in float32 and
    rounded; their state is float32.

    params: groups or parameters; values: the hyperparameters, what is left out has the step's defaults.
    State: the step function's. Raises TypeError for an unknown hyperparameter, ValueError for one out of
    range.
    """

    def __init__(self, params: Iterable, step: Step, **values: object) -> None:
        self.function, row = step, step.row
        row.check(values)
        for name, value in values.items():
            row.hyperparameters[name].check(value, row.name)
        super().__init__(
            params, {name: known.default for name, known in row.hyperparameters.items()} | values
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        known = self.function.row.hyperparameters
        for group in self.param_groups:
            values = {name: group[name] for name in known}
            for p in (p for p in group["params"] if p.grad is not None):
                wide = p.to(torch.promote_types(p.dtype, torch.float32))
                self.function(wide, p.grad, self.state[p], **values)
                if wide is not p:
                    p.copy_(wide)


def own_steps(
    named: dict[str, nn.Parameter], tables: Mapping[str, Mapping[str, object]]
) -> dict[str, torch.optim.Optimizer]:
    """An optimizer for each table, `step`, stages and hyperparameters, of "embed" and of "head".

    Its parameter is taken out of `named`: the others are for AdamW.
    """
    made: dict[str, torch.optim.Optimizer] = {}
    for kind, table in tables.items():
        stages = {key: str(table[key]) for key in KINDS if key in table}
        step = exchanged(named_step(str(table["step"])), stages)
        values = {key: value for key, value in table.items() if key not in (*KINDS, "step")}
        made[kind] = OwnStep([{"params": [named.pop(PARTS[kind])], "name": kind}], step, **values)
    return made
