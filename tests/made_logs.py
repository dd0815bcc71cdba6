"""Logs for tests: a real flattened script, made-up losses that come down to a track's target."""

import math
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from records.run.effective import TABLES
from records.run.flatten import flatten, literal
from records.run.recipe import Recipe, toml_lines
from records.run.track import Track, shipped_tracks

ROOT = Path(__file__).resolve().parents[1]
NANO = shipped_tracks()["nano"]
RECIPE = {
    "description": "made up",
    "name": "muon",
    "track": "nano",
    "train_steps": 200,
    "matrix": {"step": "muon", "lr": 0.02, "weight_decay": 0.05},
    "schedule": {"cooldown_frac": 0.7},
}


def losses(steps: int, offset: float = 0.0, track: Track = NANO) -> dict[int, float]:
    """Step -> loss: falls to three sigma below the target at the end, plus `offset`."""
    late = {s for s in range(0, steps, track.late_val_every) if s >= 0.9 * steps}
    at = sorted({*range(0, steps, track.val_every), *late, steps})
    end = track.target - 3 * track.sigma + offset
    return {s: end + 4 * (math.exp(-5 * s / steps) - math.exp(-5)) for s in at}


@cache
def script(toml: str, *arguments: str) -> str:
    """The script of a run with Muon; whatever the recipe says, it stands there as it is."""
    chosen = tomllib.loads(toml)
    tables = {key: chosen.pop(key, {}) for key in TABLES}
    own = {key: chosen.pop(key) for key in ("name", "track", "train_steps")}
    track = shipped_tracks().get(own["track"], NANO)
    recipe = Recipe(**own | tables | {"track": track}, facts=chosen)
    values = {"RECIPE": literal(recipe)}
    return flatten(ROOT, ["muon"], values, list(arguments)).rstrip("\n")


def write_log(
    path: Path,
    seeds: Sequence[int] = (0, 1, 2, 3),
    offset: float = 0.0,
    recipe: dict = RECIPE,
    stated: dict | None = None,
    device: str = "a processor",
    track: Track = NANO,
    options: Sequence[str] = (),
) -> Path:
    """One log of a run for each seed; `stated` is the recipe of its facts where that is not the script's,
    `options` what the run was started with beside the seeds.
    """
    toml, steps = "\n".join(toml_lines(recipe)), recipe["train_steps"]
    seeds_told = ",".join(map(str, seeds))
    facts = [
        "id: 20261122-001530-muon-1a2b",
        "PyTorch 2.13.0+cpu, CUDA None, Python 3.11.7",
        f"device: {device}",
    ]
    facts += ["world_size: 1", f"track: {recipe['track']}", f"seeds: {seeds_told}", "effective recipe:"]
    lines = [script(toml, "--seeds", seeds_told, *options), "=" * 100, *facts]
    lines += ["\n".join(toml_lines(stated or recipe)), "=" * 100]
    for place, seed in enumerate(seeds):
        lines.append(f"seed: {seed}")
        for step, loss in losses(steps, offset + track.sigma * math.sin(7 * place + seed), track).items():
            told = f"train_time:{step * 0.1:.3f}s step_avg:{'nan' if step == 0 else '100.00'}ms"
            lines.append(f"step:{step}/{steps} val_loss:{loss:.5f} {told}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
