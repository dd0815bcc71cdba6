"""Riemannian Aurora's direction: steepest ascent on the Stiefel manifold with equal row norms."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import inner, safe_norm, unit
from optimizers.polar import polar
from optimizers.stage import stage
from optimizers.stages.direction import Polar, PolarSteps


@stage("direction")
def stiefel(
    D: Tensor, *, polar: Polar = "simple", polar_steps: PolarSteps = None,
    outer_steps: Annotated[int, "[0, inf)", "ascent steps from the polar factor"] = 3,
    retraction_steps: Annotated[int, "[0, inf)", "rounds of row norms and polar factor after each"] = 2,
    ascent_step: Annotated[float, "[0, inf)", "length of an ascent step, times the gradient's own"] = 0.1,
) -> Tensor:  # fmt: skip
    """row_balanced_ascent(D); square matrices take the polar factor."""
    return row_balanced_ascent(D, polar, polar_steps, outer_steps, retraction_steps, ascent_step)


def row_multipliers(G: Tensor, U: Tensor, B: Tensor, rho: float) -> Tensor:
    """lam [..., m, 1] of the constraints |U_i|^2 = rho: (rho + reg - P o P) lam = q by conjugate gradients, P
    = U U^T.

    q_i = <G_i, U_i> - <(U B)_i, U_i> less its mean; reg = max(max_i |U_i|^4 - rho + 1e-3, 0). At most 20
    iterations from zero; a matrix stops for good when p.Ap < 1e-30 (the operator may be indefinite) or
    |residual| < 1e-8 max(|q|, 1e-12). A solution that is not finite becomes zero.
    """
    q = ((G - U @ B) * U).sum(-1, keepdim=True)
    q = q - q.mean(-2, keepdim=True)
    regularisation = (U.square().sum(-1, keepdim=True).square().amax(-2, keepdim=True) - rho + 1e-3).clamp(
        min=0
    )
    P_squared = (U @ U.mT).square()
    tolerance = 1e-8 * safe_norm(q).clamp(min=1e-12)
    x, residual, p = torch.zeros_like(q), q, q
    running = torch.ones_like(tolerance, dtype=torch.bool)
    for _ in range(20):
        Ap = (rho + regularisation) * p - P_squared @ p
        curvature, size = inner(p, Ap), inner(residual, residual)
        running = running & (curvature >= 1e-30)
        alpha = torch.where(running, size / curvature, 0)
        x, residual = x + alpha * p, residual - alpha * Ap
        running = running & (safe_norm(residual) >= tolerance)
        p = torch.where(running, residual + inner(residual, residual) / size * p, p)
    x = torch.where(x.isfinite().all(-2, keepdim=True), x, 0)
    return x - x.mean(-2, keepdim=True)


def row_balanced_ascent(
    G: Tensor, method: str, steps: int | None, outer_steps: int, retraction_steps: int, ascent_step: float
) -> Tensor:
    """Ascent of <G, U> over U^T U = I with equal row norms, on the tall orientation; polar(G) where G is
    square.

    U = polar(G); outer_steps times: B = sym(U^T G), S = B - U^T diag(lam) U, Z = G - U S - diag(lam) U, Y = U
    + ascent_step Z, and retraction_steps times every row of Y to norm sqrt(n/m), Y = polar(Y); U = Y.
    """
    m, n = G.shape[-2:]
    if m < n:
        return row_balanced_ascent(G.mT, method, steps, outer_steps, retraction_steps, ascent_step).mT
    U = polar(G, method, steps)
    for _ in range(outer_steps if m > n else 0):
        B = 0.5 * (U.mT @ G + G.mT @ U)
        lam = row_multipliers(G, U, B, n / m)
        U = U + ascent_step * (G - U @ (B - U.mT @ (lam * U)) - lam * U)
        for _ in range(retraction_steps):
            U = polar((n / m) ** 0.5 * unit(U, -1, 1e-7), method, steps)
    return U
