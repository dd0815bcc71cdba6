"""What a stranger's hands do to the project, made up at random: python -m tests.torture [--minutes N]

A trial is one input: a recipe, a --set value, a shard, a checkpoint, a log, a text; or a signal or a full
disk at a random moment of a run. Its outcome must be a right result or one line that names the mistake: no
traceback, within a minute, nothing left behind that is half a file, nothing lost that was there. A run that
was ended must go on to the digits of the run left alone.

Every trial has a number of its own that makes it again: `--trial recipe-0-17`.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import train_gpt
from data import tokenize_text
from data.shards import write_shard
from optimizers import STEPS
from records.__main__ import main as records_main
from records.judge.logs import read_log
from records.run import flatten
from tests.log_text import damage, log_text, run_text, shifted
from tests.made_tracks import write_small_track

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60  # that an outcome may take; four times as many on the clock, where other work runs
STEPS_OF_A_RUN = 16
RUN = ("--recipe", "muon", "--steps", f"{STEPS_OF_A_RUN}", "--checkpoint-every", "2")

# What is put where a value belongs.
VALUES = (
    "0", "1", "-1", "0.5", "-0.5", "1.0", "2", "5.5", "1e-30", "1e30", "1e999", "nan", "inf", "-inf", "true",
    '""', '"muon"', '"foo"', '"\\u001b[31m"', '"a/../../b"', "[]", "[0.9]", "[0.9, 0.95]", "[0.9, 1.5]",
    '[[0, "a"]]', "[[0, 0.5], [4, 0.9]]", "[[4, 0.5], [0, 0.9]]", "{}", "{a = 1}", "2020-01-01",
    "12345678901234567890", "'\U0001f600'",
)  # fmt: skip
KEYS = (
    "name", "description", "track", "train_steps", "matrix", "matrix.step", "matrix.lr", "matrix.momentum",
    "matrix.polar", "matrix.polar_steps", "matrix.weight_decay", "matrix.nesterov", "matrix.precondition",
    'matrix."mlp.*".lr', 'matrix."mpl".lr', "aux.betas", "aux.eps", "aux.embed_lr", "aux.weight_decay",
    "schedule", "schedule.cooldown_frac", "schedule.cooldown_power", "schedule.warmup_steps",
    "schedule.steps", "schedule.floor", "schedule.matrix.momentum", "schedule.matrix.lr", 'init."mlp.fc"',
    "init.law", "lookahead.strength", "lookahead.start", "lookahead.stop", "lookahead.decay", "around.x.kind",
    "readout.ema.decay", "x", "",
)  # fmt: skip


class Fault(AssertionError):
    """The outcome of a trial is not one that a user can live with."""


def expect(condition: object, told: str) -> None:
    if not condition:
        raise Fault(told)


# ------------------------------------------------------------------------------------------------------------
# A small world: a track that trains in a second, its data, a run left alone


class World:
    """The track and data that all trials share, and what a run on them gives when it is left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.track = write_small_track(folder / "small.toml", val_every=4, late_val_every=2)
        self.write_data(self.data)
        self.alone: dict[tuple[int, tuple[str, ...]], tuple[list[str], float]] = {}

    def write_data(self, data: Path) -> None:
        tokens = np.arange(24_000) % 251
        write_shard(data / "small" / "small_train_000001.bin", tokens[:12_000])
        write_shard(data / "small" / "small_train_000002.bin", tokens[12_000:])
        write_shard(data / "small" / "small_val_000000.bin", tokens[:4000])

    def options(self, out: Path, data: Path | None = None) -> list[str]:
        return ["--track", str(self.track), "--data", str(data or self.data), "--out", str(out)]

    def made(self) -> Path:
        """The folder of a run made in this process."""
        out = self.folder / "made"
        if not out.exists():
            expect(not outcome(lambda: train_gpt.main([*RUN, *self.options(out)])), "the run left alone")
        return out

    def alone_on(self, processes: int, options: tuple[str, ...] = ()) -> tuple[list[str], float]:
        """The digits of a run left alone on so many processes, and its seconds."""
        which = processes, options
        if which not in self.alone:
            self.made()  # what it imports on the way, forked processes have
            out, began = self.folder / f"alone-{len(self.alone)}", time.monotonic()
            ended = Run(self, [*RUN, *options], out, processes).end({})
            expect(ended.code == 0, f"the run left alone: {ended}")
            self.alone[which] = digits(out), time.monotonic() - began
            expect(len(self.alone[which][0]) > 3, f"the run left alone: {ended}")
        return self.alone[which]


