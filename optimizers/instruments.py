"""What an update does to every matrix: numbers of its momentum, its step and its weight before and after.

    with measured(optimizer) as found:  # a MatrixOptimizer
        optimizer.step()
    found["blocks.0.attn.q.weight"].numbers["polar_alignment"]

Where each number comes from is said at `measure`. Measuring changes nothing of the update: the momentum is
taken of copies, the step is the difference of the weights. Every rank measures the matrices it owns.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optimizers.matrix_optimizer import MatrixOptimizer
from optimizers.norms import inner
from optimizers.stacks import MatrixStack, names_of
from optimizers.stage import Row, given_at_first, row_of_function
from optimizers.stepping import Arrived

Numbers = dict[str, float | None]  # None: not defined, as the condition of zeros

# Where a Gram matrix in float64 loses the least singular values: from this condition on they come of the SVD.
GRAM_CONDITION = 1e5
FLAT = 1e-9  # a variation below is rounding: nothing correlates with it
FAINT = 0.01  # of the median of a layer's activation norms: a unit below hardly speaks


@dataclass(frozen=True)
class Measurement:
    """A matrix [m, n] at one update. rows: by name, a float32 on the CPU for each of its m rows (neurons)."""

    numbers: Numbers
    rows: dict[str, Tensor]


def measure(u: Tensor, before: Tensor, after: Tensor, *, lr: float, decay: float = 0.0,
            scale: float | None = None) -> list[Measurement]:  # fmt: skip
    """The numbers of k matrices, [k, m, n] each, whose rows are neurons. All sums in float64.

    u: the momentum that the step was made of; before, after: the weights; the step U = (before (1 - lr decay)
    - after)/lr, decay put aside (lr = 0: without the division). scale: what the method multiplies a direction
    with by the matrix's shape; None: U is taken at RMS singular value 1. P is the exact polar factor of u,
    variations are standard deviation over mean.

    row_variation       of the row norms of U (Aurora figs. 7, 9)
    leverage_variation  of the squared row norms of P (Aurora figs. 7, 12)
    leverage_correlation  Pearson, of these with the row norms of u; None where they are all alike (fig. 6)
    polar_alignment     <U, P> / (|U| |P|) (Aurora fig. 9)
    polar_error, polar_error_rms  largest and RMS |s - 1|, s singular values of U/scale (figs. 1, 2)
    *_stable_rank, *_condition  |X|^2/s_1^2 and s_1/s_r of momentum, update and weight before (MuonEq)
    weight_norm, weight_change  |W| after, and less |W| before; row_norm_min, _mean, _max of W after (Nora)
    angle, row_angle, row_angle_max  from W before to after, whole, mean and largest by row, radians (Nora)
    radial_part         sum_i <u_i, w_i>^2 / |u|^2, w_i the unit rows of W before (Nora)
    update_to_weight    |lr U| / |W| before
    dominance           of u u^T, mean over rows of its diagonal over the mean |off-diagonal| (RMNP, Nora)
    step_scale, step_scale_spread  |U|/|P|, and the variation over columns of |U_:j|/|P_:j| (NAMO, NAMO-D)
    """
    m, n = u.shape[-2:]
    rounding = 8 * torch.finfo(before.dtype).eps
    u, before, after = u.double(), before.double(), after.double()
    step = before * (1 - lr * decay) - after
    step = torch.where((norm(step) > rounding * norm(before))[:, None, None], step, 0.0)
    U = step / lr if lr else step
    P, of_u = exact_polar(u)
    of_U, of_W = singular_values(U), singular_values(before)
    size = (of_U.square().mean(-1, keepdim=True)).sqrt() if scale is None else torch.full_like(of_U, scale)
    off = (of_U / size - 1).abs()
    u_rows, U_rows, W_rows = (X.norm(dim=-1) for X in (u, U, after))
    leverage = P.square().sum(-1)
    angles = angle(before, after, -1)
    gram = (u @ u.mT).abs()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    around = (gram.sum(-1) - diagonal) / max(m - 1, 1)
    along = (u * before).sum(-1) / before.norm(dim=-1).clamp(min=1e-30)
    columns = U.norm(dim=-2) / P.norm(dim=-2).clamp(min=1e-30)
    numbers = {
        "row_variation": variation(U_rows),
        "leverage_variation": variation(leverage),
        "leverage_correlation": correlation(leverage, u_rows),
        "polar_alignment": inner(U, P).flatten() / (norm(U) * norm(P)),
        "polar_error": off.amax(-1),
        "polar_error_rms": off.square().mean(-1).sqrt(),
        "weight_norm": norm(after),
        "weight_change": norm(after) - norm(before),
        "row_norm_min": W_rows.amin(-1),
        "row_norm_mean": W_rows.mean(-1),
        "row_norm_max": W_rows.amax(-1),
        "angle": angle(before, after, (-2, -1)).flatten(),
        "row_angle": angles.mean(-1),
        "row_angle_max": angles.amax(-1),
        "radial_part": along.square().sum(-1) / norm(u).square(),
        "update_to_weight": norm(step) / norm(before),
        "dominance": (diagonal / around).mean(-1),
        "step_scale": norm(U) / norm(P),
        "step_scale_spread": variation(columns),
    }
    for name, s in (("momentum", of_u), ("update", of_U), ("weight", of_W)):
        numbers[f"{name}_stable_rank"] = s.square().sum(-1) / s[:, 0].square()
        numbers[f"{name}_condition"] = s[:, 0] / s[:, -1]
    by_row = {"update": U_rows, "momentum": u_rows, "leverage": leverage, "weight": W_rows, "angle": angles}
    by_row = {name: rows.float().cpu() for name, rows in by_row.items()}
    lists = {name: value.tolist() for name, value in numbers.items()}
    return [
        Measurement(
            {name: value[i] if abs(value[i]) < float("inf") else None for name, value in lists.items()},
            {name: rows[i] for name, rows in by_row.items()},
        )
        for i in range(len(u))
    ]


def norm(X: Tensor) -> Tensor:
    """|X| of every matrix, [k]."""
    return torch.linalg.matrix_norm(X)


def variation(x: Tensor) -> Tensor:
    """Standard deviation over mean, of the last dimension; of all values, not of a sample."""
    return x.std(-1, correction=0) / x.mean(-1)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's, over the last dimension; nan where one of them does not vary."""
    flat = (variation(x) < FLAT) | (variation(y) < FLAT)
    x, y = (z - z.mean(-1, keepdim=True) for z in (x, y))
    return torch.where(flat, torch.nan, (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)))


