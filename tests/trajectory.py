"""Replay the scaled training of a published result in float64: `python -m tests.trajectory RECIPE.toml`.

The trainer's own functions train a 2-layer model on made tokens; the losses are compared with those of the
result's own script (tests/golden). A scaled recipe is a recipe with a table of its own, which says where the
replay's data differ from the usual:

    [trajectory]
    rows = 4            # of 64 tokens, a batch
    micro_batch = 4     # rows of one forward pass
    matrix_scale = 1.0  # the hidden matrices start at so many times the usual numbers
"""

import argparse
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from optimizers.around.around import read_losses
from records.baseline import made_model, made_tokens
from records.run.recipe import Recipe, toml_lines
from records.run.track import shipped_tracks
from train_gpt import (
    AROUND,
    GPT,
    STEPS,
    World,
    apply_update,
    build_optimizers,
    compute_gradients,
    parse_recipe,
    set_learning_rates,
)

FOLDER = Path(__file__).parent / "golden" / "trajectories"
FINAL_ROWS, FINAL_SEEDS = 2, (5, 6)
ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Replay:
    """What a replay takes beside the recipe. tokens: seeds of the first batch's inputs and targets."""

    rows: int = 4
    micro_batch: int = 4
    matrix_scale: float = 1.0
    weights_offset: int = 0
    tokens: tuple[int, int] = (100, 200)


def read_scaled(path: Path) -> tuple[Recipe, Replay]:
    """The recipe, and what its table [trajectory] says; a bare name is one of tests/golden/trajectories.

    Raises RecipeError, TypeError for an unknown key.
    """
    table = tomllib.loads((path if path.exists() else FOLDER / path).read_text())
    replay = Replay(**table.pop("trajectory", {}))
    text = "\n".join(toml_lines(table))
    return parse_recipe(text, path.stem, shipped_tracks(), STEPS, arounds=AROUND), replay


def started(replay: Replay) -> GPT:
    """The made model, its hidden matrices scaled."""
    model = made_model(offset=replay.weights_offset)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.") and parameter.ndim >= 2:
                parameter.mul_(replay.matrix_scale)
    return model


def published_probes(seed: Tensor, step: Tensor, draw: int, weight: Tensor) -> Tensor:
    """The random numbers that the replay of result 33 takes: of the parameter's crc32, step and draw."""
    keys = zip(seed.flatten().tolist(), step.flatten().tolist(), strict=True)
    drawn = [np.random.default_rng([own, int(t), draw]).standard_normal(weight.shape[-2:]) for own, t in keys]
    return torch.from_numpy(np.stack(drawn)).view(weight.shape)


@patch("optimizers.stages.kron.standard_normal", published_probes)
def replayed(recipe: Recipe, replay: Replay, steps: int | None = None) -> tuple[list[float], float]:
    """The summed loss of each batch before its update, and that of the final tokens, through the readouts.

    steps: stop after so many; the whole training without it.
    """
    model, losses = started(replay), []
    optimizers = build_optimizers(model, recipe)
    for step in range(steps or recipe.train_steps):
        batch = tuple(made_tokens(seed + step, replay.rows) for seed in replay.tokens)
        set_learning_rates(optimizers, recipe, step)
        losses.append(compute_gradients(model, optimizers, batch, replay.micro_batch, ALONE).item())
        apply_update(optimizers)
    tokens = [made_tokens(seed, FINAL_ROWS) for seed in FINAL_SEEDS]
    with torch.no_grad():
        final, _ = read_losses(optimizers, lambda: model(*tokens).item())
    return losses, final["val_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.trajectory", description="Replay a scaled recipe.")
    parser.add_argument("recipe", type=Path, help="a file, or such as 44.toml of golden/trajectories")
    parser.add_argument("--weights-offset", type=int, help="added to the seed of every parameter")
    parser.add_argument("--tokens", metavar="A,B", help="seeds of the first inputs and targets; 100,200")
    parser.add_argument("--matrix-scale", type=float, help="factor of the hidden matrices' start")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    recipe, replay = read_scaled(args.recipe)
    tokens = args.tokens and tuple(int(seed) for seed in args.tokens.split(","))
    asked = {"weights_offset": args.weights_offset, "tokens": tokens, "matrix_scale": args.matrix_scale}
    replay = Replay(**vars(replay) | {key: value for key, value in asked.items() if value is not None})
    losses, final = replayed(recipe, replay)
    if args.json:
        print(json.dumps({"losses": losses, "final_loss": final}))
    else:
        print("losses", *losses, sep="\n")
        print(f"final_loss\n{final}")


if __name__ == "__main__":
    main()
