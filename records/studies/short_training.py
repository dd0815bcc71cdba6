"""The trainer's steps without a log, on one process: for studies that look inside a short training."""

from collections.abc import Iterable

import torch

from data.shards import Corpus
from optimizers.world import World
from records.run.recipe import Recipe
from train_gpt import (
    GPT,
    ROOT,
    apply_update,
    build_optimizers,
    compute_gradients,
    open_data,
    read_block,
    set_learning_rates,
)

ALONE = World(0, 1, torch.device("cpu"))
ROWS = 16  # of a micro-batch


def trained(model: GPT, recipe: Recipe, order: Iterable[int]) -> tuple[list[torch.optim.Optimizer], Corpus]:
    """Trains the model on these of the run's global batches, one an update; its optimizers, the data."""
    track, data = recipe.track, open_data(ROOT / "data", recipe)
    optimizers = build_optimizers(model, recipe, False)
    for step, at in enumerate(order):
        shard, start = data.blocks[at]
        set_learning_rates(optimizers, recipe, step)
        compute_gradients(model, optimizers, read_block(data.train[shard], start, track, ALONE), ROWS, ALONE)
        apply_update(optimizers)
    return optimizers, data
