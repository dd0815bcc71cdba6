"""DynMuon's direction: singular values to a small power."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import safe_norm
from optimizers.polar import polar, product
from optimizers.stage import Scalar, is_off, stage
from optimizers.stages.direction import Polar, PolarSteps


@stage("direction")
def power_direction(
    D: Tensor, *, polar: Polar = "simple", polar_steps: PolarSteps = None,
    power: Annotated[Scalar, "(-1, 1)", "of the singular values; 0: the polar factor"] = 0.0,
    divisor: Annotated[float, "(0, inf)", "of the gradients: tokens of a batch"] = 524288.0,
) -> Tensor:  # fmt: skip
    """About U S^p V^T of D/divisor = U S V^T, see singular_values_to."""
    return singular_values_to(power, D / divisor, polar, polar_steps)


def singular_values_to(p: Scalar, D: Tensor, method: str, steps: int | None) -> Tensor:
    """N^p (I + d E + d(d - 1)/2 E^2) polar(X): X = D/N, N = |D| + 1e-7, E = X X^T - I on the short side,
    d = p/2, the Taylor polynomial of (X X^T)^d at I.

    It is near the power only for singular values near |D|; the small ones get 1 - d + d(d - 1)/2.
    """
    if D.shape[-2] > D.shape[-1]:
        return singular_values_to(p, D.mT, method, steps).mT
    N = safe_norm(D) + 1e-7
    X = D / N
    P = polar(X, method, steps)
    if is_off(p):
        return P
    E = product(X, X.mT) - torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)
    d = p / 2
    EP = product(E, P)
    return N**p * (P + d * EP + d * (d - 1) / 2 * product(E, EP))
