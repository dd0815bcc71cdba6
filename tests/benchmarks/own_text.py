"""Train a small model on text of one's own, with several optimizers, through the trainer as it is.

    python -m data.tokenize_text --out DIR/fineweb10B --val-tokens 70000 TEXT...
    python -m tests.benchmarks.own_text DIR [--steps 60] [--recipes 36_muon my.toml ...]

The fineweb track's recipes and tokens, on 2 layers of width 128, context 256, 1,024 tokens a step.
Prints the validation loss of each recipe at the start, half way and at the end.
"""

import argparse
from pathlib import Path

import train_gpt
from records.judge.logs import read_log
from tests.made_tracks import write_track

RECIPES = ["36_muon", "17_aurora_contra_floor", "11_contra_muon", "records/fineweb/nora.toml"]
SMALL = {
    "num_layers": 2,
    "model_dim": 128,
    "head_dim": 64,
    "context": 256,
    "batch_tokens": 1024,
    "val_tokens": 16384,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.own_text")
    parser.add_argument("data", type=Path, metavar="DIR", help="the folder that holds fineweb10B/")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--out", type=Path, default=Path("logs/own_text"))
    args = parser.parse_args()
    every = max(args.steps // 2, 1)
    args.out.mkdir(parents=True, exist_ok=True)
    track = write_track(args.out / "own_text.toml", "fineweb", **SMALL, val_every=every, late_val_every=every)
    told = []
    for recipe in args.recipes:
        before = set(args.out.glob("*.txt"))
        options = ["--track", str(track), "--recipe", recipe, "--steps", str(args.steps)]
        train_gpt.main([*options, "--data", str(args.data), "--out", str(args.out)])
        (log,) = set(args.out.glob("*.txt")) - before
        losses = "  ".join(f"{v.step}: {v.val_loss:.4f}" for v in read_log(log).runs[0].validations)
        told.append(f"{recipe:26}{losses}")
    print("\nvalidation loss at step", *told, sep="\n")


if __name__ == "__main__":
    main()
