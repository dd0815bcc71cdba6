"""MuLoCo's outer step: Nesterov's momentum on the way of many updates."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from optimizers.around.around import Around, around


@around("outer_nesterov")
class OuterNesterov(Around):
    """A step along the way of the last `every` updates (MuLoCo, arXiv 2505.23725; published result #13).

    D = S - w, B <- momentum B + outer_lr D, w <- S - momentum B - outer_lr D, S <- w.

    S starts as the first weights, B as 0. The other optimizers' state does not see the move; it changes |w|
    on a hyperball. State: `snapshot` (S) and `velocity` (B), in the parameter's own type, as published.
    """

    def __init__(
        self, params: list, *, every: Annotated[int, "[1, inf)", "updates from one to the next"] = 30,
        outer_lr: Annotated[float, "[0, inf)", "what the outer step takes of the way"] = 0.7,
        momentum: Annotated[float, "[0, 1)", "what the outer average keeps"] = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(params, {"every": every, "outer_lr": outer_lr, "momentum": momentum})

    @torch.no_grad()
    def attach(self, model: nn.Module, others: dict[str, torch.optim.Optimizer]) -> None:
        """The first weights."""
        for _, p in self.pairs():
            self.state[p] = {"snapshot": p.clone(), "velocity": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """The outer step, where it is time."""
        for group, p in self.pairs():
            if self.updates % group["every"] == 0:
                S, B = self.state[p]["snapshot"], self.state[p]["velocity"]
                D: Tensor = S - p
                B.mul_(group["momentum"]).add_(group["outer_lr"] * D)
                p.copy_(S - group["momentum"] * B - group["outer_lr"] * D)
                S.copy_(p)
