"""Train a GPT until a validation loss is reached, in as few steps as possible.

Read top to bottom: data, architecture, recipe and schedule, checkpoints, the loop, the command line.
Fixed by the benchmark's rules: the track (`records/<track>/track.toml`), the data order, the architecture,
the validation. Free: the recipe, that is the optimizer, its hyperparameters, schedules and initialisation.

`./run.sh` starts this file, one process per GPU. Importing it defines things and runs nothing.
"""

import argparse
import math
import os
import signal
import sys
import time
from argparse import BooleanOptionalAction
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from platform import python_version
from socket import gethostname
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from data.shards import ShardError, list_shards, read_shard
from optimizers import STEPS, MatrixOptimizer
from optimizers.ema_nesterov import EMANesterov
from optimizers.stage import named_step
from records.run.flatten import flatten, literal
from records.run.machine import PEAK_FLOPS, find_compiler, nvidia_driver
from records.run.recipe import (
    COOLDOWN,
    Recipe,
    RecipeError,
    list_recipes,
    matches,
    parse_recipe,
    parse_seeds,
    read_recipe,
)
from records.run.run_log import Clock, LogError, Progress, RunLog, processor_name, verdict
from records.run.track import Track, TrackError, read_track, shipped_tracks

Found = TypeVar("Found")
ROOT = Path(__file__).resolve().parent


class RunError(ValueError):
    """The run cannot start or go on. The message is for the user: expected, found, what to do.

    where: " (rank 3, host x)" if all processes end because of one.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


USER_ERRORS = (RunError, RecipeError, TrackError, ShardError, LogError)


# ------------------------------------------------------------------------------------------------------------
# Data: shards in name order, read in blocks; the order never depends on the seed


def plan_blocks(lengths: list[int], batch_tokens: int, steps: int) -> list[tuple[int, int]]:
    """(shard, first token) of each step's block. A block needs one token more: the last target.

    Raises RunError where the shards hold too few tokens for the steps.
    """
    starts = (range(0, length - batch_tokens - 1, batch_tokens) for length in lengths)
    blocks = [(shard, start) for shard, firsts in enumerate(starts) for start in firsts]
    if len(blocks) < steps:
        raise RunError(f"{steps} steps need as many blocks of {batch_tokens:,} tokens, the shards hold "
                       f"{len(blocks)}. Fetch more data, or train with --steps {len(blocks)}.")
    return blocks[:steps]


def read_block(shard: np.ndarray, start: int, track: Track, world: "World") -> tuple[Tensor, Tensor]:
    """This rank's inputs and targets [rows, context] (int64) of the block that begins at `start`."""
    share = track.batch_tokens // world.size
    start += world.rank * share
    tokens = shard[start : start + share + 1].astype(np.int64)
    if tokens.max() >= track.token_limit:
        raise ShardError(f"{shard.filename}: token {tokens.max()} at {start + tokens.argmax():,}, expected "
                         f"below {track.token_limit}. Remove the file and fetch it again.")
    rows = torch.from_numpy(tokens)
    return rows[:-1].view(-1, track.context), rows[1:].view(-1, track.context)


