"""RMNP: momentum with every row at unit norm."""

import torch
from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    buffer,
    decay_,
    nesterov_average_by_difference_,
    row_blocks,
    safe_norm,
    spectral_scale,
    step_function,
)


@step_function
def rmnp(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.005, weight_decay: Scalar = 0.1,
    momentum: Scalar = 0.95, nesterov: bool = True, eps: float = 1e-12,
) -> None:  # fmt: skip
    """RMNP, O(mn) (MaeChd/muon-eq@99b6c8b RMNP_optimizer.py, branch is_rmnp).

    u as in muon;  U_i = sqrt(max(1, m/n)) u_i / max(|u_i|, eps) per row;  W <- W (1 - lr wd) - lr U

    weight, grad [..., m, n]; state: momentum of the weight's shape. Zero rows stay where they are.
    """
    rate = torch.as_tensor(lr * spectral_scale(weight), dtype=weight.dtype)
    for W, G, M in row_blocks(weight, grad, buffer(state, "momentum", weight)):
        u = nesterov_average_by_difference_(M, G, momentum, nesterov)
        decay_(W, u, lr, weight_decay)
        W.addcmul_(u, rate / safe_norm(u, -1, eps), value=-1)
        del u  # the next block's takes its place in the cache
