"""--instruments: measures a run's updates, and writes what it finds beside the log."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from optimizers.observer import Observer
from records.run.instrument_log import InstrumentLog
from records.run.recipe import Recipe, parse_seeds

Observe = Callable[[nn.Module, list[torch.optim.Optimizer], Path, int], Observer]


def observing(every: int, recipe: Recipe, seeds: str | None) -> Observe:
    """What observes the run of one seed: of a model, its optimizers, the log's path and the seed."""
    runs = len(parse_seeds(seeds or "0"))

    def observe(model: nn.Module, optimizers: list[torch.optim.Optimizer], log: Path, seed: int) -> Observer:
        layers = {name.removesuffix(".proj"): module for name, module in model.named_modules()
                  if name.endswith("mlp.proj")}  # fmt: skip
        writer = InstrumentLog(log, seed, recipe.train_steps // every + 1, runs)
        return Observer(optimizers, layers, every, writer.write)

    return observe
