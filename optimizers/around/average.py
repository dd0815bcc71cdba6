"""Averages of the weights' tail: as a readout, and as the point that a gradient is taken away from."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from optimizers.around.around import Around, Weights, around, wide

Start = Annotated[int, "[0, inf)", "begins with the weights after this update"]
Since = Annotated[int, "[0, inf)", "is read from this update on"]


@around("average")
class TailAverage(Around):
    """Readout (1 - blend) w + blend E, E an average of the weights' tail (published results #45, #46).

    E <- w after update `start`; after every later one E <- E + (w - E)/tau. Without tau E stays: results #42
    and #38 read between the weights and those of an earlier step.

    behind: E starts at w - behind tau v, v the average of EMA-Nesterov, `lookahead`, whose rows are then
    brought to the norms of w's (open 2645). row_norms: every row of what is read has the norm of E's row.
    A row below 1e-12 stays as it is trained.
    A parameter with a master copy (AuxAdamW) is averaged in that.
    State: `average`, in float32 at least, from `start` on.
    """

    def __init__(
        self, params: list, *, start: Start, since: Since = 0,
        blend: Annotated[float, "[0, 1]", "what the average weighs in the readout"] = 0.6,
        tau: Annotated[float | None, "[1, inf)", "updates that the average lasts; nothing: it stays"] = None,
        behind: Annotated[float, "[0, inf)", "starts so many tau behind, along EMA-Nesterov's average"] = 0.0,
        row_norms: Annotated[bool, "", "rows of what is read get the norms of the average's"] = False,
    ) -> None:  # fmt: skip
        options = {"start": start, "since": since, "blend": blend, "tau": tau, "behind": behind}
        super().__init__(params, options | {"row_norms": row_norms})
        self.masters: torch.optim.Optimizer | None = None
        self.lookahead: torch.optim.Optimizer | None = None

    def attach(self, model: nn.Module, others: dict[str, torch.optim.Optimizer]) -> None:
        self.masters, self.lookahead = others.get("adam"), others.get("lookahead")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Starts or moves the average."""
        for group, p in self.pairs():
            held = self.masters.state.get(p, {}) if self.masters else {}
            w = held.get("master", wide(p))
            if self.updates == group["start"]:
                self.state[p]["average"] = self._first(w, p, group["behind"] * (group["tau"] or 0.0))
            elif self.updates > group["start"] and group["tau"]:
                self.state[p]["average"].lerp_(w, 1 / group["tau"])

    def _first(self, w: Tensor, p: Tensor, updates: float) -> Tensor:
        """The weights, or where they were about so many updates before."""
        if not updates or self.lookahead is None:
            return w.clone()
        return with_row_norms(w - updates * self.lookahead.state[p]["average"], w, w)

    def readout(self, weights: Weights) -> None:
        """The blend, from `since` and the average's start on."""
        for group, p in self.pairs():
            if group["blend"] and p in self.state and self.updates >= group["since"]:
                w, E = weights.get(p, wide(p)), self.state[p]["average"]
                blended = (1 - group["blend"]) * w + group["blend"] * E
                weights[p] = with_row_norms(blended, E, wide(p)) if group["row_norms"] else blended


def with_row_norms(X: Tensor, like: Tensor, trained: Tensor) -> Tensor:
    """Every row of a matrix at the norm of the same row of `like`; where X has none, along `trained`."""
    if X.ndim < 2:
        return X
    size, target = (torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in (X, like))
    return torch.where(size > 1e-12, X * (target / size), trained)


@around("extrapolated_gradient")
class ExtrapolatedGradient(Around):
    """The gradient is taken at p + strength (p - E), E the average of a readout; the update starts from p.

    Open result 2580. `average` names the readout.
    """

    def __init__(
        self, params: list, *, average: Annotated[str, "", "the readout whose average it leaves behind"],
        strength: Annotated[float, "[0, inf)", "how far beyond the weights, in their distance to it"] = 0.45,
    ) -> None:  # fmt: skip
        super().__init__(params, {"average": average, "strength": strength})
        self.averages: torch.optim.Optimizer | None = None
        self.origins: Weights = {}

    def attach(self, model: nn.Module, others: dict[str, torch.optim.Optimizer]) -> None:
        """Raises ValueError where no readout of that name is an average."""
        name = self.param_groups[0]["average"]
        self.averages = others.get(name)
        if not isinstance(self.averages, TailAverage):
            raise ValueError(f"no [readout.{name}] that is an average; expected one to move away from")

    @torch.no_grad()
    def before_gradient(self) -> None:
        """Moves away from the average, if it has begun; in float32 at least."""
        for group, p in self.pairs():
            state = self.averages.state.get(p) if self.averages else None
            if group["strength"] and state:
                self.origins[p] = p.clone()
                p.copy_(wide(p) + group["strength"] * (wide(p) - state["average"]))

    @torch.no_grad()
    def after_gradient(self) -> None:
        """Puts the weights back bit for bit."""
        for p, origin in self.origins.items():
            p.copy_(origin)
        self.origins.clear()

    def abandon(self) -> None:
        self.after_gradient()
