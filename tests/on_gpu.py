"""Recipes on this machine's GPU beside its CPU: python -m tests.on_gpu [RECIPE.toml ...] [--compile]

Every recipe (fineweb's, if none is named) is stretched to 24 steps of nano's model, twelve layers deep, and
trained on the CPU, on the GPU, and on the GPU again from its checkpoint of step 16. The three must end at one
validation loss: a GPU multiplies Muon's products in bfloat16, the CPU in float32, all else is float32.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from records.run.recipe import toml_lines
from records.run.stretch import stretched
from records.run.track import RECORDS
from tests.made_tracks import write_track

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
TOLERANCE = 1e-2  # relative, of the last validation loss
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def last_loss(options: Sequence[str], environment: dict[str, str]) -> float | str:
    """The last validation loss of a run of the trainer, or the last line of what it says instead."""
    command = [sys.executable, str(ROOT / "train_gpt.py"), *options]
    made = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    found = re.findall(rf"^step:{STEPS}/{STEPS} val_loss:(\S+)", made.stdout, re.M)
    if made.returncode == 0 and found:
        return float(found[-1])
    return (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1]


def compared(recipe: Path, data: Path, compiled: bool, folder: Path) -> tuple[bool, str]:
    """Whether the three runs of a recipe agree, and the line that says so."""
    own = folder / f"{recipe.parent.name}-{recipe.stem}"
    own.mkdir()
    track = write_track(own / "deep.toml", num_layers=12, val_tokens=8192)
    table = stretched(tomllib.loads(recipe.read_text()), STEPS) | {"track": "deep"}
    table.pop("base", None)
    (own / recipe.name).write_text("\n".join(toml_lines(table)) + "\n")
    asked = ["--track", str(track), "--recipe", str(own / recipe.name), "--data", str(data)]
    asked += ["--compile" if compiled else "--no-compile", "--validate-ends"]
    gpu = ["--out", str(own / "gpu"), "--checkpoint-every", "16", "--instruments", "8"]
    began = time.perf_counter()
    losses = {
        "CPU": last_loss([*asked, "--out", str(own / "cpu")], NO_GPU),
        "GPU": last_loss([*asked, *gpu], {}),
        "resumed": last_loss([*asked, *gpu, "--resume"], {}),
    }
    cpu = losses["CPU"]
    agrees = all(
        isinstance(loss, float) and isinstance(cpu, float) and abs(loss / cpu - 1) <= TOLERANCE
        for loss in losses.values()
    )  # nan is no neighbour
    told = ", ".join(f"{name} {loss}" for name, loss in losses.items())
    name = f"{recipe.parent.name}/{recipe.stem}"
    return agrees, f"{name:<36}{'ok' if agrees else 'FAILS':<7}{told} ({time.perf_counter() - began:.0f} s)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.on_gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE.toml")
    parser.add_argument("--compile", action="store_true", help="all three runs")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="of nano/")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: no GPU that torch can use", file=sys.stderr)
        return 2
    recipes = options.recipes or sorted((RECORDS / "fineweb").glob("[0-9o]*.toml"))
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as runs:
        asked = {"data": options.data.resolve(), "compiled": options.compile, "folder": Path(folder)}
        compare = partial(compared, **asked)
        for agrees, line in runs.map(compare, recipes):
            failed += not agrees
            print(line, flush=True)
    print(f"{len(recipes)} recipes, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
