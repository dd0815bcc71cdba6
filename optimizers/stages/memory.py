"""Memory: gradient -> u, what a step knows of the gradients before. Left out, u is the gradient itself."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import average_
from optimizers.stage import Momentum, Nesterov, Scalar, State, buffer, stage

Begin = Annotated[int, "[0, inf)", "update, from 0, after which the averages go apart; Nesterov until then"]


@stage("memory", by_rows=True)
def nesterov(G: Tensor, state: State, *, momentum: Momentum = 0.95, nesterov: Nesterov = True) -> Tensor:
    """M <- M + (1 - mu)(G - M); u = (1 - mu) G + mu M, or M itself without Nesterov. No bias correction."""
    M = average_(buffer(state, "momentum", G), G, momentum)
    if not nesterov:
        return M.clone()
    if isinstance(momentum, Tensor):
        return (1 - momentum) * G + momentum * M
    return torch.lerp(M, G, 1 - momentum)


@stage("memory", by_rows=True)
def heavy_ball(G: Tensor, state: State, *, momentum: Momentum = 0.95, nesterov: Nesterov = True) -> Tensor:
    """B <- mu B + G; u = G + mu B, or B itself without Nesterov."""
    B = buffer(state, "momentum", G).mul_(momentum).add_(G)
    return G + momentum * B if nesterov else B.clone()


@stage("memory", by_rows=True)
def late_average(G: Tensor, state: State, *, momentum: Momentum = 0.95) -> Tensor:
    """u = M <- mu M + (1 - mu) G from the second gradient on; M is 0 at the first. KL-SOAP."""
    if "momentum" not in state:
        return buffer(state, "momentum", G).clone()
    return average_(state["momentum"], G, momentum).clone()


@stage("memory")
def corrected_average(G: Tensor, state: State, t: Tensor, *, momentum: Momentum = 0.95) -> Tensor:
    """M <- mu M + (1 - mu) G; u = M / (1 - mu^t). Adam's average, for Shampoo and PSGD."""
    return average_(buffer(state, "momentum", G), G, momentum) / (1 - momentum**t)


@stage("memory")
def bimaxwell(
    G: Tensor, state: State, t: Tensor, *, momentum: Momentum = 0.95, begin: Begin = 1000,
    fast_beta: Annotated[Scalar, "[0, 1)", "what the fast average keeps"] = 0.85,
    slow_beta: Annotated[Scalar, "[0, 1)", "what the slow average keeps"] = 0.98,
    fast_part: Annotated[Scalar, "[0, 1]", "part of the fast average in the mix"] = 0.4385,
) -> Tensor:  # fmt: skip
    """Bi-Maxwell (open pull request 339 of modded-nanogpt, 2635 steps): u = (1 - mu) G + mu (S + c (F - S)).

    F and S are fast and slow averages of G; the mix is of mean age c b_f/(1 - b_f) + (1 - c) b_s/(1 - b_s).
    """
    return mixed_averages(G, state, t, momentum, begin, (fast_beta, slow_beta), (fast_part, 1 - fast_part))


@stage("memory")
def kmaxwell(
    G: Tensor, state: State, t: Tensor, *, momentum: Momentum = 0.95, begin: Begin = 1000,
    averages: Annotated[int, "[2, inf)", "how many averages are mixed"] = 8,
    shortest: Annotated[float, "(0, inf)", "mean age of the fastest average, in steps"] = 3.0,
    longest: Annotated[float, "(0, inf)", "mean age of the slowest average, in steps"] = 64.0,
    age: Annotated[Scalar, "(0, inf)", "mean age of the mix, in steps"] = 58.0,
) -> Tensor:  # fmt: skip
    """K-Maxwell (open pull requests 357 and 359 of modded-nanogpt): u = (1 - mu) G + mu sum_k w_k M_k.

    M_k are averages of G whose mean ages a_k lie between shortest and longest in geometric progression, each
    keeping b_k = a_k/(a_k + 1). The weights w_k = x k, k < K, and w_K = 1 - sum, have the mean age `age`,
    which goes down over the run there: from 58 to 26 in 2250 steps.
    """
    ratio = (longest / shortest) ** (1 / (averages - 1))
    ages = [shortest * ratio**k for k in range(averages)]
    x = (longest - age) / sum(k * (longest - a) for k, a in enumerate(ages, 1))
    weights = [x * k for k in range(1, averages)]
    return mixed_averages(
        G, state, t, momentum, begin, [a / (a + 1) for a in ages], [*weights, 1 - sum(weights)]
    )


def mixed_averages(
    G: Tensor, state: State, t: Tensor, momentum: Scalar, begin: int, betas: Sequence[Scalar],
    weights: Sequence[Scalar],
) -> Tensor:  # fmt: skip
    """(1 - mu) G + mu sum_k w_k M_k, M_k <- b_k M_k + (1 - b_k) G; until update `begin` every b_k is mu.

    Until then all averages are one, so that it needs no buffer of its own.
    """
    M = buffer(state, "averages", G, (len(betas), *G.shape[-2:]))
    waiting = (t <= begin + 1).to(G.dtype)
    mix = torch.zeros_like(G)
    for k, (beta, weight) in enumerate(zip(betas, weights, strict=True)):
        own = M[..., k, :, :]
        own.lerp_(G, 1 - (beta + waiting * (momentum - beta)))
        mix = mix + weight * own
    return (1 - momentum) * G + momentum * torch.where(waiting > 0, M[..., 0, :, :], mix)
