"""./run.sh doctor [--nproc N] [--json FILE] [--quick]: is this machine ready, and how fast will it be?

Needs no data. Every process looks at its machine; together they exchange numbers, train a few steps of the
real model on made tokens with five recipes, and repeat twelve steps of the published baseline, whose losses
are known. What is found is printed line by line: ok, a warning, or what fails, and what to do. With a GPU
the model and its track are fineweb, on a CPU nano. Exit code 1 if something fails.
"""

import argparse
import json
import math
import os
import resource
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from optimizers import STEPS
from optimizers.exchange import collective
from optimizers.softcap_kernel import differs
from optimizers.world import WorldError, device_name, distributed, has_gpu, join_world, nvidia_driver
from records import RecordError
from records.baseline import BASELINE, made_model, made_tokens
from records.run.effective import parse_recipe
from records.run.files import write_whole
from records.run.instrument_log import unobserved
from records.run.machine import (
    PEAK_FLOPS,
    choose_micro_batch,
    compiles,
    find_compiler,
    memory_needed,
)
from records.run.recipe import Recipe
from records.run.signals import ENDED, last_words, say
from records.run.track import Track, shipped_tracks
from train_gpt import (
    GPT,
    LOSS_ROWS,
    World,
    apply_update,
    build_optimizers,
    compute_gradients,
    load_recipe,
    make_model,
    set_learning_rates,
    softcapped,
    start_progress,
    validates,
    warm_up,
)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/golden/trajectory_baseline.json"  # losses of the benchmark's own script
# Largest relative differences allowed. Measured on a CPU: in float32 1.2e-4 of a loss, as Adam's first steps
# follow the signs of tiny gradients; 4e-4 with Muon's products in bfloat16, as they are on a GPU. Without
# weight decay norms differ by 1e-2, with half of Muon's learning rate losses by 1e-3 and norms by 6e-2.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-3, 5e-3
METHODS = ("muon", "aurora", "contra_muon", "nora")  # beside the track's default recipe
MEETING = 120.0  # seconds that the processes have to find one another and exchange a first number
STEADY = 3  # steps before the ones whose time counts
HUB = "https://huggingface.co"
SECONDS = 4  # that the hub has to answer
STATES = ("ok", "warning", "fails")  # from best to worst
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """A line of the table. state: one of STATES; remedy: what to do."""

    check: str
    found: str
    state: str = "ok"
    remedy: str = ""

    def lines(self) -> Iterator[str]:
        """The table's lines, at most 110 wide."""
        told = wrap(self.found, 82) + wrap(self.remedy, 82, initial_indent="-> ", subsequent_indent="   ")
        for number, line in enumerate(told):
            head = f"{self.check:<18}{self.state:<9} " if number == 0 else " " * 28
            yield (head + line).rstrip()


@dataclass
class Speed:
    """What the default recipe measured here. step_seconds: the median of the steady ones."""

    step_seconds: float
    tokens_per_second: float
    utilisation: float  # of the devices' peak; 0 where that is not known
    peak_memory: int  # bytes, of the first process
    compile_seconds: float  # 0 without compiling
    run_hours: float  # of all steps and validations of the default recipe

    def told(self, recipe: Recipe) -> str:
        mfu = f", MFU {self.utilisation:.1%}" if self.utilisation else ", MFU unknown"
        compiled = f"compiled in {self.compile_seconds:.0f} s" if self.compile_seconds else "not compiled"
        minutes = 60 * self.run_hours
        duration = f"{self.run_hours:.2f} hours" if minutes > 6 else f"{minutes:.1f} minutes"
        return (
            f"{1000 * self.step_seconds:.1f} ms/step, {self.tokens_per_second:,.0f} tokens/s{mfu}, "
            f"peak memory {self.peak_memory / GIB:.2f} GiB, {compiled}\n"
            f"a run of {recipe.name}: {recipe.train_steps} steps and their validations, about {duration}"
        )


