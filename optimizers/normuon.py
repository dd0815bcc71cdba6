"""NorMuon and U-NorMuon: Muon with every neuron's update brought to one size."""

from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    apply_update_,
    average_,
    buffer,
    decay_,
    nesterov_momentum,
    safe_norm,
    spectral_scale,
    step_function,
    unit,
)  # fmt: skip
from optimizers.polar import orthogonal_direction


@step_function
def normuon(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.02, weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "quintic", polar_steps: int | None = None,
    beta2: Scalar = 0.95, eps: float = 1e-10, contra: Scalar = 0.0, neuron_beta2: Scalar | None = None,
    update_floor: Scalar = 0.0, radial_brake: Scalar | None = None, cautious: bool = False,
) -> None:  # fmt: skip
    """NorMuon (arXiv 2510.05491), as zichongli5/NorMuon@d45c9a4 computes it.

    u as in muon;  D = polar(u);  v_i <- b2 v_i + (1 - b2) mean_j O_ij^2 per row;
    O_i <- O_i / (sqrt(v_i) + eps);
    D rescaled to its norm before;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D

    weight, grad [..., m, n]; state: momentum of the weight's shape, row_variance [..., m, 1].
    neuron_beta2 replaces this normalisation (beta2, eps) by the one of results #9-#11: per row if m >= n else
    per column, after the spectral scale, v clamped at 1e-10 under the root. The other options are muon's.
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    D = orthogonal_direction(u, polar, polar_steps, contra)
    if neuron_beta2 is None:
        size = safe_norm(D)
        v = average_(
            buffer(state, "row_variance", D, (D.shape[-2], 1)), D.square().mean(-1, keepdim=True), beta2
        )
        D = D / (v.sqrt() + eps)
        D = D * (size / (safe_norm(D) + eps))
    apply_update_(
        weight, spectral_scale(weight) * D, state, lr=lr, weight_decay=weight_decay, cautious=cautious,
        neuron_beta2=neuron_beta2, update_floor=update_floor, radial_brake=radial_brake,
    )  # fmt: skip


@step_function
def u_normuon(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.02, weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
) -> None:  # fmt: skip
    """U-NorMuon, NorMuon without the running variance (Aurora paper, appendix A).

    u as in muon;  D = polar(u);  every row of D to norm sqrt(min(m, n)/m), the RMS row norm of an exact polar
    factor;
    W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D

    weight, grad [..., m, n]; state: momentum of the weight's shape.
    """
    m, n = weight.shape[-2:]
    u = nesterov_momentum(grad, state, momentum, nesterov)
    U = (
        spectral_scale(weight)
        * (min(m, n) / m) ** 0.5
        * unit(orthogonal_direction(u, polar, polar_steps), -1)
    )
    decay_(weight, U, lr, weight_decay)
    weight.sub_(lr * U)
