"""Norms and averages of stacks of matrices that neither overflow nor vanish.

Entries of 1e20 overflow when squared in float32, and those of 1e-30 vanish: hence the care.
"""

import torch
from torch import Tensor

from optimizers.stage import Scalar


def safe_norm(X: Tensor, dim: int | tuple[int, int] = (-2, -1), floor: float = 0.0) -> Tensor:
    """Root of the sum of squares over dim (kept at size 1), at least `floor`, by the largest entry first.

    So nothing overflows. On CPU, where looking at a value costs nothing, ordinary norms come of one pass in
    place of four.
    """
    if X.is_cpu and not torch.compiler.is_compiling():
        norm = torch.linalg.vector_norm(X, dim=dim, keepdim=True)
        if norm.equal(norm.clamp(max(floor, 1e-12), 1e12)):
            return norm
    largest = X.abs().amax(dim, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)
    norm = largest * torch.linalg.vector_norm(X * (1 / largest), dim=dim, keepdim=True)
    return norm.clamp(min=floor) if floor else norm


def held(X: Tensor, limit: float = 1e18) -> Tensor:
    """X at norm `limit` where it is larger, so that products of two stay finite in float32; else X."""
    return X * (limit / safe_norm(X, floor=limit))


def squared(X: Tensor) -> Tensor:
    """X^2, held below overflow so that a moving average of it recovers from a gradient spike."""
    return X.square().clamp(max=0.5 * torch.finfo(X.dtype).max)


def inner(X: Tensor, Y: Tensor) -> Tensor:
    """<X, Y> of every matrix [..., 1, 1]."""
    return (X * Y).sum((-2, -1), keepdim=True)


def unit(X: Tensor, dim: int | tuple[int, int], floor: float = 1e-10) -> Tensor:
    """X / max(|X|, floor) over dim (-1: rows, -2: columns). Zeros stay zeros."""
    return X * (1 / safe_norm(X, dim).clamp(min=floor))


def schatten4_norm(X: Tensor) -> Tensor:
    """Fourth root of the sum of s^4 [..., 1, 1], s the singular values of every X [..., m, n]."""
    size = safe_norm(X)
    return size * gram_root(X / size.clamp(min=torch.finfo(X.dtype).tiny))


def gram_root(X: Tensor) -> Tensor:
    """The same of an X near norm 1, on its short side."""
    return safe_norm(X.mT @ X if X.shape[-2] > X.shape[-1] else X @ X.mT).sqrt()


NORMS = {"frobenius": safe_norm, "schatten4": schatten4_norm}


def rescaled(X: Tensor, target: Tensor, norm: str = "frobenius") -> Tensor:
    """X * target / max(|X|, 1e-10): X with the norm `target` [..., 1, 1]."""
    return X * (target / NORMS[norm](X).clamp(min=1e-10))


def average_(mean: Tensor, value: Tensor, beta: Scalar) -> Tensor:
    """mean <- beta mean + (1 - beta) value, in place, and in one pass where beta is a number."""
    if isinstance(beta, Tensor):
        return mean.mul_(beta).add_((1 - beta) * value)
    return mean.lerp_(value, 1 - beta)
