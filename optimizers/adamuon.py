"""AdaMuon: the polar factor of the momentum's signs, with Adam's elementwise variance on top."""

from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    average_,
    buffer,
    decay_,
    heavy_ball_momentum,
    safe_norm,
    step_function,
)
from optimizers.polar import orthogonal_direction


@step_function
def adamuon(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.01, weight_decay: Scalar = 0.01,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "quintic", polar_steps: int | None = None,
    beta2: Scalar = 0.95, eps: float = 1e-8,
) -> None:  # fmt: skip
    """AdaMuon (MaeChd/muon-eq@99b6c8b adamuon.py, matrix branch).

    B <- mu B + G;  u = G + mu B;  D = polar(sign(u));  v <- b2 v + (1 - b2) D^2 elementwise;
    X = D / (sqrt(v) + eps), to RMS 0.2;  W <- W (1 - lr wd) - lr X

    weight, grad [..., m, n]; state: momentum and variance of the weight's shape. The code has one coefficient
    for momentum and v; here beta2 is its own. No bias correction of v (it cancels in the RMS).
    """
    u = heavy_ball_momentum(grad, state, momentum, nesterov)
    D = orthogonal_direction(u.sign(), polar, polar_steps)
    v = average_(buffer(state, "variance", weight), D.square(), beta2)
    X = D / (v.sqrt() + eps)
    U = X * (0.2 * (X.shape[-2] * X.shape[-1]) ** 0.5 / (safe_norm(X) + eps))
    decay_(weight, U, lr, weight_decay)
    weight.sub_(lr * U)
