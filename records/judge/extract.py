"""python -m records extract LOG [-o script.py]: the script at the head of a log, as it stands there."""

import argparse
import sys
from pathlib import Path

from records import RecordError
from records.judge.logs import LogError, is_log, read_log
from records.run.files import write_whole


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
    if args.output is None and sys.stdout.isatty():
        print(script, end="")
    elif args.output is None:
        sys.stdout.buffer.write(script.encode())
    elif args.output.exists() and is_log(args.output):
        raise RecordError(f"{args.output} exists and is called as a log is: name another file with -o")
    else:
        write_whole(args.output, script.encode())
    return 0


def extract(path: str | Path) -> str:
    """Everything before a log's first line of `=`. Raises LogError where no whole script stands there."""
    log = read_log(path)
    if log.script is None:
        why = [problem for problem in log.problems if "script" in problem]
        found = why[0] if why else "no Python before it"
        raise LogError(f"{log.path}: expected a script that ends at a line of 100 = signs, found: {found}")
    return log.script
