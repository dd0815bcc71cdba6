"""How a run is stopped, and what it says then, with somebody reading or not."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from records import printable

# How a command ends, beside 0: refused, nothing was done; ended early; by a signal it is 128 and its number.
REFUSED, ENDED = 2, 1
DIVERGED = "Try a lower learning rate."  # how the error of a run ends that diverged, and of no other
TWICE = 1.0  # seconds in which torchrun may pass on what the terminal has sent already


def catch_signals(caught: list[int], shown: bool) -> None:
    """From now on SIGINT, SIGTERM and SIGHUP are put into `caught`: the run is to end after its step.

    The first is answered at once where `shown`, the second raises SystemExit wherever the run is, a third
    ends the process as it stands. Under nohup SIGHUP stays ignored.
    """
    began = 0.0

    def catch(number: int, frame: FrameType | None) -> None:
        nonlocal began
        if not caught:
            caught.append(number)
            began = time.monotonic()
            say_now("stopping after this step; again to stop now", shown)
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - began > TWICE:
            caught.append(number)
            if len(caught) > 2:
                os._exit(128 + number)
            told = "stopped at once; --resume goes on from the last checkpoint, if there is one"
            say_now(last_words(told, 128 + number) if shown else told, shown)
            raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, catch)


def say(text: str, error: bool = False) -> None:
    """Print a line, on stderr if it is an error; where nobody reads any more, go on without."""
    try:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
    except OSError:
        leave_screen()


def say_now(text: str, shown: bool) -> None:
    """Print a line on stderr from a signal handler: past every buffer."""
    try:
        os.write(2, f"{text}\n".encode() if shown else b"")
    except OSError:  # the terminal is gone
        leave_screen()


def last_words(text: str, status: int) -> str:
    """Leave the text to ./run.sh too, which ends with it and with that exit code: torchrun has its own."""
    if path := os.environ.get("LAST_WORDS"):
        with suppress(OSError):  # a full disk
            Path(path).write_text(f"{status}\n{text}\n")
    return text


def leave(text: str, status: int, shown: bool) -> NoReturn:
    """End the process with its last words on stderr where `shown`, with an exit code in any case."""
    if shown:
        say(last_words(printable(text), status), error=True)
    raise SystemExit(status)


def leave_screen() -> None:
    """Let what is printed from now on go nowhere, without an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
