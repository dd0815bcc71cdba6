"""Runs of the trainer for tests: in this process or in others, by its script, and what they say."""

import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import start_processes

import train_gpt
from optimizers import stepping
from records.run.signals import REFUSED
from tests.refusal import refusal_of
from train_gpt import STEPS

ROOT = Path(train_gpt.__file__).parent


def train(out: Path, *options: str, data: Path) -> Path:
    """Run the trainer in this process; the log it wrote."""
    before = set(out.glob("*.txt"))
    train_gpt.main([*options, "--out", str(out), "--data", str(data)])
    (log,) = set(out.glob("*.txt")) - before or before
    return log


def launch(out: Path, *options: str, data: Path, processes: int = 1) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / "train_gpt.py"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--out", str(out), "--data", str(data)], **pipes)


def launch_small(track: Path, *options: str) -> subprocess.Popen:
    """Muon on the track of conftest's small_file; logs go to logs/ beside it."""
    options = ("--track", str(track), "--recipe", "muon", *options)
    return launch(track.parent / "logs", *options, data=track.parent / "data")


def compiled_by(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this test torch.compile uses that backend, and no step function that another test compiled."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(stepping, "compiled", functools.cache(stepping.compiled.__wrapped__))


def on_ranks(work: Callable[[int, str], None], folder: Path, count: int) -> None:
    """Run work(rank, str(folder)) in so many processes, forked from one that has the trainer imported."""
    multiprocessing.set_forkserver_preload(["train_gpt"])
    start_processes(work, (str(folder),), nprocs=count, start_method="forkserver")


def refusal(*options: str, out: Path, data: Path, status: int = REFUSED) -> str:
    """What the trainer says when it refuses, or ends with that status."""
    return refusal_of(lambda: train(out, *options, data=data), status)


def run_alone(log: Path, data: Path, folder: Path) -> Path:
    """Run the script at a log's head in an empty folder beside the data of nano; the log it wrote."""
    (folder / "data").mkdir(parents=True)
    (folder / "script.py").write_text(log.read_text().split("\n" + "=" * 100)[0] + "\n")
    (folder / "data" / "nano").symlink_to(data / "nano")
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, check=True, capture_output=True
    )
    (repeated,) = (folder / "logs").glob("*.txt")
    return repeated


def val_losses(log: Path) -> list[list[str]]:
    """The digits of each run's validation lines."""
    runs = re.split(r"^seed: \d+\n", log.read_text(), flags=re.MULTILINE)[1:]
    return [re.findall(r"^step:\d+/\d+ val_loss:[\d.]+", run, re.MULTILINE) for run in runs]


def wait_for(out: Path, pattern: str, run: subprocess.Popen) -> None:
    deadline = time.time() + 120
    while not list(out.glob(pattern)):
        assert run.poll() is None and time.time() < deadline, run.communicate()
        time.sleep(0.05)


def recipe(text: str = "", steps: int = 100) -> train_gpt.Recipe:
    head = f'track = "nano"\ntrain_steps = {steps}\n[matrix]\nstep = "muon"\n'
    return train_gpt.parse_recipe(head + text, "made", train_gpt.shipped_tracks(), STEPS)
