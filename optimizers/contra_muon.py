"""Contra-Muon: Muon that leans away from the directions the momentum already has most of."""

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
def contra_muon(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.0375, weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
    contra: Scalar = 0.4, neuron_beta2: Scalar | None = None, update_floor: Scalar = 0.0,
    radial_brake: Scalar | None = None, cautious: bool = False,
) -> None:  # fmt: skip
    """Contra-Muon (published result #11; KellerJordan/modded-nanogpt@f411b3d results/20260501_contra_muon).

    u as in muon;  O = polar(u);  D = O - (contra/2) u/opnorm(u), rescaled to |O|;
    W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D, opnorm by 5 power iterations from the ones vector.

    weight, grad [..., m, n]; state: momentum of the weight's shape (and neuron_variance with neuron_beta2).
    Result #11 is neuron_beta2=.95, update_floor=.35; its printed weight decay of .025 was never applied.
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    U = spectral_scale(weight) * orthogonal_direction(u, polar, polar_steps, contra)
    apply_update_(
        weight, U, state, lr=lr, weight_decay=weight_decay, cautious=cautious, neuron_beta2=neuron_beta2,
        update_floor=update_floor, radial_brake=radial_brake,
    )  # fmt: skip
