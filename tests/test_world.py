"""Starting on the machine that is there: its GPU, compiler and memory, one process or many."""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

import train_gpt
from optimizers import world
from optimizers.world import World, WorldError
from records.judge.logs import read_log
from records.run import RunError, machine
from records.run.instrument_log import unobserved
from records.run.track import shipped_tracks
from tests.refusal import refusal_of
from tests.runs import compiled_by, on_ranks
from train_gpt import GPT

ROOT = Path(train_gpt.__file__).parent
FINEWEB = shipped_tracks()["fineweb"]
ON_GPU = World(0, 1, torch.device("cuda", 0))


def refusal(*options: str) -> str:
    """What the trainer says when it refuses."""
    return refusal_of(lambda: train_gpt.main(list(options)))


# -- GPU and compiler


@pytest.fixture
def old_driver(monkeypatch, tmp_path):
    """A machine with an NVIDIA driver that torch cannot use."""
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n"
    )
    monkeypatch.setattr(world, "NVIDIA_DRIVER", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_nano(old_driver):
    told = refusal("--plan")
    assert "driver 470.57.02" in told and f"CUDA {torch.version.cuda}" in told and "--track nano" in told


def test_fineweb_does_not_fall_back_to_the_cpu_either(old_driver):
    assert "driver 470.57.02" in refusal("--plan", "--track", "fineweb")


def test_beside_a_gpu_that_torch_cannot_use_nano_may_be_asked_for(old_driver, small_track, tmp_path):
    train_gpt.main(
        ["--track", "nano", "--steps", "2", "--data", str(small_track), "--out", str(tmp_path / "o")]
    )
    assert list(tmp_path.glob("o/*.txt"))


def test_hidden_gpus_are_no_gpus(old_driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not train_gpt.has_gpu()


def test_a_machine_without_a_gpu_says_first_that_it_trains_nano(small_track, tmp_path, capsys):
    train_gpt.main(["--steps", "2", "--data", str(small_track), "--out", str(tmp_path / "o")])
    assert capsys.readouterr().out.startswith("no GPU found: nano on the CPU\n")


def test_compiling_without_a_compiler_is_refused_before_it_starts(no_compiler, small_track):
    told = refusal("--compile", "--plan", "--data", str(small_track))
    assert "g++" in told and "--no-compile" in told


@pytest.mark.parametrize(("asked", "on_gpu"), [([], False), (["--no-compile"], True)])
def test_without_compiling_no_compiler_is_needed(monkeypatch, asked, on_gpu):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not train_gpt.compiles(train_gpt.parse_arguments(asked, ROOT).compile, on_gpu)


def test_the_compiler_may_be_named(monkeypatch):
    monkeypatch.setenv("CC", sys.executable)
    assert machine.find_compiler(for_gpu=True) == sys.executable


@pytest.mark.parametrize(
    ("gpu", "share"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_utilisation_is_of_the_peak_of_this_very_gpu(monkeypatch, gpu, share):
    recipe = train_gpt.load_recipe("muon", track=shipped_tracks()["nano"])
    model = GPT(256, 1, 64, 32, 128)
    weights = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    flops = 6 * (weights + 4 * 128 * 64)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    progress = train_gpt.start_progress(recipe, model, ON_GPU, 0, None)
    assert progress.peak_share == pytest.approx(flops / share if share else 0)


# -- compiling


@pytest.mark.skipif(not machine.find_compiler(for_gpu=False), reason="there is no C++ compiler")
def test_the_training_clock_starts_when_all_is_compiled(small_track, tmp_path, monkeypatch):
    graphs, train = [], train_gpt.train

    def count() -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def train_counted(*args: object) -> None:
        graphs.append(count())
        train(*args)
        graphs.append(count())

    monkeypatch.setattr(train_gpt, "train", train_counted)
    compiled_by("aot_eager", monkeypatch)
    options = ["--compile", "--steps", "4", "--data", str(small_track), "--out", str(tmp_path)]
    train_gpt.main(options)
    assert graphs[0] > 0 and graphs[1] == graphs[0]
    (log,) = tmp_path.glob("*.txt")
    assert float(re.search(r"^compile_seconds: ([\d.]+)", log.read_text(), re.M)[1]) > 0


def test_a_step_waits_for_the_device_once(small_track, tmp_path, monkeypatch):
    waits, forward_backward = [], train_gpt.forward_backward

    def marked(*args: object) -> torch.Tensor:
        waits.append("step")
        return forward_backward(*args)

    for name in ("item", "tolist", "__bool__", "__float__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda *a, original=original, **k: (waits.append("wait"), original(*a, **k))[1],
        )
    monkeypatch.setattr(train_gpt, "forward_backward", marked)
    options = ["--recipe", "nora", "--steps", "6", "--data", str(small_track), "--out", str(tmp_path)]
    train_gpt.main([*options, "--validate-ends"])
    last_steps = "".join("." if what == "wait" else "s" for what in waits).split("s")[3:-1]
    assert last_steps == ["."] * len(last_steps) and len(last_steps) >= 3


# -- memory


@pytest.mark.parametrize("compiled", [True, False])
def test_the_micro_batch_fits_what_is_free(compiled):
    fixed, token = machine.memory_needed(FINEWEB, compiled, train_gpt.LOSS_ROWS)
    for free in (80e9, 40e9, 22e9):
        memory = int(free), int(80e9)
        rows = machine.choose_micro_batch(FINEWEB, 1, None, compiled, train_gpt.LOSS_ROWS, memory)
        assert 512 % rows == 0
        assert rows == 1 or fixed + rows * 1024 * token <= min(free, 0.85 * 80e9)
        assert rows == 512 or fixed + 2 * rows * 1024 * token > min(free, 0.85 * 80e9)


def bytes_kept(layers: int, compiled: bool) -> int:
    """For backward, of 512 tokens in bfloat16 activations, beside the parameters; width 128."""
    model, tokens = GPT(256, layers, 128, 64, 256), torch.zeros(2, 256, dtype=torch.int64)
    model.embed.to(torch.bfloat16)
    for block in model.blocks if compiled else ():
        block.compile(backend="aot_eager_decomp_partition", dynamic=False)  # keeps what Inductor keeps
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, tokens)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


@pytest.mark.parametrize(("compiled", "block"), [(False, 56), pytest.param(True, 36, marks=pytest.mark.slow)])
def test_what_backward_keeps_is_what_the_formula_reckons_with(compiled, block):
    """A block keeps so many bytes a number of the residual stream; the formula is above all of it."""
    one, two = (bytes_kept(layers, compiled) for layers in (1, 2))
    casts = 2 * 12 * 128**2  # of the weights to bfloat16, which do not grow with the tokens
    assert (two - one - casts) / (512 * 128) == pytest.approx(block, abs=1)
    track = dataclasses.replace(FINEWEB, num_layers=2, model_dim=128)
    token = machine.memory_needed(track, compiled, train_gpt.LOSS_ROWS)[1]
    assert 0.75 * 512 * token < two <= 512 * token


def test_rows_that_the_processes_do_not_divide():
    track = dataclasses.replace(shipped_tracks()["nano"], context=64, batch_tokens=3 * 64)
    with pytest.raises(RunError, match="2 processes do not divide 3 rows"):
        machine.choose_micro_batch(track, 2, None, False, train_gpt.LOSS_ROWS, None)


def test_a_recipe_may_want_a_number_of_micro_batches():
    nano, rest = shipped_tracks()["nano"], (False, train_gpt.LOSS_ROWS, None, 8)
    assert [machine.choose_micro_batch(nano, processes, None, *rest) for processes in (1, 4)] == [2, 2]
    for processes, asked in ((1, 4), (16, None)):
        with pytest.raises(RunError, match="wants 8 micro-batches .* --micro-batch 2 or none"):
            machine.choose_micro_batch(nano, processes, asked, *rest)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("isomuon", ()), ("shampoo_pseudo_inverse", ["matrix.lr=0.01"])],  # wants micro-batches; decomposes
)
def test_what_is_trained_to_compile_is_a_whole_update(name, changes):
    recipe = train_gpt.load_recipe(name, changes, shipped_tracks()["nano"])
    args = argparse.Namespace(micro_batch=2, compile=False, observe=unobserved)
    assert train_gpt.warm_up(recipe, World(0, 1, torch.device("cpu")), args) >= 0


# -- several processes


def run_rank(rank: int, port: int, *options: str) -> subprocess.Popen:
    """One of two processes, as torchrun starts it on a node of its own."""
    own = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(ROOT / "train_gpt.py"), "--steps", "8", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **own, "MASTER_PORT": str(port)}, **pipes)


