"""State that keeps its own precision through a checkpoint."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class OwnPrecision(torch.optim.Optimizer):
    """A torch optimizer whose state may be wider than its parameter: float32 beside bfloat16."""

    def pairs(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """(group, parameter) of every parameter."""
        return ((group, p) for group in self.param_groups for p in group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim does, which casts to the parameter's type; here tensors stay as they were saved."""
        super().load_state_dict(state_dict)
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for (_, p), index in zip(self.pairs(), indices, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[p][name] = value.to(p.device, copy=True)
