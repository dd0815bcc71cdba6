"""Muown: Muon on the directions of a weight's rows, Adam on their norms."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.norms import average_, safe_norm, squared, unit
from optimizers.stage import LearningRate, Momentum, Scalar, State, buffer, count_step, step_function
from optimizers.stages.direction import Contra, Polar, PolarSteps, orthogonal_direction
from optimizers.stages.memory import heavy_ball
from optimizers.stages.normalise import NeuronBeta2, neuron_variance
from optimizers.stages.scale import rms


@step_function
def muown(
    W: Tensor, G: Tensor, state: State, *, lr: LearningRate = 0.00325, momentum: Momentum = 0.95,
    polar: Polar = "polar_express", polar_steps: PolarSteps = 12, contra: Contra = 0.0,
    neuron_beta2: NeuronBeta2 = None,
    betas: Annotated[tuple[Scalar, Scalar], "[0, 1)", "Adam's of the row norms"] = (0.9, 0.95),
    eps: Annotated[float, "[0, inf)", "added to the root of Adam's second average"] = 1e-8,
    target: Annotated[Scalar, "(0, inf)", "what |V_i| is held to be when growth is 1"] = 2.496,
    growth: Annotated[Scalar, "[0, 1]", "how far |V_i| has gone from its start to the target"] = 0.0,
) -> None:  # fmt: skip
    """Muown (published result #23; KellerJordan/modded-nanogpt@f411b3d results/20260508_muown).

    W = g V/|V| row by row. With c = |V| as scheduled, c0 + growth (target - c0), and D = W/g:
    b = <G, D> per row;  G_V = (g/c)(G - b D);  u as in muoneq, of G_V;  V = c D - lr 0.2 sqrt(max(m, n))
    polar(u);  g <- g - lr Adam(b);  W <- g V/|V|

    The growth of c makes the same step of V a smaller angle; V itself is not kept. A row of zeros has g =
    c0 = sqrt(.33), so its first step gives it that norm, whatever lr is. g may change its sign. Result #23
    moves growth along a power 1.2; #31 (20260515_contranormuown) is contra and neuron_beta2=.8 besides.

    State: momentum of the weight's shape; gain, first_norm, gain_momentum, gain_variance [..., m, 1]; step.
    """
    if "gain" not in state:
        size = safe_norm(W, -1)
        state["gain"] = torch.where(size > 1e-12, size, 0.33**0.5)
        state["first_norm"] = state["gain"].clone()
    g, c0, t = state["gain"], state["first_norm"], count_step(state, W)
    c = c0 + growth * (target - c0)
    D = W * torch.where(g == 0, 0.0, 1 / g)
    b = (G * D).sum(-1, keepdim=True)
    u = heavy_ball(g / c * (G - b * D), state, momentum=momentum)
    U = neuron_variance(orthogonal_direction(u, polar, polar_steps, contra), state, neuron_beta2=neuron_beta2)
    V = c * D - lr * rms(W) * U
    m = average_(buffer(state, "gain_momentum", W, (W.shape[-2], 1)), b, betas[0])
    v = average_(buffer(state, "gain_variance", W, (W.shape[-2], 1)), squared(b), betas[1])
    g.sub_(lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps))
    W.copy_(g * unit(V, -1, 1e-12))
