"""Direction: D -> U, what the step does with singular values or rows. Aurora's and the Stiefel ascent have
files.
"""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import rescaled, safe_norm, unit
from optimizers.polar import METHODS, polar, soft_polar
from optimizers.stage import Scalar, is_off, stage

Polar = Annotated[str, " | ".join(METHODS), "method of the polar factor"]
PolarSteps = Annotated[int | None, "[1, inf)", "its iterations; nothing: the method's own number"]
Contra = Annotated[Scalar, "[0, inf)", "push away from what the momentum has most of; 0: off"]


@stage("direction", "polar")
def polar_direction(
    D: Tensor, *, polar: Polar = "simple", polar_steps: PolarSteps = None, contra: Contra = 0.0
) -> Tensor:
    """polar(D), with `contra` pushed away from what D has most of."""
    return orthogonal_direction(D, polar, polar_steps, contra)


def orthogonal_direction(D: Tensor, method: str, steps: int | None, contra: Scalar) -> Tensor:
    """The polar factor, pushed by contra_direction."""
    return contra_direction(polar(D, method, steps), D, contra)


@stage("direction", "soft")
def soft_direction(
    D: Tensor, *, contra: Contra = 0.0,
    blend: Annotated[Scalar, "[-1, 1]", "-1 contra push, 0 polar factor, 1 soft; lines between"] = 1.0,
    p: Annotated[float, "(0, 1)", "power of the singular values"] = 0.1,
    soft_scale: Annotated[
        str, "none | frobenius | frobenius_sqrt", "what the soft factor is brought to"
    ] = "none",
) -> Tensor:  # fmt: skip
    """S, P = soft_polar(D, p); P pushed by contra max(-blend, 0), then P + max(blend, 0)(S - P)."""
    S, P = soft_polar(D, p, soft_scale)
    P = contra_direction(P, D, contra * positive_part(-blend))
    return P + positive_part(blend) * (S - P)


def positive_part(x: Scalar) -> Scalar:
    """max(x, 0)."""
    return x.clamp(min=0) if isinstance(x, Tensor) else max(x, 0.0)


@stage("direction", by_rows=True)
def rows(
    D: Tensor, *, eps: Annotated[float, "[0, inf)", "least norm of a row that is divided by"] = 1e-12
) -> Tensor:
    """Every row at unit norm, D_i / max(|D_i|, eps). Zero rows stay zero. RMNP."""
    return D / safe_norm(D, -1, eps)


@stage("direction", by_rows=True)
def tangent_rows(
    D: Tensor, W: Tensor, *,
    eps: Annotated[float, "[0, inf)", "least norm of rows of W and of the direction divided by"] = 1e-10,
) -> Tensor:  # fmt: skip
    """w_i = W_i / max(|W_i|, eps); v_i = D_i - <D_i, w_i> w_i; v_i / max(|v_i|, eps). Nora.

    A zero row of W has nothing to take out.
    """
    along = (D * W).sum(-1, keepdim=True)
    size = torch.linalg.vector_norm(W, dim=-1, keepdim=True).clamp(min=eps)  # weights do not overflow
    v = torch.addcmul(D, W, along / size / size, value=-1)
    return v / safe_norm(v, -1, eps)


def contra_direction(P: Tensor, D: Tensor, contra: Scalar) -> Tensor:
    """P - (contra/2) D/opnorm(D), rescaled to |P|: less of what D has much of (result #11). 0 gives P
    back.
    """
    if is_off(contra):
        return P
    return rescaled(P - 0.5 * contra * D / operator_norm(D), safe_norm(P))


def operator_norm(D: Tensor, iterations: int = 5) -> Tensor:
    """Lower bound on the largest singular value [..., 1, 1]: power iterations from the ones vector."""
    v = D.new_full((*D.shape[:-2], D.shape[-1], 1), D.shape[-1] ** -0.5)
    for _ in range(iterations):
        a = unit(D @ v, dim=-2)
        v = unit(D.mT @ a, dim=-2)
    return safe_norm(D @ v).clamp(min=1e-10)
