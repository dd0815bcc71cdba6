"""IsoMuon's direction: the polar factor in the metric of the gradient's noise."""

from typing import Annotated

from torch import Tensor

from optimizers.norms import safe_norm
from optimizers.stage import State, stage
from optimizers.stages.direction import Polar, PolarSteps, orthogonal_direction


@stage("direction", "noise_polar")
def noise_polar_direction(
    D: Tensor, state: State, *, polar: Polar = "simple", polar_steps: PolarSteps = None,
    noise_power: Annotated[float, "[0, 1]", "of the relative noise in the metric"] = 0.5,
    noise_limit: Annotated[float, "[1, inf)", "the metric stays within this and its inverse"] = 2.0,
) -> Tensor:  # fmt: skip
    """b^-1/2 polar(b^-1/2 D a^-1/2) a^-1/2 at norm sqrt(min(m, n)): less where the gradient is noisy.

    b_i = (h_i/mean h)^noise_power within the limit, h the state's `row_noise` [..., m, 1], and a_j likewise
    of `column_noise` [..., 1, n]. Who trains gives them (GradientNoise); without them both are 1.
    """
    scale = D.new_ones(())
    for name in ("row_noise", "column_noise"):
        if name in state:
            scale = scale * metric(state[name], noise_power, noise_limit).rsqrt()
    U = scale * orthogonal_direction(scale * D, polar, polar_steps, 0.0)
    return U * (min(D.shape[-2:]) ** 0.5 / (safe_norm(U) + 1e-12))


def metric(h: Tensor, power: float, limit: float) -> Tensor:
    """(h/mean h)^power of every matrix's vector, held between 1/limit and limit."""
    mean = h.mean((-2, -1), keepdim=True).clamp(min=1e-30)
    return ((h / mean).clamp(min=1e-30) ** power).clamp(1 / limit, limit)
