"""Muon^2: Muon on momentum divided by the running RMS of every gradient entry."""

from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    average_,
    buffer,
    decay_,
    nesterov_momentum,
    spectral_scale,
    squared,
    step_function,
)
from optimizers.polar import orthogonal_direction


@step_function
def muonsq(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.1, weight_decay: Scalar = 0.0125,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
    beta2: Scalar = 0.95, eps: float = 1e-10,
) -> None:  # fmt: skip
    """Muon^2 (published result #7; KellerJordan/modded-nanogpt@f411b3d results/20260501_muonsq).

    u as in muon;  v <- b2 v + (1 - b2) G^2 elementwise, of the raw gradient;
    W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) polar(u / (sqrt(v) + eps))

    weight, grad [..., m, n]; state: momentum and variance of the weight's shape. No bias correction: a factor
    common to all entries cancels in the polar factor.
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    v = average_(buffer(state, "variance", weight), squared(grad), beta2)
    U = spectral_scale(weight) * orthogonal_direction(u / (v.sqrt() + eps), polar, polar_steps)
    decay_(weight, U, lr, weight_decay)
    weight.sub_(lr * U)