@dataclass
class Checkup:
    """One visit: what is looked at, and what was found so far."""

    recipe: Recipe  # the track's default
    ranks: World
    args: argparse.Namespace  # compile, micro_batch: as the trainer's
    quick: bool = False
    compile_seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    speed: Speed | None = None

    @property
    def track(self) -> Track:
        return self.recipe.track

    @property
    def on_gpu(self) -> bool:
        return self.ranks.device.type == "cuda"


# ------------------------------------------------------------------------------------------------------------
# What each process finds by itself


def check_device(checkup: Checkup) -> Finding:
    """The GPU or the processor. Raises RunError for a GPU that torch cannot use."""
    name = device_name(checkup.ranks.device)
    if not has_gpu():
        found = f"no GPU found: {checkup.track.name} on the CPU, {name}, {torch.get_num_threads()} thread(s)"
        return Finding("device", found)
    capability, driver = torch.cuda.get_device_capability(), nvidia_driver() or "of unknown version"
    found = f"{name}, driver {driver}, compute capability {capability[0]}.{capability[1]}"
    if capability < (8, 0):
        return Finding("device", found, "fails", "bfloat16 needs 8.0: an A100, H100 or later")
    if name not in PEAK_FLOPS:
        remedy = "its peak speed is not known, so no MFU; a slice (MIG) or a part of a GPU trains, slowly"
        return Finding("device", found, "warning", remedy)
    return Finding("device", found)


def check_torch(checkup: Checkup) -> Finding:
    """Its version beside the one of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    asked = next(line.partition("==")[2] for line in lines if line.startswith("torch=="))
    found = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    if torch.__version__.partition("+")[0] != asked:
        remedy = f"tested with {asked}: remove .venv, and ./run.sh makes it anew"
        return Finding("torch", found, "warning", remedy)
    return Finding("torch", found)


def check_compiler(checkup: Checkup) -> Finding:
    """What torch.compile needs; a CPU does without."""
    if path := find_compiler(checkup.on_gpu):
        return Finding("compiler", path)
    if checkup.on_gpu:
        remedy = "install gcc or clang (or name one with CC); --no-compile trains without, at half the speed"
        return Finding("compiler", "no C compiler", "fails", remedy)
    return Finding("compiler", "no C++ compiler", "warning", "install g++ or clang++ if you want --compile")


def disk_needed(recipe: Recipe) -> int:
    """Bytes of the shards of a run and of three checkpoints (two kept, one being written)."""
    track = recipe.track
    blocks = (track.shard_tokens - 2) // track.batch_tokens
    shards = math.ceil(recipe.train_steps / blocks) * 2 * track.shard_tokens
    weights = track.num_layers * (4 + 2 * track.mlp_ratio) * track.model_dim**2
    weights += 2 * track.vocab_size * track.model_dim
    return shards + 3 * 3 * 4 * weights


def check_disk(checkup: Checkup) -> Finding:
    """Room for data and checkpoints, and that a file can be written."""
    needed, free = disk_needed(checkup.recipe), shutil.disk_usage(ROOT).free
    try:
        with tempfile.NamedTemporaryFile(dir=ROOT):
            pass
    except OSError as error:
        remedy = "name folders that can be written with --data and --out"
        return Finding("disk", f"{error.strerror} in the project's folder", "warning", remedy)
    found = f"{free / GIB:,.0f} GiB free; data and checkpoints take up to {needed / GIB:.1f} GiB"
    if free < needed:
        return Finding("disk", found, "warning", "name a larger disk with --data and --out")
    return Finding("disk", found)


def check_hub(checkup: Checkup) -> Finding:
    """Whether data can be fetched. Only the first process asks; nobody waits longer than SECONDS."""
    if checkup.ranks.rank:
        return Finding("hub", "")
    address, told = os.environ.get("HF_ENDPOINT", HUB), [f"no answer in {SECONDS} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS).close()
            told[0] = ""
        except urllib.error.HTTPError:  # it answers
            told[0] = ""
        except (OSError, ValueError) as error:
            told[0] = str(getattr(error, "reason", error))

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout of its own
    asking.start()
    asking.join(SECONDS)
    if not told[0]:
        return Finding("hub", f"{address} answers")
    remedy = f"{checkup.track.name} needs none of it"
    if checkup.track.fetch == "data.fineweb":
        remedy = "name a mirror with HF_ENDPOINT, or put the shards into data/fineweb10B by hand"
    return Finding("hub", f"{address}: {told[0]}", "warning", remedy)


def micro_batch_of(checkup: Checkup) -> int:
    """Rows of a forward pass: as asked, else what the memory holds. Raises RunError."""
    args, ranks = checkup.args, checkup.ranks
    memory = torch.cuda.mem_get_info(ranks.device) if checkup.on_gpu else None
    asked = args.micro_batch, args.compile, LOSS_ROWS
    return choose_micro_batch(checkup.track, ranks.size, *asked, memory)


def check_memory(checkup: Checkup) -> Finding:
    """The micro-batch that free memory allows."""
    track, args, ranks = checkup.track, checkup.args, checkup.ranks
    rows = micro_batch_of(checkup)
    what = f"micro-batch of {rows} rows of {track.context} tokens"
    if not checkup.on_gpu:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found = f"{free / GIB:.1f} GiB free, {what}"
        if free < 2 * GIB:
            return Finding("memory", found, "warning", "a run takes up to 2 GiB a process: close something")
        return Finding("memory", found)
    free, total = torch.cuda.mem_get_info(ranks.device)
    fixed, token = memory_needed(track, args.compile, LOSS_ROWS)
    needed = fixed + rows * track.context * token
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free, {what}: up to {needed / GIB:.1f} GiB"
    if needed > free:
        remedy = "another process has the rest (nvidia-smi), or the GPU is too small"
        return Finding("memory", found, "fails", remedy)
    if free < 0.8 * total:
        return Finding("memory", found, "warning", "another process has the rest: see nvidia-smi")
    return Finding("memory", found)


def check_loss(checkup: Checkup) -> Finding:
    """Whether a GPU's own kernel for the loss agrees with the plain loss; where it does not, that is used."""
    if not checkup.on_gpu:
        return Finding("loss", "no kernel of its own on a CPU")
    if told := differs(softcapped, checkup.ranks.device):
        return Finding(
            "loss", f"the Triton kernel differs: {told}", "warning", "a run does without it, slower"
        )
    return Finding("loss", "the Triton kernel agrees with the plain loss")


