"""Aurora: the semi-orthogonal update whose rows are all equally long."""

import torch
from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    apply_update_,
    nesterov_momentum,
    safe_norm,
    spectral_scale,
    step_function,
)  # fmt: skip
from optimizers.polar import contra_direction, polar, product


def balanced_polar(
    u: Tensor, method: str, steps: int | None, iterations: int, beta: float, leverage: str
) -> Tensor:
    """A polar factor with row norms near sqrt(n/m) on the tall orientation m > n; polar(u) where u is square.

    d_i = 1/max(|u_i|, 1e-7);  `iterations` times P = polar(diag(d) u), and between two
    d_i <- d_i ((n/m) / max(|P_i|^2, 1e-14))^beta. leverage: whence |P_i|^2, "polar" or "gram" (see aurora).
    """
    if leverage not in ("polar", "gram"):
        raise ValueError(f'aurora leverage must be "polar" or "gram"; found {leverage!r}')
    m, n = u.shape[-2:]
    if m == n:
        return polar(u, method, steps)
    if m < n:
        tall = u.mT.contiguous() if leverage == "gram" else u.mT  # strided rows: 30 times as long for a norm
        return balanced_polar(tall, method, steps, iterations, beta, leverage).mT
    d = 1 / safe_norm(u, -1).clamp(min=1e-7)
    for _ in range(iterations - 1):
        scores = (
            leverage_scores(d * u)
            if leverage == "gram"
            else polar(d * u, method, steps).square().sum(-1, True)
        )
        d = d * ((n / m) / scores.clamp(min=1e-14)) ** beta
    return polar(d * u, method, steps)


@step_function
def aurora(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.05, weight_decay: Scalar = 0.025,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
    iterations: int = 2, beta: float = 0.5, leverage: str = "polar", contra: Scalar = 0.0,
    neuron_beta2: Scalar | None = None, update_floor: Scalar = 0.0, radial_brake: Scalar | None = None,
    cautious: bool = False,
) -> None:  # fmt: skip
    """Aurora (tilde-research/aurora-release@3d79a5c src/aurora.py).

    u as in muon;  U = sqrt(max(1, m/n)) balanced_polar(u);  W <- W (1 - lr wd) - lr U

    weight, grad [..., m, n]; state: momentum of the weight's shape (and neuron_variance with neuron_beta2).
    Wide matrices balance their columns; square ones take Muon's step. The options are muon's; result #17 is
    contra=.4, update_floor=.35, lr=.0375, weight_decay=0.

    leverage="gram": between two polar factors only row norms are needed, and leverage_scores has them for
    0.14 of a polar factor's time (3072 x 768, one core). Relative difference of the directions (of their
    largest entry), 3072 x 768, rows of uneven length, float32 as float64, from
    tests/benchmarks/polar_accuracy.py: momentum of condition 10: 5e-6 (1e-5); 1e3: 1.7e-3 (3.7e-3); 1e5:
    2.2e-3 (4.3e-3).
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    D = contra_direction(balanced_polar(u, polar, polar_steps, iterations, beta, leverage), u, contra)
    apply_update_(
        weight, spectral_scale(weight) * D, state, lr=lr, weight_decay=weight_decay, cautious=cautious,
        neuron_beta2=neuron_beta2, update_floor=update_floor, radial_brake=radial_brake,
    )  # fmt: skip


def leverage_scores(Y: Tensor) -> Tensor:
    """diag(Y (Y^T Y + r I)^-1 Y^T) [..., m, 1] of a tall Y: the squared row norms of its polar factor.

    r = 2^-24 |Y|^2, the trace of the Gram matrix, hides singular values below 2^-12 |Y|, which 12 simple
    iterations do not bring to 1 either. Zero gives zero. Where the Cholesky factorisation fails all the same
    (TF32 products can do that), n/m: rows count as balanced.
    """
    m, n = Y.shape[-2:]
    G = product(Y.mT, Y)
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(2**-24 * diagonal.sum(-1, keepdim=True) + torch.finfo(G.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(G)
    # Inverting the small factor and multiplying is faster than solving for all m rows.
    identity = torch.eye(n, dtype=Y.dtype, device=Y.device)
    Z = product(Y, torch.linalg.solve_triangular(factor, identity, upper=False).mT)
    scores = torch.linalg.vector_norm(Z, dim=-1, keepdim=True).square()
    return torch.where((failed == 0)[..., None, None], scores, n / m)
