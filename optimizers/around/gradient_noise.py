"""The noise of gradients: how far those of the micro-batches lie apart."""

from functools import partial
from typing import Annotated

import torch
import torch.distributed as dist
from torch import Tensor, nn

from optimizers.around.around import Around, around
from optimizers.matrix_optimizer import MatrixOptimizer


@around("gradient_noise")
class GradientNoise(Around):
    """The variance of a matrix's gradient over micro-batches, of its rows and columns, for isomuon's step.

    Of the gradients g_k of K micro-batches, all ranks', and their sum G:  R_i = mean_j [(1/K) sum_k g_kij^2 -
    (G_ij/K)^2], at least 0, plus 1e-30;  h <- R at first, then beta h + (1 - beta) R, for columns likewise.
    The size of a micro-batch is part of the method, and the trainer takes K of them: published, 8.

    params: hidden matrices. State: `row_noise` [m, 1], `column_noise` [1, n], which MatrixOptimizer is told.
    """

    def __init__(
        self, params: list, *, micro_batches: Annotated[int, "[2, inf)", "of a global batch (K)"] = 8,
        beta: Annotated[float, "[0, 1)", "what the average of the noise keeps"] = 0.95,
        stop: Annotated[int | None, "[1, inf)", "updates whose noise counts; nothing: all"] = None,
    ) -> None:  # fmt: skip
        super().__init__(params, {"micro_batches": micro_batches, "beta": beta, "stop": stop})
        self.listening = False
        self.squares: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self.seen: dict[Tensor, int] = {}
        for _, p in self.pairs():
            p.register_hook(
                partial(self.add, p)
            )  # sees one backward's gradient, before ranks exchange theirs

    def attach(self, model: nn.Module, others: dict[str, torch.optim.Optimizer]) -> None:
        """Finds whom to tell."""
        self.matrix = others["matrix"]

    @torch.no_grad()
    def add(self, p: Tensor, gradient: Tensor) -> None:
        """The mean squares of rows and columns of one micro-batch's gradient."""
        if self.listening:
            g2 = (gradient / world_size()).square()  # the trainer's loss is times the ranks that average it
            row, column = self.squares.get(p, (0, 0))
            self.squares[p] = row + g2.mean(-1, keepdim=True), column + g2.mean(-2, keepdim=True)
            self.seen[p] = self.seen.get(p, 0) + 1

    def before_gradient(self) -> None:
        """Begins to listen."""
        stop = self.param_groups[0]["stop"]
        self.listening = stop is None or self.updates <= stop

    @torch.no_grad()
    def after_gradient(self) -> None:
        """Averages the noise, and tells it. Raises ValueError for another number of micro-batches."""
        for group, p in self.pairs() if self.listening else ():
            K, found = group["micro_batches"], self.seen.get(p, 0) * world_size()
            if found != K:
                raise ValueError(
                    f"gradient_noise: expected {K} micro-batches, found {found}; see --micro-batch"
                )
            square = (p.grad / K).square()
            for name, dim, total in zip(
                ("row_noise", "column_noise"), (-1, -2), self.squares[p], strict=True
            ):
                if world_size() > 1:
                    dist.all_reduce(total)
                R = (total / K - square.mean(dim, keepdim=True)).clamp(min=0) + 1e-30
                self.state[p].setdefault(name, R.clone()).lerp_(R, 1 - group["beta"])
            assert isinstance(self.matrix, MatrixOptimizer)
            self.matrix.tell(p, **self.state[p])
        self.abandon()

    def abandon(self) -> None:
        """Stops listening."""
        self.listening = False
        self.squares.clear()
        self.seen.clear()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
