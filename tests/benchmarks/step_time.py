"""Where the time of a training goes, on a CPU.

    python -m tests.benchmarks.step_time [--steps 60] [--recipe muon] [--layers 4 --dim 64]

Trains on the nano track with the parts of the trainer timed, and prints each part's share of the training
clock, which stands still during validation.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import train_gpt
from data.nano import build_nano
from tests.made_tracks import write_track

ROOT = Path(train_gpt.__file__).parent
WORK = ("forward", "backward", "optimizer")


def timed(seconds: dict[str, float], part: str, function: Callable) -> Callable:
    """The function, adding the seconds of each call to its part."""

    def call(*args: object, **kwargs: object) -> object:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[part] += time.perf_counter() - began
        return result

    return call


def measure(options: list[str], layers: int, dim: int) -> dict[str, float]:
    """Seconds of each part of a training with these options; "total" is the training clock."""
    seconds: dict[str, float] = defaultdict(float)
    build, batches, forward = train_gpt.build_optimizers, train_gpt.training_batches, train_gpt.GPT.forward

    def build_timed(*args: object) -> list[torch.optim.Optimizer]:
        optimizers = build(*args)
        for optimizer in optimizers:
            optimizer.step = timed(seconds, "optimizer", optimizer.step)
        return optimizers

    def batches_timed(*args: object) -> Iterator:
        generator = batches(*args)
        step = timed(seconds, "data", lambda: next(generator, None))
        while (batch := step()) is not None:
            yield batch

    train_gpt.build_optimizers, train_gpt.training_batches = build_timed, batches_timed
    train_gpt.GPT.forward = timed(seconds, "forward", forward)
    torch.Tensor.backward = timed(seconds, "backward", torch.Tensor.backward)
    train_gpt.RunLog.line = timed(seconds, "logging", train_gpt.RunLog.line)
    train_gpt.RunLog.record = timed(seconds, "logging", train_gpt.RunLog.record)
    validate = train_gpt.validate

    def validate_whole(*args: object) -> float:
        """Its forward passes count as validation."""
        train_gpt.GPT.forward, timed_forward = forward, train_gpt.GPT.forward
        try:
            return validate(*args)
        finally:
            train_gpt.GPT.forward = timed_forward

    train_gpt.validate = timed(seconds, "validation", validate_whole)
    stop = train_gpt.Clock.stop

    def stop_and_read(clock: train_gpt.Clock) -> None:
        stop(clock)
        seconds["total"] = clock.seconds

    train_gpt.Clock.stop = stop_and_read
    with tempfile.TemporaryDirectory() as out:
        track = write_track(Path(out) / "wide.toml", num_layers=layers, model_dim=dim)
        train_gpt.main([*options, "--track", str(track), "--out", out])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.step_time")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--recipe", default="muon")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    args = parser.parse_args()
    build_nano(ROOT / "data" / "nano")
    seconds = measure(["--recipe", args.recipe, "--steps", str(args.steps)], args.layers, args.dim)
    training, validation = seconds.pop("total"), seconds.pop("validation")
    seconds["rest"] = training - sum(seconds.values())
    print(f"\n{args.layers} layers of width {args.dim}, {args.recipe}, {args.steps} steps")
    for part, value in seconds.items():
        print(f"{part:12}{1000 * value / args.steps:9.3f} ms a step{value / training:8.1%}")
    outside = (training - sum(seconds[part] for part in WORK)) / training
    print(f"outside {', '.join(WORK)}: {outside:.1%} of {training:.1f} s; validation {validation:.1f} s")


if __name__ == "__main__":
    main()
