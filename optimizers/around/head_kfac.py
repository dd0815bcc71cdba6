"""Output K-FAC: the head's gradient, preconditioned by the covariance of the head's inputs."""

from typing import Annotated

import torch
from torch import Tensor, nn

from optimizers.activations import InputCovariance
from optimizers.around.around import Around, around, matrix_norm, wide

Betas = Annotated[tuple[float, float], "[0, 1)", "what the fast and the slow average of covariances keep"]


@around("head_kfac")
class HeadKFAC(Around):
    """K-FAC's right side for the head (open result 2600): its optimizer sees Z in place of the gradient G.

    For update start <= s < stop B = X^T X/rows of the head's inputs X, every `row_step`-th row of each
    micro-batch, over all ranks. Cf, Cs <- B at `start`, then averages that keep `betas`; C = Cs + fast (Cf -
    Cs). From s = `apply` on, at that and every `every`-th update after it, P = (max(C, 0) + damping mean(l))
    ^-1/2 by eigenvectors, l its eigenvalues; Y = G P at norm |G|; Z = G + strength (Y - G) at norm |G|.

    params: the head's weight [vocabulary, width].
    State: `fast`, `slow`, `root` (P) [width, width], in float32 at least.
    """

    def __init__(
        self, params: list, *, start: Annotated[int, "[0, inf)", "first update that covariances are kept of"],
        apply: Annotated[int, "[0, inf)", "first update whose gradient is changed"],
        stop: Annotated[int, "[0, inf)", "first update without"],
        every: Annotated[int, "[1, inf)", "updates from one root to the next"] = 8,
        row_step: Annotated[int, "[1, inf)", "of so many rows one counts"] = 16, betas: Betas = (0.8, 0.98),
        fast: Annotated[float, "[0, 1]", "what the fast average weighs"] = 8 / 9,
        strength: Annotated[float, "[0, 1]", "part of the gradient that is preconditioned"] = 0.75,
        damping: Annotated[float, "(0, inf)", "added to eigenvalues, in their mean"] = 0.05,
        fed_by: Annotated[str, "", "module whose output the head reads; '': the head itself tells"] = "norm2",
    ) -> None:  # fmt: skip
        options: dict[str, object] = {"start": start, "apply": apply, "stop": stop, "every": every}
        options |= {"row_step": row_step, "betas": betas, "fast": fast, "strength": strength}
        options |= {"damping": damping, "fed_by": fed_by}
        super().__init__(params, options)
        self.covariance: InputCovariance | None = None

    def attach(self, model: nn.Module, others: dict[str, torch.optim.Optimizer]) -> None:
        """Listens to the layer whose weight it is."""
        group = self.param_groups[0]
        (p,) = group["params"]
        layer = next(module for module in model.modules() if getattr(module, "weight", None) is p)
        fed_by = model.get_submodule(group["fed_by"]) if group["fed_by"] else None
        self.covariance = InputCovariance(layer, every=group["row_step"], fed_by=fed_by)

    def collects(self) -> bool:
        """Whether this update's covariance counts."""
        group = self.param_groups[0]
        return self.covariance is not None and group["start"] <= self.updates - 1 < group["stop"]

    def before_gradient(self) -> None:
        """Begins to listen."""
        if self.covariance is not None and self.collects():
            self.covariance.start()

    @torch.no_grad()
    def after_gradient(self) -> None:
        """Averages the covariance of this update's inputs, and changes the gradient."""
        group, update = self.param_groups[0], self.updates - 1
        if self.covariance is None or not self.collects():
            return
        p = group["params"][0]
        self._average(self.covariance.mean()[0], self.state[p], group)
        since = update - group["apply"]
        if since < 0:
            return
        state = self.state[p]
        if since % group["every"] == 0:
            C = state["slow"] + group["fast"] * (state["fast"] - state["slow"])
            state["root"] = inverse_root(C, group["damping"])
        G = wide(p.grad)
        size = matrix_norm(G)
        Y = G @ state["root"]
        Y = Y * (size / matrix_norm(Y).clamp(min=1e-12))
        Z = G + group["strength"] * (Y - G)
        p.grad.copy_(Z * (size / matrix_norm(Z).clamp(min=1e-12)))

    def _average(self, B: Tensor, state: dict[str, Tensor], group: dict) -> None:
        for name, beta in zip(("fast", "slow"), group["betas"], strict=True):
            if name in state:
                state[name].lerp_(B, 1 - beta)
            else:
                state[name] = B.clone()


def inverse_root(C: Tensor, damping: float) -> Tensor:
    """(max(C, 0) + damping max(mean eigenvalue, 1e-8))^-1/2 of a symmetric matrix."""
    eigenvalues, Q = torch.linalg.eigh(C)
    d = damping * eigenvalues.mean().clamp(min=1e-8)
    return (Q * (eigenvalues.clamp(min=0) + d).rsqrt()) @ Q.mT
