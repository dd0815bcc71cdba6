"""python -m records.studies.warm_start OPTIONS...: ./run.sh's trainer, but the model of a seed starts from
weights that Muon trained for the first fifth of a run. Data and optimizers start anew.
"""

import sys
from pathlib import Path

import torch

import train_gpt
from records.studies.short_training import ALONE, trained

STEPS, PART = 450, 5
RUNS = train_gpt.ROOT / "logs" / "proxies"
cold_model = train_gpt.make_model


def warm_weights(seed: int, folder: Path) -> dict[str, torch.Tensor]:
    """The weights, from the folder, else trained now and kept there."""
    kept = folder / f"warm-{seed}.pt"
    if not kept.exists():
        recipe = train_gpt.load_recipe("muon", [f"train_steps={STEPS}", 'track="nano"'])
        model = cold_model(recipe, seed, ALONE.device, False)
        trained(model, recipe, range(STEPS // PART))
        folder.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".tmp")
        torch.save(model.state_dict(), temporary)
        temporary.rename(kept)
    return torch.load(kept, weights_only=True)


def warm_model(recipe, seed, device, compiled) -> train_gpt.GPT:
    """In place of the trainer's make_model."""
    model = cold_model(recipe, seed, device, compiled)
    model.load_state_dict(warm_weights(seed, RUNS))
    return model


if __name__ == "__main__":
    train_gpt.make_model = warm_model
    train_gpt.main(sys.argv[1:])
