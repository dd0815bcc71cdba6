"""SOAP-Muon: Muon on momentum preconditioned in the eigenbases of the gradient's covariances."""

import torch
from torch import Tensor

from optimizers.building_blocks import (
    Scalar,
    State,
    apply_update_,
    average_,
    buffer,
    count_step,
    nesterov_momentum,
    safe_norm,
    spectral_scale,
    squared,
    step_function,
)
from optimizers.polar import orthogonal_direction

REFRESH_EVERY = 10


def preconditioned(u: Tensor, state: State, beta2: Scalar, eps: float) -> Tensor:
    """Qr (P / (sqrt(V) + eps)) Qc^T at norm |u|, P = Qr^T u Qc, V <- b2 V + (1 - b2) P^2; u before step 2."""
    if "row_basis" not in state:
        return u
    Qr, Qc = state["row_basis"], state["column_basis"]
    P = Qr.mT @ u @ Qc
    V = average_(state["variance"], squared(P), beta2)
    D = Qr @ (P / (V.sqrt() + eps)) @ Qc.mT
    return D * (safe_norm(u) / safe_norm(D).clamp(min=1e-8))


def update_bases(grad: Tensor, state: State, beta: Scalar) -> None:
    """L <- b L + (1 - b) G G^T, R <- b R + (1 - b) G^T G, and their eigenbases, refreshed every 10 steps.

    Whether a refresh is due depends on the step count, a tensor: compiled it is a conditional of the graph
    (torch.cond); run eagerly a Python branch, which on CUDA reads one flag from the device a step.
    """
    m, n = grad.shape[-2:]
    # The covariances of a gradient spike must stay finite; below a norm of 1e18 this changes nothing.
    G = grad * (1e18 / safe_norm(grad).clamp(min=1e18))
    L = average_(buffer(state, "row_covariance", grad, (m, m)), G @ G.mT, beta)
    R = average_(buffer(state, "column_covariance", grad, (n, n)), G.mT @ G, beta)
    t = count_step(state, grad)
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


@step_function
def soap_muon(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.0375, weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.95, nesterov: bool = True, polar: str = "simple", polar_steps: int | None = None,
    beta2: Scalar = 0.9, covariance_beta: Scalar = 0.9, eps: float = 1e-8, contra: Scalar = 0.4,
    neuron_beta2: Scalar | None = 0.95, update_floor: Scalar = 0.35, radial_brake: Scalar | None = None,
    cautious: bool = False,
) -> None:  # fmt: skip
    """SOAP-Muon (published result #14, branch of the MLP weights; modded-nanogpt@f411b3d
    results/20260504_contra_muon_mlp_soapish). SOAP: arXiv 2409.11321.

    u as in muon;  D = preconditioned(u) in the eigenbases Qr, Qc of L and R, averages of G G^T and G^T G;
    then as contra_muon with D in u's place (contra, neuron normalisation and floor are on, as in #14);
    last the bases' upkeep. Bases are made at the end of step 1 from one gradient, and refreshed by one
    orthogonal iteration at the end of steps 11, 21, ...; V is permuted with them, not rotated.

    weight, grad [..., m, n]; state: momentum, variance of the weight's shape, row_covariance and row_basis
    [..., m, m], column_covariance and column_basis [..., n, n], step [..., 1, 1], neuron_variance.
    A covariance of deficient rank leaves part of its basis to the eigenvalue routine: results then differ
    between machines. #14's printed weight decay of .025 was never applied.
    """
    u = nesterov_momentum(grad, state, momentum, nesterov)
    D = preconditioned(u, state, beta2, eps)
    U = spectral_scale(weight) * orthogonal_direction(D, polar, polar_steps, contra)
    apply_update_(
        weight, U, state, lr=lr, weight_decay=weight_decay, cautious=cautious, neuron_beta2=neuron_beta2,
        update_floor=update_floor, radial_brake=radial_brake,
    )  # fmt: skip
    update_bases(grad, state, covariance_beta)
