"""MaxEnt momentum: a kernel over the last gradients themselves, the flattest with given moments."""

from typing import Annotated

import torch
from torch import Tensor

from optimizers.stage import Momentum, Scalar, State, buffer, stage
from optimizers.stages.memory import Begin, nesterov

LAGS = 256


def maxent_kernel(age: float, log_age: float, first: float, second: float) -> tuple[float, ...]:
    """Weights of the ages 0 ... 255, in float64: w_0 and w_1 as given, w_k = (1 - w_0 - w_1) p_k after them.

    p is the law of most entropy, p_k = exp(b (-1)^k + c k + d ln(1 + k)) / Z, with sum (-1)^k w_k = 0,
    sum k w_k = age and sum ln(1 + k) w_k = log_age. Newton's method on the convex dual, from b = c = d = 0.
    """
    k = torch.arange(LAGS, dtype=torch.float64)
    features = torch.stack([1 - 2 * (k % 2), k / LAGS, (1 + k).log()])
    head = torch.tensor([first, second], dtype=torch.float64)
    wanted = torch.tensor([0.0, age / LAGS, log_age], dtype=torch.float64) - features[:, :2] @ head
    wanted, tail = wanted / (1 - first - second), features[:, 2:]
    dual = torch.zeros(3, dtype=torch.float64)
    for _ in range(30):
        p = (dual @ tail).softmax(0)
        apart = tail - (tail @ p)[:, None]
        step = torch.linalg.solve(apart * p @ apart.T, wanted - tail @ p)
        dual = dual + step / step.abs().max().clamp(min=1)
    return (first, second, *((1 - first - second) * (dual @ tail).softmax(0)).tolist())


# Their moments are those of open pull requests 368 and 369 of modded-nanogpt.
EARLY_KERNEL = maxent_kernel(90.0, 3.7153849427, 0.07235, 0.02235)
LATE_KERNEL = maxent_kernel(24.05, 2.3786333904, 0.137, 0.087)


@stage("memory")
def maxent(
    G: Tensor, state: State, t: Tensor, *, momentum: Momentum = 0.95, begin: Begin = 780,
    late: Annotated[Scalar, "[0, 1]", "how far the kernel is on its way from early to late"] = 0.0,
) -> Tensor:  # fmt: skip
    """u = sum_k w_k G_(t-k) over the last 256 gradients, w on the line between two kernels.

    Until update `begin` it is Nesterov's. The gradients are kept from the first step on: 256 copies of the
    matrix.
    """
    u = nesterov(G, state, momentum=momentum)
    past = buffer(state, "gradients", G, (LAGS, *G.shape[-2:]))
    past.copy_(torch.cat([G.unsqueeze(-3), past[..., :-1, :, :]], dim=-3))
    early, goal = (G.new_tensor(kernel) for kernel in (EARLY_KERNEL, LATE_KERNEL))
    mixed = torch.einsum("k,...kmn->...mn", early + late * (goal - early), past)
    return torch.where(t <= begin, u, mixed)
