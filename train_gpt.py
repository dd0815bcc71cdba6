"""Train a GPT until a validation loss is reached, in as few steps as possible.

Read top to bottom: tracks, recipes, data, architecture, optimizers and schedule, log, checkpoints, the loop, the
command line. Fixed by the benchmark's rules: the track, the data order, the architecture, the validation. Free: the
recipe, that is the optimizer, its hyperparameters and schedules, and the initialisation.

`./run.sh` starts this file, one process per GPU. Importing it defines things and runs nothing.
"""

import argparse
import difflib
import fnmatch
import json
import math
import os
import platform
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.shards import ShardError, list_shards, read_shard
from optimizers import STEPS
from optimizers.matrix_optimizer import MatrixOptimizer
from records.recipe import Recipe, RecipeError, list_recipes, parse_recipe, read_recipe

ROOT = Path(__file__).resolve().parent


class RunError(ValueError):
    """The run cannot start or go on. The message is for the user: expected, found, what to do."""


# ---------------------------------------------------------------------------------------------------------------
# Tracks: what is the same for every entry


@dataclass(frozen=True)
class Track:
    """A benchmark: data, model, batch and target. Sizes are in tokens, losses in nats per token."""

    name: str
    dataset: str  # folder below data/
    fetch: str  # module that makes or downloads the dataset
    shard_tokens: int  # tokens of one ready-made training shard
    token_limit: int  # every token is below this
    vocab_size: int  # of the model: padded
    num_layers: int
    model_dim: int
    head_dim: int
    context: int
    batch_tokens: int
    val_tokens: int
    val_every: int  # steps between validations
    late_val_every: int  # the same in the last tenth of the run
    gpu_dtype: str  # activations and embedding on a GPU; on a CPU everything is float32
    target: float  # validation loss to reach
    sigma: float  # standard deviation of the final validation loss over seeds
    recipe: str  # the default
    aux: dict  # AdamW of embedding, head and 1-D parameters, where the recipe says nothing


