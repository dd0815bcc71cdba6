"""./run.sh doctor: what it finds on this machine, and on ones with something wrong."""

import argparse
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from optimizers import world
from records import doctor
from records.doctor import Checkup, Finding
from records.run.track import shipped_tracks
from tests.runs import on_ranks
from train_gpt import RunError, World, load_recipe

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


def checkup(device: torch.device = CPU, **args: object) -> Checkup:
    track = shipped_tracks()["nano" if device.type == "cpu" else "fineweb"]
    options = argparse.Namespace(**({"compile": False, "micro_batch": 16, "json": None} | args))
    ranks = World(0, 1, device)
    return Checkup(load_recipe(track.recipe, track=track), ranks, options, quick=True)


def test_this_machine_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert doctor.main(["--quick", "--json", str(tmp_path / "doctor.json")]) == 0
    table = capsys.readouterr().out
    told = json.loads((tmp_path / "doctor.json").read_text())
    checks = {finding["check"]: finding["state"] for finding in told["findings"]}
    assert set(checks) >= {"device", "torch", "compiler", "disk", "memory", "exchange", "baseline"}
    assert checks["train default"] == checks["baseline"] == "ok" and checks["hub"] == "warning"
    assert all(f"{check:<18}{state}" in table for check, state in checks.items())
    speed = told["speed"]
    assert speed["tokens_per_second"] == pytest.approx(2048 / speed["step_seconds"])
    assert speed["run_hours"] > 410 * speed["step_seconds"] / 3600 and speed["compile_seconds"] == 0
    assert speed["peak_memory"] > 1e8 and speed["utilisation"] == 0
    assert "ms/step" in table and "a run of aurora_contra_floor: 410 steps" in table.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler, g++ is not there")
def test_this_machine_trains_compiled_after_a_warm_up(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert doctor.main(["--quick", "--compile", "--json", str(tmp_path / "doctor.json")]) == 0
    assert json.loads((tmp_path / "doctor.json").read_text())["speed"]["compile_seconds"] > 0


def test_processes_that_do_not_meet_are_told_of():
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    code = "from records import doctor; doctor.MEETING = 0.5; doctor.main(['--quick'])"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | alone, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "error: the processes did not meet within" in ended.stderr and "WORLD_SIZE 2" in ended.stderr


def test_another_arithmetic_is_found(monkeypatch):
    without_decay = doctor.BASELINE.replace("weight_decay = 0.05", "weight_decay = 0")
    monkeypatch.setattr(doctor, "BASELINE", without_decay)
    assert doctor.check_baseline(checkup()).state == "fails"


def test_a_loss_that_is_not_finite_is_found():
    visit = checkup()
    visit.recipe.aux["embed_lr"] = 1e38
    assert doctor.check_training(visit, visit.recipe).state == "fails"


def test_a_gpu_without_a_compiler_fails_a_cpu_is_warned(no_compiler):
    assert doctor.check_compiler(checkup(torch.device("cuda", 0))).state == "fails"
    assert doctor.check_compiler(checkup()).state == "warning"


def test_a_gpu_that_torch_cannot_use_fails(monkeypatch, tmp_path, capsys):
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02\n")
    monkeypatch.setattr(world, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    visit = checkup()
    doctor.note(visit, "device", doctor.check_device)
    assert visit.findings[0].state == "fails" and "driver 470.57.02" in visit.findings[0].found
    assert capsys.readouterr().out.startswith("device            fails ")


@pytest.mark.parametrize(("free", "state"), [(79, "ok"), (40, "warning"), (4, "fails")])
def test_memory_that_another_process_has_is_seen(monkeypatch, free, state):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    found = doctor.check_memory(checkup(torch.device("cuda", 0), compile=True, micro_batch=None))
    assert found.state == state and f"{free}.0 of 80.0 GiB free" in found.found


def test_a_hub_that_answers_is_enough(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # with 501
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert doctor.check_hub(checkup()).state == "ok"
    server.shutdown()
    server.server_close()


def test_a_full_disk_is_a_warning(monkeypatch):
    visit = checkup(torch.device("cuda", 0))
    needed = doctor.disk_needed(visit.recipe)
    assert 17 * 2e8 < needed < 20 * 2e8 + 9 * 8e8  # 17 shards, three checkpoints of 162 million weights
    for free, state in ((needed - 1, "warning"), (needed, "ok")):
        disk = argparse.Namespace(free=free)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, disk=disk: disk)
        assert doctor.check_disk(visit).state == state


def test_the_worst_rank_counts_and_is_named():
    fine, bad = Finding("memory", "60 GiB free"), Finding("memory", "2 GiB free", "fails", "see nvidia-smi")
    assert doctor.worst_of([("a", fine), ("a", fine)]) == fine
    told = doctor.worst_of([("a", fine), ("b", bad), ("b", fine)])
    assert (told.state, told.found) == ("fails", "2 GiB free (rank 1, host b)")


def exchange(rank: int, folder: str) -> None:
    """Writes what the second check of two processes found, after one that fails on the second."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    visit = checkup()
    visit.ranks = World(rank, 2, CPU)

    def look(visit: Checkup) -> Finding:
        if rank:
            raise RunError("no memory here")
        return Finding("memory", "fine")

    doctor.note(visit, "memory", look)
    doctor.note(visit, "exchange", doctor.check_exchange, together=True)
    Path(folder, str(rank)).write_text("\n".join(f"{one.state} {one.found}" for one in visit.findings))
    dist.destroy_process_group()


def test_two_processes_exchange_and_tell_of_each_other(tmp_path):
    on_ranks(exchange, tmp_path, 2)
    first, second = (tmp_path / "0").read_text().splitlines()
    assert first.startswith("fails no memory here (rank 1, host ")
    assert second.startswith("ok gloo between 2 processes")