def angle(A: Tensor, B: Tensor, dim: int | tuple[int, int]) -> Tensor:
    """The angle between A and B over dim, in radians, exact for small ones too; 0 where one is zero."""
    a, b = (torch.linalg.vector_norm(X, dim=dim, keepdim=True) for X in (A, B))
    x, y = A * b, B * a
    apart, together = (torch.linalg.vector_norm(z, dim=dim) for z in (x - y, x + y))
    return 2 * torch.atan2(apart, together)


def exact_polar(X: Tensor) -> tuple[Tensor, Tensor]:
    """(U V^T, S) of X = U S V^T [k, m, n] in float64, S [k, r] from the largest on.

    By the eigenvectors of the Gram matrix of the short side, a fifth of the SVD's time; by the SVD where the
    condition is above GRAM_CONDITION. What is zero up to rounding has no part in the factor.
    """
    if X.shape[-2] > X.shape[-1]:
        P, S = exact_polar(X.mT)
        return P.mT, S
    eigenvalues, vectors = torch.linalg.eigh(X @ X.mT)
    S = eigenvalues.clamp(min=0).sqrt()
    P = vectors @ ((1 / S.clamp(min=1e-300)).unsqueeze(-1) * (vectors.mT @ X))
    S = S.flip(-1)
    for i in poorly_conditioned(S):
        left, S[i], right = torch.linalg.svd(X[i], full_matrices=False)
        there = S[i] > S[i, 0] * max(X.shape[-2:]) * torch.finfo(X.dtype).eps
        P[i] = left @ (there.unsqueeze(-1) * right)
    return P, S


def singular_values(X: Tensor) -> Tensor:
    """Singular values [k, r] of X [k, m, n], from the largest on, as in exact_polar."""
    gram = X.mT @ X if X.shape[-2] > X.shape[-1] else X @ X.mT
    S = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(-1)
    for i in poorly_conditioned(S):
        S[i] = torch.linalg.svdvals(X[i])
    return S


def poorly_conditioned(S: Tensor) -> list[int]:
    """Which rows of S [k, r] span more than GRAM_CONDITION; zeros do."""
    return [i for i, s in enumerate(S) if not float(s[-1]) > float(s[0]) / GRAM_CONDITION]


# --------------------------------------------------------------------------------------------------
# Of an optimizer


