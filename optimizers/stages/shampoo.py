"""Shampoo: inverse fourth roots of both covariances, at the norm of Adam's step."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import average_, held, safe_norm, squared
from optimizers.stage import Scalar, State, buffer, stage


@stage("precondition")
def shampoo(
    G: Tensor, u: Tensor, state: State, t: Tensor, *,
    beta2: Annotated[Scalar, "[0, 1)", "what the covariances and the average of squares keep"] = 0.9,
    root_eps: Annotated[float, "[0, inf)", "added to eigenvalues; 0: those not above 0 have no root"] = 0.0,
    refresh_every: Annotated[int, "[1, inf)", "steps between two roots; the steps before are Adam's"] = 1,
    graft_eps: Annotated[float, "[0, inf)", "added to the root of the average of squares"] = 1e-15,
) -> Tensor:  # fmt: skip
    """L^-1/4 u R^-1/4 at the norm of A = u / (sqrt(v) + eps), Adam's step; L, R and v averages of G G^T, G^T
    G and G^2 over 1 - b2^t.

    The roots are made at the steps t that refresh_every divides, before the update; a step before the first
    of them is A. With root_eps = 0 rounding noise above 0 is inverted too: only where the gradients span the
    whole matrix is the result well determined.
    """
    (m, n), G = G.shape[-2:], held(G)
    L = average_(buffer(state, "row_covariance", G, (m, m)), G @ G.mT, beta2)
    R = average_(buffer(state, "column_covariance", G, (n, n)), G.mT @ G, beta2)
    v = average_(buffer(state, "variance", G), squared(G), beta2)
    unbiased = 1 - beta2**t
    A = u / ((v / unbiased).sqrt() + graft_eps)
    roots = [buffer(state, "row_root", G, (m, m)), buffer(state, "column_root", G, (n, n))]
    renew_(roots, [L / unbiased, R / unbiased], t % refresh_every == 0, root_eps, always=refresh_every == 1)
    P = roots[0] @ u @ roots[1]
    return torch.where(t < refresh_every, A, P * (safe_norm(A) / (safe_norm(P) + 1e-16)))


def renew_(roots: list[Tensor], covariances: list[Tensor], due: Tensor, eps: float, always: bool) -> None:
    """roots <- covariances^-1/4 where due [..., 1, 1]. Without an eigendecomposition where nothing is: run
    eagerly, a Python branch; compiled, a conditional of the graph.
    """

    def made(*operands: Tensor) -> tuple[Tensor, ...]:
        half = len(operands) // 2
        pairs = zip(operands[:half], operands[half:], strict=True)
        return tuple(torch.where(due, inverse_fourth_root(C, eps), old) for old, C in pairs)

    def kept(*operands: Tensor) -> tuple[Tensor, ...]:  # copies: a branch may not return its operands
        return tuple(old.clone() for old in operands[: len(operands) // 2])

    operands = (*roots, *covariances)
    if torch.compiler.is_compiling() and not always:
        new = torch.cond(due.any(), made, kept, operands)
    elif always or due.any():
        new = made(*operands)
    else:
        return
    for root, value in zip(roots, new, strict=True):
        root.copy_(value)


def inverse_fourth_root(S: Tensor, eps: float) -> Tensor:
    """Q diag(d^-1/4) Q^T of S + eps I = Q diag(d) Q^T. All d are moved up to a least of eps; where eps is 0,
    those not above 0 stay without root.
    """
    if not eps:
        d, Q = torch.linalg.eigh(S)
        power = torch.where(d > 0, d.clamp(min=torch.finfo(d.dtype).tiny) ** -0.25, 0.0)
    else:
        d, Q = torch.linalg.eigh(S + eps * torch.eye(S.shape[-1], dtype=S.dtype, device=S.device))
        least = d[..., :1]
        power = torch.where(least < eps, d - least + eps, d) ** -0.25
    return (Q * power.unsqueeze(-2)) @ Q.mT
