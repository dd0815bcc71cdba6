"""python -m records COMMAND ...: judge logs, compare entries, submit one."""

import argparse
import contextlib
import importlib
import io
import os
import sys
from typing import BinaryIO, TextIO

from records import RecordError, printable

COMMANDS = {  # the last word of each is the command; only the chosen module is imported
    "judge.summarize": "what an entry shows: curve, crossings, first significant step, warnings",
    "judge.compare": "better, worse or not decided, and how many more seeds would decide",
    "judge.check": "the rules of the benchmark, one line each",
    "publish.submit": "check logs and make an entry of them",
    "publish.leaderboard": "regenerate the leaderboard of a track",
    "publish.report": "one offline HTML file about entries",
    "run.stretch": "a recipe for a run of another length",
    "judge.extract": "the script at the head of a log",
    "judge.fixed_parts": "digests of what the rules fix, and a new version of them",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code, 2 for input that cannot be used."""
    argv = (sys.argv[1:] if argv is None else argv) or ["--help"]
    parser = argparse.ArgumentParser(prog="python -m records", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module, told in COMMANDS.items():
        name = module.split(".")[1]
        if argv[:1] == [name]:
            importlib.import_module(f"records.{module}").register(subparsers)
        else:
            subparsers.add_parser(name, help=told)
    args = parser.parse_args(argv)
    try:
        with contextlib.redirect_stdout(Screen(sys.stdout)), contextlib.redirect_stderr(Screen(sys.stderr)):
            return run(args)
    except KeyboardInterrupt:
        print(f"records {args.command}: interrupted, nothing was changed", file=sys.stderr)
        return 130


class Screen(io.TextIOBase):
    """Where the commands print: strangers' names and lines reach it, what could steer a terminal does not.

    `buffer` takes bytes as they are.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @property
    def buffer(self) -> BinaryIO:
        return self.stream.buffer

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()


def run(args: argparse.Namespace) -> int:
    """The command's exit code; what is wrong with the input is told in one line."""
    try:
        return args.func(args)
    except (RecordError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"records {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
