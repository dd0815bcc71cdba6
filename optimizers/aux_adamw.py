"""AdamW of what is no hidden matrix, where torch.optim.AdamW has no option for it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from optimizers.own_precision import OwnPrecision


class AuxAdamW(OwnPrecision):
    """AdamW without bias correction, or on a float32 master copy of half-precision parameters.

    m <- b1 m + (1 - b1) G;  v <- b2 v + (1 - b2) G^2;
    A <- A (1 - lr weight_decay) - lr m' / (sqrt(v') + eps);  p <- A rounded to its type

    m' = m / (1 - b1^t), v' = v / (1 - b2^t) with bias_correction, else m and v themselves: then every entry
    first moves by lr (1 - b1)/sqrt(1 - b2) (published results #44 to #46, gains and biases). A is p, or with
    `master` a copy in float32 that takes in what others did to p since (open result 2580).

    State: exp_avg in the parameter's type (float32 with a master), exp_avg_sq in float32 at least; `master`
    and `written`, p as it was left. The group counts its updates, `t`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        master: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "t": 0}
        super().__init__(params, options | {"bias_correction": bias_correction, "master": master})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            group["t"] += 1
            params = [p for p in group["params"] if p.grad is not None]
            states = [self._state(p, group["master"]) for p in params]
            held = [state.get("master", p) for p, state in zip(params, states, strict=True)]
            for p, state in zip(params, states, strict=True):
                if "master" in state:
                    state["master"] += p.float() - state["written"].float()
            update_(group, held, [p.grad for p in params], states)
            for p, state in zip(params, states, strict=True):
                if "master" in state:
                    p.copy_(state["master"])
                    state["written"].copy_(p)

    def _state(self, p: Tensor, master: bool) -> dict[str, Tensor]:
        """The parameter's state, made at its first update."""
        state = self.state[p]
        if not state:
            wide = torch.promote_types(p.dtype, torch.float32)
            if master and p.dtype != wide:
                state |= {"master": p.float(), "written": p.clone()}
            state["exp_avg"] = torch.zeros_like(state.get("master", p))
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=wide)
        return state


def update_(group: dict[str, Any], A: list[Tensor], grads: list[Tensor], states: list[dict]) -> None:
    """AuxAdamW's formula on all parameters of a group."""
    (b1, b2), lr, t = group["betas"], group["lr"], group["t"]
    m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    torch._foreach_lerp_(m, [G.to(M.dtype) for G, M in zip(grads, m, strict=True)], 1 - b1)
    G = [G.to(V.dtype) for G, V in zip(grads, v, strict=True)]
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, G, G, 1 - b2)
    first, second = (1 - b1**t, 1 - b2**t) if group["bias_correction"] else (1.0, 1.0)
    roots = torch._foreach_sqrt(torch._foreach_div(v, second))
    torch._foreach_add_(roots, group["eps"])
    if group["weight_decay"]:
        torch._foreach_mul_(A, 1 - lr * group["weight_decay"])
    torch._foreach_addcdiv_(A, m, [root.to(a.dtype) for root, a in zip(roots, A, strict=True)], -lr / first)
