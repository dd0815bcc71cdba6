"""Readouts that look at how the weights have moved."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

from optimizers.around.around import Around, Weights, around, matrix_norm, wide
from optimizers.around.average import Since, Start


@around("velocity")
class VelocityReadout(Around):
    """Readout W - factor kappa v, v an average of the weights' moves, kappa = min(1, limit |W|/|v|) for every
    parameter (published result #38): a step back along the way, of at most factor limit |W|.

    After update `start` q <- W, v <- 0; after every later one v <- decay v + (1 - decay)(W - q), q <- W. No
    bias correction. State: `velocity` and `last` (q), in float32 at least.
    """

    def __init__(
        self, params: list, *, start: Start, since: Since = 0,
        decay: Annotated[float, "[0, 1)", "what the average of moves keeps"] = 0.9,
        factor: Annotated[float, "(-inf, inf)", "moves to go back, after the limit"] = 6.0,
        limit: Annotated[float, "[0, inf)", "longest average move, in the weight's norm"] = 0.01,
    ) -> None:  # fmt: skip
        options = {"start": start, "since": since, "decay": decay, "factor": factor, "limit": limit}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Averages the move of this update."""
        for group, p in self.pairs():
            if self.updates == group["start"]:
                self.state[p] |= {"velocity": torch.zeros_like(wide(p)), "last": wide(p).clone()}
            elif self.updates > group["start"]:
                state = self.state[p]
                state["velocity"].lerp_(wide(p) - state["last"], 1 - group["decay"])
                state["last"].copy_(p)

    def readout(self, weights: Weights) -> None:
        """The step back, from `start` on."""
        for group, p in self.pairs():
            if p in self.state and self.updates >= group["since"]:
                w, v = weights.get(p, wide(p)), self.state[p]["velocity"]
                relative = matrix_norm(w).clamp(min=1e-12) / matrix_norm(v).clamp(min=1e-12)
                weights[p] = w - group["factor"] * (group["limit"] * relative).clamp(max=1) * v


@around("phase")
class PhaseReadout(Around):
    """Readout W + strength z: z is minus what the way from P0 to P1 has across that from P1 to W, at the
    latter's length, for every parameter (published result #43).

    d = P1 - P0, v = W - P1, a = v - d, z = a - (<a, v>/<v, v>) v, z <- z |v|/|z|.
    State: `first` (P0) and `second` (P1), in float32 at least.
    """

    def __init__(
        self, params: list, *, since: Since,
        first: Annotated[int, "[0, inf)", "P0 is the weights after this update"],
        second: Annotated[int, "[0, inf)", "P1 is the weights after this update"],
        strength: Annotated[float, "(-inf, inf)", "how far to go"] = 0.01,
    ) -> None:  # fmt: skip
        super().__init__(params, {"since": since, "first": first, "second": second, "strength": strength})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Keeps the weights of the two updates."""
        for group, p in self.pairs():
            for name in ("first", "second"):
                if self.updates == group[name]:
                    self.state[p][name] = wide(p).clone()

    def readout(self, weights: Weights) -> None:
        """The move across, from `since` on."""
        for group, p in self.pairs():
            if self.updates >= group["since"] and "second" in self.state[p]:
                w = weights.get(p, wide(p))
                z = across(w, self.state[p]["first"], self.state[p]["second"])
                weights[p] = w + group["strength"] * z


def across(W: Tensor, P0: Tensor, P1: Tensor) -> Tensor:
    """z of PhaseReadout."""
    v = W - P1
    a = v - (P1 - P0)
    z = a - (a * v).sum() / v.square().sum().clamp(min=1e-20) * v
    return z * (matrix_norm(v) / (matrix_norm(z) + 1e-12))
