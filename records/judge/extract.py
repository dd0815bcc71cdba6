"""python -m records extract LOG [-o script.py]: the script at the head of a log, as it stands there."""

import argparse
import os
import sys
from pathlib import Path

from records.judge.logs import LogError, read_log


def register(subparsers) -> None:
    """Add the subcommand `extract`."""
    parser = subparsers.add_parser("extract", description=__doc__)
    parser.add_argument("log", metavar="LOG")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="script.py", help="where to write it (to the terminal)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the script. It is never run: read it before you do."""
    script = extract(args.log)
    if args.output is None:
        sys.stdout.write(script)
        return 0
    whole = args.output.with_name(args.output.name + ".tmp")
    whole.write_bytes(script.encode())
    os.replace(whole, args.output)
    return 0


def extract(path: str | Path) -> str:
    """Everything before a log's first line of `=`. Raises LogError where no whole script stands there."""
    log = read_log(path)
    if log.script is None:
        why = [problem for problem in log.problems if "script" in problem]
        found = why[0] if why else "no Python before it"
        raise LogError(f"{log.path}: expected a script that ends at a line of 100 = signs, found: {found}")
    return log.script
