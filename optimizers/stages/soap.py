"""SOAP: the momentum in the eigenbases of the gradient's covariances, divided there by its running RMS."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import average_, safe_norm, squared
from optimizers.stage import Scalar, State, buffer, stage

REFRESH_EVERY = 10


@stage("precondition")
def soap(
    G: Tensor, u: Tensor, state: State, t: Tensor, *,
    beta2: Annotated[Scalar, "[0, 1)", "what the average of squares in the bases keeps"] = 0.9,
    covariance_beta: Annotated[Scalar, "[0, 1)", "what the covariances keep"] = 0.9,
    eps: Annotated[float, "[0, inf)", "added to the root of the average of squares"] = 1e-8,
) -> Tensor:  # fmt: skip
    """SOAP as record #14 has it (arXiv 2409.11321; modded-nanogpt@f411b3d 20260504_contra_muon_mlp_soapish).

    D = preconditioned(u) in the eigenbases of L and R, averages of G G^T and G^T G; then the bases' upkeep.
    They are made at the end of step 1 from one gradient, and refreshed by one orthogonal iteration at the end
    of steps 11, 21, ...; V is permuted with them, not rotated. A covariance of deficient rank leaves part of
    its basis to the eigenvalue routine: results then differ between machines.
    """
    D = preconditioned(u, state, beta2, eps)
    update_bases(G, state, t, covariance_beta)
    return D


def preconditioned(u: Tensor, state: State, beta2: Scalar, eps: float) -> Tensor:
    """Qr (P / (sqrt(V) + eps)) Qc^T at norm |u|, P = Qr^T u Qc, V <- b2 V + (1 - b2) P^2; u before step 2."""
    if "row_basis" not in state:
        return u
    Qr, Qc = state["row_basis"], state["column_basis"]
    P = Qr.mT @ u @ Qc
    V = average_(state["variance"], squared(P), beta2)
    D = Qr @ (P / (V.sqrt() + eps)) @ Qc.mT
    return D * (safe_norm(u) / safe_norm(D).clamp(min=1e-8))


def update_bases(grad: Tensor, state: State, t: Tensor, beta: Scalar) -> None:
    """L <- b L + (1 - b) G G^T, R <- b R + (1 - b) G^T G, and their eigenbases, refreshed every 10 steps.

    Whether a refresh is due depends on the step count, a tensor: compiled it is a conditional of the graph
    (torch.cond); run eagerly a Python branch, which on CUDA reads one flag from the device a step.
    """
    m, n = grad.shape[-2:]
    # The covariances of a gradient spike must stay finite; below a norm of 1e18 this changes nothing.
    G = grad * (1e18 / safe_norm(grad).clamp(min=1e18))
    L = average_(buffer(state, "row_covariance", grad, (m, m)), G @ G.mT, beta)
    R = average_(buffer(state, "column_covariance", grad, (n, n)), G.mT @ G, beta)
    if "row_basis" not in state:
        buffer(state, "variance", grad)
        state["row_basis"] = torch.linalg.eigh(L).eigenvectors.flip(-1).contiguous()
        state["column_basis"] = torch.linalg.eigh(R).eigenvectors.flip(-1).contiguous()
        return
    names = ("row_basis", "column_basis", "variance")
    operands = (*(state[name] for name in names), L, R)
    due = t % REFRESH_EVERY == 1
    if torch.compiler.is_compiling():
        refreshed = torch.cond(due.any(), refreshed_bases, kept_bases, (*operands, due))
    else:
        refreshed = (refreshed_bases if due.any() else kept_bases)(*operands, due)
    for name, value in zip(names, refreshed, strict=True):
        state[name].copy_(value)


def refreshed_bases(
    Qr: Tensor, Qc: Tensor, V: Tensor, L: Tensor, R: Tensor, due: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where due, one orthogonal iteration a side, V permuted like the columns of Qr and Qc."""
    new_Qr, row_order = orthogonal_iteration(L, Qr)
    new_Qc, column_order = orthogonal_iteration(R, Qc)
    new_V = V.gather(-2, row_order.mT.expand_as(V)).gather(-1, column_order.expand_as(V))
    return torch.where(due, new_Qr, Qr), torch.where(due, new_Qc, Qc), torch.where(due, new_V, V)


def kept_bases(
    Qr: Tensor, Qc: Tensor, V: Tensor, L: Tensor, R: Tensor, due: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Nothing is due. Copies, because a branch of torch.cond may not return its operands."""
    return Qr.clone(), Qc.clone(), V.clone()


def orthogonal_iteration(A: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Q of QR(A Q) with Q's columns sorted by diag(Q^T A Q) descending, and that order [..., 1, size]."""
    order = (Q * (A @ Q)).sum(-2, keepdim=True).argsort(stable=True, dim=-1, descending=True)
    return torch.linalg.qr(A @ Q.gather(-1, order.expand_as(Q))).Q.contiguous(), order