@contextmanager
def measured(optimizer: MatrixOptimizer) -> Iterator[dict[str, Measurement]]:
    """Measures the matrices that this rank owns at the updates inside; the dict is filled then, by name.

    A parameter of several matrices has a name for each, "name[0]" on. Names are those that the parameters
    were given with, else their places.
    """
    found: dict[str, Measurement] = {}

    @contextmanager
    def watch(unit: list[Arrived], weights: list[list[Tensor]]) -> Iterator[None]:
        copies = [copy_of(*arrived, of_stack) for arrived, of_stack in zip(unit, weights, strict=True)]
        yield
        for copied in copies:
            found.update(copied())

    optimizer.watch = watch
    try:
        yield found
    finally:
        optimizer.watch = None


def copy_of(
    stack: MatrixStack, gradients: list[Tensor | None], weights: list[Tensor]
) -> Callable[[], dict[str, Measurement]]:
    """Copies what an update of the owned matrices changes; the function measures when that is over."""
    here = [i for i, gradient in enumerate(gradients) if gradient is not None]
    names, group = owned_names(stack), stack.group
    held = [{key: value[i].clone() for key, value in stack.state.items()} if stack.steps[i] else {}
            for i in here]  # fmt: skip
    before = [weights[i].clone() for i in here]
    row = row_of_function(group["step"])
    lr, decayed, scale = float(group["lr"]), plain_decay(row, group), shape_scale(row, weights)

    def measure_now() -> dict[str, Measurement]:
        if not here:
            return {}
        present = [gradient for gradient in gradients if gradient is not None]
        momenta = []
        for started, places in itertools.groupby(range(len(here)), key=lambda i: bool(held[i])):
            part = list(places)
            state = {key: torch.stack([held[i][key] for i in part]) for key in held[part[0]]}
            G = torch.stack([present[i] for i in part])
            W = torch.stack([before[i] for i in part])
            told = {key: value[[here[i] for i in part]] for key, value in stack.state.items()}
            momenta.append(momentum_of(row, group, W, G, state if started else {}, told))
        after = torch.stack([weights[i] for i in here])
        found = measure(torch.cat(momenta), torch.stack(before), after, lr=lr, decay=decayed, scale=scale)
        return dict(zip([names[i] for i in here], found, strict=True))

    return measure_now


def momentum_of(
    row: Row, group: Mapping[str, object], W: Tensor, G: Tensor, before: dict[str, Tensor],
    after: Mapping[str, Tensor],
) -> Tensor:  # fmt: skip
    """u [k, m, n] of an update: what the row's memory makes of the gradient and the state before.

    Without a memory, the state's `momentum` after the update, as Adam keeps one; without that, the gradient.
    """
    memory = row.stage("memory")
    if memory is None:
        kept = after.get("momentum", G)
        return kept if kept.shape == G.shape else G
    names = row.keywords[row.stages.index(memory)]
    values = {key.name: group[name] for key, name in zip(memory.hyperparameters, names, strict=True)}
    given = given_at_first([(memory, values)], W, G, before, None)
    with torch.no_grad():
        return memory.function(*[given[name] for name in memory.takes], **values)


def plain_decay(row: Row, group: Mapping[str, Any]) -> float:
    """The weight decay, where it shrinks the whole weight before the step; else 0: it is part of the step."""
    land = row.stage("land")
    plain = land is not None and land.name == "decay" and not (group["cautious"] or group["decay_last"])
    return float(group["weight_decay"]) if plain else 0.0


def shape_scale(row: Row, weights: list[Tensor]) -> float | None:
    """What the row multiplies directions with by their shape; None where it has no such stage."""
    stage = row.stage("scale")
    return float(stage.function(weights[0])) if stage and weights else None


def owned_names(stack: MatrixStack) -> list[str]:
    """A name for each matrix of the stack that this rank owns."""
    names = dict(zip(stack.group["params"], names_of(stack.group), strict=True))
    told = []
    for param, _, within in stack.shares():
        many = stack.count(param) > 1
        told += [f"{names[param]}[{i}]" if many else names[param] for i in range(within.start, within.stop)]
    return told


# --------------------------------------------------------------------------------------------------
# Of a model


def neurons(norms: Tensor) -> Numbers:
    """Of a layer's activation norms [units]: how many units, how many `dead` (zero on every token), how many
    `faint` (below FAINT of the median, the dead among them), and the median (Aurora figs. 5, 8).
    """
    median = norms.median()
    dead, faint = (norms == 0).sum(), (norms < FAINT * median).sum()
    faint = torch.maximum(dead, faint)
    return {"units": len(norms), "dead": int(dead), "faint": int(faint), "median": float(median)}