def digits(out: Path) -> list[str]:
    """The validation lines of the one log below `out`, without their times."""
    logs = list(out.glob("*.txt"))
    expect(len(logs) == 1, f"expected one log, found {len(logs)}")
    return re.findall(r"^step:\d+/\d+ val_loss:\S+", logs[0].read_text().split("=" * 100)[-1], re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """What is left of a run: the exit code (negative: ended by that signal) and what it said on stderr."""

    code: int
    said: str


class Run:
    """A run in processes of its own, one or two, forked from this one, which has everything imported."""

    def __init__(
        self, world: World, options: list[str], out: Path, processes: int = 1, file_bytes: int = 0
    ) -> None:
        argv = [*options, *world.options(out)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.said, said = os.pipe()
        settings = {"WORLD_SIZE": f"{processes}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
        self.pids: list[int] = []
        for rank in range(processes):
            ranks = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
            if pid := os.fork():
                self.pids.append(pid)
            else:
                os._exit(trained(argv, settings | ranks, said, file_bytes))
        os.close(said)

    def end(self, wanted: dict[int, int]) -> Ended:
        """Send each process its signal, wait for all; what a launcher does: when one fails, end the rest."""
        for pid, number in wanted.items():
            os.kill(pid, number)
        codes, deadline = dict[int, int](), time.monotonic() + 4 * SECONDS
        while len(codes) < len(self.pids):
            for pid in [pid for pid in self.pids if pid not in codes]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended and (code := os.waitstatus_to_exitcode(status)) is not None:
                    codes[pid] = code
                    for other in [other for other in self.pids if code and other not in codes]:
                        os.kill(other, signal.SIGTERM)
            late = time.monotonic() > deadline
            for pid in [pid for pid in self.pids if late and pid not in codes]:
                os.kill(pid, signal.SIGKILL)
            expect(not late, f"no end within {4 * SECONDS} s of {wanted}")
            time.sleep(0.01)
        with open(self.said, encoding="utf-8") as file:
            return Ended(codes[self.pids[0]], file.read())


def trained(argv: list[str], settings: dict[str, str], said: int, file_bytes: int) -> int:
    """In a forked process: the trainer as it would be in one started anew; its exit code.

    file_bytes: a disk that has no more for any one file.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ |= settings
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        train_gpt.main(argv)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
    return 0


def launch(
    world: World, options: list[str], out: Path, processes: int, settings: dict[str, str]
) -> subprocess.Popen[str]:
    """A run as a user starts it: run.sh on `processes`, in a process group of its own."""
    settings = os.environ | settings | {"VENV": "none", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(ROOT / "run.sh"), *options, *world.options(out), "--nproc", str(processes)]
    return subprocess.Popen(
        command, env=settings, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises Fault when so many seconds of this process are over, or four times as many on the clock."""

    def over(number: int, frame: object) -> None:
        raise Fault(f"no outcome within {seconds} s")

    timers = {signal.ITIMER_PROF: seconds, signal.ITIMER_REAL: 4 * seconds}
    for number, timer in zip((signal.SIGPROF, signal.SIGALRM), timers, strict=True):
        signal.signal(number, over)
        signal.setitimer(timer, timers[timer])
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)


def outcome(call: Callable[[], object]) -> str:
    """What a command says when it refuses, one line; empty where it did its work."""
    (out, err), code = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)), 0
    with within(SECONDS), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            returned = call()
            code = int(returned or 0)
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
            print(stopped.code if isinstance(stopped.code, str) else "", file=err)
    shown, said = (stream.buffer.getvalue().decode() for stream in (out, err))
    expect("\x1b" not in shown + said, "an escape character reached the terminal")
    if code == 0:
        return ""
    told = [line for line in said.splitlines() if "error: " in line or line.startswith("records ")]
    expect(len(told) == 1 and "Traceback" not in said, f"exit {code}, told: {said[-500:]}")
    return told[0]


def no_litter(folder: Path) -> None:
    found = [str(path) for path in folder.rglob("*.tmp")]
    expect(not found, f"left behind: {found}")


# ------------------------------------------------------------------------------------------------------------
# Trials: each takes the small world, chance, and a folder of its own


def recipe(world: World, chance: random.Random, folder: Path) -> None:
    """A recipe file of random keys and values, maybe of damaged bytes: it trains two steps or says why."""
    lines = {"train_steps": "2", "matrix.step": f'"{chance.choice(sorted(STEPS))}"', "matrix.lr": "0.01"}
    for _ in range(chance.randrange(4)):
        lines[chance.choice(KEYS)] = chance.choice(VALUES)
    text = "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()
    if chance.random() < 0.2:
        text = damage(text, chance)
    (folder / "r.toml").write_bytes(text)
    options = ["--recipe", str(folder / "r.toml"), "--validate-ends"]
    check_run(folder, outcome(lambda: train_gpt.main([*options, *world.options(folder / "out")])))


