"""MuonEq: Muon on momentum whose rows, columns or both are equalised first."""

import torch
from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    decay_,
    heavy_ball_momentum,
    rms_scale,
    safe_norm,
    step_function,
)
from optimizers.polar import orthogonal_direction


def equalized(u: Tensor, mode: str, eps: float) -> Tensor:
    """u_ij / sqrt(sum_j u_ij^2 + eps) ("r"), the same over columns ("c"), or both factors of one u ("rc")."""
    if mode not in ("r", "c", "rc"):
        raise ValueError(f'muoneq mode must be "r", "c" or "rc"; found {mode!r}')
    equal = u
    for axis, dim in (("r", -1), ("c", -2)):
        if axis in mode:
            size = safe_norm(u, dim)
            equal = equal / torch.hypot(size, torch.full_like(size, eps**0.5))
    return equal


@step_function
def muoneq(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 1e-3, weight_decay: Scalar = 0.1,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "quintic", polar_steps: int | None = None,
    mode: str = "r", eps: float = 1e-8,
) -> None:  # fmt: skip
    """MuonEq (MaeChd/muon-eq@99b6c8b muoneq.py).

    B <- mu B + G;  u = G + mu B;  W <- W (1 - lr wd) - lr 0.2 sqrt(max(m, n)) polar(equalized(u))

    mode: "r" rows, "c" columns, "rc" both. weight, grad [..., m, n]; state: momentum of the weight's shape.
    eps is added to the sum of squares under the root. The decay takes the plain lr, without the RMS factor.
    """
    u = heavy_ball_momentum(grad, state, momentum, nesterov)
    U = rms_scale(weight) * orthogonal_direction(equalized(u, mode, eps), polar, polar_steps)
    decay_(weight, U, lr, weight_decay)
    weight.sub_(lr * U)
