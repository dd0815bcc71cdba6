"""Aurora's direction: the semi-orthogonal matrix whose rows are all equally long."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import safe_norm
from optimizers.polar import polar, product
from optimizers.stage import stage
from optimizers.stages.direction import Contra, Polar, PolarSteps, contra_direction


@stage("direction")
def balanced(
    D: Tensor, *, polar: Polar = "simple", polar_steps: PolarSteps = None, contra: Contra = 0.0,
    iterations: Annotated[int, "[1, inf)", "polar factors taken one after the other"] = 2,
    beta: Annotated[float, "[0, inf)", "power of a row's missing length in its new weight"] = 0.5,
    leverage: Annotated[str, "polar | gram", "whence the rows' lengths between two polar factors"] = "polar",
) -> Tensor:  # fmt: skip
    """balanced_polar(D), with `contra` pushed away from what D has most of."""
    return contra_direction(balanced_polar(D, polar, polar_steps, iterations, beta, leverage), D, contra)


def balanced_polar(
    D: Tensor, method: str, steps: int | None, iterations: int, beta: float, leverage: str
) -> Tensor:
    """A polar factor with row norms near sqrt(n/m) on the tall orientation m > n; polar(D) where D is square.

    d_i = 1/max(|D_i|, 1e-7);  `iterations` times P = polar(diag(d) D), and between two
    d_i <- d_i ((n/m) / max(|P_i|^2, 1e-14))^beta. leverage: whence |P_i|^2, "polar" or "gram" (see aurora).
    """
    m, n = D.shape[-2:]
    if m == n:
        return polar(D, method, steps)
    if m < n:
        tall = D.mT.contiguous() if leverage == "gram" else D.mT  # strided rows: 30 times as long for a norm
        return balanced_polar(tall, method, steps, iterations, beta, leverage).mT
    d = 1 / safe_norm(D, -1).clamp(min=1e-7)
    for _ in range(iterations - 1):
        scores = (
            leverage_scores(d * D)
            if leverage == "gram"
            else polar(d * D, method, steps).square().sum(-1, True)
        )
        d = d * ((n / m) / scores.clamp(min=1e-14)) ** beta
    return polar(d * D, method, steps)


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
