"""Muon: momentum, orthogonalised."""

from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    apply_update_,
    nesterov_momentum,
    spectral_scale,
    step_function,
)
from optimizers.polar import orthogonal_direction


@step_function
def muon(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.02, weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
    contra: Scalar = 0.0, neuron_beta2: Scalar | None = None, update_floor: Scalar = 0.0,
    radial_brake: Scalar | None = None, cautious: bool = False,
) -> None:  # fmt: skip
    """Muon (Keller Jordan's blog, 2024; track 3 baseline: KellerJordan/modded-nanogpt@f411b3d
    train_gpt_simple.py).

    M <- M + (1 - mu)(G - M);  u = (1 - mu) G + mu M;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) polar(u)

    weight, grad [..., m, n]; state: momentum of the weight's shape (and neuron_variance with neuron_beta2).
    Options of the records, off by default: contra (#11), neuron_beta2 (#10: .95), update_floor (#9: .35),
    radial_brake (#29: .5), cautious weight decay. The blog's Muon is polar="quintic" (5 steps).
    A zero gradient from the start leaves W to its weight decay.
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    U = spectral_scale(weight) * orthogonal_direction(u, polar, polar_steps, contra)
    apply_update_(
        weight, U, state, lr=lr, weight_decay=weight_decay, cautious=cautious, neuron_beta2=neuron_beta2,
        update_floor=update_floor, radial_brake=radial_brake,
    )  # fmt: skip
