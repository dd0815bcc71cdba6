"""SOAP: the momentum in the eigenbases of the gradient's covariances, divided there by its running RMS."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import NORMS, average_, inner, safe_norm, squared
from optimizers.stage import Norm, Scalar, State, buffer, is_off, stage


@stage("precondition")
def soap(
    G: Tensor, u: Tensor, state: State, t: Tensor, refresh: bool | None, *, norm: Norm = "frobenius",
    beta2: Annotated[Scalar, "[0, 1)", "what the average of squares in the bases keeps"] = 0.9,
    covariance_beta: Annotated[Scalar, "[0, 1)", "what the covariances keep"] = 0.9,
    eps: Annotated[float, "[0, inf)", "added to the root of that average, or its least value"] = 1e-8,
    eps_rule: Annotated[str, "add | clamp", "whether eps is added to the root or is its least"] = "add",
    denominator_floor: Annotated[Scalar, "[0, inf)", "least root, in units of all roots' RMS; 0: off"] = 0.0,
    soap_part: Annotated[Scalar, "[0, 1]", "part of the preconditioned momentum; the rest is u itself"] = 1.0,
    trust: Annotated[bool, "", "go from u to it only as far as it agrees with u and the gradient"] = False,
    trust_floor: Annotated[Scalar, "[0, 1]", "the least way that trust goes"] = 0.0,
    trust_cap: Annotated[Scalar, "[0, 1]", "the longest way that trust goes"] = 1.0,
    refresh_every: Annotated[int, "[1, inf)", "steps between two refreshes of the bases"] = 10,
    start: Annotated[str, "zero | diagonal", "covariances at first: zero or diag(1..2), for tests"] = "zero",
) -> Tensor:  # fmt: skip
    """SOAP (arXiv 2409.11321) as the records have it from #14 on (modded-nanogpt@f411b3d, track 3 results).

    D = preconditioned(u) in the eigenbases of L and R, averages of G G^T and G^T G, trusted as far as the
    gate lets it; then the bases' upkeep. They are made at the end of step 1 from one gradient, and refreshed
    by one orthogonal iteration at the end of every `refresh_every`-th step after it; V is permuted with them,
    not rotated. A covariance of deficient rank leaves part of its basis to the eigenvalue or QR routine:
    results then differ between machines, which start = "diagonal" avoids.
    """
    D = preconditioned(u, state, beta2, eps, eps_rule, denominator_floor, soap_part, norm)
    if trust:
        gate = bounded(agreement(D, u, G), trust_floor, trust_cap)
        D = resized(u + gate * (D - u), u, norm)
    update_bases(G, state, t, covariance_beta, refresh_every, refresh, start)
    return D


def preconditioned(
    u: Tensor, state: State, beta2: Scalar, eps: float, eps_rule: str, floor: Scalar, part: Scalar, norm: str
) -> Tensor:
    """Qr (P / d) Qc^T, P = Qr^T u Qc, d = sqrt(V) + eps or max(sqrt(V), eps), V <- b2 V + (1 - b2) P^2.

    floor: d <- max(d, floor RMS(d)). part: D <- part D + (1 - part) u, of D as it comes out. At the end D has
    u's norm; before step 2 it is u.
    """
    if "row_basis" not in state:
        return u
    Qr, Qc = state["row_basis"], state["column_basis"]
    P = Qr.mT @ u @ Qc
    V = average_(state["variance"], squared(P), beta2)
    d = V.sqrt() + eps if eps_rule == "add" else V.sqrt().clamp(min=eps)
    if not is_off(floor):
        mean_square = safe_norm(d) / (d.shape[-2] * d.shape[-1]) ** 0.5
        d = torch.maximum(d, (floor * mean_square).clamp(min=1e-8))
    D = Qr @ (P / d) @ Qc.mT
    if not is_off(1 - part):
        D = part * D + (1 - part) * u
    return resized(D, u, norm)


def resized(D: Tensor, u: Tensor, norm: str) -> Tensor:
    """D at u's norm; a Schatten-4 norm below 1e-8 counts as that, a Frobenius norm is taken as it is."""
    size = NORMS[norm](u)
    size = size.clamp(min=1e-8) if norm == "schatten4" else size
    return D * (size / NORMS[norm](D).clamp(min=1e-8))


def bounded(x: Tensor, low: Scalar, high: Scalar) -> Tensor:
    """x within low and high. Planned ones are numbers on the CPU, which clamp refuses beside a GPU's."""
    x = torch.where(x < low, low, x)
    return torch.where(x > high, high, x)