# ------------------------------------------------------------------------------------------------------------
# What the processes find together


def check_exchange(checkup: Checkup) -> Finding:
    """Sums, shares and gatherings of all ranks, with known results; the speed of a sum of 64 MiB."""
    ranks, count = checkup.ranks, 2**24 if checkup.on_gpu else 2**20
    if ranks.size == 1:
        return Finding("exchange", "one process: nothing to exchange")
    kind = "NCCL" if checkup.on_gpu else "gloo"
    own = torch.full((count,), float(ranks.rank + 1), device=ranks.device)
    wrong = []
    if ranks.sum(own.clone()).unique().tolist() != [ranks.size * (ranks.size + 1) / 2]:
        wrong.append("all_reduce")
    gathered = torch.empty(ranks.size, device=ranks.device)
    collective("all_gather_single", "all_gather_into_tensor")(gathered, own[:1].clone())
    if gathered.tolist() != [rank + 1 for rank in range(ranks.size)]:
        wrong.append("all_gather")
    for source in range(ranks.size):
        dist.broadcast(sent := own[:1].clone(), source)
        if sent.item() != source + 1:
            wrong.append(f"broadcast from rank {source}")
    share = torch.empty(1, device=ranks.device)
    parts = torch.arange(ranks.size, dtype=own.dtype, device=ranks.device)
    collective("reduce_scatter_single", "reduce_scatter_tensor")(share, parts)
    if share.item() != ranks.rank * ranks.size:
        wrong.append("reduce_scatter")
    ranks.barrier()
    began = time.perf_counter()
    for _ in range(4):
        ranks.sum(own)
    ranks.barrier()
    speed = 4 * own.nbytes * 2 * (ranks.size - 1) / ranks.size / (time.perf_counter() - began)
    found = f"{kind} between {ranks.size} processes, {speed / 1e9:.1f} GB/s"
    if wrong:
        remedy = "the numbers that arrived are wrong: check the links (nvidia-smi topo -m), NCCL_DEBUG=INFO"
        return Finding("exchange", f"{kind}: {', '.join(wrong)}", "fails", remedy)
    return Finding("exchange", found)


