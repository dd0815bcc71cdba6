"""The options of ./run.sh that reach the trainer: what to run, and how."""

import argparse
from argparse import BooleanOptionalAction
from pathlib import Path

from records.run.instrument_log import unobserved


def steps(text: str) -> int:
    """A number of steps, above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of steps above 0")
    return int(text)


def add_run_options(parser: argparse.ArgumentParser, root: Path) -> None:
    """How and where to run: the trainer has these options, and so has the script at the head of its logs.

    root: the folder that data/ and logs/ are in.
    """
    add = parser.add_argument
    add("--seeds", metavar="0-4|0,3", help="one run a seed, all in one log; default: 0")
    add("--micro-batch", type=int, metavar="ROWS", help="rows of a forward pass; default: what memory holds")
    add(
        "--checkpoint-every",
        type=steps,
        metavar="N",
        help="a checkpoint every N steps; the last two are kept",
    )
    add("--resume", type=Path, nargs="?", const="*", metavar="RUN", help="go on from the newest checkpoint")
    add("--data", type=Path, default=root / "data", metavar="DIR", help="of fineweb10B/, nano/ (data)")
    add("--out", type=Path, default=root / "logs", metavar="DIR", help="logs and checkpoints; default: logs")
    add("--compile", action=BooleanOptionalAction, help="default: on a GPU; on a CPU for several seeds")
    add(
        "--validate-ends",
        action="store_true",
        default=None,
        help="only at the first and the last step: for searches",
    )
    add(
        "--readouts",
        action="store_true",
        default=None,
        help="validate through each readout alone too: for research",
    )
    add("--tensorboard", type=Path, metavar="DIR", help="write scalars there too")
    parser.set_defaults(observe=unobserved, profile=False)


def parse_arguments(argv: list[str], root: Path) -> argparse.Namespace:
    """The options of ./run.sh that reach the trainer: what to run, and how."""
    parser = argparse.ArgumentParser(prog="./run.sh", description="Train and leave a record log.")
    add = parser.add_argument
    add("--track", metavar="NAME|FILE", help="fineweb (default with a GPU), nano (without), or a TOML file")
    add("--recipe", metavar="NAME|FILE", help="a shipped recipe, an entry, a TOML file; or: record")
    add("--recipes", action="store_true", help="list the recipes and leave")
    add("--explain", action="store_true", help="print the stages of the recipe, with every value, and leave")
    add("--steps", type=int, metavar="N", help="train N steps; the schedule follows")
    add("--instruments", type=steps, nargs="?", const=25, metavar="EVERY", help="measure what updates do")
    add("--profile", action="store_true", help="trace ten steps, beside the log; where their time went")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe: matrix.lr=0.03")
    add_run_options(parser, root)
    add("--plan", action="store_true", help=argparse.SUPPRESS)  # for run.sh
    return parser.parse_args(argv)
