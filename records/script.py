"""The script at the head of a run's log."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from optimizers import AROUND
from optimizers.stage import named_step
from records.run.flatten import flatten, literal
from records.run.recipe import Recipe


def script_of(recipe: Recipe, args: argparse.Namespace, root: Path) -> str:
    """The script that repeats the run: what it uses of this project, its recipe and track as values.

    root: the project's folder.
    """
    asked = [] if args.micro_batch is None else ["--micro-batch", str(args.micro_batch)]
    asked += [] if args.compile is None else ["--compile" if args.compile else "--no-compile"]
    rows = [named_step(name).row for name in recipe.step_names()]
    methods = {row.name.partition("(")[0] for row in rows}
    stages = {stage.function.__name__ for row in rows for stage in row.stages}
    around = {AROUND[table["kind"]].__name__ for table in recipe.surroundings().values()}
    values = {"RECIPE": literal(recipe)} | dict.fromkeys(never_used(recipe), "None")
    return flatten(root, sorted(methods | stages | around), values, ["--seeds", args.seeds or "0", *asked])


def never_used(recipe: Recipe) -> Iterator[str]:
    """What the trainer uses only with options that a script lacks, or for what this recipe leaves out."""
    yield "marks"  # --profile
    if not recipe.lookahead:
        yield "EMANesterov"
    if not recipe.own_steps():
        yield "OwnStep"
    if not recipe.surroundings():
        yield "around_of"
    if not any("couple" in table for table in recipe.patterns().values()):
        yield "coupled_"
    if not recipe.init.get("gain_signs"):
        yield "sign_gains"
