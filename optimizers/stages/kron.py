"""PSGD's Kronecker preconditioner: triangular factors that whiten the momentum, fitted by random probes."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import safe_norm
from optimizers.probes import standard_normal
from optimizers.stage import Scalar, State, buffer, stage

PROBE_DAMPING = 2.0**-23  # float32's eps, in any precision


@stage("precondition")
def kron(
    G: Tensor, u: Tensor, state: State, t: Tensor, seed: Tensor, *,
    factor_lr: Annotated[Scalar, "[0, 1]", "learning rate of the factors"] = 1.0,
) -> Tensor:  # fmt: skip
    """(Q0^T Q0) u (Q1^T Q1), after one step of the factors. PSGD (arXiv 1512.04202), as record #33 has it.

    Both factors are brought to one largest entry, their product kept. With probes z, nu ~ N(0, 1), drawn
    from the matrix's seed and the step:  A = Q0 (u + 2^-23 |u| nu) Q1^T elementwise,  B = Q0^-T z Q1^-1,
    Q0 <- Q0 - factor_lr triu(A A^T - B B^T) Q0 / largest_eigenvalue(A A^T + B B^T), Q1 likewise of A^T A and
    B^T B. Start: both s I, s = max(mean G^4, 1e-24)^(-1/32). A is held at 1e3 |B|: after a larger
    gradient spike float32 would round a factor's diagonal to 0.

    State: row_factor [..., m, m] (Q0), column_factor [..., n, n] (Q1), upper triangular.
    """
    m, n = G.shape[-2:]
    if "row_factor" not in state:
        first = starting_factor(G)
        for name, size in (("row_factor", m), ("column_factor", n)):
            buffer(state, name, G, (size, size)).diagonal(dim1=-2, dim2=-1).copy_(first.squeeze(-1))
    Q0, Q1 = state["row_factor"], state["column_factor"]
    balance = (largest_entry(Q1) / largest_entry(Q0)).sqrt()
    Q0.mul_(balance)
    Q1.div_(balance)
    z, nu = (standard_normal(seed, t, draw, G) for draw in (0, 1))
    A = Q0 @ (u + PROBE_DAMPING * u.abs() * nu) @ Q1.mT
    B = torch.linalg.solve_triangular(Q0.mT, z, upper=False)
    B = torch.linalg.solve_triangular(Q1, B, upper=True, left=False)
    of_probe = safe_norm(B)
    A = A * (1e3 * of_probe / safe_norm(A).clamp(min=torch.finfo(A.dtype).tiny)).clamp(max=1)
    largest = torch.maximum(of_probe, safe_norm(A)).clamp(min=torch.finfo(A.dtype).tiny)
    A, B = A / largest, B / largest  # the factors' steps do not see a common scale
    for Q, AA, BB in ((Q0, A @ A.mT, B @ B.mT), (Q1, A.mT @ A, B.mT @ B)):
        Q.sub_(factor_lr / largest_eigenvalue(AA + BB) * ((AA - BB).triu() @ Q))
    return Q0.mT @ (Q0 @ u @ Q1.mT) @ Q1


def starting_factor(G: Tensor) -> Tensor:
    """max(mean G^4, 1e-24)^(-1/32) [..., 1, 1], without overflow."""
    largest = largest_entry(G).clamp(min=torch.finfo(G.dtype).tiny)
    mean = (G / largest).pow(4).mean((-2, -1), keepdim=True).clamp(min=torch.finfo(G.dtype).tiny)
    return (largest ** (-1 / 8) * mean ** (-1 / 32)).clamp(max=1e-24 ** (-1 / 32))


def largest_entry(X: Tensor) -> Tensor:
    """max |X_ij| [..., 1, 1]."""
    return X.abs().amax((-2, -1), keepdim=True)


def largest_eigenvalue(S: Tensor) -> Tensor:
    """An estimate [..., 1, 1] for symmetric positive S, by two products with its longest column."""
    c = largest_entry(S).clamp(min=torch.finfo(S.dtype).tiny)
    S = S / c
    longest = S.square().sum(-2, keepdim=True).argmax(-1, keepdim=True)
    x = S @ S.gather(-1, longest.expand(*S.shape[:-1], 1))
    x = x / torch.linalg.vector_norm(x, dim=-2, keepdim=True).clamp(min=torch.finfo(S.dtype).tiny)
    return (c * torch.linalg.vector_norm(S @ x, dim=-2, keepdim=True)).clamp(min=torch.finfo(S.dtype).tiny)
