"""EMA-Nesterov: gradients taken ahead of the weights, along the average of their past updates."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optimizers.around.around import Around


class EMANesterov(Around):
    """EMA-Nesterov around whatever steps the parameters (arXiv 2605.25395; published result #39).

    x_t+1 = A(x_t + beta_t m_t);  m_t+1 = gamma m_t + (1 - gamma)(x_t+1 - x_t);  m_0 = 0

    A is the step of every other optimizer, its gradient taken at x_t + beta_t m_t. One update:

        ahead.look_ahead()                     # before the forward pass; weights are ahead now
        loss.backward(); ...; others.step()
        ahead.step()                           # last: averages the whole way from x_t to x_t+1

    params: any dense parameters. lr is beta_t, 0 (look nowhere, but average) by default; decay is gamma.
    State: `average` of the parameter's shape. Half-precision parameters average in float32.
    """

    def __init__(self, params: ParamsT, lr: float = 0.0, decay: float = 0.99) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})
        self.origins: dict[Tensor, Tensor] = {}  # x_t, in buffers that stay
        self.is_ahead = False

    @torch.no_grad()
    def look_ahead(self) -> None:
        """Move every parameter from x_t to x_t + beta_t m_t."""
        for group in self.param_groups:
            for params, origins, averages in self._alike(group):
                torch._foreach_copy_(origins, params)
                if group["lr"]:
                    torch._foreach_add_(params, torch._foreach_mul(averages, group["lr"]))
        self.is_ahead = True

    @torch.no_grad()
    def look_back(self) -> None:
        """Move every parameter from where it looked ahead back to x_t: no update is made."""
        for group in self.param_groups if self.is_ahead else ():
            for params, origins, _ in self._alike(group):
                torch._foreach_copy_(params, origins)
        self.is_ahead = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Average the way from x_t to the parameters. Raises RuntimeError without a look_ahead before it."""
        if not self.is_ahead:
            raise RuntimeError("expected look_ahead() before the gradient of this step; call it once a step")
        for group in self.param_groups:
            for params, origins, averages in self._alike(group):
                torch._foreach_lerp_(averages, torch._foreach_sub(params, origins), 1 - group["decay"])
        self.is_ahead = False

    def _alike(self, group: dict[str, Any]) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """(parameters, origins, averages) of each precision and device: one call of a _foreach_ function.

        Origins and averages are in float32 at least, so that their differences with the parameters are too.
        """
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for p in group["params"]:
            alike.setdefault((p.dtype, p.device), []).append(p)
            wide = torch.promote_types(p.dtype, torch.float32)
            if p not in self.origins:
                self.origins[p] = torch.empty_like(p, dtype=wide)
            if p not in self.state:
                self.state[p]["average"] = torch.zeros_like(p, dtype=wide)
        for params in alike.values():
            yield params, [self.origins[p] for p in params], [self.state[p]["average"] for p in params]

    before_gradient, abandon = look_ahead, look_back