def change(world: World, chance: random.Random, folder: Path) -> None:
    """--set and the other options with random values."""
    options = ["--recipe", "muon", "--steps", "2", "--validate-ends"]
    for _ in range(chance.randrange(1, 3)):
        options += ["--set", f"{chance.choice(KEYS)}={chance.choice(VALUES)}"]
    if chance.random() < 0.4:
        option = chance.choice(["--seeds", "--steps", "--micro-batch", "--checkpoint-every", "--resume"])
        options += [f"{option}={chance.choice([*VALUES, '0-1', '0-99999999', '3,3', '4'])}"]
    check_run(folder, outcome(lambda: train_gpt.main([*options, *world.options(folder / "out")])))


def check_run(folder: Path, refused: str) -> None:
    """A refusal leaves nothing but, of a run that diverged, its log; a result is a log that reads well."""
    no_litter(folder)
    logs = list((folder / "out").glob("*.txt"))
    if refused and "not finite" not in refused:
        expect(not logs and not list((folder / "out").glob("*")), f"refused, but it left files: {refused}")
    for log in () if refused else logs:
        expect(read_log(log).runs and not read_log(log).problems, f"a bad log: {read_log(log).problems}")
    expect(refused or logs, "neither a log nor a word")
    expect({path.name for path in folder.iterdir()} <= {"r.toml", "out"}, "files outside of --out")


