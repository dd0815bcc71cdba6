"""Land: W, U -> W. Decay, floor, radius, and the step itself."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import average_, inner, rescaled, safe_norm, squared, unit
from optimizers.stage import (
    LearningRate,
    Momentum,
    Scalar,
    State,
    WeightDecay,
    buffer,
    is_off,
    multiplied,
    stage,
)
from optimizers.stages.scale import rms

UpdateFloor = Annotated[Scalar, "[0, inf)", "u/w floor: |U| grows to this times |W|; 0: off"]


@stage("land", by_rows=True, unless=("update_floor", "radial_brake"))
def decay(
    W: Tensor, U: Tensor, c: Scalar = 1.0, *, lr: LearningRate, weight_decay: WeightDecay = 0.0,
    cautious: Annotated[bool, "", "decay only where U W > 0: where the step shrinks W too"] = False,
    decay_last: Annotated[bool, "", "decay after the step, by the signs before it"] = False,
    update_floor: UpdateFloor = 0.0,
    row_floor: Annotated[Scalar, "[0, inf)", "the same for every row by itself; 0: off"] = 0.0,
    radial_brake: Annotated[
        Scalar | None, "[0, 1]",
        "scale of the part of U that moves W outward, at first-order radius; 1 or nothing: off",
    ] = None,
) -> None:  # fmt: skip
    """W <- W (1 - lr wd) - lr c U; before it the brake, then the floors.

    Brake (record #29): W - lr U is brought to its first-order radius. Floor: records #9 on; by rows, and the
    decay after the radius: #46. cautious: arXiv 2510.12402.
    """
    outward = 1.0 if radial_brake is None else radial_brake
    braked, floored_whole, floored_by_row = (
        not is_off(1 - outward),
        not is_off(update_floor),
        not is_off(row_floor),
    )
    if braked or floored_whole or floored_by_row:
        U, c = multiplied(U, c), 1.0
    if braked:
        U = radially_braked(U, W, outward)
    if floored_whole:
        U = floored(U, W, update_floor)
    if floored_by_row:
        U = floored(U, W, row_floor, -1)
    if decay_last:
        kept = decay_factor(W, U, lr, weight_decay, cautious)
    else:
        decay_(W, U, lr, weight_decay, cautious)
    if braked:
        radial_step_(W, U, lr)
    elif isinstance(c, Tensor):
        W.addcmul_(U, lr * c, value=-1)
    else:
        W.sub_(lr * c * U)
    if decay_last:
        W.mul_(kept)


def decay_(W: Tensor, U: Tensor, lr: Scalar, weight_decay: Scalar, cautious: bool = False) -> None:
    """W <- W (1 - lr wd); cautious: only where U W > 0."""
    if not is_off(weight_decay):
        W.mul_(decay_factor(W, U, lr, weight_decay, cautious))


def decay_factor(W: Tensor, U: Tensor, lr: Scalar, weight_decay: Scalar, cautious: bool) -> Scalar:
    """1 - lr wd; cautious: only where U W > 0, else 1."""
    rate = lr * weight_decay
    return 1 - rate * (U * W > 0).to(W.dtype) if cautious else 1 - rate


def floored(U: Tensor, W: Tensor, floor: Scalar, dim: int | tuple[int, int] = (-2, -1)) -> Tensor:
    """U grown to |U| = floor |W| where it is smaller, or every row (dim -1); both norms clamped at 1e-8."""
    target = floor * safe_norm(W, dim).clamp(min=1e-8)
    return U * (target / safe_norm(U, dim).clamp(min=1e-8)).clamp(min=1)


def radially_braked(U: Tensor, W: Tensor, outward: Scalar) -> Tensor:
    """The part of U along W scaled by `outward` where the step -U would move W outward."""
    along = inner(U, W) / safe_norm(W).square().clamp(min=1e-12)
    return U - (1 - outward) * along.clamp(max=0) * W


def radial_step_(W: Tensor, U: Tensor, lr: Scalar) -> None:
    """W - lr U at the first-order radius |W| - lr <U, W>/|W|: the tangential part does not grow |W|."""
    radius = safe_norm(W).clamp(min=1e-8)
    target = (radius - lr * inner(U, W) / radius).clamp(min=1e-8)
    W.sub_(lr * U)
    W.mul_(target / safe_norm(W).clamp(min=1e-8))


@stage("land")
def anchored(
    W: Tensor, U: Tensor, state: State, t: Tensor, *, lr: LearningRate, update_floor: UpdateFloor = 0.0,
    anchor: Annotated[Scalar, "[0, inf)", "W goes anchor/(t + 1) of its way back to where it began"] = 1.0,
) -> None:  # fmt: skip
    """W <- W + anchor/(t + 1) (A - W) - lr U, A the weight before the first step; U floored by |W|. SODA.

    With anchor 1, W - A is an average of the steps, not their sum (record #32, 20260518_soda_fade_3000_n9).
    """
    if "anchor" not in state:
        state["anchor"] = W.clone()
    if not is_off(update_floor):
        U = floored(U, W, update_floor)
    W.lerp_(state["anchor"], (anchor / (t + 1)).to(W.dtype))
    W.sub_(lr * U)


@stage("land")
def hyperball(W: Tensor, U: Tensor, *, lr: LearningRate) -> None:
    """W <- W - lr |W| U/|U|, back to its norm before: |W| never changes, and a zero weight stays zero."""
    radius = safe_norm(W)
    W.sub_(lr * radius * unit(U, (-2, -1)))
    W.copy_(rescaled(W, radius))


@stage("land")
def tangent(W: Tensor, U: Tensor, *, lr: LearningRate, weight_decay: WeightDecay = 0.0) -> None:
    """W <- W (1 - lr wd) - lr (U - (<U, W>/|W|^2) W): nothing moves along W, which grows to second order."""
    V = U - inner(U, W) / safe_norm(W).square().clamp(min=1e-12) * W
    decay_(W, V, lr, weight_decay)
    W.sub_(lr * V)


ScaleBeta2 = Annotated[Scalar, "[0, 1)", "what the average of the gradient's squared norms keeps"]
ScaleEps = Annotated[float, "[0, inf)", "added to the root of that average"]


def bias_corrected(lr: Scalar, momentum: Scalar, beta2: Scalar, t: Tensor) -> Tensor:
    """lr sqrt(1 - b2^t) / (1 - mu^t), NAMO's rate before its adaptive scale."""
    return lr * (1 - beta2**t).sqrt() / (1 - momentum**t + 1e-12)


@stage("land")
def namo_scale(
    W: Tensor, U: Tensor, u: Tensor, G: Tensor, state: State, t: Tensor, *, lr: LearningRate,
    weight_decay: WeightDecay = 0.1, momentum: Momentum = 0.95, beta2: ScaleBeta2 = 0.99,
    eps: ScaleEps = 1e-8,
) -> None:  # fmt: skip
    """One step length a matrix: a = lr sqrt(1 - b2^t)/(1 - mu^t) |u|/(sqrt(s) + eps), s <- b2 s + (1 -
    b2)|G|^2;

    W <- W (1 - wd min(a, 1)) - min(0.2 sqrt(max(m, n)) a, 1) U. NAMO (minxin-zhg/namo@a3f37b0).
    """
    s = average_(buffer(state, "norm_squared", W, (1, 1)), squared(safe_norm(G)), beta2)
    a = bias_corrected(lr, momentum, beta2, t) * safe_norm(u) / (s.sqrt() + eps)
    W.mul_(1 - weight_decay * a.clamp(max=1))
    W.sub_((rms(W) * a).clamp(max=1) * U)


@stage("land")
def namo_d_scale(
    W: Tensor, U: Tensor, u: Tensor, G: Tensor, state: State, t: Tensor, *, lr: LearningRate,
    weight_decay: WeightDecay = 0.1, momentum: Momentum = 0.95, beta2: ScaleBeta2 = 0.99,
    eps: ScaleEps = 1e-8,
    clip: Annotated[float, "(0, 1]", "columns' scales stay within clip and 1/clip of their mean"] = 0.75,
) -> None:  # fmt: skip
    """One step length a column: k_j = |u_:j|/(sqrt(V_j) + eps), V_j <- b2 V_j + (1 - b2)|G_:j|^2, clipped to
    [c M, M/c], M = mean_j k_j; a_j as namo_scale's a with k_j; decay by max(1 - wd min(a_j, 1), 0). NAMO-D.
    """
    V = buffer(state, "column_norm_squared", W, (1, W.shape[-1]))
    k = safe_norm(u, -2) / (average_(V, squared(safe_norm(G, -2)), beta2).sqrt() + eps)
    M = k.mean(-1, keepdim=True)
    a = bias_corrected(lr, momentum, beta2, t) * torch.clamp(k, clip * M, M / clip)
    W.mul_((1 - weight_decay * a.clamp(max=1)).clamp(min=0))
    W.sub_((rms(W) * a).clamp(max=1) * U)
