"""Soft-Muon: singular values to a small power, blended with Muon and Contra-Muon over training."""

from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    apply_update_,
    nesterov_momentum,
    spectral_scale,
    step_function,
)
from optimizers.polar import contra_direction, soft_polar


def positive_part(x: Scalar) -> Scalar:
    """max(x, 0)."""
    return x.clamp(min=0) if isinstance(x, Tensor) else max(x, 0.0)


@step_function
def soft_muon(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.0375, weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.95, nesterov: bool = True, blend: Scalar = 1.0, p: float = 0.1,
    soft_scale: str = "none", contra: Scalar = 0.4, neuron_beta2: Scalar | None = None,
    update_floor: Scalar = 0.0, radial_brake: Scalar | None = None, cautious: bool = False,
) -> None:  # fmt: skip
    """Soft-Muon (published result #20; KellerJordan/modded-nanogpt@f411b3d
    results/20260509_contra_soft_muon).

    u as in muon;  S, P = soft_polar(u, p);  D = P pushed by contra max(-blend, 0) (see contra_muon);
    D <- D + max(blend, 0)(S - D);  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D

    blend, a schedulable hyperparameter: -1 is Contra-Muon, 0 Muon, 1 Soft-Muon, between them straight lines;
    a recipe takes it from -1 over 0 to 1 during training. S and P come of one run of 12 simple iterations
    from u / (its Schatten-4 norm), hence blend 0 is muon up to that iteration's convergence. soft_scale: see
    soft_polar.
    weight, grad [..., m, n]; state: momentum of the weight's shape (and neuron_variance
    with neuron_beta2).
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    S, P = soft_polar(u, p, soft_scale)
    D = contra_direction(P, u, contra * positive_part(-blend))
    D = D + positive_part(blend) * (S - D)
    apply_update_(
        weight, spectral_scale(weight) * D, state, lr=lr, weight_decay=weight_decay, cautious=cautious,
        neuron_beta2=neuron_beta2, update_floor=update_floor, radial_brake=radial_brake,
    )  # fmt: skip
