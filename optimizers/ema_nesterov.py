"""EMA-Nesterov: gradients taken ahead of the weights, along the average of their past updates."""

from collections.abc import Iterable

import torch
from torch import Tensor

from optimizers.around.around import Around
from optimizers.norms import average_


class EMANesterov(Around):
    """EMA-Nesterov around whatever steps the parameters (arXiv 2605.25395; published result #39).

    x_t+1 = A(x_t + beta_t m_t);  m_t+1 = gamma m_t + (1 - gamma)(x_t+1 - x_t);  m_0 = 0

    A is the step of every other optimizer, its gradient taken at x_t + beta_t m_t. One update:

        ahead.look_ahead()                     # before the forward pass; weights are ahead now
        loss.backward(); ...; others.step()
        ahead.step()                           # last: averages the whole way from x_t to x_t+1

    params: any dense parameters. lr is beta_t, 0 (look nowhere, but average) by default; decay is gamma.
    State: `average` of the parameter's shape, kept as torch.optim keeps it. Half-precision parameters average
    in float32.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.0, decay: float = 0.99) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})
        self.origins: dict[Tensor, Tensor] = {}  # x_t, from look_ahead to step

    @torch.no_grad()
    def look_ahead(self) -> None:
        """Move every parameter from x_t to x_t + beta_t m_t."""
        for group in self.param_groups:
            for p in group["params"]:
                self.origins[p] = p.clone()
                if group["lr"] and p in self.state:
                    p.copy_(p + group["lr"] * self.state[p]["average"])

    @torch.no_grad()
    def look_back(self) -> None:
        """Move every parameter from where it looked ahead back to x_t: no update is made."""
        for p, origin in self.origins.items():
            p.copy_(origin)
        self.origins.clear()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Average the way from x_t to the parameters. Raises RuntimeError without a look_ahead before it."""
        if not self.origins:
            raise RuntimeError("expected look_ahead() before the gradient of this step; call it once a step")
        for group in self.param_groups:
            for p in group["params"]:
                origin, wide = self.origins.pop(p), torch.promote_types(p.dtype, torch.float32)
                if p not in self.state:
                    self.state[p]["average"] = torch.zeros_like(p, dtype=wide)
                average_(self.state[p]["average"], p.to(wide) - origin.to(wide), group["decay"])

    before_gradient, abandon = look_ahead, look_back