def free_port() -> int:
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    return store.port


def test_the_first_process_reads_the_checkpoint_for_all(small_file, tmp_path):
    options = ("--track", str(small_file), "--recipe", "muon", "--checkpoint-every", "4")
    options += ("--data", str(tmp_path / "data"), "--out")
    train_gpt.main(["--steps", "8", *options, str(tmp_path / "first")])
    (log,) = tmp_path.glob("first/*.txt")
    alone = read_log(log).runs[0].validations[-1].val_loss
    log.with_suffix(".checkpoints").joinpath("run000_step000008.pt").unlink()
    port = free_port()
    folders = [str(tmp_path / "first"), str(tmp_path / "nothing_here")]
    ranks = [run_rank(rank, port, *options, folders[rank], "--resume") for rank in (0, 1)]
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert float(re.findall(r"step:8/8 val_loss:([\d.]+)", told[0][0])[0]) == pytest.approx(alone, abs=2e-4)


def test_an_error_of_one_process_is_told_and_ends_all(nano_data, tmp_path):
    port = free_port()
    ranks = [
        run_rank(rank, port, "--data", str(data), "--out", str(tmp_path / "o"))
        for rank, data in enumerate((nano_data, tmp_path))
    ]
    while all(rank.poll() is None for rank in ranks):
        time.sleep(0.1)
    errors = [rank.communicate(timeout=30)[1] for rank in ranks]  # both leave when one does
    assert all(rank.returncode for rank in ranks)
    assert re.search(r"^error \(rank 1, host \S+\): no train shards", errors[0], re.M)
    assert not list(tmp_path.glob("o/*"))


