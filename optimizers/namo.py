"""NAMO and NAMO-D: Muon whose step length adapts to the gradient's noise, per matrix and per column."""

import torch
from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    average_,
    buffer,
    count_step,
    nesterov_momentum,
    rms_scale,
    safe_norm,
    squared,
    step_function,
)
from optimizers.polar import orthogonal_direction


@step_function
def namo(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.01, weight_decay: Scalar = 0.1,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "quintic", polar_steps: int | None = None,
    beta2: Scalar = 0.99, eps: float = 1e-8,
) -> None:  # fmt: skip
    """NAMO (minxin-zhg/namo@a3f37b0 src/namo.py).

    u as in muon;  s <- b2 s + (1 - b2)|G|^2;  a = lr sqrt(1 - b2^t)/(1 - mu^t) |u|/(sqrt(s) + eps);
    W <- W (1 - wd min(a, 1)) - min(0.2 sqrt(max(m, n)) a, 1) polar(u)

    weight, grad [..., m, n]; state: momentum of the weight's shape, norm_squared and step [..., 1, 1].
    As in the code |u| is of the Nesterov mix, the decay takes a without the shape factor, and eps stands
    outside the root (the docstring there has it inside).
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    t = count_step(state, weight)
    s = average_(buffer(state, "norm_squared", weight, (1, 1)), squared(safe_norm(grad)), beta2)
    a = lr * (1 - beta2**t).sqrt() / (1 - momentum**t + 1e-12) * safe_norm(u) / (s.sqrt() + eps)
    weight.mul_(1 - weight_decay * a.clamp(max=1))
    weight.sub_((rms_scale(weight) * a).clamp(max=1) * orthogonal_direction(u, polar, polar_steps))


@step_function
def namo_d(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.01, weight_decay: Scalar = 0.1,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "quintic", polar_steps: int | None = None,
    beta2: Scalar = 0.99, eps: float = 1e-8, clip: float = 0.75,
) -> None:  # fmt: skip
    """NAMO-D (minxin-zhg/namo@a3f37b0 src/namo.py), namo with a step length for every column, wide matrices
    too.

    V_j <- b2 V_j + (1 - b2)|G_:j|^2;  k_j = |u_:j|/(sqrt(V_j) + eps), clipped to [c M, M/c], M = mean_j k_j,
    c = clip;
    a_j = lr sqrt(1 - b2^t)/(1 - mu^t) k_j;
    W_:j <- W_:j max(1 - wd min(a_j, 1), 0) - min(0.2 sqrt(max(m, n)) a_j, 1) polar(u)_:j

    weight, grad [..., m, n]; state: momentum of the weight's shape, column_norm_squared [..., 1, n], step
    [..., 1, 1].
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    t = count_step(state, weight)
    shape = (1, weight.shape[-1])
    V = average_(buffer(state, "column_norm_squared", weight, shape), squared(safe_norm(grad, -2)), beta2)
    k = safe_norm(u, -2) / (V.sqrt() + eps)
    M = k.mean(-1, keepdim=True)
    a = lr * (1 - beta2**t).sqrt() / (1 - momentum**t + 1e-12) * torch.clamp(k, clip * M, M / clip)
    weight.mul_((1 - weight_decay * a.clamp(max=1)).clamp(min=0))
    weight.sub_((rms_scale(weight) * a).clamp(max=1) * orthogonal_direction(u, polar, polar_steps))
