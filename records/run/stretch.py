"""python -m records stretch RECIPE STEPS [-o new.toml]: the recipe for a run of another length.

What stands at a step moves to the same part of the run: cooldowns, plans, knots, and where a mechanism begins
or ends. How long averages of weights last stretches too, EMA-Nesterov's and a readout's; momentum's does not.
Learning rates stay: search them again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from records.run.effective import LOOKAHEAD, is_knots
from records.run.files import write_whole
from records.run.recipe import MOST_STEPS, RecipeError, toml_lines
from records.run.recipe_files import find_recipe, read_table
from records.run.track import is_number, shipped_tracks

# Whole numbers, counted in updates.
POINTS = ("start", "stop", "apply", "since", "first", "second", "begin", "reset_begin")
LASTS = ("tau", "cooldown_steps", "aux_cooldown_steps", "warmup_steps")
PLANS = ("steps", "aux_steps", "delay")  # whose values are steps too


def stretched(table: dict[str, Any], steps: int) -> dict[str, Any]:
    """A recipe's table, as its file says it, for a run of `steps` updates.

    Raises RecipeError where it does not say for how many it was made.
    """
    planned = table.get("train_steps")
    if type(planned) is not int or planned < 1:
        raise RecipeError(
            f"the recipe says train_steps = {planned!r}: expected a number of steps to start from."
        )
    if not 1 <= steps <= MOST_STEPS:
        raise RecipeError(f"{steps} steps: expected a number above 0, at most {MOST_STEPS:,}.")
    factor = steps / planned
    done = {key: in_table(key, value, factor) if isinstance(value, dict) else value
            for key, value in table.items()}  # fmt: skip
    if table.get("lookahead"):
        decay = table["lookahead"].get("decay", LOOKAHEAD["decay"])
        done["lookahead"]["decay"] = round(decay ** (1 / factor), 5) if is_number(decay) else decay
    return done | {"train_steps": steps}


def in_table(name: str, table: dict[str, Any], factor: float) -> dict[str, Any]:
    """A table of a recipe with everything in it that is counted in steps stretched."""
    done: dict[str, Any] = {}
    for key, value in table.items():
        between = key == "every" and "pulses" in (name, table.get("kind"))
        counted = key in POINTS or between or (key in PLANS and name == "schedule")
        if isinstance(value, dict):
            done[key] = in_table(key, value, factor)
        elif is_knots(value):
            done[key] = [knot_at(knot, factor, key in PLANS) for knot in value]
        elif key in LASTS and is_number(value):
            least = 1.0 if key == "tau" else 0.0  # the weights that an average is of
            done[key] = max(round(value * factor, 4), least)
        elif counted and type(value) is int:
            done[key] = max(round(value * factor), int(between))
        else:
            done[key] = value
    return done


def knot_at(knot: list, factor: float, of_steps: bool) -> list:
    """A knot [step, value] or [step, value, shape], its step moved; its value where that is steps as well."""
    value = round(knot[1] * factor, 4) if of_steps else knot[1]
    return [round(knot[0] * factor, 4), value, *knot[2:]]


def register(subparsers) -> None:
    """Add the subcommand `stretch`."""
    parser = subparsers.add_parser("stretch", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe, an entry or a TOML file")
    parser.add_argument("steps", metavar="STEPS", type=int)
    parser.add_argument("-o", "--output", type=Path, metavar="new.toml", help="(to the terminal)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the stretched recipe; never over a file that is there."""
    table = read_table(find_recipe(args.recipe, shipped_tracks()))
    text = "\n".join(toml_lines(stretched(table, args.steps))) + "\n"
    if args.output is None:
        sys.stdout.write(text)
    elif args.output.exists():
        raise RecipeError(f"{args.output} exists: name another file with -o")
    else:
        write_whole(args.output, text.encode())
    return 0