def shard(world: World, chance: random.Random, folder: Path) -> None:
    """A damaged, misnamed, missing or foreign shard: told, or not used. What was there stays."""
    data = folder / "data" / "small"
    world.write_data(folder / "data")
    file = chance.choice(sorted(data.glob("*.bin")))
    kind, content = chance.randrange(8), bytearray(file.read_bytes())
    if kind == 0:
        file.write_bytes(content[: chance.randrange(len(content))])
    elif kind == 1:
        at = chance.choice([0, 4, 8])
        content[at : at + 4] = chance.randbytes(4)
        file.write_bytes(content)
    elif kind == 2:
        at = 1024 + 2 * chance.randrange(len(content) // 2 - 512)
        content[at : at + 2] = chance.choice([b"\xff\xff", b"\x00\x01", b"\x07\x00"])
        file.write_bytes(content)
    elif kind == 3:
        file.rename(
            file.with_name(chance.choice(["x_train_000001.bin", "small_train_7.bin", "a.bin", "_val_.bin"]))
        )
    elif kind == 4:
        file.unlink()
    elif kind == 5:
        shutil.copy(
            file,
            file.with_name(chance.choice(["b_train_000002.bin", "b_val_000000.bin", "small_train_2.bin"])),
        )
    else:
        file.unlink()
        file.symlink_to("nowhere.bin") if kind == 6 else file.mkdir()
    before = {path: path.read_bytes() for path in data.iterdir() if path.is_file()}
    options = ["--recipe", "muon", "--steps", "14", *world.options(folder / "out", folder / "data")]
    refused = outcome(lambda: train_gpt.main(options))
    no_litter(folder)
    expect(refused or read_log(next((folder / "out").glob("*.txt"))).runs, "neither a log nor a word")
    expect(
        before == {path: path.read_bytes() for path in data.iterdir() if path.is_file()}, "data was changed"
    )


def checkpoint(world: World, chance: random.Random, folder: Path) -> None:
    """A damaged or foreign newest checkpoint, a cut log: the run goes on to its digits, or says why."""
    made = world.made()
    shutil.copytree(made, folder / "out")
    files = sorted((folder / "out").glob("*.checkpoints/*.pt"))
    kind, newest = chance.randrange(6), files[-1]
    if kind < 2:
        newest.write_bytes(damage(newest.read_bytes(), chance)[: chance.randrange(1, 2**20)])
    elif kind == 2:
        torch.save(chance.choice([{}, [], 3, "text", {"run": 0}, {"model": {}, "step": "a"}]), newest)
    elif kind == 3:
        state = torch.load(newest, weights_only=True)
        key = chance.choice(sorted(state))
        state[key] = chance.choice([None, -1, "x", [], {}])
        torch.save(state, newest)
    elif kind == 4:
        log = next((folder / "out").glob("*.txt"))
        text = log.read_bytes()
        log.write_bytes(text[: text.rindex(b"=" * 100) + 101 + chance.randrange(200)])
    else:
        for file in files:
            file.unlink()
    refused = outcome(lambda: train_gpt.main(["--resume", *world.options(folder / "out")]))
    no_litter(folder)
    if not refused:
        expect(digits(folder / "out")[-1] == digits(made)[-1], "other digits after --resume")


def log(world: World, chance: random.Random, folder: Path) -> None:
    """A damaged log through the commands of the records: read right, or named."""
    text = log_text(*(run_text(shifted(0.001 * i), seed=i) for i in range(chance.randrange(1, 4)))).encode()
    for _ in range(chance.randrange(4)):
        text = damage(text, chance)
    text = text.decode("utf-8", "replace").encode("utf-16") if chance.random() < 0.05 else text
    file = folder / chance.choice(["a.txt", "a.log", "a\x1b[31m.txt"])
    file.write_bytes(text)
    command = chance.choice(
        [["summarize"], ["check"], ["extract"], ["compare", str(file)], ["summarize", "--json"]]
    )
    outcome(lambda: records_main([*command, str(file)]) == 2)  # 1 is a verdict
    expect(file.read_bytes() == text, "the log was changed")
    no_litter(folder)


def text(world: World, chance: random.Random, folder: Path) -> None:
    """Lines of JSON, good and bad, turned into shards, or named with their line."""
    rows = [
        '{"text": "some words"}', '{"text": null}', '{"text": 5}', '{"n": 1}', "[1]", "", "null", "{", "\x00",
        '{"text": "a", "n": ' + "9" * 5000 + "}", '{"text": "a", "n": ' + "[" * 10**5 + "]" * 10**5 + "}",
        '{"text": "\\ud800 \\u0000"}', '{"text": "a", "n": NaN}', '{"text": "a"} {"text": "b"}',
    ]  # fmt: skip
    lines = [rows[0]] * 3 + [chance.choice(rows) for _ in range(chance.randrange(6))]
    chance.shuffle(lines)
    content = "\n".join(lines).encode()
    (folder / "a.jsonl").write_bytes(damage(content, chance) if chance.random() < 0.3 else content)
    options = [str(folder / "a.jsonl"), "--out", str(folder / "out"), "--processes", "1"]
    option = chance.choice(["--val-fraction", "--val-tokens", "--shard-tokens", "--name"])
    options += [f"{option}={chance.choice(VALUES)}"]
    refused = outcome(lambda: tokenize_text.main(options))
    no_litter(folder)
    expect(bool(refused) != (folder / "out").exists(), "shards of a refused text, or none of a good one")


def started_anew(folder: Path, options: tuple[str, ...] = ()) -> list[str]:
    """The options of the next attempt; where there is nothing to go on from, as a user would, anew."""
    if list(folder.glob("*.checkpoints/*.pt")):
        return ["--resume"]
    for left in folder.glob("*"):
        left.unlink() if left.is_file() else shutil.rmtree(left)
    return [*RUN, *options]


def killed(world: World, chance: random.Random, folder: Path) -> None:
    """kill -9, TERM, INT or HUP at random moments of a run on one or two processes, maybe twice, and again
    while it goes on: it comes to the digits of a run left alone.
    """
    processes = chance.choice([1, 2])
    expected, seconds = world.alone_on(processes)
    for attempt in range(4):
        options = started_anew(folder)
        run = Run(world, options, folder, processes)
        if attempt == 3:
            ended = run.end({})
            expect(ended.code == 0, f"exit {ended.code} when left alone: {ended.said[-800:]}")
            break
        number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        time.sleep(chance.uniform(0, 1.1 * seconds))
        victims = [chance.choice(run.pids)] if number == signal.SIGKILL else run.pids
        ended = run.end({pid: number for pid in victims})
        if ended.code == 0:
            break
        told = f"signal {number}, exit {ended.code}: {ended.said[-800:]}"
        expect(processes > 1 or ended.code in (-number, 128 + number), told)
        expect(processes > 1 or "Traceback" not in ended.said, told)
        if ended.code == 128 + number and "stopped by a signal" in ended.said:
            expect(list(folder.glob("*.checkpoints/*.pt")), f"no checkpoint after {told}")
    expect(digits(folder) == expected, f"digits {digits(folder)}, alone {expected}")
    no_litter(folder)


def launched(world: World, chance: random.Random, folder: Path) -> None:
    """The same to run.sh and what it starts, at any moment from its first line on, also while it compiles."""
    processes, options = chance.choice([1, 2]), chance.choice([(), ("--compile",)])
    expected, _ = world.alone_on(processes, options)
    out, settings = folder / "out", {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}  # compiled anew
    for attempt in range(6):
        run = launch(world, started_anew(out, options), out, processes, settings)
        number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        if attempt < 2:
            time.sleep(chance.uniform(0, 40 if options else 12))
            victims = workers_of(run.pid) if number == signal.SIGKILL else [run.pid]
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims or [run.pid]), number)
        try:
            err = run.communicate(timeout=4 * SECONDS)[1]
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            raise Fault(f"no end after signal {number}") from None
        if run.returncode == 0:
            expect(digits(out) == expected, f"digits {digits(out)}, alone {expected}")
            return no_litter(out)
        expect(attempt < 2, f"exit {run.returncode} when left alone: {err[-800:]}")
        expect(processes > 1 or "Traceback" not in err, f"signal {number}: {err[-800:]}")
        if "go on with --resume" in err:
            expect("go on with --resume" in err.splitlines()[-1], f"not the last words: {err[-800:]}")
            expect(run.returncode == 128 + number, f"exit {run.returncode} of signal {number}")
    raise Fault("not at its end in six attempts")


