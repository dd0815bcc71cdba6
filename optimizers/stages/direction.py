"""Direction: D -> U, what the step does with singular values or rows. Aurora's and the Stiefel ascent have
files.
"""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import NORMS, rescaled, safe_norm, schatten4_norm, unit
from optimizers.polar import METHODS, polar, soft_polar
from optimizers.stage import Norm, Scalar, is_off, stage

Polar = Annotated[str, " | ".join(METHODS), "method of the polar factor"]
PolarSteps = Annotated[int | None, "[1, inf)", "its iterations; nothing: the method's own number"]
Contra = Annotated[Scalar, "[0, inf)", "push away from what the momentum has most of; 0: off"]


Temper = Annotated[Scalar, "[0, 1]", "how far the factor goes towards what it was taken of; 0: off"]


@stage("direction", "polar")
def polar_direction(
    D: Tensor, *, polar: Polar = "simple", polar_steps: PolarSteps = None, norm: Norm = "frobenius",
    contra: Contra = 0.0, temper: Temper = 0.0,
) -> Tensor:  # fmt: skip
    """polar(D), tempered towards D, then with `contra` pushed away from what D has most of."""
    return orthogonal_direction(D, polar, polar_steps, contra, norm, temper)


def orthogonal_direction(
    D: Tensor, method: str, steps: int | None, contra: Scalar, norm: str = "frobenius", temper: Scalar = 0.0
) -> Tensor:
    """The polar factor, tempered and pushed by contra_direction."""
    P = tempered(polar(D, method, steps, norm=norm), D, temper)
    return contra_direction(P, D, contra, norm)


@stage("direction", "soft")
def soft_direction(
    D: Tensor, *, norm: Norm = "frobenius", contra: Contra = 0.0,
    blend: Annotated[Scalar, "[-1, 1]", "-1 contra push, 0 polar factor, 1 soft; lines between"] = 1.0,
    p: Annotated[float, "(0, 1)", "power of the singular values"] = 0.1,
    soft_scale: Annotated[
        str, "none | frobenius | frobenius_sqrt | polar", "what the soft factor is brought to"
    ] = "none",
) -> Tensor:  # fmt: skip
    """S, P = soft_polar(D, p); C = P pushed by contra max(-blend, 0); C + max(blend, 0)(S - C).

    soft_scale "polar" brings S, and at last the result, to P's norm: the whole blend of records #20 and #29.
    """
    S, P = soft_polar(D, p, "none" if soft_scale == "polar" else soft_scale)
    C = contra_direction(P, D, contra * positive_part(-blend), norm)
    if soft_scale != "polar":
        return C + positive_part(blend) * (S - C)
    size = NORMS[norm](P)
    return rescaled(C + positive_part(blend) * (rescaled(S, size, norm) - C), size, norm)


def positive_part(x: Scalar) -> Scalar:
    """max(x, 0)."""
    return x.clamp(min=0) if isinstance(x, Tensor) else max(x, 0.0)


@stage("direction", by_rows=True)
def rows(
    D: Tensor, *, eps: Annotated[float, "[0, inf)", "least norm of a row that is divided by"] = 1e-12
) -> tuple[Tensor, Tensor]:
    """Every row at unit norm, D_i / max(|D_i|, eps). Zero rows stay zero. RMNP."""
    return D, 1 / safe_norm(D, -1, eps)


