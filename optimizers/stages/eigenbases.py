"""Precondition: SOAP's relatives, whose bases turn at every step. Record #14's SOAP is in soap.py.

L [..., m, m] and R [..., n, n] are averages of the gradient's covariances, Ql and Qr bases that follow their
eigenvectors (state: row_covariance, column_covariance, row_basis, column_basis). A covariance of deficient
rank leaves part of its basis to the routine's rounding, and results then differ between machines; the start
"identity" leaves nothing to it. A first gradient of zero, as every published run has it, starts there too.
"""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import average_, held, rescaled, squared
from optimizers.probes import standard_normal
from optimizers.stage import Scalar, State, buffer, stage
from optimizers.stages.normalise import neuron_variance

CovarianceBeta = Annotated[Scalar, "[0, 1)", "what the covariances keep"]
BasisBeta2 = Annotated[Scalar, "[0, 1)", "what the average of squares in the bases keeps"]
BasisEps = Annotated[float, "[0, inf)", "added to the root of the average of squares"]
FirstBases = Annotated[str, "gradient | identity", "the first bases: of the first gradient, or I"]


@stage("precondition")
def adam_in_bases(
    G: Tensor, u: Tensor, state: State, *, beta2: BasisBeta2 = 0.9, covariance_beta: CovarianceBeta = 0.9,
    eps: BasisEps = 1e-8, start: FirstBases = "gradient",
) -> Tensor:  # fmt: skip
    """Ql [(Ql^T u Qr) / (sqrt(V) + eps)] Qr^T, V <- b2 V + (1 - b2) P^2, P = Ql^T G Qr.

    Before it L <- b L + (1 - b) G G^T, R <- b R + (1 - b) G^T G; after it Ql <- Q of QR(L Ql), Qr likewise.
    Bases are not sorted and V does not turn with them. Start: L = R = 0, eigenvectors of the first
    gradient's covariances; "identity": L = R = 0.1 I. SOAP-H.
    """
    G = held(G)
    rows, columns = G @ G.mT, G.mT @ G
    if "row_basis" not in state:
        for name, first in (("row", rows), ("column", columns)):
            identity = identity_like(first)
            state[f"{name}_covariance"] = 0.1 * identity if start == "identity" else torch.zeros_like(first)
            state[f"{name}_basis"] = identity if start == "identity" else eigenvectors(first)
    average_(state["row_covariance"], rows, covariance_beta)
    average_(state["column_covariance"], columns, covariance_beta)
    D = over_root_of_squares(u, in_bases(G, state), state, beta2, eps)
    turn_bases(state)
    return D


@stage("precondition")
def kl_soap(
    G: Tensor, u: Tensor, state: State, *, beta2: BasisBeta2 = 0.9, covariance_beta: CovarianceBeta = 0.9,
    eps: BasisEps = 1e-8, start: FirstBases = "gradient",
    first_eigenvalue: Annotated[float, "(0, inf)", "of both covariances, before any is estimated"] = 0.1,
    scale_limit: Annotated[float, "(0, inf)", "of an eigenvalue's inverse root"] = 4000.0,
) -> Tensor:  # fmt: skip
    """adam_in_bases, each covariance of gradients whitened by the other's eigenvalues (KL-Shampoo).

    L <- b L + (1 - b) Y Y^T/n, Y = G Qr diag(r);  R <- b R + (1 - b) Z^T Z/m, Z = diag(l) Ql^T G;
    l_i <- (b/l_i^2 + (1 - b) mean_j (P_ij r_j)^2)^-1/2, at most scale_limit, and r likewise, with the old
    bases and scales on the right.

    The first call makes the bases of its gradient, L = G G^T/n, R = G^T G/m ("identity": + 0.001 I, bases
    I), and gives u back: behind memory "late_average", which is then 0, W stays. KL-SOAP-H.

    State: row_scale [..., m, 1] and column_scale [..., 1, n] are l and r.
    """
    m, n = G.shape[-2:]
    G = held(G, 1e15)  # times scale_limit squared it is still finite in float32
    if "row_basis" not in state:
        buffer(state, "variance", G)
        for name, first in (("row", G @ G.mT / n), ("column", G.mT @ G / m)):
            identity = identity_like(first)
            state[f"{name}_covariance"] = first + 0.001 * identity if start == "identity" else first
            state[f"{name}_basis"] = identity if start == "identity" else eigenvectors(first)
        buffer(state, "row_scale", G, (m, 1)).fill_(first_eigenvalue**-0.5)
        buffer(state, "column_scale", G, (1, n)).fill_(first_eigenvalue**-0.5)
        return u
    Ql, Qr, left, right = (state[name] for name in ("row_basis", "column_basis", "row_scale", "column_scale"))
    P = in_bases(G, state)
    D = over_root_of_squares(u, P, state, beta2, eps)
    Y, Z = G @ Qr * right, left * (Ql.mT @ G)
    average_(state["row_covariance"], Y @ Y.mT / n, covariance_beta)
    average_(state["column_covariance"], Z.mT @ Z / m, covariance_beta)
    seen = ((P * right).square().mean(-1, keepdim=True), (P * left).square().mean(-2, keepdim=True))
    for scale, square in zip((left, right), seen, strict=True):
        eigenvalue = covariance_beta / scale.square() + (1 - covariance_beta) * square
        scale.copy_(eigenvalue.clamp(min=1e-30).rsqrt().clamp(max=scale_limit))
    turn_bases(state)
    return D


