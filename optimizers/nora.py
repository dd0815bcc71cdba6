"""Nora: momentum orthogonal to the weight row by row, every row at unit norm."""

import torch
from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    buffer,
    decay_,
    nesterov_average_,
    row_blocks,
    safe_norm,
    spectral_scale,
    step_function,
)


@step_function
def nora(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.005, weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.95, nesterov: bool = True, eps: float = 1e-10,
) -> None:  # fmt: skip
    """Nora, O(mn) (the formula on which two independent public ports agree).

    u as in muon;  w_i = W_i / max(|W_i|, eps);  v_i = u_i - <u_i, w_i> w_i;
    d_i = v_i / max(|v_i|, eps), all per row;
    W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) d

    weight, grad [..., m, n]; state: momentum of the weight's shape. The projection uses W before its decay;
    row norms of W grow to second order in lr (a tangent step without retraction). A zero row of W has nothing
    to take out.
    """
    scale = spectral_scale(weight)
    for W, G, M in row_blocks(weight, grad, buffer(state, "momentum", weight)):
        u = nesterov_average_(M, G, momentum, nesterov)
        along = torch.linalg.vecdot(u, W).unsqueeze(-1) / safe_norm(W, -1).clamp(min=eps).square()
        v = u.addcmul_(W, along, value=-1)
        decay_(W, v, lr, weight_decay)
        W.addcmul_(v, lr * scale / safe_norm(v, -1).clamp(min=eps), value=-1)
