"""python -m records.studies.warm_start STEPS OPTIONS...: ./run.sh's trainer, but the model of a seed starts
from weights that Muon trained for STEPS, the first fifth of a run. Data and optimizers start anew.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch

import train_gpt
from records.studies.short_training import ALONE, trained

PART = 5
RUNS = train_gpt.ROOT / "logs" / "proxies"
cold_model = train_gpt.make_model


def warm_weights(steps: int, seed: int, folder: Path) -> dict[str, torch.Tensor]:
    """The weights after `steps`, from the folder, else trained now and kept there."""
    kept = folder / f"warm-{steps}-{seed}.pt"
    if not kept.exists():
        recipe = train_gpt.load_recipe("muon", [f"train_steps={steps * PART}", 'track="nano"'])
        model = cold_model(recipe, seed, ALONE.device, False)
        trained(model, recipe, range(steps))
        folder.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}.tmp")
        torch.save(model.state_dict(), temporary)
        temporary.rename(kept)
    return torch.load(kept, weights_only=True)


def warm_model(recipe, seed, device, compiled, *, steps: int) -> train_gpt.GPT:
    """In place of the trainer's make_model."""
    model = cold_model(recipe, seed, device, compiled)
    model.load_state_dict(warm_weights(steps, seed, RUNS))
    return model


if __name__ == "__main__":
    train_gpt.make_model = partial(warm_model, steps=int(sys.argv[1]))
    train_gpt.main(sys.argv[2:])
