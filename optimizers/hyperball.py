"""The hyperball step: W <- W - lr |W| U/|U| at constant |W|, in Muon's, NorMuon's and Adam's direction."""

from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    adam_direction,
    hyperball_,
    nesterov_momentum,
    neuron_normalized,
    spectral_scale,
    step_function,
)
from optimizers.polar import orthogonal_direction


@step_function
def muonh(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.018, momentum: Scalar = 0.95,
    nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
) -> None:  # fmt: skip
    """MuonH (KellerJordan/modded-nanogpt@f411b3d results/20260430_muonh).

    u as in muon;  U = polar(u);  X = W - lr |W| U/|U|;  W <- X |W|/|X|

    weight, grad [..., m, n]; state: momentum of the weight's shape. lr is the angle of the step in radians,
    to first order; there is no weight decay. The radius is that of the weight at hand (the source's docstring
    says the initial one; the same up to rounding): a zero weight stays zero.
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    hyperball_(weight, orthogonal_direction(u, polar, polar_steps), lr)


@step_function
def normuonh(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.018, momentum: Scalar = 0.95,
    nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None, neuron_beta2: Scalar = 0.95,
) -> None:  # fmt: skip
    """NorMuonH (published result #8; KellerJordan/modded-nanogpt@f411b3d results/20260430_normuonh).

    muonh with U = polar(u) divided by every neuron's running RMS: per row if m >= n, else per column.

    weight, grad [..., m, n]; state: momentum of the weight's shape, neuron_variance
    [..., m, 1] or [..., 1, n].
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    U = spectral_scale(weight) * orthogonal_direction(u, polar, polar_steps)
    hyperball_(weight, neuron_normalized(U, state, neuron_beta2), lr)


@step_function
def adamh(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.018,
    betas: tuple[Scalar, Scalar] = (0.9, 0.95), eps: float = 1e-8,
) -> None:  # fmt: skip
    """AdamH (published result #4; KellerJordan/modded-nanogpt@f411b3d results/20260430_adamh).

    muonh with U = m^ / (sqrt(v^) + eps), Adam's direction with bias correction.

    weight, grad [..., m, n]; state: momentum and variance of the weight's shape, step [..., 1, 1].
    """
    hyperball_(weight, adam_direction(grad, state, betas, eps), lr)
