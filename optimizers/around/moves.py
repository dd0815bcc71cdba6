"""Moves of the weights between updates, along or against where they came from."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

from optimizers.around.around import Around, around, matrix_norm, wide


@around("pulses")
class Pulses(Around):
    """Pulses along the way since an earlier update (published result #43).

    After update `start` R <- w, m <- 0. Every `every` updates from there to `stop`: m <- m + (w - R),
    w <- w + strength m, R <- w: a second pulse takes the first way in once more. The other optimizers' state
    does not see it. State: `origin` (R) and `way` (m), in float32 at least.
    """

    def __init__(
        self, params: list, *, start: Annotated[int, "[0, inf)", "the way begins after this update"],
        every: Annotated[int, "[1, inf)", "updates from one pulse to the next"],
        stop: Annotated[int, "[0, inf)", "last update that a pulse may follow"],
        strength: Annotated[float, "(-inf, inf)", "times the way; below 0: back along it"],
    ) -> None:  # fmt: skip
        super().__init__(params, {"start": start, "every": every, "stop": stop, "strength": strength})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Remembers the origin, or moves the weights."""
        for group, p in self.pairs():
            state, since = self.state[p], self.updates - group["start"]
            if since == 0:
                state |= {"origin": wide(p).clone(), "way": torch.zeros_like(wide(p))}
            elif since > 0 and since % group["every"] == 0 and self.updates <= group["stop"]:
                state["way"] += wide(p) - state["origin"]
                p.copy_(wide(p) + group["strength"] * state["way"])
                state["origin"].copy_(p)


@around("rre")
class RREMove(Around):
    """Capped extrapolation of all its parameters together (published result #34).

    After the updates start..stop the last `keep` iterates x_0, ..., x_k are kept. Whenever the update is a
    multiple of `every` and they are complete: u_i = x_i+1 - x_i, A_ij = <u_i, u_j>, A <- A + (1e-6 tr(A)/k +
    1e-10) I, A c = 1, c <- c/sum c, D = -damping sum_i (c_i + ... + c_k-1) u_i, cut to |D| <= limit |x_k|;
    the weights become x_k + D, the only iterate kept. Textbook RRE takes head sums of c; the published script
    takes these tail sums, and so steps back to about the mean of the window.

    State: `iterates` [kept, *shape], in float32 at least.
    """

    def __init__(
        self, params: list, *, start: Annotated[int, "[1, inf)", "first update kept"],
        stop: Annotated[int, "[1, inf)", "last update kept"],
        every: Annotated[int, "[1, inf)", "updates from one move to the next"] = 5,
        keep: Annotated[int, "[3, inf)", "iterates that a move is made of"] = 4,
        damping: Annotated[float, "[0, 1]", "part of the move that is made"] = 0.875,
        limit: Annotated[float, "[0, inf)", "longest move, in the norm of the weights"] = 0.001,
    ) -> None:  # fmt: skip
        options = {"start": start, "stop": stop, "every": every, "keep": keep, "damping": damping}
        super().__init__(params, options | {"limit": limit})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Keeps the iterate; extrapolates where it is time."""
        options = self.param_groups[0]
        if not options["start"] <= self.updates <= options["stop"]:
            return
        params = [p for _, p in self.pairs()]
        for p in params:
            kept = self.state[p].get("iterates", wide(p)[None][:0])
            self.state[p]["iterates"] = torch.cat([kept, wide(p)[None]])[-options["keep"] :]
        iterates = [self.state[p]["iterates"] for p in params]
        if self.updates % options["every"] or len(iterates[0]) < options["keep"]:
            return
        moves = extrapolation(iterates, options["damping"], options["limit"])
        for p, x, move in zip(params, iterates, moves, strict=True):
            p.copy_(x[-1] + move)
            self.state[p]["iterates"] = wide(p)[None].clone()


def extrapolation(iterates: list[Tensor], damping: float, limit: float) -> list[Tensor]:
    """D of RREMove for each tensor; the iterates [k + 1, *shape] of all tensors are one vector.

    No move where the coefficients have no sum to be divided by.
    """
    ways = [x.diff(dim=0).flatten(1) for x in iterates]
    A = torch.stack([u @ u.mT for u in ways]).sum(0).double()
    k = len(A)
    A += (1e-6 * A.trace() / k + 1e-10) * torch.eye(k, dtype=A.dtype, device=A.device)
    c, _ = torch.linalg.solve_ex(A, torch.ones_like(A[0]))
    total = c.sum()
    good = total.isfinite() & (total.abs() > 1e-12)
    tails = (c / total).flip(0).cumsum(0).flip(0)
    moves = [torch.where(good, -damping * (tails.to(u.dtype) @ u), 0.0) for u in ways]
    length = torch.stack([matrix_norm(move) for move in moves]).norm()
    size = torch.stack([matrix_norm(x[-1]) for x in iterates]).norm().clamp(min=1e-12)
    cut = (limit * size / length.clamp(min=1e-30)).clamp(max=1)
    return [(cut * move).view_as(x[-1]) for move, x in zip(moves, iterates, strict=True)]
