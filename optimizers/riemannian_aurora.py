"""Riemannian Aurora: steepest ascent on the Stiefel manifold with equal row norms."""

import torch
from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    decay_,
    inner,
    nesterov_momentum,
    safe_norm,
    spectral_scale,
    step_function,
    unit,
)
from optimizers.polar import polar


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


@step_function
def riemannian_aurora(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.05, weight_decay: Scalar = 0.025,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
    outer_steps: int = 3, retraction_steps: int = 2, ascent_step: float = 0.1,
) -> None:  # fmt: skip
    """Riemannian Aurora (tilde-research/aurora-release@3d79a5c src/riemannian_aurora.py).

    u as in muon;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) row_balanced_ascent(u); square matrices take
    Muon's step

    weight, grad [..., m, n]; state: momentum of the weight's shape. Not invariant to the gradient's scale:
    the ascent direction grows with |u| while U stays at sqrt(min(m, n)). As published the non-square branch
    stops with a dtype error; this is what it computes once everything is cast to one dtype.
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    U = spectral_scale(weight) * row_balanced_ascent(
        u, polar, polar_steps, outer_steps, retraction_steps, ascent_step
    )
    decay_(weight, U, lr, weight_decay)
    weight.sub_(lr * U)
