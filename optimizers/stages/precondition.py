"""Precondition: u -> D, other axes and other sizes before the direction is taken. SOAP has a file of its
own.
"""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import average_, inner, safe_norm, squared, unit
from optimizers.stage import Scalar, State, buffer, stage


@stage("precondition")
def equalize(
    u: Tensor, *,
    mode: Annotated[str, "r | c | rc", "what is brought to one norm: rows, columns or both"] = "r",
    eps: Annotated[float, "[0, inf)", "added to the sums of squares"] = 1e-8,
) -> Tensor:  # fmt: skip
    """u_ij / sqrt(sum_j u_ij^2 + eps) ("r"), the same over columns ("c"), or both factors of one u ("rc").

    MuonEq (MaeChd/muon-eq@99b6c8b muoneq.py).
    """
    equal = u
    for axis, dim in (("r", -1), ("c", -2)):
        if axis in mode:
            size = safe_norm(u, dim)
            equal = equal / torch.hypot(size, torch.full_like(size, eps**0.5))
    return equal


@stage("precondition")
def second_moment(
    G: Tensor, u: Tensor, state: State, *,
    beta2: Annotated[Scalar, "[0, 1)", "what the average of squared gradients keeps"] = 0.95,
    eps: Annotated[float, "[0, inf)", "added to the root of the average"] = 1e-10,
) -> Tensor:  # fmt: skip
    """u / (sqrt(v) + eps), v <- b2 v + (1 - b2) G^2 elementwise, without bias correction. Muon^2."""
    return u / (average_(buffer(state, "variance", G), squared(G), beta2).sqrt() + eps)


@stage("precondition", by_rows=True)
def standardise(
    u: Tensor, *, eps: Annotated[float, "[0, inf)", "added to the mean of squares"] = 1e-8
) -> Tensor:
    """Every row less its mean, over its standard deviation. SWAN's GradNorm, first version."""
    g = u - u.mean(-1, keepdim=True)
    size = safe_norm(g, -1) * g.shape[-1] ** -0.5
    return g / torch.hypot(size, torch.full_like(size, eps**0.5))


@stage("precondition")
def sign(u: Tensor) -> Tensor:
    """The sign of every entry. AdaMuon."""
    return u.sign()


@stage("precondition")
def adam(
    G: Tensor, state: State, t: Tensor, *,
    betas: Annotated[tuple[Scalar, Scalar], "[0, 1)", "what the averages of G and G^2 keep"] = (0.9, 0.95),
    eps: Annotated[float, "[0, inf)", "added to the root of the second average"] = 1e-8,
) -> Tensor:  # fmt: skip
    """Adam's (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), elementwise, of the gradient. arXiv
    1412.6980.
    """
    m = average_(buffer(state, "momentum", G), G, betas[0])
    v = average_(buffer(state, "variance", G), squared(G), betas[1])
    return m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


@stage("precondition")
def radial_reset(
    u: Tensor, W: Tensor, t: Tensor, *,
    radial: Annotated[Scalar, "[0, inf)", "length of the part along W, in that of the part across"] = 0.044,
    reset_begin: Annotated[int, "[0, inf)", "first update, from 0, that resets it"] = 750,
) -> Tensor:  # fmt: skip
    """v + radial sign(<u, w>) |v| w, v = u - <u, w> w, w = W/|W|: the part along W at a length of its own.

    Open pull request 368 of modded-nanogpt (MuonH, 3010 steps), before the polar factor. W = 0 has no such
    part.
    """
    w = unit(W, (-2, -1))
    along = inner(u, w)
    across = u - along * w
    return torch.where(t <= reset_begin, u, across + radial * along.sign() * safe_norm(across) * w)