def test_a_process_that_is_gone_is_told_in_one_line(small_file, tmp_path):
    port, options = free_port(), ("--track", str(small_file), "--recipe", "muon", "--checkpoint-every", "1")
    options += ("--steps", "5000", "--data", str(tmp_path / "data"), "--out", str(tmp_path))
    ranks = [run_rank(rank, port, *options) for rank in (0, 1)]
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.checkpoints/*.pt")):
        assert all(rank.poll() is None for rank in ranks) and time.monotonic() < deadline
        time.sleep(0.01)
    ranks[1].kill()
    began, told = time.monotonic(), [rank.communicate(timeout=120) for rank in ranks]
    assert ranks[0].returncode == 1 and time.monotonic() - began < 60
    assert re.search(
        r"^error \(rank 0, host \S+\): the exchange broke off, .* --resume goes on", told[0][1], re.M
    )
    assert "Traceback" not in told[0][1]


def steady_step(rank: int, folder: str) -> None:
    """Writes which operations the third step of two processes made."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    pair = World(rank, 2, torch.device("cpu"))
    model = GPT(256, 1, 64, 32, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = train_gpt.distributed(model, pair)
    batch = (torch.zeros(2, 128, dtype=torch.int64),) * 2
    for _ in range(2):
        train_gpt.forward_backward(net, batch, 2, pair)
        model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU]) as made:
        train_gpt.forward_backward(net, batch, 2, pair)
    buckets = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    names = sorted({event.key for event in made.key_averages()})
    Path(folder, str(rank)).write_text("\n".join([f"storages {len(buckets)}", *names]))
    dist.destroy_process_group()


def test_a_step_broadcasts_nothing_and_gradients_stay_in_their_buckets(tmp_path):
    on_ranks(steady_step, tmp_path, 2)
    storages, *made = (tmp_path / "0").read_text().splitlines()
    assert any("allreduce" in name for name in made)
    assert not [name for name in made if re.search("(c10d:|gloo|nccl):broadcast", name)]
    assert int(storages.split()[1]) < 5  # of 20 parameters


def test_three_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(WorldError, match="3 processes do not divide 8"):
        world.join_world()
