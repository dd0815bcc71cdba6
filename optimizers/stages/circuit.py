"""Circuit-Muon: the steps of a value matrix and of the output matrix behind it, coupled head by head."""

import torch
from torch import Tensor

from optimizers.norms import inner, rescaled, safe_norm

CIRCUIT_DAMPING = 1e-3


def circuit(V: Tensor, O: Tensor, U_V: Tensor, U_O: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:  # noqa: E741
    """The directions of V [..., h d, n] and O [..., n, h d], d = head_dim, coupled (published result #41).

    For every head, v = V_h (d rows of V) and o = O_h (d columns of O): u_v is divided by
    sqrt(|o|^2/d + 1e-3), u_o by sqrt(|v|^2/d + 1e-3), both matrices go back to their norm before; then
    x = (<v, u_v> - <o, u_o>) / (|v|^2 + |o|^2 + 2 d 1e-3), u_v <- u_v - x v and u_o <- u_o + x o: only the
    product of the two counts, and they grow alike. Raises ValueError where the shapes do not fit.
    """
    rows, columns = V.shape[-2:]
    if O.shape[-2:] != (columns, rows) or rows % head_dim:
        raise ValueError(
            f"expected matrices [{head_dim} h, n] and [n, {head_dim} h] to couple by heads of {head_dim}, "
            f"found {tuple(V.shape[-2:])} and {tuple(O.shape[-2:])}; name the values' matrix first"
        )
    v, o = by_head(V, head_dim), by_head(O.mT, head_dim)
    v_squared, o_squared = safe_norm(v).square(), safe_norm(o).square()
    u_v = by_head(U_V, head_dim) / (o_squared / head_dim + CIRCUIT_DAMPING).sqrt()
    u_o = by_head(U_O.mT, head_dim) / (v_squared / head_dim + CIRCUIT_DAMPING).sqrt()
    u_v = by_head(rescaled(u_v.reshape(V.shape), safe_norm(U_V)), head_dim)
    u_o = by_head(rescaled(u_o.reshape(V.shape), safe_norm(U_O)), head_dim)
    x = (inner(v, u_v) - inner(o, u_o)) / (v_squared + o_squared + 2 * head_dim * CIRCUIT_DAMPING)
    return (u_v - x * v).reshape(V.shape), (u_o + x * o).reshape(V.shape).mT


def by_head(X: Tensor, head_dim: int) -> Tensor:
    """[..., h d, n] -> [..., h, d, n]."""
    return X.unflatten(-2, (-1, head_dim))


def coupled_(
    weights: tuple[list[Tensor], list[Tensor]], directions: tuple[list[Tensor], list[Tensor]], head_dim: int
) -> None:
    """Couples the directions of pairs of matrices in place."""
    V, O, U_V, U_O = (torch.stack(matrices) for matrices in (*weights, *directions))  # noqa: E741
    for matrices, coupled in zip(directions, circuit(V, O, U_V, U_O, head_dim), strict=True):
        torch._foreach_copy_(matrices, list(coupled.unbind()))
