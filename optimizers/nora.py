"""Nora: momentum orthogonal to the weight row by row, every row at unit norm."""

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
    rate = torch.as_tensor(lr * spectral_scale(weight), dtype=weight.dtype)
    for W, G, M in row_blocks(weight, grad, buffer(state, "momentum", weight)):
        u = nesterov_average_by_difference_(M, G, momentum, nesterov)
        along = (u * W).sum(-1, keepdim=True)
        size = torch.linalg.vector_norm(W, dim=-1, keepdim=True).clamp(min=eps)  # weights do not overflow
        v = u.addcmul_(W, along / size / size, value=-1)
        decay_(W, v, lr, weight_decay)
        W.addcmul_(v, rate / safe_norm(v, -1, eps), value=-1)
        del u, v  # the next block's take their place in the cache