def made_text(track: Track, ranks: World, step: int) -> tuple[Tensor, Tensor]:
    """This rank's inputs and targets [rows, context] of a made text, its low tokens frequent."""
    rows = track.batch_tokens // track.context // ranks.size
    uniform = np.random.default_rng([step, ranks.rank]).random((rows, track.context + 1))
    tokens = torch.from_numpy((track.token_limit**uniform).astype(np.int64) - 1).to(ranks.device)
    return tokens[:, :-1], tokens[:, 1:]


def train_briefly(checkup: Checkup, recipe: Recipe, steps: int) -> tuple[GPT, list[float], list[float]]:
    """Seconds of each step and its mean loss, with the trainer's own functions; and the model."""
    ranks, args = checkup.ranks, checkup.args
    model = make_model(recipe, 0, ranks.device, args.compile)
    net = distributed(model, ranks)
    optimizers = build_optimizers(model, recipe, None if args.compile else False)
    seconds, losses = [], []
    for step in range(steps):
        batch = made_text(recipe.track, ranks, step)
        ranks.barrier()
        began = time.perf_counter()
        set_learning_rates(optimizers, recipe, step)
        loss = compute_gradients(net, optimizers, batch, args.micro_batch, ranks)
        apply_update(optimizers)
        ranks.barrier()
        seconds.append(time.perf_counter() - began)
        losses.append(ranks.sum(loss).item() / recipe.track.batch_tokens)
    return model, seconds, losses


def check_training(checkup: Checkup, recipe: Recipe) -> Finding:
    """A few steps with a recipe: the loss is finite and falls."""
    default, steps = recipe is checkup.recipe, 5 if checkup.quick else 10
    if default and checkup.args.compile:
        checkup.compile_seconds = warm_up(recipe, checkup.ranks, checkup.args)
    if checkup.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model, seconds, losses = train_briefly(checkup, recipe, steps)
    step_seconds = statistics.median(seconds[STEADY:])
    if default:
        checkup.speed = measure_speed(checkup, model, step_seconds)
    name = f"train {recipe.matrix['step']}" if not default else "train default"
    told = f"{recipe.name}: " if default else ""
    found = f"{told}{steps} steps of {1000 * step_seconds:.1f} ms, loss {losses[0]:.4f} to {losses[-1]:.4f}"
    if not all(map(math.isfinite, losses)):
        return Finding(name, found, "fails", "the loss is not finite: try --no-compile, and file an issue")
    if losses[-1] >= losses[0]:
        return Finding(name, found, "fails", "the loss does not fall: try --no-compile, and file an issue")
    return Finding(name, found)


@torch.no_grad()
def measure_speed(checkup: Checkup, model: GPT, step_seconds: float) -> Speed:
    """The numbers at the end, after the default recipe's steps; one batch is validated for its time."""
    recipe, track, ranks = checkup.recipe, checkup.track, checkup.ranks
    inputs, targets = (part.split(checkup.args.micro_batch) for part in made_text(track, ranks, 0))
    for part in (inputs[:1], inputs):  # once to warm up
        ranks.barrier()
        began = time.perf_counter()
        for x, y in zip(part, targets, strict=False):
            model(x, y)
        ranks.barrier()
    validation = (time.perf_counter() - began) * track.val_tokens / track.batch_tokens
    count = sum(validates(step, recipe) for step in range(recipe.train_steps + 1))
    speed = track.batch_tokens / step_seconds
    progress = start_progress(recipe, model, ranks, 0, None)
    progress.close()
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return Speed(
        step_seconds=step_seconds,
        tokens_per_second=speed,
        utilisation=progress.peak_share * speed,
        peak_memory=torch.cuda.max_memory_allocated() if checkup.on_gpu else memory,
        compile_seconds=checkup.compile_seconds,
        run_hours=(recipe.train_steps * step_seconds + count * validation) / 3600,
    )


