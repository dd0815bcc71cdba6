"""Gradients changed before the optimizers see them: of the mean over tokens, and Newton-Muon's."""

from fnmatch import fnmatchcase
from typing import Annotated

import torch
from torch import Tensor, nn

from optimizers.activations import InputCovariance
from optimizers.around.around import Around, around


@around("mean_gradient")
class MeanGradient(Around):
    """Gradients of the mean over a batch's tokens in place of the sum (published result #33).

    An eps then means another thing, and PSGD's factors start elsewhere.
    """

    def __init__(
        self, params: list, *, tokens: Annotated[int, "[1, inf)", "tokens of a batch: what is divided by"]
    ) -> None:
        super().__init__(params, {"tokens": tokens})

    @torch.no_grad()
    def after_gradient(self) -> None:
        """G / tokens."""
        for group, p in self.pairs():
            if p.grad is not None:
                p.grad.div_(group["tokens"])


@around("input_newton")
class InputNewton(Around):
    """Newton-Muon (published result #15): G K in place of a matrix's gradient G, K about the inverse of its
    inputs' covariance.

    In every `every`-th update, C <- (1 - weight) C + weight X^T X/tokens of the layer's inputs X, from C =
    0.001 I, and K = (C + (ridge tr(C)/d + 1e-8) I)^-1, used from that update on; before the first K the
    gradient stays. A wide matrix [m, n], n > m, has its columns cut into n/m runs with a K each. Momentum is
    not rescaled when K changes. Published, q, k and v share one K, of the same inputs.

    params: weights of linear layers. State: `covariance` and `inverse` [runs, d, d] of each.
    """

    def __init__(
        self, params: list, *, every: Annotated[int, "[1, inf)", "updates from one K to the next"] = 64,
        weight: Annotated[float, "(0, 1]", "what a new covariance weighs in the average"] = 0.05,
        ridge: Annotated[float, "[0, inf)", "added to eigenvalues, in their mean"] = 0.2,
        joint: Annotated[str, "", "layers whose module is called in their place, a pattern"] = "*.[qkv]",
    ) -> None:  # fmt: skip
        super().__init__(params, {"every": every, "weight": weight, "ridge": ridge, "joint": joint})
        self.inputs: dict[Tensor, InputCovariance] = {}

    def attach(self, model: nn.Module, others: dict[str, torch.optim.Optimizer]) -> None:
        """Listens to the layers. Raises ValueError for a parameter that is no linear layer's weight."""
        layers = {getattr(module, "weight", None): name for name, module in model.named_modules()}
        for group, p in self.pairs():
            if p.ndim != 2 or p not in layers:
                found = f"input_newton over a parameter of shape {tuple(p.shape)}"
                raise ValueError(f"{found}; expected weights of linear layers: params = ['mlp.*.weight']")
            name, blocks = layers[p], max(1, p.shape[1] // p.shape[0])
            called = name.rpartition(".")[0] if fnmatchcase(name, group["joint"]) else name
            within = model.get_submodule(called)
            self.inputs[p] = InputCovariance(model.get_submodule(name), blocks, within=within)

    def before_gradient(self) -> None:
        """Begins to listen, where a new K is due."""
        for group, p in self.pairs():
            if self.updates % group["every"] == 0:
                self.inputs[p].start()

    @torch.no_grad()
    def after_gradient(self) -> None:
        """Renews K where it is due; multiplies."""
        for group, p in self.pairs():
            state = self.state[p]
            if self.updates % group["every"] == 0:
                new = self.inputs[p].mean()
                identity = torch.eye(new.shape[-1], dtype=new.dtype, device=new.device)
                C = state.setdefault("covariance", 0.001 * identity.expand_as(new).clone())
                state["inverse"] = ridge_inverse(C.lerp_(new, group["weight"]), group["ridge"])
            if "inverse" in state and p.grad is not None:
                p.grad.copy_(times_runs(p.grad, state["inverse"]))

    def abandon(self) -> None:
        """Stops listening."""
        for inputs in self.inputs.values():
            inputs.collecting = False


def ridge_inverse(C: Tensor, ridge: float) -> Tensor:
    """(C + (ridge tr(C)/d + 1e-8) I)^-1 of every symmetric matrix [..., d, d]."""
    added = ridge * C.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-8
    identity = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(C + added[..., None, None] * identity).L)


def times_runs(G: Tensor, K: Tensor) -> Tensor:
    """G K: the r-th run of d columns of G [m, r d] times K[r] [d, d]."""
    runs = G.unflatten(-1, (len(K), -1)).transpose(0, 1)
    return (runs @ K).transpose(0, 1).flatten(-2)