TRACKS = {
    "fineweb": Track(
        name="fineweb", dataset="fineweb10B", fetch="data.fineweb", shard_tokens=100000000, token_limit=50257,
        vocab_size=50304, num_layers=12, model_dim=768, head_dim=128, context=1024,
        batch_tokens=524288, val_tokens=10485760, val_every=125, late_val_every=25,
        gpu_dtype="bfloat16", target=3.28, sigma=0.0013, recipe="17_aurora_contra_floor",
        aux={"embed_lr": 0.3, "head_lr": 0.003125, "scalar_lr": 0.01,
             "betas": [0.8, 0.95], "eps": 1e-10, "weight_decay": 0.0},
    ),
    "nano": Track(
        name="nano", dataset="nano", fetch="data.nano", shard_tokens=15000000, token_limit=256,
        vocab_size=256, num_layers=4, model_dim=64, head_dim=32, context=128,
        batch_tokens=2048, val_tokens=65536, val_every=25, late_val_every=5,
        gpu_dtype="float32", target=1.41, sigma=0.008, recipe="aurora_contra_floor",
        aux={"embed_lr": 0.3, "head_lr": 0.01, "scalar_lr": 0.015,
             "betas": [0.8, 0.95], "eps": 1e-10, "weight_decay": 0.0},
    ),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Data: shards in name order, read in blocks; the order never depends on the seed


def plan_blocks(lengths: list[int], batch_tokens: int, steps: int) -> list[tuple[int, int]]:
    """(shard, first token) of each step's block. A block needs one token more: the last target.

    Raises RunError where the shards hold too few tokens for the steps.
    """
    blocks = []
    for shard, length in enumerate(lengths):
        blocks += [(shard, start) for start in range(0, length - batch_tokens - 1, batch_tokens)]
    if len(blocks) < steps:
        raise RunError(
            f"{steps} steps need as many blocks of {batch_tokens:,} tokens; the {len(lengths)} training shards hold "
            f"{len(blocks)}. Fetch more data or run fewer steps (--steps {len(blocks)})."
        )
    return blocks[:steps]


def read_block(shard: np.ndarray, start: int, track: Track, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """This rank's inputs and targets [rows, context] (int64) of the block that begins at `start`."""
    share = track.batch_tokens // world_size
    tokens = shard[start + rank * share : start + (rank + 1) * share + 1].astype(np.int64)
    if tokens.max() >= track.token_limit:
        where = start + rank * share + int(tokens.argmax())
        raise ShardError(
            f"{getattr(shard, 'filename', 'shard')}: token {tokens.max()} at position {where:,}; expected tokens below "
            f"{track.token_limit}. The file is of another vocabulary or damaged: fetch it again."
        )
    rows = torch.from_numpy(tokens)
    return rows[:-1].view(-1, track.context), rows[1:].view(-1, track.context)


def training_batches(
    shards: list[np.ndarray], blocks: list[tuple[int, int]], track: Track, rank: int, world_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of each block, on the device. A thread reads two blocks ahead, over shard borders too."""

    def fetch(shard: int, start: int) -> tuple[Tensor, Tensor]:
        pair = read_block(shards[shard], start, track, rank, world_size)
        if device.type == "cpu":
            return pair
        return tuple(part.pin_memory().to(device, non_blocking=True) for part in pair)

    with ThreadPoolExecutor(1, thread_name_prefix="data") as reader:
        ahead = deque(reader.submit(fetch, *block) for block in blocks[:2])
        for block in [*blocks[2:], None, None][: len(blocks)]:
            pair = ahead.popleft().result()
            if block:
                ahead.append(reader.submit(fetch, *block))
            yield pair


def open_shards(folder: Path, split: str, track: Track) -> list[np.ndarray]:
    """The split's shards in name order, memory-mapped and checked. Raises RunError where there are none."""
    files = list_shards(folder, split)
    if not files:
        raise RunError(f"no {split} shards (*_{split}_*.bin) in {folder}. `python -m {track.fetch}` fetches them.")
    return [read_shard(file) for file in files]


# ---------------------------------------------------------------------------------------------------------------
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
    """Angles [context, head_dim / 2] in float64, half truncated: the second half of the frequencies is zero."""
    frequencies = (1 / context) ** torch.linspace(0, 1, head_dim // 4, dtype=torch.float64)
    frequencies = torch.cat([frequencies, torch.zeros(head_dim // 4, dtype=torch.float64)])
    return torch.outer(torch.arange(context, dtype=torch.float64), frequencies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs made of a head's first and second half. x: [batch, time, heads, head_dim]."""
    x1, x2 = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q, self.k, self.v, self.proj = (Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)) for layer in (self.q, self.k, self.v))
        q, k = (rotate(F.rms_norm(part, (self.head_dim,)), cos, sin) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=15.36 / self.head_dim)
        return self.proj(y.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc, self.proj = Linear(dim, 4 * dim), Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.attn = RMSNorm(dim), Attention(dim, head_dim)
        self.norm2, self.mlp = RMSNorm(dim), MLP(dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


def summed_loss(head: Linear, x: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy summed over tokens, of logits softcapped at 15, in float32 at least."""
    logits = head(x).to(torch.promote_types(x.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(15 * logits * torch.rsqrt(logits.square() + 15**2), targets.flatten(), reduction="sum")


class GPT(nn.Module):
    """Decoder of the benchmark: pre-norm blocks, half-truncated rotary, relu^2, untied head."""

    def __init__(self, vocab_size: int, num_layers: int, model_dim: int, head_dim: int = 128, context: int = 1024) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, model_dim)
        self.norm1 = RMSNorm(model_dim)
        self.blocks = nn.ModuleList(Block(model_dim, head_dim) for _ in range(num_layers))
        self.norm2 = RMSNorm(model_dim)
        self.proj = Linear(model_dim, vocab_size)
        self.register_buffer("angles", rotary_angles(context, head_dim), persistent=False)
        self.loss = summed_loss
        initialise(self, {}, seed=0)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """inputs, targets: [rows, time] of int64 -> the loss summed over all targets, in nats."""
        x = self.norm1(self.embed(inputs))
        precision = torch.promote_types(x.dtype, torch.float32)
        angles = self.angles[: inputs.size(1), None]
        cos, sin = angles.cos().to(precision), angles.sin().to(precision)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.loss(self.proj, self.norm2(x), targets)


@torch.no_grad()
def initialise(model: GPT, stds: dict[str, float], seed: int) -> None:
    """Set every parameter: gains 1, biases 0, embedding N(0, 1), projections 0, other weights N(0, 0.33 / inputs).

    stds: pattern -> standard deviation of the weights whose module it matches ("mlp.fc" or "blocks.0.mlp.fc").
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
        std = 1.0 if module == "embed" else 0.0 if module.endswith("proj") else (0.33 / parameter.size(1)) ** 0.5
        std = stds[matching[0]] if matching else std
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std if std else torch.zeros(()))
    if unused:
        raise RunError(f"[init] {sorted(unused)[0]!r} matches no module; expected one such as 'mlp.fc' or 'blocks.0.attn.q'.")


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern names a module, in full or from its block on ("mlp.*", "blocks.0.mlp.fc")."""
    return fnmatch.fnmatchcase(re.sub(r"^blocks\.\d+\.", "", module), pattern) or fnmatch.fnmatchcase(module, pattern)


@torch.no_grad()
def validate(model: GPT, shard: np.ndarray, track: Track, micro_batch: int, rank: int, world_size: int) -> float:
    """Mean loss over the first `val_tokens` tokens of the validation shard, each rank its part of every block."""
    device, total = model.proj.weight.device, torch.zeros((), dtype=torch.float64)
    total = total.to(device)
    for start in range(0, track.val_tokens, track.batch_tokens):
        inputs, targets = (part.to(device) for part in read_block(shard, start, track, rank, world_size))
        for x, y in zip(inputs.split(micro_batch), targets.split(micro_batch), strict=True):
            total += model(x, y)
    if world_size > 1:
        dist.all_reduce(total)
    return total.item() / track.val_tokens


# ---------------------------------------------------------------------------------------------------------------
# Recipe, optimizers and schedule: what an entry chooses


def load_recipe(source: str | Path, changes: Iterable[str] = (), track: str | None = None) -> Recipe:
    """The recipe of a TOML file or of a shipped name, see records.recipe.read_recipe (RecipeError)."""
    return read_recipe(source, TRACKS, STEPS, changes, track)


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for the embedding, the head and the 1-D parameters, then the recipe's step for the hidden matrices.

    Every group remembers `initial_lr` and its `schedule` ("aux" or "matrix") for set_learning_rates.
    """
    aux, scalars = recipe.aux, [p for p in model.parameters() if p.ndim < 2]
    params = {"embed": [model.embed.weight], "head": [model.proj.weight], "scalar": scalars}
    groups = [{"params": params[name], "lr": aux[f"{name}_lr"]} for name in params]
    adamw = torch.optim.AdamW(
        groups, betas=tuple(aux["betas"]), eps=aux["eps"], weight_decay=aux["weight_decay"], fused=True
    )
    matrix = MatrixOptimizer(matrix_groups(model, recipe), step=recipe.matrix["step"], reduce_gradients=False)
    covered = [p for group in adamw.param_groups + matrix.param_groups for p in group["params"]]
    assert sorted(map(id, covered)) == sorted(map(id, model.parameters())), "a parameter without its optimizer"
    for kind, optimizer in (("aux", adamw), ("matrix", matrix)):
        for group in optimizer.param_groups:
            group |= {"initial_lr": group["lr"], "schedule": kind}
    return [adamw, matrix]


def matrix_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """A parameter group for each pattern of [matrix] and one for the rest; the first pattern that matches counts.

    What [schedule.matrix] changes is a 0-d tensor, so that a compiled step sees new values without recompiling.
    """
    patterns = recipe.patterns()
    plain = {key: value for key, value in recipe.matrix.items() if key not in patterns}
    groups = {pattern: {"params": [], **values} for pattern, values in (patterns | {"*": plain}).items()}
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim >= 2:
            module = name.removesuffix(".weight")
            groups[next(pattern for pattern in groups if matches(pattern, module))]["params"].append(parameter)
    for pattern, group in groups.items():
        if pattern in patterns and not group["params"]:
            raise RunError(f'[matrix."{pattern}"] matches no hidden matrix; expected a pattern such as "mlp.*".')
        scheduled = recipe.schedule["matrix"].items()
        group |= {key: torch.tensor(float(points[0][1])) for key, points in scheduled if key in group}
    return [group for group in groups.values() if group["params"]]


def learning_rate_factor(step: int, train_steps: int, cooldown_frac: float, power: float, warmup_steps: int) -> float:
    """1, after a linear warm-up, then down to 0 at `train_steps`: linear to the power over the last `cooldown_frac`."""
    done = step / train_steps
    cooldown = 1.0 if done < 1 - cooldown_frac else ((1 - done) / cooldown_frac) ** power
    return cooldown * min(1.0, step / warmup_steps) if warmup_steps else cooldown


def set_learning_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """Set what changes over the run for update `step` (from 0), before the update."""
    s = recipe.schedule
    factor = {
        kind: learning_rate_factor(step, recipe.train_steps, s[frac], s["cooldown_power"], s["warmup_steps"])
        for kind, frac in (("matrix", "cooldown_frac"), ("aux", "aux_cooldown_frac"))
    }
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor[group["schedule"]]
            for key, points in s["matrix"].items():
                if group["schedule"] == "matrix" and key in group:
                    group[key].fill_(float(np.interp(step, *zip(*points, strict=True))))


# ---------------------------------------------------------------------------------------------------------------
# Log: the run as one script, its facts, its validations; beside it every step as JSON


def run_script(recipe: Recipe, arguments: list[str], embedded: bool) -> str:
    """The run as one script that needs nothing of this project; a script that is one already is its own."""
    if embedded:
        return Path(__file__).read_text()
    from records.flatten import flatten

    return flatten(ROOT, recipe.step_names(), recipe.toml(), arguments)


class RunLog:
    """`<id>.txt` (script, facts, validations) and `<id>.jsonl` (every step), appended line by line and flushed.

    Nothing is ever overwritten: a new log takes a new name; a resumed one goes on behind its last whole line and
    leaves out the lines that stand there already. (The .jsonl repeats the steps that were trained twice.)
    Of several processes only the one that `writes` does.
    """

    def __init__(self, path: Path, resume: bool = False, writes: bool = True) -> None:
        self.path, self.last, self.files = path, (-1, -1), []  # last: run and step of the last line
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for file in (path, path.with_suffix(".jsonl")) if writes else ():
                self.files.append(open(file, "r+" if resume else "x+"))
        except OSError as error:
            raise RunError(f"cannot write the log {path}: {error.strerror}. Choose a folder with --out.") from None
        for file in self.files:
            whole = file.read().rpartition("\n")[0]
            file.truncate(len(whole.encode()) + 1 if whole else 0)  # a line cut by kill -9
            file.seek(0, os.SEEK_END)
            for line in whole.splitlines() if file is self.files[0] else ():
                if line.startswith("seed: "):
                    self.last = (self.last[0] + 1, -1)
                elif line.startswith("step:"):
                    self.last = (self.last[0], int(line[5 : line.index("/")]))

    def line(self, text: str, position: tuple[int, int] | None = None) -> None:
        """Append a line, unless the log is past its position (run, step) already."""
        if self.files and (position is None or position > self.last):
            self.last = position or self.last
            print(text, file=self.files[0], flush=True)

    def record(self, **values: object) -> None:
        """Append a line to the .jsonl."""
        if self.files:
            print(json.dumps(values), file=self.files[1], flush=True)


# ---------------------------------------------------------------------------------------------------------------
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
    """The newest checkpoint below `out` that can be read whole; says which cannot. RunError if there is none."""
    for path in sorted(out.glob("*.checkpoints/*.pt"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file raises
            print(f"cannot read {path} ({str(error).splitlines()[0]}): trying the one before", file=sys.stderr)
    raise RunError(f"--resume: no good checkpoint in {out}/*.checkpoints/. Start with --checkpoint-every N to have one.")


# ---------------------------------------------------------------------------------------------------------------
# The loop

PEAK_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # bf16


@dataclass(frozen=True)
class World:
    """This process among all: its rank, their number, its device."""

    rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Wait until every process and its device are done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.size > 1:
            dist.barrier()


def join_world() -> World:
    """The process group torchrun started, or this process alone without one."""
    rank, size, local = (int(os.environ.get(key, default)) for key, default in
                         (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if 8 % size:
        raise RunError(f"{size} processes do not divide 8; use 1, 2, 4 or 8 (--nproc, or CUDA_VISIBLE_DEVICES).")
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:  # measured: more threads collapse when other work runs
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
    return World(rank, size, device)


def make_model(recipe: Recipe, seed: int, device: torch.device) -> GPT:
    """The track's model, initialised; on a GPU with its dtype and compiled block by block.

    On a CPU it stays eager: on the nano track compiling takes longer than it saves (README).
    """
    track = TRACKS[recipe.track]
    model = GPT(track.vocab_size, track.num_layers, track.model_dim, track.head_dim, track.context)
    initialise(model, recipe.init, seed)
    model.to(device)
    if device.type == "cuda":
        model.embed.to(getattr(torch, track.gpu_dtype))
        model.loss = torch.compile(summed_loss, dynamic=False)
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def choose_micro_batch(track: Track, world: World, asked: int | None) -> int:
    """Rows of one forward and backward pass: as asked, else the most that the memory holds."""
    rows = track.batch_tokens // track.context // world.size
    if asked is not None:
        if asked < 1 or rows % asked:
            raise RunError(f"--micro-batch {asked} does not divide the {rows} rows of each process.")
        return asked
    if world.device.type == "cuda":
        free = torch.cuda.mem_get_info(world.device)[1]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // world.size
    row = track.context * (8 * track.vocab_size + 70 * track.num_layers * track.model_dim)  # bytes, from above
    return next((m for m in range(rows, 0, -1) if rows % m == 0 and m * row <= 0.85 * free), 1)


def validates(step: int, recipe: Recipe) -> bool:
    """Whether the track validates before update `step` (or after the last)."""
    track, late = TRACKS[recipe.track], step >= 0.9 * recipe.train_steps
    every = track.late_val_every if late else track.val_every
    return step % every == 0 or step % track.val_every == 0 or step == recipe.train_steps


def verdict(curve: list[tuple[int, float]], target: float) -> str:
    """When the validation losses (step, loss) reached the target, in one sentence."""
    best = min(curve, key=lambda point: point[1])
    told = f"best {best[1]:.5f} at step {best[0]}"
    for (step0, loss0), (step, loss) in zip(curve[:1] + curve, curve, strict=False):
        if loss <= target:
            crossing = step - (step - step0) * (target - loss) / (loss0 - loss) if loss0 > loss else step
            return f"target {target} reached at step {step} (val_loss {loss:.5f}, interpolated {crossing:.1f}); {told}"
    return f"target {target} not reached; {told}"


def forward_backward(net: nn.Module, inputs: Tensor, targets: Tensor, micro_batch: int, world: World) -> Tensor:
    """Gradients of the loss summed over the global batch; returns this rank's part of that loss (float64).

    DistributedDataParallel averages over ranks while the last micro-batch runs backward: times their number.
    """
    total = torch.zeros((), dtype=torch.float64, device=inputs.device)
    pairs = list(zip(inputs.split(micro_batch), targets.split(micro_batch), strict=True))
    for number, (x, y) in enumerate(pairs, 1):
        with net.no_sync() if world.size > 1 and number < len(pairs) else nullcontext():
            loss = net(x, y)
            (loss * world.size).backward()
        total += loss.detach()
    return total


class Progress:
    """What is seen while it trains: one live line on a terminal, the validation lines elsewhere; tensorboard."""

    def __init__(self, recipe: Recipe, model: GPT, world: World, tensorboard: Path | None) -> None:
        self.recipe, self.track, self.shown, self.writer = recipe, TRACKS[recipe.track], world.rank == 0, None
        self.live, self.val, self.times = sys.stdout.isatty(), "-", deque(maxlen=20)
        t = self.track  # a token's forward and backward pass: 6 per weight, and causal attention
        weights = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
        self.flops = 6 * (weights + t.num_layers * t.context * t.model_dim)
        name = torch.cuda.get_device_name() if world.device.type == "cuda" else ""
        self.peak = world.size * next((peak for chip, peak in PEAK_FLOPS.items() if chip in name), math.nan)
        if tensorboard and self.shown:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise RunError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
            self.writer = SummaryWriter(tensorboard)

    def say(self, text: str) -> None:
        """Print a line of its own, above the live one."""
        if self.shown:
            print(f"\r\x1b[K{text}" if self.live else text, flush=True)

    def validated(self, step: int, val_loss: float, line: str) -> None:
        self.val = f"{val_loss:.4f} at {step}"
        self.times.clear()  # the clock stood still
        self.say(line)
        if self.writer:
            self.writer.add_scalar("val_loss", val_loss, step)

    def stepped(self, step: int, loss: float, rates: dict[str, float]) -> float:
        """Show the step; returns tokens per second over the last steps."""
        self.times.append(time.perf_counter())
        speed = (len(self.times) - 1) * self.track.batch_tokens / max(self.times[-1] - self.times[0], 1e-9)
        if self.writer:
            for name, value in {"loss": loss, "tokens_per_s": speed, **rates}.items():
                self.writer.add_scalar(name, value, step)
        if self.live and self.shown and speed:
            left = (self.recipe.train_steps - step) * self.track.batch_tokens / speed
            mfu = f" mfu {self.flops * speed / self.peak:.1%}" if self.peak > 0 else ""
            print(f"\r\x1b[K{step}/{self.recipe.train_steps} loss {loss:.4f} val {self.val} {speed:,.0f} tokens/s{mfu} "
                  f"{left // 60:.0f}:{left % 60:02.0f} left", end="", flush=True)
        return speed


def train(
    recipe: Recipe, run: int, seed: int, world: World, log: RunLog, args: argparse.Namespace, state: dict, stop: list[int]
) -> None:
    """One training, from `state` (a checkpoint; empty for a new one) to the recipe's last step.

    A signal in `stop` ends it (SystemExit), a loss or gradient that is not finite too (RunError), both with a
    checkpoint behind them.
    """
    track, folder = TRACKS[recipe.track], args.data / TRACKS[recipe.track].dataset
    shards, val_shard = open_shards(folder, "train", track), open_shards(folder, "val", track)[0]
    blocks = plan_blocks([len(shard) for shard in shards], track.batch_tokens, recipe.train_steps)
    model = make_model(recipe, seed, world.device)
    net = DistributedDataParallel(model) if world.size > 1 else model
    optimizers = build_optimizers(model, recipe)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    names = ["embed", "head", "scalar", *recipe.patterns(), "matrix"]
    start, seconds, curve = state.get("step", 0), state.get("seconds", 0.0), state.get("curve", [])
    if state:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def checkpoint(step: int) -> Path | None:
        saved = {"run": run, "step": step, "seconds": seconds, "curve": curve, "recipe": recipe.toml(), "seeds": args.seeds,
                 "log": log.path.name, "model": model.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in optimizers]}  # every rank: they gather
        return save_checkpoint(log.path.with_suffix(".checkpoints"), saved) if world.rank == 0 else None

    log.line(f"seed: {seed}", (run, -1))
    board = args.tensorboard and args.tensorboard / f"{log.path.stem}-seed{seed}"
    progress = Progress(recipe, model, world, board)
    batches = training_batches(shards, blocks[start:], track, world.rank, world.size, world.device)
    world.barrier()
    last, last_seconds, began = start, seconds, time.perf_counter()
    for step in range(start, recipe.train_steps + 1):
        if validates(step, recipe):
            world.barrier()
            seconds += time.perf_counter() - began
            with torch.no_grad():
                val_loss = validate(model, val_shard, track, args.micro_batch, world.rank, world.size)
            average = 1000 * (seconds - last_seconds) / (step - last) if step > last else math.nan
            line = f"step:{step}/{recipe.train_steps} val_loss:{val_loss:.5f}"
            line = f"{line} train_time:{seconds:.3f}s step_avg:{average:.2f}ms"
            log.line(line, (run, step))
            log.record(seed=seed, step=step, val_loss=val_loss, train_time=seconds)
            progress.validated(step, val_loss, line)
            curve, last, last_seconds = [*curve, (step, val_loss)], step, seconds
            world.barrier()
            began = time.perf_counter()
        if step == recipe.train_steps:
            break
        loss = forward_backward(net, *next(batches), args.micro_batch, world)
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        told = torch.stack([loss, torch.full_like(loss, len(stop))])
        if world.size > 1:
            dist.all_reduce(told)
        loss, stopping = told[0].item() / track.batch_tokens, told[1].item() > 0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            names = [name for name, p in model.named_parameters() if not p.grad.isfinite().all()]
            where = f"gradient of {names[0]} not finite" if names else "gradients finite"
            good = "last validation {1:.5f} at step {0}".format(*curve[-1]) if curve else "no validation yet"
            log.line(f"not finite at step {step}: loss {loss}, {where}; {good}")
            raise RunError(f"step {step}: loss {loss}, {where}; {good}. The weights before this step: "
                           f"{checkpoint(step)}. Try a lower learning rate.")
        set_learning_rates(optimizers, recipe, step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rates = {f"lr.{name}": group["lr"] for name, group in zip(names, groups, strict=True)}
        log.record(seed=seed, step=step, loss=loss, grad_norm=norm, tokens_per_s=progress.stepped(step, loss, rates), **rates)
        if stopping or (args.checkpoint_every and (step + 1) % args.checkpoint_every == 0):
            world.barrier()
            seconds += time.perf_counter() - began
            path = checkpoint(step + 1)
            if stopping:
                progress.say(f"stopped by a signal after {step + 1} steps; checkpoint {path}. Go on with --resume.")
                raise SystemExit(128 + max(stop, default=signal.SIGTERM))
            world.barrier()
            began = time.perf_counter()
    told = verdict(curve, track.target)
    log.line(f"seed {seed}: {told}", (run, recipe.train_steps + 1))
    progress.say(f"seed {seed}: {told}")


# ---------------------------------------------------------------------------------------------------------------
# Command line


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The options of ./run.sh that reach the trainer."""
    parser = argparse.ArgumentParser(prog="./run.sh", description="Train to the target and leave a record log.")
    add = parser.add_argument
    add("--track", choices=TRACKS, help="fineweb with a GPU, nano without one, where nothing is said")
    add("--recipe", metavar="NAME|FILE", help="a shipped recipe, an entry or a TOML file (the track's default)")
    add("--recipes", action="store_true", help="list the recipes and leave")
    add("--steps", type=int, metavar="N", help="train N steps; the schedule follows")
    add("--seeds", metavar="0-4|0,3", help="one run for each seed, all in one log (0)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe: --set matrix.lr=0.03")
    add("--micro-batch", type=int, metavar="ROWS", help="rows of one forward pass (what the memory holds)")
    add("--checkpoint-every", type=int, metavar="N", help="a checkpoint every N steps; the last two are kept")
    add("--resume", action="store_true", help="go on from the newest good checkpoint in the log folder")
    add("--data", type=Path, default=ROOT / "data", metavar="DIR", help="the folder with fineweb10B/ or nano/ (data)")
    add("--out", type=Path, default=ROOT / "logs", metavar="DIR", help="the folder for logs and checkpoints (logs)")
    add("--tensorboard", type=Path, metavar="DIR", help="write scalars there too")
    add("--plan", action="store_true", help=argparse.SUPPRESS)  # for run.sh: processes, shards to fetch, module
    return parser.parse_args(argv)


def parse_seeds(text: str) -> list[int]:
    """ "0-4" or "0,3" as a list. Raises RunError for anything else and for a seed named twice."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise RunError(f"--seeds {text}: expected seeds such as 0-4 or 0,3.")
    seeds = [s for part in text.split(",") for s in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)]
    if not seeds or len(seeds) != len(set(seeds)):
        raise RunError(f"--seeds {text}: {'a seed stands twice' if seeds else 'the range is empty'}.")
    return seeds


def print_plan(recipe: Recipe, data: Path) -> None:
    """For run.sh: number of GPUs, and training shards to fetch with which module ("0" where none is missing)."""
    track = TRACKS[recipe.track]
    folder, needed = data / track.dataset, recipe.train_steps
    shards = math.ceil(needed / ((track.shard_tokens - 2) // track.batch_tokens))
    try:
        lengths = [len(shard) for shard in open_shards(folder, "train", track) if open_shards(folder, "val", track)]
        shards = 0 if plan_blocks(lengths, track.batch_tokens, needed) else shards
    except (RunError, ShardError):
        pass
    print(torch.cuda.device_count(), shards, track.fetch)


def run(args: argparse.Namespace, embedded: str | None) -> None:
    """Train every seed of the command line, all in one log."""
    if args.recipes:
        print("\n".join(list_recipes(TRACKS, STEPS)))
        return
    device_track = args.track or ("fineweb" if torch.cuda.is_available() else "nano")
    changes = args.set + ([f"train_steps={args.steps}"] if args.steps is not None else [])
    checkpoint = newest_checkpoint(args.out) if args.resume else {}
    if embedded or (checkpoint and not args.recipe and not changes):
        recipe = parse_recipe(embedded or checkpoint["recipe"], "embedded", TRACKS, STEPS, changes)
    else:
        recipe = load_recipe(args.recipe or TRACKS[device_track].recipe, changes, device_track)
    if args.track not in (None, recipe.track):
        raise RunError(f"recipe {recipe.name} is of track {recipe.track}, not {args.track}; leave --track out.")
    if checkpoint and checkpoint["recipe"] != recipe.toml():
        lines = difflib.ndiff(checkpoint["recipe"].splitlines(), recipe.toml().splitlines())
        differs = "; ".join(line for line in lines if line[0] in "-+")
        raise RunError(f"--resume: the checkpoint is of another recipe (- checkpoint, + now): {differs}")
    args.seeds = args.seeds or checkpoint.get("seeds", "0")
    if checkpoint and checkpoint["seeds"] != args.seeds:
        raise RunError(f"--resume: the checkpoint is of --seeds {checkpoint['seeds']}, not {args.seeds}.")
    if args.plan:
        print_plan(recipe, args.data)
        return
    world, seeds, track = join_world(), parse_seeds(args.seeds), TRACKS[recipe.track]
    asked = [] if args.micro_batch is None else ["--micro-batch", str(args.micro_batch)]
    args.micro_batch = choose_micro_batch(track, world, args.micro_batch)
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.append(signum))
    name = checkpoint.get("log", f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}-{os.urandom(2).hex()}.txt")
    log = RunLog(args.out / name, resume=bool(checkpoint), writes=world.rank == 0)
    if not checkpoint:
        write_head(log, recipe, args, world, run_script(recipe, ["--seeds", args.seeds, *asked], embedded is not None))
    if world.rank == 0:
        print(f"{recipe.name}: {recipe.train_steps} steps on {world.size} x {device_name(world.device)}, log {log.path}")
    for index, seed in enumerate(seeds):
        if index >= checkpoint.get("run", 0):
            state = checkpoint if index == checkpoint.get("run") else {}
            train(recipe, index, seed, world, log, args, state, stop)
    if world.size > 1:
        dist.destroy_process_group()


def write_head(log: RunLog, recipe: Recipe, args: argparse.Namespace, world: World, script: str) -> None:
    """The script and the facts of the run, each closed by a line of 100 "="."""
    facts = {
        "id": log.path.stem, "device": device_name(world.device), "world_size": world.size, "track": recipe.track,
        "recipe": recipe.name, "target": TRACKS[recipe.track].target, "train_steps": recipe.train_steps,
        "micro_batch": args.micro_batch, "seeds": args.seeds,
    }  # fmt: skip
    versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"
    lines = [versions, *(f"{key}: {value}" for key, value in facts.items()), "effective recipe:", recipe.toml()]
    log.line("\n".join([script.rstrip("\n"), "=" * 100, *lines, "=" * 100]))


def device_name(device: torch.device) -> str:
    """The name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def main(argv: list[str], embedded: str | None = None) -> None:
    """Run the command line; `embedded` is the recipe of a flattened script. Errors of the user's are one line."""
    args, rank = parse_arguments(argv), os.environ.get("RANK", "0")
    try:
        run(args, embedded)
    except (RunError, RecipeError, ShardError) as error:
        sys.exit(f"error: {error}" if rank == "0" else 1)
    except torch.OutOfMemoryError:
        sys.exit(f"error: out of GPU memory with --micro-batch {args.micro_batch}: try {args.micro_batch // 2 or 1}.")


if __name__ == "__main__":
    main(sys.argv[1:])