def check_baseline(checkup: Checkup) -> Finding:
    """Twelve steps of the published baseline in float32, beside what its own script computed in float64."""
    golden, device = json.loads(GOLDEN.read_text()), checkup.ranks.device
    recipe = parse_recipe(BASELINE, "baseline", shipped_tracks(), STEPS)
    model = made_model(torch.float32).to(device)

    def tokens(seed: int, rows: int) -> Tensor:
        return made_tokens(seed, rows).to(device)

    optimizers, losses = build_optimizers(model, recipe, compiled=False), []
    alone = World(0, 1, device)
    for step in range(recipe.train_steps):
        set_learning_rates(optimizers, recipe, step)
        batch = tokens(100 + step, 4), tokens(200 + step, 4)
        losses.append(compute_gradients(model, optimizers, batch, 4, alone).item())
        apply_update(optimizers)
    with torch.no_grad():
        losses.append(model(tokens(5, 2), tokens(6, 2)).item())
    expected, norms = [*golden["losses"], golden["final_loss"]], golden["final_param_fro_norms"]
    loss_error = max(abs(loss / known - 1) for loss, known in zip(losses, expected, strict=True))
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    norm_error = max(abs(p.norm().item() / norms[name] - 1) for name, p in weights.items())
    found = (
        f"twelve steps in float32 beside the published script's: losses differ by {loss_error:.1e} "
        f"(allowed {LOSS_TOLERANCE:.0e}), weights by {norm_error:.1e} ({NORM_TOLERANCE:.0e})"
    )
    if not (loss_error <= LOSS_TOLERANCE and norm_error <= NORM_TOLERANCE):
        remedy = "this machine computes something else: update driver and torch, or file an issue"
        return Finding("baseline", found, "fails", remedy)
    return Finding("baseline", found)


# ------------------------------------------------------------------------------------------------------------
# The visit


def recipes(checkup: Checkup) -> Iterator[Recipe]:
    """What is trained: the track's default, and the methods with their defaults."""
    yield checkup.recipe
    for step in () if checkup.quick else METHODS:
        text = f'train_steps = 10\n[matrix]\nstep = "{step}"\n'
        yield parse_recipe(text, step, shipped_tracks(), STEPS, track=checkup.track.name)


def failure(check: str, error: Exception) -> Finding:
    """The finding that an error is."""
    if isinstance(error, RecordError | WorldError):
        return Finding(check, str(error), "fails")
    if isinstance(error, torch.OutOfMemoryError):
        return Finding(check, "out of GPU memory", "fails", "another process has the rest (nvidia-smi)")
    told = (str(error).strip().splitlines() or [""])[0]
    return Finding(check, f"{type(error).__name__}: {told}", "fails", "file an issue with what --json writes")


def worst_of(found: list[tuple[str, Finding]]) -> Finding:
    """One line for all ranks: the worst, with its place if the first does not have it. found: by rank."""
    rank = max(range(len(found)), key=lambda r: (STATES.index(found[r][1].state), -r))
    host, worst = found[rank]
    if rank == 0:
        return worst
    return Finding(worst.check, f"{worst.found} (rank {rank}, host {host})", worst.state, worst.remedy)


