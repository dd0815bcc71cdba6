"""How a run is stopped: a signal asks it to end after its step, a second one ends it at once."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

TWICE = 1.0  # seconds in which torchrun may pass on what the terminal has sent already


def catch_signals(caught: list[int], say: Callable[[str], None]) -> None:
    """From now on SIGINT, SIGTERM and SIGHUP are put into `caught`; the loop ends when it is not empty.

    say: answers the first signal at once. The second raises SystemExit wherever the run is, a third ends the
    process as it stands. Under nohup SIGHUP stays ignored.
    """
    began = 0.0

    def catch(number: int, frame: FrameType | None) -> None:
        nonlocal began
        if not caught:
            caught.append(number)
            began = time.monotonic()
            say("stopping after this step; again to stop now")
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - began > TWICE:
            caught.append(number)
            if len(caught) > 2:
                os._exit(128 + number)
            say("stopped at once; --resume goes on from the last checkpoint, if there is one")
            raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, catch)
