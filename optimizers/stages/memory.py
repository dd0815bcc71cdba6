"""Memory: gradient -> u, what a step knows of the gradients before. Left out, u is the gradient itself."""

import torch
from torch import Tensor

from optimizers.norms import average_
from optimizers.stage import Momentum, Nesterov, State, buffer, stage


@stage("memory", by_rows=True)
def nesterov(G: Tensor, state: State, *, momentum: Momentum = 0.95, nesterov: Nesterov = True) -> Tensor:
    """M <- M + (1 - mu)(G - M); u = (1 - mu) G + mu M, or M itself without Nesterov. No bias correction."""
    M = buffer(state, "momentum", G)
    if isinstance(momentum, Tensor) or not nesterov:
        average_(M, G, momentum)
        return (1 - momentum) * G + momentum * M if nesterov else M.clone()
    D = G - M  # one subtraction and two additions take less time than two lerps where memory is the limit
    M.add_(D, alpha=1 - momentum)
    return torch.add(M, D, alpha=momentum * (1 - momentum), out=D)


@stage("memory", by_rows=True)
def heavy_ball(G: Tensor, state: State, *, momentum: Momentum = 0.95, nesterov: Nesterov = True) -> Tensor:
    """B <- mu B + G; u = G + mu B, or B itself without Nesterov."""
    B = buffer(state, "momentum", G).mul_(momentum).add_(G)
    return G + momentum * B if nesterov else B.clone()
