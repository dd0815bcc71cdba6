"""run.sh: what it starts, with the Python that runs these tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.shards import write_shard
from tests.made_tracks import write_track

ROOT = Path(__file__).resolve().parents[1]


def run_sh(*options: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {
        **os.environ,
        "VENV": "none",
        "PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    command = [ROOT / "run.sh", *options]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)


def stand_in(folder: Path, gpus: int = 0) -> str:
    """A Python that plans for so many GPUs, and shows the command that would be started."""
    python = folder / "python3"
    plan = f'case "$*" in *--plan* | *device_count*) echo {gpus} ;; *) echo "$@" ;; esac'
    python.write_text(f"#!/bin/sh\n{plan}\n")
    python.chmod(0o755)
    return str(python)


def own_data(folder: Path) -> Path:
    """A data folder with a user's own nano shards, for 14 steps."""
    write_shard(folder / "nano" / "zmine_train_000001.bin", np.arange(30_000) % 251)
    write_shard(folder / "nano" / "zmine_val_000000.bin", np.arange(70_000) % 251)
    return folder


def test_help_fits_one_screen():
    told = run_sh("--help")
    assert told.returncode == 0 and len(told.stdout.splitlines()) <= 40
    for option in ("--recipe", "--seeds", "--resume", "test", "records", "tune", "doctor", "NNODES"):
        assert option in told.stdout


def test_a_wrong_command_line_ends_before_anything_starts(tmp_path):
    told = run_sh("--recipe", "muonn", "--out", str(tmp_path / "logs"))
    assert told.returncode == 2 and told.stderr.strip().splitlines() == [told.stderr.strip()]
    assert "nearest: muon" in told.stderr and not (tmp_path / "logs").exists()


def test_the_number_of_processes_is_checked(tmp_path):
    told = run_sh("--nproc", "3", PYTHON=stand_in(tmp_path))
    assert told.returncode == 2 and "expected 1, 2, 4 or 8" in told.stderr


def test_more_processes_than_gpus_are_refused(tmp_path):
    told = run_sh("--nproc", "4", PYTHON=stand_in(tmp_path, gpus=2))
    assert told.returncode == 2 and "--nproc 4: there are 2 GPUs" in told.stderr


@pytest.mark.parametrize(("gpus", "processes"), [(3, 2), (7, 4), (8, 8)])
def test_of_an_odd_number_of_gpus_it_uses_what_divides_a_batch(tmp_path, gpus, processes):
    told = run_sh(PYTHON=stand_in(tmp_path, gpus))
    assert told.returncode == 0 and f"--nproc-per-node={processes} " in told.stdout
    said = f"{gpus} GPUs found: using {processes}, as 1, 2, 4 or 8 processes divide a batch\n"
    assert told.stderr == (said if gpus != processes else "")


def test_a_later_node_resumes_without_a_checkpoint(tmp_path):
    nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"}
    told = run_sh("--resume", "--out", str(tmp_path), PYTHON=stand_in(tmp_path), **nodes)
    assert told.returncode == 0 and "--plan" not in told.stdout
    assert told.stdout.rstrip().endswith(f"train_gpt.py --resume --out {tmp_path}")


def test_the_doctor_is_started_as_the_trainer_is(tmp_path):
    told = run_sh("doctor", "--quick", "--json", "found.json", PYTHON=stand_in(tmp_path, gpus=3))
    assert "3 GPUs found: using 2" in told.stderr
    started = "-m torch.distributed.run --standalone --nproc-per-node=2 -m records.doctor"
    assert told.stdout == f"{started} --quick --json found.json\n"


def test_it_fetches_what_is_missing_and_trains(tmp_path):
    track = write_track(tmp_path / "short.toml", num_layers=1, val_tokens=2048)
    options = ("--track", str(track), "--data", str(tmp_path), "--out", str(tmp_path / "logs"))
    told = run_sh("--recipe", "normuon", "--steps", "2", *options)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "nano" / "nano_train_000001.bin").exists()
    (log,) = (tmp_path / "logs").glob("*-normuon-*.txt")
    assert "step:2/2 val_loss:" in log.read_text()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29411"},
         "--nnodes=2 --node-rank=1 --master-addr=first --master-port=29411 --nproc-per-node=4"),
        ({"SLURM_NNODES": "2", "SLURM_NODEID": "0", "MASTER_ADDR": "first"},
         "--nnodes=2 --node-rank=0 --master-addr=first --master-port=29500 --nproc-per-node=4"),
        ({}, "--standalone --nproc-per-node=4"),
    ],
)  # fmt: skip
def test_torchrun_gets_the_rendezvous(tmp_path, environment, expected):
    options = ("--nproc", "4", "--data", str(tmp_path), "--steps", "3")
    told = run_sh(*options, PYTHON=stand_in(tmp_path), **environment)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"-m torch.distributed.run {expected} {ROOT / 'train_gpt.py'} --data")


def test_two_nodes_need_an_address(tmp_path):
    told = run_sh("--nproc", "2", NNODES="2", PYTHON=stand_in(tmp_path))
    assert told.returncode == 2 and "MASTER_ADDR" in told.stderr


@pytest.mark.parametrize("nodes", ["abc", "0", "-1", "2 3"])
def test_a_number_of_nodes_is_checked(tmp_path, nodes):
    told = run_sh("--nproc", "2", NNODES=nodes, PYTHON=stand_in(tmp_path))
    assert told.returncode == 2 and f"NNODES={nodes}: expected a number of nodes" in told.stderr


def test_help_is_answered_wherever_it_stands():
    assert run_sh("--recipe", "muon", "--help").stdout == run_sh("--help").stdout


def test_own_shards_too_short_are_told_and_never_mixed_with_the_tracks(tmp_path):
    data = own_data(tmp_path)
    told = run_sh("--steps", "20", "--data", str(data), "--out", str(tmp_path / "logs"))
    assert told.returncode == 2 and "the shards hold 14 (30,000 tokens of 40,961)" in told.stderr
    assert len(list((data / "nano").iterdir())) == 2 and not (tmp_path / "logs").exists()


def test_a_mistyped_data_folder_is_not_made(tmp_path):
    told = run_sh("--steps", "2", "--data", str(tmp_path / "typo"))
    assert told.returncode == 2 and f"{tmp_path / 'typo'}: no such folder" in told.stderr
    assert not (tmp_path / "typo").exists()


def test_where_to_go_on_is_the_last_thing_that_two_stopped_processes_say(small_file, tmp_path):
    options = ("--track", small_file, "--recipe", "muon", "--steps", "5000", "--nproc", "2")
    places = ("--checkpoint-every", "2", "--data", tmp_path / "data", "--out", tmp_path / "logs")
    command = [ROOT / "run.sh", *options, *places]
    settings = {**os.environ, "VENV": "none", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.Popen(command, env=settings, stdout=-1, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 120
    while not list(tmp_path.glob("logs/*.checkpoints/*.pt")):
        assert run.poll() is None and time.time() < deadline, run.communicate()
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    told = run.communicate(timeout=120)[0]
    assert "stopping after this step; again to stop now" in told
    assert told.splitlines()[-1].startswith("stopped by a signal; go on with --resume from ")
    assert run.returncode == 128 + signal.SIGINT