@stage("direction", by_rows=True)
def tangent_rows(
    D: Tensor, W: Tensor, *,
    eps: Annotated[float, "[0, inf)", "least norm of rows of W and of the direction divided by"] = 1e-10,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """w_i = W_i / max(|W_i|, eps); v_i = D_i - <D_i, w_i> w_i; v_i / max(|v_i|, eps). Nora.

    A zero row of W has nothing to take out.
    """
    along = (D * W).sum(-1, keepdim=True)
    size = torch.linalg.vector_norm(W, dim=-1, keepdim=True).clamp(min=eps)  # weights do not overflow
    v = torch.addcmul(D, W, along / size / size, value=-1)
    return v, 1 / safe_norm(v, -1, eps)


@stage("direction")
def columns(
    D: Tensor, *, eps: Annotated[float, "[0, inf)", "least norm of a column that is divided by"] = 1e-8
) -> Tensor:
    """Every column at unit norm, D_:j / max(|D_:j|, eps). SCALE's embedding, MOGA over columns."""
    return unit(D, -2, eps)


@stage("direction")
def centred_rows(
    D: Tensor, *, eps: Annotated[float, "[0, inf)", "least norm of a row that is divided by"] = 1e-8
) -> Tensor:
    """X_i = D_i - mean_k D_k; X_i / max(|X_i|, eps), less the mean of these over i: rows that sum to zero.

    A softmax is blind to a vector added to all rows of its head, which this takes out (arXiv 2605.18106).
    """
    U = unit(D - D.mean(-2, keepdim=True), -1, eps)
    return U - U.mean(-2, keepdim=True)


@stage("direction")
def sinkhorn(
    D: Tensor, *, iterations: Annotated[int, "[1, inf)", "times rows, then columns are normalised"] = 5,
    eps: Annotated[float, "[0, inf)", "least norm of a row or column that is divided by"] = 1e-8,
) -> Tensor:  # fmt: skip
    """`iterations` times X_i <- sqrt(n) X_i/|X_i| per row, then X_:j <- sqrt(m) X_:j/|X_:j| per column.

    Sinkhorn's balancing of the squares: columns of RMS 1, rows nearly. SinkGD (arXiv 2502.06742).
    """
    (m, n), X = D.shape[-2:], D
    for _ in range(iterations):
        X = unit(n**0.5 * unit(X, -1, eps), -2, eps) * m**0.5
    return X


@stage("direction")
def whitened(
    D: Tensor, *, iterations: Annotated[int, "[1, inf)", "steps of the coupled iteration"] = 6,
    step_size: Annotated[float, "(0, 0.5]", "of the iteration; above 1/2 it diverges"] = 0.5,
) -> Tensor:  # fmt: skip
    """(X X^T)^-1/2 X of X = D/|D|, loosely, brought back to |D|. SWAN's GradWhitening (arXiv 2412.13148).

    Y = X X^T, Z = I;  `iterations` times T = 3 I - Z Y, Y <- b Y T, Z <- b T Z, b the step size;  Z X.
    Singular values below a hundredth of |D| stay small: they grow by half a step.
    """
    size = safe_norm(D)
    X = D * (1 / size.clamp(min=1e-30))
    identity = torch.eye(D.shape[-2], dtype=D.dtype, device=D.device)
    Y, Z = X @ X.mT, identity.expand(*D.shape[:-2], -1, -1)
    for _ in range(iterations):
        T = 3 * identity - Z @ Y
        Y, Z = step_size * Y @ T, step_size * T @ Z
    return rescaled(Z @ X, size)


def tempered(P: Tensor, D: Tensor, rho: Scalar) -> Tensor:
    """P + rho R min(1, s4(P)/4 / s4(R)), R = D/s4(D) - P, back to P's Schatten-4 norm s4 (record #38)."""
    if is_off(rho):
        return P
    size = schatten4_norm(P)
    R = D / schatten4_norm(D).clamp(min=1e-10) - P
    cap = (0.25 * size / schatten4_norm(R).clamp(min=1e-10)).clamp(max=1)
    return rescaled(P + rho * cap * R, size, "schatten4")


def contra_direction(P: Tensor, D: Tensor, contra: Scalar, norm: str = "frobenius") -> Tensor:
    """P - (contra/2) D/opnorm(D), rescaled to |P|: less of what D has much of (record #11). 0 gives P back.

    With the Schatten-4 norm D is divided by its own, and P's is kept (records #20 on): a weaker push.
    """
    if is_off(contra):
        return P
    size = schatten4_norm(D).clamp(min=1e-10) if norm == "schatten4" else operator_norm(D)
    return rescaled(P - 0.5 * contra * D / size, NORMS[norm](P), norm)


def operator_norm(D: Tensor, iterations: int = 5) -> Tensor:
    """Lower bound on the largest singular value [..., 1, 1]: power iterations from the ones vector."""
    v = D.new_full((*D.shape[:-2], D.shape[-1], 1), D.shape[-1] ** -0.5)
    for _ in range(iterations):
        a = unit(D @ v, dim=-2)
        v = unit(D.mT @ a, dim=-2)
    return safe_norm(D @ v).clamp(min=1e-10)