def note(checkup: Checkup, check: str, look: Callable[[Checkup], Finding], together: bool = False) -> None:
    """Do one check, print its line and keep it.

    together: all processes wait for each other in it. So where one cannot go on, it says why and ends all.
    """
    ranks, host = checkup.ranks, socket.gethostname()
    try:
        own = look(checkup)
    except Exception as error:  # whatever a machine that is not ready raises
        own = failure(check, error)
        if together and ranks.size > 1:
            sys.exit(last_words(f"error (rank {ranks.rank}, host {host}): {check}: {own.found}", 1))
    everyone: list[tuple[str, Finding]] = [(host, own)] * ranks.size
    if ranks.size > 1:
        dist.all_gather_object(everyone, (host, own))
    checkup.findings.append(worst_of(everyone))
    if ranks.rank == 0:
        print("\n".join(checkup.findings[-1].lines()), flush=True)
        if checkup.args.json:  # now: a machine that is not ready may end this process
            write_json(checkup, checkup.args.json)


def write_json(checkup: Checkup, path: Path) -> None:
    """All that was found, for an issue: no paths, no names of hosts beyond what a line says."""
    ranks, worst = checkup.ranks, max((STATES.index(one.state) for one in checkup.findings), default=0)
    told = {
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(ranks.device),
        "processes": ranks.size,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "track": checkup.track.name,
        "recipe": checkup.recipe.name,
        "compiled": checkup.args.compile,
        "micro_batch": checkup.args.micro_batch,
        "state": STATES[worst],
        "findings": [asdict(finding) for finding in checkup.findings],
        "speed": asdict(checkup.speed) if checkup.speed else None,
    }
    write_whole(path, (json.dumps(told, indent=1) + "\n").encode())


@contextmanager
def ending_after(seconds: float, told: str) -> Iterator[None]:
    """Ends this process if what is inside takes longer; from a thread, as NCCL and gloo block this one."""

    def end() -> None:
        world = ", ".join(f"{key} {os.environ.get(key)}" for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
        remedy = "Does every node run the same command, and see the first? NCCL_DEBUG=INFO says more."
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say(last_words(f"error: {told} within {seconds:g} s ({world}). {remedy}", ENDED), error=True)
        os._exit(ENDED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def visit(checkup: Checkup) -> int:
    """All checks, one after the other; the exit code."""
    looks = (check_device, check_torch, check_compiler, check_disk, check_hub, check_memory, check_loss)
    for look in looks:
        note(checkup, look.__name__.removeprefix("check_"), look)
    args, ranks = checkup.args, checkup.ranks
    args.compile = args.compile and find_compiler(checkup.on_gpu) is not None
    args.micro_batch = micro_batch_of(checkup)
    note(checkup, "exchange", check_exchange, together=True)
    note(checkup, "baseline", check_baseline, together=True)
    for recipe in recipes(checkup):
        name = "train default" if recipe is checkup.recipe else f"train {recipe.name}"
        note(checkup, name, partial(check_training, recipe=recipe), together=True)
    if ranks.rank == 0 and checkup.speed:
        print(f"\n{checkup.speed.told(checkup.recipe)}")
    return int(any(finding.state == "fails" for finding in checkup.findings))


def main(argv: list[str] | None = None) -> int:
    """The command line; every process of ./run.sh doctor comes here. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="./run.sh doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write what was found there too, for an issue")
    add("--quick", action="store_true", help="the default recipe only, five steps")
    add("--micro-batch", type=int, metavar="ROWS", help="rows of a forward pass (what the memory holds)")
    add("--compile", action=BooleanOptionalAction, help="default: on a GPU")
    parser.set_defaults(observe=unobserved)  # which the trainer's warm-up asks for
    args = parser.parse_args(argv)
    try:
        with ending_after(MEETING, "the processes did not meet"):
            ranks = join_world()
            ranks.barrier()
        track = shipped_tracks()["fineweb" if ranks.device.type == "cuda" else "nano"]
        recipe = load_recipe(track.recipe, track=track)
    except (RecordError, WorldError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        args.compile = compiles(args.compile, has_gpu(checked=False))
    except RecordError:  # check_compiler says so
        args.compile = False
    checkup = Checkup(recipe, ranks, args, args.quick)
    try:
        return visit(checkup)
    finally:
        if ranks.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