def workers_of(pid: int) -> list[int]:
    """The processes that do the work below run.sh: its children's children, or itself."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [worker for child in found for worker in workers_of(int(child))] or [pid]
    return []


def full_disk(world: World, chance: random.Random, folder: Path) -> None:
    """No file may grow beyond a random size: one line says so, and with room again the run goes on."""
    expected, _ = world.alone_on(1)
    room = chance.choice([1, chance.randrange(1, 150_000), chance.randrange(1, 600_000)])
    ended = Run(world, [*RUN], folder, file_bytes=room).end({})
    told = f"{room} bytes, exit {ended.code}: {ended.said[-800:]}"
    no_litter(folder)
    expect("Traceback" not in ended.said and ended.code in (0, 1, 2), told)
    expect(ended.code == 0 or ended.said.count("error: ") == 1, told)
    expect(ended.code != 2 or not list(folder.iterdir()), f"refused, but it left files: {told}")
    ended = Run(world, started_anew(folder), folder).end({})
    expect(ended.code == 0, f"exit {ended.code} with room again: {ended.said[-800:]} after {told}")
    expect(digits(folder) == expected, f"digits {digits(folder)}, alone {expected}, after {told}")


# Share of the time that each kind gets.
KINDS: dict[Callable[[World, random.Random, Path], None], float] = {
    recipe: 0.15, change: 0.15, shard: 0.1, checkpoint: 0.1, log: 0.1, text: 0.1, killed: 0.2, full_disk: 0.1,
}  # fmt: skip


def trial(world: World, kind: Callable[[World, random.Random, Path], None], name: str) -> str:
    """Make the trial of that name; what was wrong, empty where nothing was."""
    folder = Path(tempfile.mkdtemp(dir=world.folder))
    torch.manual_seed(0)
    try:
        kind(world, random.Random(name), folder)
    except Fault as fault:
        return str(fault)
    except Exception:  # the traceback that a user would have seen
        return traceback.format_exc(limit=-4)
    finally:
        shutil.rmtree(folder)
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Try until the time is over; 1 where a trial failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--trials", type=int, default=sys.maxsize, metavar="N", help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="only these, commas between; `launched` if named")
    parser.add_argument("--trial", metavar="KIND-SEED-N", help="only this one")
    args = parser.parse_args(arguments)
    by_name = {kind.__name__: kind for kind in (*KINDS, launched)}
    vocabulary = ROOT.parent / "shared" / "tiktoken_cache"
    if vocabulary.is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(vocabulary))
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    wanted = [name for name in args.kinds.split(",") if name] or [kind.__name__ for kind in KINDS]
    spent, tried, failed = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0), 0
    modules = functools.cache(flatten.read_modules)  # which do not change between two trials
    with (
        tempfile.TemporaryDirectory(prefix="torture-") as folder,
        mock.patch.object(flatten, "read_modules", modules),
    ):
        world, began = World(Path(folder)), time.monotonic()
        if args.trial:
            print(told := trial(world, by_name[args.trial.split("-")[0]], args.trial))
            return int(bool(told))
        while time.monotonic() - began < 60 * args.minutes and sum(tried.values()) < args.trials:
            name = min(wanted, key=lambda name: spent[name] / KINDS.get(by_name[name], 0.1))
            called, at = f"{name}-{args.seed}-{tried[name]}", time.monotonic()
            if told := trial(world, by_name[name], called):
                failed += 1
                print(f"{called}: {told}", flush=True)
            spent[name] += time.monotonic() - at
            tried[name] += 1
    print(json.dumps(tried))
    print(f"{sum(tried.values())} tried, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
