"""What a run tells while it trains: its log (read by `records/logs.py`), its clock, its progress on screen.

`<id>.txt` holds the script that repeats the run, a line of 100 "=", facts, another such line, and a line for
each validation; `<id>.jsonl` beside it holds every step.
"""

import fcntl
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tqdm import tqdm

from records import RecordError
from records.run import RunError
from records.run.signals import leave_screen


class LogError(RecordError):
    """The log cannot be written. The message says where and what to do."""


class RunLog:
    """Appends line by line. Nothing is ever overwritten: a new log takes a new name.

    A resumed log goes on behind its last whole line and leaves out what stands there already (the .jsonl
    repeats the steps that were trained twice). Of several processes only the one that `writes` does. The lock
    on the log says that its run lives; it ends with the process, whatever ends that.

    As a context: a start that fails before the first validation leaves no new log behind.
    """

    def __init__(self, path: Path, resume: bool, writes: bool) -> None:
        self.path, self.last = path, (-1, -1)  # last: run and step of the last line
        self.error: LogError | None = None  # what ended the writing: the run is to stop with a checkpoint
        self.files: list[FileIO] = []
        self.resumed = resume
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for name in (path, path.with_suffix(".jsonl")) if writes else ():
                self.files.append(FileIO(name, "r+" if resume else "x+"))  # unbuffered
        except OSError as error:
            self._close(remove=not resume)
            raise LogError(
                f"cannot write the log {path}: {error.strerror}. Name a folder with --out."
            ) from None
        if self.files:
            self._lock()
            for half in path.with_suffix(".checkpoints").glob("*.tmp"):  # of a process that was killed
                half.unlink()
        for file in self.files:
            whole = file.readall().rpartition(b"\n")[0]
            file.truncate(len(whole) + 1 if whole else 0)  # behind it: a line cut by kill -9
            file.seek(0, os.SEEK_END)
            for found in re.finditer(rb"^(?:(seed): |step:(\d+)/|seed \d+: )", whole, re.MULTILINE):
                step = (
                    int(found[2]) if found[2] else sys.maxsize
                )  # behind the verdict nothing is left to tell
                self.last = (self.last[0] + 1, -1) if found[1] else (self.last[0], step)
        self.record(process=os.getpid(), host=socket.gethostname(), time=time.strftime("%Y-%m-%d %H:%M:%S"))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(remove=kind is not None and self.last[1] < 0 and not self.resumed)

    def _close(self, remove: bool) -> None:
        for file in self.files:
            file.close()
            if remove:
                Path(file.name).unlink()

    def _lock(self) -> None:
        """Raises LogError where another process writes this log, naming it."""
        try:
            fcntl.lockf(self.files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            told = [line for line in self.files[1].readall().splitlines() if line.startswith(b'{"process"')]
            holder = json.loads(told[-1]) if told else {}
            raise LogError(
                f"{self.path} is being written by process {holder.get('process', '?')} on "
                f"{holder.get('host', '?')} since {holder.get('time', '?')}. Wait for that run, or stop it."
            ) from None
        except OSError:  # a file system without locks
            pass

    def head(self, script: str, versions: str, facts: dict[str, object], recipe: str) -> None:
        """Write what stands before the first run. recipe: the effective one, as TOML. Raises LogError."""
        rule = "=" * 100
        told = [f"{key}: {value}" for key, value in facts.items()]
        self.line("\n".join([script.rstrip("\n"), rule, versions, *told, "effective recipe:", recipe, rule]))
        if self.error:
            raise self.error

    def line(self, text: str, position: tuple[int, int] | None = None) -> None:
        """Append a line, unless the log is past its position (run, step) already."""
        if self.files and (position is None or position > self.last):
            self.last = position or self.last
            self._append(self.files[0], text)

    def record(self, **values: object) -> None:
        """Append a line to the .jsonl."""
        if self.files:
            self._append(self.files[1], json.dumps(values))

    def _append(self, file: FileIO, text: str) -> None:
        """The whole line, or none of it and `error`; nothing after that."""
        end, rest = file.tell(), text.encode() + b"\n"
        try:
            while rest and not self.error:
                rest = rest[file.write(rest) :]
        except OSError as error:
            file.truncate(end)
            self.error = LogError(f"cannot write the log {file.name}: {error.strerror}")


def verdict(curve: list[tuple[int, float]], target: float) -> str:
    """When the validation losses (step, loss) reached the target, in one sentence."""
    best_step, best = min(curve, key=lambda point: point[1])
    told = f"best {best:.5f} at step {best_step}"
    for (step0, loss0), (step, loss) in zip(curve[:1] + curve, curve, strict=False):
        if loss <= target:
            with_loss = f"with {loss:.5f}"
            if step0 > curve[0][0] and loss0 > loss:  # from the first validation on no line tells
                crossing = step - (step - step0) * (target - loss) / (loss0 - loss)
                with_loss += f", interpolated {crossing:.1f}"
            return f"target {target} reached at step {step} {with_loss}; {told}"
    return f"target {target} not reached; {told}"


class Scalars(Protocol):
    """What tensorboard's SummaryWriter is used for."""

    def add_scalar(self, name: str, value: float, step: int) -> object: ...

    def close(self) -> object: ...


def tensorboard(folder: Path) -> Scalars:
    """What writes scalars into the folder. Raises RunError without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RunError("--tensorboard needs a package: pip install tensorboard.") from None
    return SummaryWriter(str(folder))


class Progress:
    """What is seen while it trains: a live line on a terminal, lines of text, scalars for tensorboard.

    shown: whether this process tells anything. writer: tensorboard's SummaryWriter, or None.
    peak_share: share of the devices' peak that one token per second takes (model FLOPs utilisation), or 0.
    """

    def __init__(
        self,
        steps: int,
        first: int,
        batch_tokens: int,
        peak_share: float,
        shown: bool,
        writer: Scalars | None,
    ) -> None:
        self.batch_tokens, self.peak_share, self.shown, self.writer = batch_tokens, peak_share, shown, writer
        layout = "{n_fmt}/{total_fmt}{postfix}, {remaining} left"
        live = shown and sys.stdout.isatty()
        options = {"file": sys.stdout, "bar_format": layout, "leave": False}
        self.bar = tqdm(total=steps, initial=first, disable=not live, **options)
        self.val, self.began = "", time.perf_counter()

    def say(self, text: str) -> None:
        """Print a line of its own, above the live one."""
        if self.shown:
            try:
                self.bar.write(text, file=sys.stdout)
                sys.stdout.flush()
            except OSError:  # nobody reads any more: the run goes on
                leave_screen()

    def validated(self, step: int, val_loss: float) -> None:
        """A validation is over; speed is measured anew from here."""
        self.val, self.began = f"val {val_loss:.4f} at {step}, ", time.perf_counter()
        self.scalars(step, {"val_loss": val_loss})

    def stepped(self, step: int, loss: float, rates: dict[str, float]) -> float:
        """Show a step and its learning rates; returns its tokens per second."""
        now = time.perf_counter()
        speed, self.began = self.batch_tokens / (now - self.began), now
        mfu = f", mfu {self.peak_share * speed:.1%}" if self.peak_share else ""
        self.bar.set_postfix_str(f"loss {loss:.4f}, {self.val}{speed:,.0f} tokens/s{mfu}", refresh=False)
        self.bar.update()
        self.scalars(step, {"loss": loss, "tokens_per_s": speed} | rates)
        return speed

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Leave the terminal's last line free."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


class Clock:
    """Training time in seconds, standing still between stop and start; `barrier` waits for all processes."""

    def __init__(self, barrier: Callable[[], None], seconds: float) -> None:
        self.barrier, self.seconds, self.began = barrier, seconds, 0.0

    def start(self) -> None:
        self.barrier()
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.barrier()
        self.seconds += time.perf_counter() - self.began