def training_batches(
    shards: list[np.ndarray], blocks: list[tuple[int, int]], track: Track, world: "World"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of each block, on the device; a thread reads two ahead, over shard borders too."""

    def fetch(shard: int, start: int) -> tuple[Tensor, Tensor]:
        inputs, targets = read_block(shards[shard], start, track, world)
        if world.device.type == "cpu":
            return inputs, targets
        return tuple(part.pin_memory().to(world.device, non_blocking=True) for part in (inputs, targets))

    with ThreadPoolExecutor(1, thread_name_prefix="data") as reader:
        ahead = deque(reader.submit(fetch, *block) for block in blocks[:2])
        for block in [*blocks[2:], None, None][: len(blocks)]:
            pair = ahead.popleft().result()
            if block:
                ahead.append(reader.submit(fetch, *block))
            yield pair


def open_data(data: Path, recipe: Recipe) -> tuple[list[np.ndarray], list[tuple[int, int]], np.ndarray]:
    """The training shards in name order, each step's block in them, and the validation shard; all checked.

    Raises RunError or ShardError where something is missing, damaged or too short for the run.
    """
    track, shards = recipe.track, {}
    for split in ("train", "val"):
        folder = data / track.dataset
        if not (files := list_shards(folder, split)):
            told = f"run `python -m {track.fetch}`" if track.fetch else "put them there, or name --data DIR"
            raise RunError(f"no {split} shards (*_{split}_*.bin) in {folder}: {told}.")
        shards[split] = [read_shard(file) for file in files]
    val = shards["val"][0]
    if len(val) <= track.val_tokens:
        raise RunError(f"{val.filename} holds {len(val)} of {track.val_tokens + 1} tokens.")
    lengths = [len(shard) for shard in shards["train"]]
    return shards["train"], plan_blocks(lengths, track.batch_tokens, recipe.train_steps), val


# ------------------------------------------------------------------------------------------------------------
# Architecture: fixed by the rules


class Linear(nn.Module):
    """y = x W^T + b, weights kept in their own precision and cast to the activation's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.gains.shape, self.gains.to(x.dtype))


def rotary_angles(context: int, head_dim: int) -> Tensor:
    """Angles [context, head_dim / 2] in float64, half truncated: half of the frequencies are zero."""
    frequencies = (1 / context) ** torch.linspace(0, 1, head_dim // 4, dtype=torch.float64)
    frequencies = torch.cat([frequencies, torch.zeros(head_dim // 4, dtype=torch.float64)])
    return torch.outer(torch.arange(context, dtype=torch.float64), frequencies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs made of a head's first and second half. x: [batch, time, heads, head_dim]."""
    x1, x2 = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).to(x.dtype)


# The fastest first: a device takes the first that it has.
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
             SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # fmt: skip


class Attention(nn.Module):
    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q, self.k, self.v, self.proj = (Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        layers = (self.q, self.k, self.v)  # in one product
        weight = torch.cat([layer.weight.to(x.dtype) for layer in layers])
        bias = torch.cat([layer.bias.to(x.dtype) for layer in layers])
        heads, qkv = x.size(-1) // self.head_dim, F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split((2 * heads, heads), dim=-2)
        q, k = rotate(F.rms_norm(qk, (self.head_dim,)), cos, sin).chunk(2, dim=-2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=15.36 / self.head_dim)
        return self.proj(y.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc, self.proj = Linear(dim, ratio * dim), Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, dim: int, head_dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.attn = RMSNorm(dim), Attention(dim, head_dim)
        self.norm2, self.mlp = RMSNorm(dim), MLP(dim, mlp_ratio)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


LOSS_ROWS = 2**13  # tokens whose logits are in memory at a time


def softcapped(logits: Tensor, targets: Tensor, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """Cross entropy, summed over rows, of logits z [rows, vocabulary] softcapped at 15; its gradient by z.

    The capped logits are c z with c = 15 / sqrt(z^2 + 15^2), and their derivative is c^3. All is computed in
    float32 at least; the gradient has the precision of the logits.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    c = z.square().add_(15**2).rsqrt_().mul_(15)
    log_p, at_target = (c * z).log_softmax(-1), (torch.arange(len(z), device=z.device), targets)
    log_p_target = log_p[at_target]
    if not differentiate:
        return -log_p_target.sum(), None
    gradient_at_target = torch.expm1(log_p_target) * c[at_target] ** 3
    gradient = log_p.exp_().mul_(c.pow_(3)).to(logits.dtype)
    gradient[at_target] = gradient_at_target.to(logits.dtype)
    return -log_p_target.sum(), gradient


class Differentiated(torch.autograd.Function):
    """A scalar whose gradients by the inputs are there already."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * scale.to(gradient.dtype) for gradient in ctx.saved_tensors)


def summed_loss(head: Linear, x: Tensor, targets: Tensor, softcapped: Callable) -> Tensor:
    """The head's loss on x [tokens, dim], summed. The logits of LOSS_ROWS tokens are in memory at a time:
    gradients are made beside the loss, and backward needs neither the logits nor their product again.
    """
    differentiate, W, b = torch.is_grad_enabled(), head.weight.to(x.dtype), head.bias.to(x.dtype)
    with torch.no_grad():
        loss = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        dx, dW, db = torch.empty_like(x), torch.zeros_like(head.weight), torch.zeros_like(head.bias)
        for at in (slice(start, start + LOSS_ROWS) for start in range(0, len(x), LOSS_ROWS)):
            part, dz = softcapped(F.linear(x[at], W, b), targets[at], differentiate)
            loss += part
            if differentiate:
                torch.mm(dz, W, out=dx[at])
                dW += dz.t() @ x[at]
                db += dz.sum(0)
    return Differentiated.apply(loss, (dx, dW, db), x, head.weight, head.bias) if differentiate else loss


class GPT(nn.Module):
    """Decoder of the benchmark: pre-norm blocks, half-truncated rotary, relu^2, untied head."""

    def __init__(
        self, vocab_size: int, num_layers: int, model_dim: int,
        head_dim: int = 128, context: int = 1024, mlp_ratio: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(vocab_size, model_dim)
        self.norm1 = RMSNorm(model_dim)
        self.blocks = nn.ModuleList(Block(model_dim, head_dim, mlp_ratio) for _ in range(num_layers))
        self.norm2 = RMSNorm(model_dim)
        self.proj = Linear(model_dim, vocab_size)
        self.register_buffer("angles", rotary_angles(context, head_dim), persistent=False)
        self.softcapped = softcapped
        initialise(self, {}, seed=0)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """inputs, targets: [rows, time] of int64 -> the loss summed over all targets, in nats."""
        x = self.norm1(self.embed(inputs))
        precision = torch.promote_types(x.dtype, torch.float32)
        angles = self.angles[: inputs.size(1), None]
        cos, sin = angles.cos().to(precision), angles.sin().to(precision)
        with sdpa_kernel(ATTENTION, set_priority=True):
            for block in self.blocks:
                x = block(x, cos, sin)
        return summed_loss(self.proj, self.norm2(x).flatten(0, -2), targets.flatten(), self.softcapped)


@torch.no_grad()
def initialise(model: GPT, stds: dict[str, float], seed: int) -> None:
    """Gains 1, biases 0, embedding N(0, 1), every `proj` 0, other weights N(0, 0.33 / inputs).

    stds: pattern -> standard deviation of the weights whose module it matches ("mlp.fc", "blocks.0.mlp.fc").
    Raises RunError for a pattern that matches nothing.
    """
    generator, unused = torch.Generator().manual_seed(seed), set(stds)
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        matching = [pattern for pattern in stds if kind == "weight" and matches(pattern, module)]
        unused -= set(matching)
        if kind in ("gains", "bias"):
            parameter.fill_(kind == "gains")
            continue
        std = 1.0 if module == "embed" else (0.33 / parameter.size(1)) ** 0.5
        std = stds[matching[0]] if matching else 0.0 if module.endswith("proj") else std
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std if std else torch.zeros(()))
    if unused:
        raise RunError(f"[init] {sorted(unused)[0]!r} matches no module; expected one such as 'mlp.fc'.")


@torch.no_grad()
def validate(model: GPT, shard: np.ndarray, track: Track, micro_batch: int, world: "World") -> float:
    """Mean loss over the first `val_tokens` tokens of the validation shard; each rank its part of a block."""
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for start in range(0, track.val_tokens, track.batch_tokens):
        block = read_block(shard, start, track, world)
        inputs, targets = (part.to(world.device).split(micro_batch) for part in block)
        for x, y in zip(inputs, targets, strict=True):
            total += model(x, y)
    return world.sum(total).item() / track.val_tokens


# ------------------------------------------------------------------------------------------------------------
# Recipe, optimizers and schedule: what an entry chooses


def load_recipe(source: str | Path, changes: Iterable[str] = (), track: Track | None = None) -> Recipe:
    """The recipe of a TOML file or of a shipped name, see records.run.recipe.read_recipe (RecipeError).

    track: the one it is for if it names none; a track that is not shipped takes the recipes of all.
    """
    tracks = shipped_tracks()
    if track and track.name not in tracks:
        tracks, changes = tracks | {track.name: track}, [*changes, f'track="{track.name}"']
    return read_recipe(source, tracks, STEPS, changes, track and track.name)


def build_optimizers(
    model: nn.Module, recipe: Recipe, compiled: bool | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW for the embedding, the head and the 1-D parameters; the recipe's step for the hidden matrices;
    last, over all of them, EMA-Nesterov where the recipe looks ahead.

    Every group remembers `initial_lr` and its `schedule` ("aux" or "matrix") for set_learning_rates.
    """
    aux, scalars = recipe.aux, [p for p in model.parameters() if p.ndim < 2]
    params = {"embed": [model.embed.weight], "head": [model.proj.weight], "scalar": scalars}
    groups = [{"params": params[name], "lr": aux[f"{name}_lr"]} for name in params]
    options = {"betas": tuple(aux["betas"]), "eps": aux["eps"], "weight_decay": aux["weight_decay"]}
    adamw = torch.optim.AdamW(groups, **options, fused=True)
    options = {"step": recipe.matrix["step"], "reduce_gradients": False, "compile": compiled}
    matrix = MatrixOptimizer(matrix_groups(model, recipe), **options)
    covered = [p for group in adamw.param_groups + matrix.param_groups for p in group["params"]]
    assert sorted(map(id, covered)) == sorted(map(id, model.parameters())), "each parameter has one optimizer"
    for kind, optimizer in (("aux", adamw), ("matrix", matrix)):
        for group in optimizer.param_groups:
            group |= {"initial_lr": group["lr"], "schedule": kind}
    if not recipe.lookahead:
        return [adamw, matrix]
    group = {"params": model.parameters(), "initial_lr": recipe.lookahead["strength"], "schedule": "matrix"}
    return [adamw, matrix, EMANesterov([group | recipe.lookahead])]


def matrix_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """A parameter group for each pattern of [matrix] and one for the rest; the first that matches counts.

    What [schedule.matrix] changes is a 0-d tensor: a compiled step sees new values without recompiling.
    """
    patterns = recipe.patterns()
    plain = {key: value for key, value in recipe.matrix.items() if key not in patterns}
    groups = {pattern: {"params": [], **values} for pattern, values in (patterns | {"*": plain}).items()}
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim >= 2:
            module = name.removesuffix(".weight")
            groups[next(key for key in groups if matches(key, module))]["params"].append(parameter)
    for pattern, group in groups.items():
        if pattern in patterns and not group["params"]:
            raise RunError(f'[matrix."{pattern}"] matches no hidden matrix; expected one such as "mlp.*".')
        scheduled = recipe.schedule["matrix"].items()
        group |= {key: torch.tensor(float(points[0][1])) for key, points in scheduled if key in group}
    return [group for group in groups.values() if group["params"]]


def value_at(knots: list[list], step: float) -> float:
    """The value at a step between knots [step, value, shape]: along x^shape from the knot before, or a cosine."""
    before = knots[0]
    for knot in knots:
        if step < knot[0]:
            x = (step - before[0]) / (knot[0] - before[0])
            shape = knot[2] if len(knot) > 2 else 1
            x = 0.5 - 0.5 * math.cos(math.pi * x) if shape == "cosine" else x**shape
            return before[1] + (knot[1] - before[1]) * max(x, 0.0)
        before = knot
    return before[1]


def learning_rate_factor(step: int, recipe: Recipe, kind: str) -> float:
    """Of the initial learning rate at update `step`, for "matrix" or "aux" (AdamW's): 1, after a warm-up; in
    the cooldown down to the floor, linear to the `cooldown_power`. See Recipe for `phases` and `delay`.
    """
    schedule = recipe.schedule
    said = {key: schedule[key if kind == "matrix" else f"aux_{key}"] for key in COOLDOWN}
    step = step - (value_at(schedule["delay"], step) if schedule["delay"] else 0)
    if said["phases"]:
        return value_at(said["phases"], step)
    plan = said["steps"] or recipe.train_steps
    steps = [total for start, total in plan if start <= step][-1] if isinstance(plan, list) else plan
    frac = said["cooldown_steps"] / steps if said["cooldown_steps"] else said["cooldown_frac"]
    left = max(1 - step / steps, 0)
    factor = (left / frac) ** said["cooldown_power"] if left <= frac else 1.0
    factor = said["floor"] + (1 - said["floor"]) * factor if said["floor"] else factor
    return factor * min(1.0, step / schedule["warmup_steps"]) if schedule["warmup_steps"] else factor


def set_learning_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """Set what changes over the run for update `step` (from 0), before the update."""
    knots = recipe.schedule["matrix"]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        on = group.get("start", 0) <= step < group.get("stop", math.inf)
        group["lr"] = on * group["initial_lr"] * learning_rate_factor(step, recipe, group["schedule"])
        for key in knots if group["schedule"] == "matrix" else ():
            if key in group:
                group[key].fill_(value_at(knots[key], step))


# ------------------------------------------------------------------------------------------------------------
# Checkpoints: written whole or not at all, the last two kept


def save_checkpoint(folder: Path, state: dict) -> Path:
    """Write `state` below `folder`; a reader never sees half a file."""
    path = folder / f"run{state['run']:03d}_step{state['step']:06d}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
    for old in sorted(folder.glob("*.pt"))[:-2]:
        old.unlink()
    return path


def newest_checkpoint(out: Path) -> dict:
    """The newest checkpoint below `out` that can be read; says which cannot. RunError if there is none."""
    files = sorted(out.glob("*.checkpoints/*.pt"), key=lambda file: file.stat().st_mtime_ns)
    for path in reversed(files):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file raises
            print(f"cannot read {path} ({type(error).__name__}); trying the one before", file=sys.stderr)
    raise RunError(f"--resume: no good checkpoint in {out}/*.checkpoints/. --checkpoint-every N makes them.")


def read_checkpoint(args: argparse.Namespace, world: "World") -> dict:
    """The newest checkpoint, if the run is resumed; only the first process needs to have it."""
    reads = args.resume and world.rank == 0
    return world.share(world.agreed(lambda: newest_checkpoint(args.out) if reads else {}))


# ------------------------------------------------------------------------------------------------------------
# The loop

STOP: list[int] = []  # signals that ask the run to end


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    device: torch.device
    name: str = ""  # of the GPU or the processor

    def barrier(self) -> None:
        """Wait until every process and its device are done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.size > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, found: Found) -> Found:
        """What the first process has found."""
        box = [found]
        if self.size > 1:
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def agreed(self, find: Callable[[], Found]) -> Found:
        """What `find` gives here. If it fails in one process, all raise RunError with its error."""
        found, told = None, None
        try:
            found = find()
        except USER_ERRORS as error:
            told = str(error), f" (rank {self.rank}, host {gethostname()})" if self.size > 1 else ""
        everyone = [told]
        if self.size > 1:
            dist.all_gather_object(everyone := [None] * self.size, told)
        for told in filter(None, everyone):
            raise RunError(*told)
        return found


def has_gpu() -> bool:
    """Whether torch has a GPU. Raises RunError where the machine has one that torch cannot use."""
    if not torch.cuda.is_available() and (driver := nvidia_driver()):
        torch_is = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        raise RunError(f"{torch_is} cannot use the NVIDIA GPU of this machine, driver {driver}. Update it, or "
                       "install a torch made for it (pytorch.org); --track nano trains on the CPU.")
    return torch.cuda.is_available()


def compiles(args: argparse.Namespace, track: Track) -> bool:
    """Whether to compile: as asked, else on a GPU. RunError without a compiler, or a GPU that torch can use."""
    on_gpu = torch.cuda.is_available() if track.name == "nano" else has_gpu()
    asked = on_gpu if args.compile is None else args.compile
    if asked and not find_compiler(on_gpu):
        compiler = "C compiler (gcc, clang or $CC)" if on_gpu else "C++ compiler (g++, clang++ or $CXX)"
        raise RunError(f"compiling needs a {compiler}, there is none. Install one, or run with --no-compile.")
    return asked


def join_world() -> World:
    """The processes torchrun started, or this one alone without a process group."""
    known = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | os.environ  # of torchrun, or alone
    rank, size, local = (int(known[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if 8 % size:
        raise RunError(f"{size} processes do not divide 8; use 1, 2, 4 or 8 (--nproc, CUDA_VISIBLE_DEVICES).")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:  # more threads collapse when other work runs
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, device_id=device if cuda else None)
    return World(rank, size, device, torch.cuda.get_device_name() if cuda else processor_name())


def make_model(recipe: Recipe, seed: int, device: torch.device, compiled: bool) -> GPT:
    """The track's model, initialised; on a GPU the embedding has the track's dtype. Blocks and loss are
    compiled or stay eager: a single nano run on a CPU saves no more time than compiling takes (README).
    """
    track = recipe.track
    shape = (track.num_layers, track.model_dim, track.head_dim, track.context, track.mlp_ratio)
    model = GPT(track.vocab_size, *shape)
    initialise(model, recipe.init, seed)
    model.to(device)
    if device.type == "cuda":
        model.embed.to(getattr(torch, track.gpu_dtype))
    if compiled:
        torch._dynamo.config.optimize_ddp = False  # which cuts each block in two, for buckets of 25 MB
        model.softcapped = torch.compile(softcapped, dynamic=False)
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def choose_micro_batch(track: Track, world: World, asked: int | None, compiled: bool) -> int:
    """Rows of one forward and backward pass: as asked, else the most that the memory holds (CPU: 1 GiB)."""
    rows, rest = divmod(track.batch_tokens, track.context * world.size)
    if rest:
        raise RunError(f"{world.size} processes do not divide {track.batch_tokens // track.context} rows.")
    if asked is not None and (asked < 1 or rows % asked):
        raise RunError(f"--micro-batch {asked} does not divide the {rows} rows of a process.")
    memory, (fixed, token) = 2**30, memory_needed(track, compiled)
    if world.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(world.device)
        memory = min(0.85 * total, free) - fixed
    fitting = (m for m in range(rows, 1, -1) if rows % m == 0 and m * track.context * token <= memory)
    return asked or next(fitting, 1)


def memory_needed(track: Track, compiled: bool) -> tuple[int, int]:
    """Bytes that a training on a GPU takes at most: in any case, and for each token of a micro-batch.

    In any case: weights, their gradients, the optimizers' states, LOSS_ROWS rows of logits. For a token: what
    backward needs of each block, and the space of one more. Counted in tests/test_fake_cuda.py.
    """
    weights = track.num_layers * (4 + 2 * track.mlp_ratio) * track.model_dim**2
    weights += 2 * track.vocab_size * track.model_dim
    a_logit, a_number = (6, 40) if compiled else (22, 58)
    fixed = 32 * weights + a_logit * LOSS_ROWS * track.vocab_size
    return fixed, a_number * track.model_dim * (track.num_layers + 1)


def distributed(model: GPT, world: World) -> nn.Module:
    """The model, its gradients averaged over the processes in the buffers in which they travel."""
    options = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    return DistributedDataParallel(model, **options) if world.size > 1 else model


def warm_up(recipe: Recipe, world: World, args: argparse.Namespace) -> float:
    """Seconds of compiling, before any clock runs: three updates of a model that is thrown away, one loss."""
    began, shape = time.perf_counter(), (args.micro_batch, recipe.track.context)
    tokens = torch.zeros(shape, dtype=torch.int64, device=world.device)
    model = make_model(recipe, 0, world.device, args.compile)
    optimizers = build_optimizers(model, recipe)[:2]
    for _ in range(3):  # the first makes the optimizers' states, the second compiles for them
        model(tokens, tokens).backward()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        model(tokens, tokens)
    world.barrier()
    return time.perf_counter() - began


def validates(step: int, recipe: Recipe) -> bool:
    """Whether the track validates before update `step` (or after the last)."""
    track, late = recipe.track, step >= 0.9 * recipe.train_steps
    every = track.late_val_every if late else track.val_every
    return step % every == 0 or step % track.val_every == 0 or step == recipe.train_steps


def forward_backward(net: nn.Module, batch: tuple[Tensor, ...], micro_batch: int, world: World) -> Tensor:
    """Gradients of the loss summed over the global batch; returns this rank's part of that loss (float64).

    DistributedDataParallel averages over ranks, while the last micro-batch runs backward: hence the factor.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    pairs = list(zip(*(part.split(micro_batch) for part in batch), strict=True))
    for number, (x, y) in enumerate(pairs, 1):
        with net.no_sync() if world.size > 1 and number < len(pairs) else nullcontext():
            loss = net(x, y)
            (loss * world.size).backward()
        total += loss.detach()
    return total


def start_progress(recipe: Recipe, model: GPT, world: World, first: int, board: Path | None) -> Progress:
    """The screen, and tensorboard if asked. A token costs 6 FLOPs a weight, and those of causal attention."""
    track, writer = recipe.track, None
    if board and world.rank == 0:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RunError("--tensorboard needs a package: pip install tensorboard.") from None
        writer = SummaryWriter(str(board))
    weights = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    flops = 6 * (weights + track.num_layers * track.context * track.model_dim)
    peak = world.size * PEAK_FLOPS.get(world.name, math.inf)
    return Progress(recipe.train_steps, first, track.batch_tokens, flops / peak, world.rank == 0, writer)


def train(
    recipe: Recipe, run: int, seed: int, world: World, log: RunLog, args: argparse.Namespace, state: dict
) -> None:
    """One training, from `state` (a checkpoint; empty for a new one) to the recipe's last step.

    A signal ends it (SystemExit), a loss or gradient that is not finite too (RunError), with a checkpoint.
    """
    track, (shards, blocks, val_shard) = recipe.track, open_data(args.data, recipe)
    model = make_model(recipe, seed, world.device, args.compile)
    net = distributed(model, world)
    optimizers = build_optimizers(model, recipe, None if args.compile else False)
    lookahead = [optimizer for optimizer in optimizers if isinstance(optimizer, EMANesterov)]
    if state:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        log.line(f"resumed at step {state['step']}, world_size: {world.size}")
    first, curve = state.get("step", 0), state.get("curve", [])
    clock = Clock(world.barrier, state.get("seconds", 0.0))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    names = [f"lr.{name}" for name in ("embed", "head", "scalar", *recipe.patterns(), "matrix")]

    def checkpoint(step: int) -> Path | None:
        saved = {"run": run, "step": step, "seconds": clock.seconds, "curve": curve, "recipe": recipe.toml(),
                 "track": asdict(track), "seeds": args.seeds, "log": log.path.name,
                 "model": model.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in optimizers]}  # fmt: skip
        return save_checkpoint(log.path.with_suffix(".checkpoints"), saved) if world.rank == 0 else None

    log.line(f"seed: {seed}", (run, -1))
    board = args.tensorboard and args.tensorboard / f"{log.path.stem}-seed{seed}"
    progress = start_progress(recipe, model, world, first, board)
    batches = training_batches(shards, blocks[first:], track, world)
    last, last_seconds = first, clock.seconds
    clock.start()
    for step in range(first, recipe.train_steps + 1):
        if validates(step, recipe) and (not args.validate_ends or step in (0, recipe.train_steps)):
            clock.stop()
            val_loss = validate(model, val_shard, track, args.micro_batch, world)
            average = 1000 * (clock.seconds - last_seconds) / (step - last) if step > last else math.nan
            line = f"step:{step}/{recipe.train_steps} val_loss:{val_loss:.5f} train_time:{clock.seconds:.3f}s"
            log.line(line := f"{line} step_avg:{average:.2f}ms", (run, step))
            log.record(seed=seed, step=step, val_loss=val_loss, train_time=clock.seconds)
            progress.say(line)
            progress.validated(step, val_loss)
            curve, last, last_seconds = [*curve, (step, val_loss)], step, clock.seconds
            clock.start()
        if step == recipe.train_steps:
            break
        set_learning_rates(optimizers, recipe, step)
        for ahead in lookahead:
            ahead.look_ahead()
        loss = forward_backward(net, next(batches), args.micro_batch, world)
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        told = torch.stack([loss, norm / world.size, torch.full_like(loss, len(STOP))])
        loss, norm, stopping = world.sum(told).tolist()  # the one wait for the device
        loss = loss / track.batch_tokens
        if not (math.isfinite(loss) and math.isfinite(norm)):
            bad = [name for name, p in model.named_parameters() if not p.grad.isfinite().all()]
            told = f"not finite at step {step}: loss {loss}, gradient of {bad[0] if bad else 'no parameter'}"
            told += "; last validation {1:.5f} at step {0}".format(*curve[-1]) if curve else ""
            log.line(told)
            clock.stop()
            for ahead in lookahead:
                ahead.look_back()
            raise RunError(f"{told}; checkpoint before it: {checkpoint(step)}. Try a lower learning rate.")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rates = {name: group["lr"] for name, group in zip(names, groups, strict=False)}
        speed = progress.stepped(step, loss, rates)
        log.record(seed=seed, step=step, loss=loss, grad_norm=norm, tokens_per_s=speed, **rates)
        if stopping or (args.checkpoint_every and (step + 1) % args.checkpoint_every == 0):
            clock.stop()
            path = checkpoint(step + 1)
            if stopping:
                progress.say(f"stopped by a signal; go on with --resume from {path}")
                raise SystemExit(128 + max(STOP, default=signal.SIGTERM))
            clock.start()
    log.line(told := f"seed {seed}: {verdict(curve, track.target)}", (run, recipe.train_steps + 1))
    progress.say(told)
    progress.close()


# ------------------------------------------------------------------------------------------------------------
# Command line


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """How and where to run: the trainer has these options, and so has the script at the head of its logs."""
    add = parser.add_argument
    add("--seeds", metavar="0-4|0,3", help="one run a seed, all in one log; default: 0")
    add("--micro-batch", type=int, metavar="ROWS", help="rows of a forward pass; default: what memory holds")
    add("--checkpoint-every", type=int, metavar="N", help="a checkpoint every N steps; the last two are kept")
    add("--resume", action="store_true", help="go on from the newest good checkpoint in the log folder")
    add("--data", type=Path, default=ROOT / "data", metavar="DIR", help="of fineweb10B/, nano/ (data)")
    add("--out", type=Path, default=ROOT / "logs", metavar="DIR", help="logs and checkpoints; default: logs")
    add("--compile", action=BooleanOptionalAction, help="default: on a GPU; on a CPU for several seeds")
    add("--validate-ends", action="store_true", help="only at the first and the last step: for searches")
    add("--tensorboard", type=Path, metavar="DIR", help="write scalars there too")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The options of ./run.sh that reach the trainer: what to run, and how."""
    parser = argparse.ArgumentParser(prog="./run.sh", description="Train and leave a record log.")
    add = parser.add_argument
    add("--track", metavar="NAME|FILE", help="fineweb (default with a GPU), nano (without), or a TOML file")
    add("--recipe", metavar="NAME|FILE", help="a shipped recipe, an entry, a TOML file")
    add("--recipes", action="store_true", help="list the recipes and leave")
    add("--steps", type=int, metavar="N", help="train N steps; the schedule follows")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe: matrix.lr=0.03")
    add_run_options(parser)
    add("--plan", action="store_true", help=argparse.SUPPRESS)  # for run.sh
    return parser.parse_args(argv)


def print_plan(recipe: Recipe, args: argparse.Namespace) -> None:
    """For run.sh: the number of GPUs, and what fetches the data if some is missing."""
    compiles(args, recipe.track)
    track, fetch = recipe.track, []
    try:
        open_data(args.data, recipe)
    except (RunError, ShardError):
        if not track.fetch:
            raise
        shards = math.ceil(recipe.train_steps / ((track.shard_tokens - 2) // track.batch_tokens))
        if shards > track.shards:
            raise RunError(f"{recipe.train_steps} steps need {shards} shards of {track.shards}") from None
        fetch = [track.fetch] + (["--shards", str(shards)] if track.shards > 1 else [])
    print(torch.cuda.device_count(), *fetch)


def choose_recipe(args: argparse.Namespace, checkpoint: dict) -> Recipe:
    """The recipe of the command line; where that names none, the checkpoint's, if there is one."""
    changes = args.set + ([f"train_steps={args.steps}"] if args.steps is not None else [])
    track = Track(**checkpoint["track"]) if checkpoint else None
    if args.track or not track:
        track = read_track(args.track or ("fineweb" if has_gpu() else "nano"))
    if checkpoint and not (args.recipe or changes):
        recipe = parse_recipe(checkpoint["recipe"], "checkpoint", {track.name: track}, STEPS)
    else:
        recipe = load_recipe(args.recipe or track.recipe, changes, track)
    if args.track and recipe.track != track:
        told = f"is of track {recipe.track.name}; leave out --track {args.track}"
        raise RunError(f"recipe {recipe.name} {told}.")
    return recipe


def script_of(recipe: Recipe, args: argparse.Namespace) -> str:
    """The script that repeats the run: what it uses of this project, its recipe and track as values."""
    asked = [] if args.micro_batch is None else ["--micro-batch", str(args.micro_batch)]
    asked += [] if args.compile is None else ["--compile" if args.compile else "--no-compile"]
    rows = [named_step(name).row for name in recipe.step_names()]
    methods = {row.name.partition("(")[0] for row in rows}
    stages = {stage.function.__name__ for row in rows for stage in row.stages}
    arguments = ["--seeds", args.seeds or "0", *asked]
    return flatten(ROOT, sorted(methods | stages), {"RECIPE": literal(recipe)}, arguments)


def run(recipe: Recipe, args: argparse.Namespace, script: str, checkpoint: dict, world: World) -> None:
    """Train every seed of the command line, all in one log that begins with `script`; or go on with that."""
    args.seeds = args.seeds or checkpoint.get("seeds", "0")
    now = {"recipe": recipe.toml(), "seeds": args.seeds, "track": asdict(recipe.track)}
    if other := [key for key in now if checkpoint and now[key] != checkpoint[key]]:
        differs = "; ".join(f"- {key} {checkpoint[key]}; + {now[key]}" for key in other if key != "recipe")
        differs = recipe.differences(checkpoint["recipe"]) or differs
        raise RunError(f"--resume: the checkpoint is of another run (- checkpoint, + now): {differs}")
    seeds, track = parse_seeds(args.seeds), recipe.track
    world.agreed(lambda: open_data(args.data, recipe))  # before anything is written
    args.compile = world.agreed(lambda: compiles(args, track))
    args.micro_batch = world.agreed(lambda: choose_micro_batch(track, world, args.micro_batch, args.compile))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: STOP.append(signum))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}-{os.urandom(2).hex()}.txt"
    log = RunLog(args.out / checkpoint.get("log", name), resume=args.resume, writes=world.rank == 0)
    compile_seconds = warm_up(recipe, world, args) if args.compile else 0.0
    if not args.resume:
        versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, Python {python_version()}"
        facts = {"id": log.path.stem, "device": world.name, "world_size": world.size,
                 "track": track.name, "recipe": recipe.name, "target": track.target, "seeds": args.seeds,
                 "train_steps": recipe.train_steps, "micro_batch": args.micro_batch,
                 "compiled": args.compile, "threads": torch.get_num_threads(),
                 "compile_seconds": round(compile_seconds, 1)}  # fmt: skip
        log.head(script, versions, facts, recipe.toml())
    if world.rank == 0:
        print("" if world.device.type == "cuda" else f"no GPU found: {track.name} on the CPU\n", end="")
        print(f"{recipe.toml()}\n\nworld size {world.size}, log {log.path}", flush=True)
    for index, seed in list(enumerate(seeds))[checkpoint.get("run", 0) :]:
        train(recipe, index, seed, world, log, args, checkpoint if index == checkpoint.get("run") else {})
    if world.size > 1:
        dist.destroy_process_group()


@contextmanager
def errors_in_one_line(args: argparse.Namespace) -> Iterator[None]:
    """What a user can mend is told by rank 0, without a traceback, and ends the process."""
    try:
        yield
    except (RunError, RecipeError, TrackError, ShardError, LogError) as error:
        where = getattr(error, "where", "")
        sys.exit(f"error{where}: {error}" if os.environ.get("RANK", "0") == "0" else 1)
    except torch.OutOfMemoryError:
        sys.exit(f"error: out of GPU memory: try --micro-batch {args.micro_batch // 2 or 1}.")


def replay(recipe: Recipe, argv: list[str]) -> None:
    """What the script at the head of a log does: the run again, with the same recipe."""
    parser = argparse.ArgumentParser(description=f"Train with the recipe {recipe.name} of this script.")
    add_run_options(parser)
    args = parser.parse_args(argv)
    with errors_in_one_line(args):
        world = join_world()
        checkpoint = read_checkpoint(args, world)
        run(recipe, args, Path(__file__).read_text(), checkpoint, world)


def main(argv: list[str]) -> None:
    """Do what the command line says."""
    args = parse_arguments(argv)
    with errors_in_one_line(args):
        if args.recipes:
            return print("\n".join(list_recipes(shipped_tracks(), STEPS)))
        world = World(0, 1, torch.device("cpu")) if args.plan else join_world()
        checkpoint = read_checkpoint(args, world)
        recipe = world.agreed(lambda: choose_recipe(args, checkpoint))
        if args.plan:
            return print_plan(recipe, args)
        return run(recipe, args, "" if checkpoint else script_of(recipe, args), checkpoint, world)


if __name__ == "__main__":
    main(sys.argv[1:])