def agreement(D: Tensor, u: Tensor, G: Tensor) -> Tensor:
    """(cos(D, u) - 0.2)/0.8 times cos(D, G)/cos(u, G) [..., 1, 1], each held in [0, 1] (record #16)."""
    aligned = ((cosine(D, u) - 0.2) / 0.8).clamp(0, 1)
    return aligned * (cosine(D, G) / cosine(u, G).clamp(min=1e-8)).clamp(0, 1)


def cosine(X: Tensor, Y: Tensor) -> Tensor:
    """<X, Y> / max(|X| |Y|, 1e-8) [..., 1, 1], without overflow."""
    tiny = torch.finfo(X.dtype).tiny
    x, y = safe_norm(X), safe_norm(Y)
    along = inner(X / x.clamp(min=tiny), Y / y.clamp(min=tiny))
    return along * (x * y / 1e-8).clamp(max=1)


def update_bases(
    grad: Tensor, state: State, t: Tensor, beta: Scalar, every: int, refresh: bool | None, start: str
) -> None:
    """L <- b L + (1 - b) G G^T, R <- b R + (1 - b) G^T G, and their eigenbases, refreshed where due.

    What is due is known in advance where `refresh` says it or every step is. Else the count does, a tensor:
    compiled it is a conditional of the graph (torch.cond); run eagerly a Python branch, which on CUDA reads
    one flag from the device a step.
    """
    m, n = grad.shape[-2:]
    # The covariances of a gradient spike must stay finite; below a norm of 1e18 this changes nothing.
    G = grad * (1e18 / safe_norm(grad).clamp(min=1e18))
    L = average_(covariance(state, "row_covariance", grad, m, start), G @ G.mT, beta)
    R = average_(covariance(state, "column_covariance", grad, n, start), G.mT @ G, beta)
    if "row_basis" not in state:
        buffer(state, "variance", grad)
        state["row_basis"] = torch.linalg.eigh(L).eigenvectors.flip(-1).contiguous()
        state["column_basis"] = torch.linalg.eigh(R).eigenvectors.flip(-1).contiguous()
        return
    names = ("row_basis", "column_basis", "variance")
    Qr, Qc, V = (state[name] for name in names)
    if every == 1 or refresh is not None:
        if every == 1 or refresh:
            state |= zip(names, rotated(Qr, Qc, V, L, R), strict=True)
        return
    due = (t - 1) % every == 0
    operands = (Qr, Qc, V, L, R, due)
    if torch.compiler.is_compiling():
        refreshed = torch.cond(due.any(), refreshed_bases, kept_bases, operands)
    elif due.any():
        refreshed = refreshed_bases(*operands)
    else:
        return
    for name, value in zip(names, refreshed, strict=True):
        state[name].copy_(value)


def covariance(state: State, name: str, weight: Tensor, size: int, start: str) -> Tensor:
    """state[name] [..., size, size], at first zero or the diagonal from 1 to 2."""
    fresh = name not in state
    A = buffer(state, name, weight, (size, size))
    if fresh and start == "diagonal":
        A.diagonal(dim1=-2, dim2=-1).copy_(torch.linspace(1, 2, size, dtype=A.dtype, device=A.device))
    return A


def refreshed_bases(
    Qr: Tensor, Qc: Tensor, V: Tensor, L: Tensor, R: Tensor, due: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The bases and V, rotated where due."""
    new = rotated(Qr, Qc, V, L, R)
    return torch.where(due, new[0], Qr), torch.where(due, new[1], Qc), torch.where(due, new[2], V)


def kept_bases(
    Qr: Tensor, Qc: Tensor, V: Tensor, L: Tensor, R: Tensor, due: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Nothing is due. Copies, because a branch of torch.cond may not return its operands."""
    return Qr.clone(), Qc.clone(), V.clone()


def rotated(Qr: Tensor, Qc: Tensor, V: Tensor, L: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One orthogonal iteration a side, V permuted like the columns of Qr and Qc."""
    new_Qr, row_order = orthogonal_iteration(L, Qr)
    new_Qc, column_order = orthogonal_iteration(R, Qc)
    return new_Qr, new_Qc, V.gather(-2, row_order.mT.expand_as(V)).gather(-1, column_order.expand_as(V))


def orthogonal_iteration(A: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Q of QR(A Q) with Q's columns sorted by diag(Q^T A Q) descending, and that order [..., 1, size]."""
    AQ = A @ Q
    order = (Q * AQ).sum(-2, keepdim=True).argsort(stable=True, dim=-1, descending=True)
    return torch.linalg.qr(AQ.gather(-1, order.expand_as(Q))).Q.contiguous(), order
