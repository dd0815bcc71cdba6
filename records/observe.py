"""--instruments measures a run's updates, --profile its time; what they find goes beside the log."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from optimizers.observer import Observer
from records.run import RunError
from records.run.instrument_log import InstrumentLog
from records.run.options import Unobserved
from records.run.recipe import Recipe, parse_seeds
from records.run.signals import say
from records.run.step_profile import PROFILED, SKIPPED, TRACED, WARMED, StepProfile

Watch = Observer | StepProfile | Unobserved
Observe = Callable[[nn.Module, list[torch.optim.Optimizer], Path, int], Watch]


def observing(args: argparse.Namespace, recipe: Recipe) -> Observe | None:
    """What observes the run of one seed: of a model, its optimizers, the log's path and the seed.

    None where the options ask for nothing. Raises RunError for both at once, or too few steps for a trace.
    """
    if args.instruments and args.profile:
        raise RunError("--instruments and --profile: what one measures the other would count. Give one.")
    if args.profile and recipe.train_steps < PROFILED:
        raise RunError(f"--profile needs {PROFILED} steps, the run has {recipe.train_steps}: more --steps.")
    if args.instruments:
        return instrumented(args.instruments, recipe, args.seeds)
    return profiled() if args.profile else None


def instrumented(every: int, recipe: Recipe, seeds: str | None) -> Observe:
    """With --instruments."""
    runs = len(parse_seeds(seeds or "0"))

    def observe(model: nn.Module, optimizers: list[torch.optim.Optimizer], log: Path, seed: int) -> Observer:
        layers = {name.removesuffix(".proj"): module for name, module in model.named_modules()
                  if name.endswith("mlp.proj")}  # fmt: skip
        writer = InstrumentLog(log, seed, recipe.train_steps // every + 1, runs)
        return Observer(optimizers, layers, every, writer.write)

    return observe


def profiled() -> Observe:
    """With --profile: the first process traces the first seed's run."""
    seeds: list[int] = []

    def observe(model: nn.Module, optimizers: list[torch.optim.Optimizer], log: Path, seed: int) -> Watch:
        seeds.append(seed)
        if len(seeds) > 1 or os.environ.get("RANK", "0") != "0":
            return Unobserved()
        plan = torch.profiler.schedule(wait=SKIPPED, warmup=WARMED, active=TRACED, repeat=1)
        profiler = torch.profiler.profile(schedule=plan)
        watch = StepProfile(profiler, torch.profiler.record_function, log.with_suffix(".trace.json.gz"), say)
        model.register_forward_pre_hook(lambda *_: watch.begin("forward"))
        model.register_forward_hook(lambda *_: watch.begin("backward"))
        return watch

    return observe