@stage("precondition")
def balanced_squares(
    G: Tensor, u: Tensor, state: State, *, covariance_beta: CovarianceBeta = 0.95,
    rounds: Annotated[int, "[1, inf)", "rounds of balancing, rows and then columns"] = 10,
    eps: Annotated[float, "(0, inf)", "added to squares, and to the sums that are divided by"] = 1e-8,
) -> Tensor:  # fmt: skip
    """u in the eigenvectors of L and R, its squares balanced there, at norm sqrt(min(m, n)). SinkSOAP.

    A = Ql^T u Qr with the eigenvectors of this step's L and R;  E = A^2 + eps, a_i = (1/m)/((E b)_i + eps),
    b_j = (1/n)/((E^T a)_j + eps) from b = 1;  Ql (sqrt(a_i) A_ij sqrt(b_j)) Qr^T. Nothing depends on order
    or signs of the eigenvectors.
    """
    (m, n), G = G.shape[-2:], held(G)
    L = average_(buffer(state, "row_covariance", G, (m, m)), G @ G.mT, covariance_beta)
    R = average_(buffer(state, "column_covariance", G, (n, n)), G.mT @ G, covariance_beta)
    Ql, Qr = (eigenvectors(A + 1e-8 * identity_like(A)) for A in (L, R))
    A = Ql.mT @ held(u) @ Qr
    E, b = A.square() + eps, A.new_ones(n, 1)
    for _ in range(rounds):
        a = 1 / m / (E @ b + eps)
        b = 1 / n / (E.mT @ a + eps)
    D = Ql @ (a.sqrt() * A * b.mT.sqrt()) @ Qr.mT
    return rescaled(D, D.new_tensor(min(m, n) ** 0.5))


@stage("precondition")
def streaming_powers(
    u: Tensor, state: State, seed: Tensor, *, covariance_beta: CovarianceBeta = 0.95,
    gamma: Annotated[float, "[0, inf)", "inverse power of each side's covariance"] = 0.3,
    power_floor: Annotated[float, "[0, inf)", "added to the covariances, and their least eigenvalue"] = 1e-6,
    start: Annotated[str, "random | identity", "the first bases: a random orthogonal one, or I"] = "random",
) -> Tensor:  # fmt: skip
    """A^-gamma u C^-gamma, each power at norm sqrt(side), in bases that turn by one QR a step. PMuon.

    L <- b L + u u^T;  A = u u^T + b L + floor I (the present step counts 1 + b times), C of u^T u likewise.
    """
    u = held(u, 1e17)
    D = u
    for name, product in (("column", u.mT @ u), ("row", u @ u.mT)):
        size = product.shape[-1]
        if f"{name}_basis" not in state:
            drawn = torch.linalg.qr(standard_normal(seed, 0, name == "row", product)).Q.contiguous()
            state[f"{name}_basis"] = identity_like(product) if start == "identity" else drawn
        covariance = buffer(state, f"{name}_covariance", u, (size, size)).mul_(covariance_beta).add_(product)
        C = product + covariance_beta * covariance + power_floor * identity_like(product)
        power = inverse_power(C, state[f"{name}_basis"], gamma, power_floor)
        D = power @ D if name == "row" else D @ power
    return D


def inverse_power(C: Tensor, Q: Tensor, gamma: float, floor: float) -> Tensor:
    """Q diag(d) Q^T sqrt(size)/(|d| + floor), d = max(diag(Q^T C Q), floor)^-gamma; before it Q turns by
    QR(C Q).
    """
    Q.copy_(torch.linalg.qr(C @ Q).Q)
    d = (Q * (C @ Q)).sum(-2, keepdim=True).clamp(min=floor) ** -gamma
    size = torch.linalg.vector_norm(d, dim=-1, keepdim=True) + floor
    return (Q * d) @ Q.mT * (C.shape[-1] ** 0.5 / size)


@stage("normalise")
def long_neuron_variance(
    U: Tensor, state: State, *,
    beta2: Annotated[Scalar, "[0, 1)", "what the average of the neurons' squares keeps"] = 0.95,
) -> Tensor:  # fmt: skip
    """neuron_variance along the longer side; square matrices stay as they are."""
    return U if U.shape[-2] == U.shape[-1] else neuron_variance(U, state, neuron_beta2=beta2)


def in_bases(X: Tensor, state: State) -> Tensor:
    """Ql^T X Qr."""
    return state["row_basis"].mT @ X @ state["column_basis"]


def over_root_of_squares(u: Tensor, P: Tensor, state: State, beta2: Scalar, eps: float) -> Tensor:
    """Ql [(Ql^T u Qr) / (sqrt(V) + eps)] Qr^T, V <- b2 V + (1 - b2) P^2."""
    V = average_(buffer(state, "variance", P), squared(P), beta2)
    return state["row_basis"] @ (in_bases(u, state) / (V.sqrt() + eps)) @ state["column_basis"].mT


def turn_bases(state: State) -> None:
    """Ql <- Q of QR(L Ql), Qr <- Q of QR(R Qr): one orthogonal iteration."""
    for side in ("row", "column"):
        basis = state[f"{side}_basis"]
        basis.copy_(torch.linalg.qr(state[f"{side}_covariance"] @ basis).Q)


def eigenvectors(A: Tensor) -> Tensor:
    """Of a symmetric A, as columns, the largest eigenvalue's first."""
    return torch.linalg.eigh(A).eigenvectors.flip(-1).contiguous()


def identity_like(A: Tensor) -> Tensor:
    """I for every matrix of A [..., n, n]."""
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A).clone()
