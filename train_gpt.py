"""Train a GPT until a validation loss is reached, in as few steps as possible.

Read top to bottom: data, architecture, recipe and schedule, checkpoints, the loop, the command line.
Fixed by the benchmark's rules: the track (`records/<track>/track.toml`), the data order, the architecture,
the validation. Free: the recipe, that is the optimizer, its hyperparameters, schedules and initialisation.

`./run.sh` starts this file, one process per GPU. Importing it defines things and runs nothing.
"""

import argparse
import math
import os
import re
import signal
import sys
import time
from argparse import BooleanOptionalAction
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from platform import python_version
from socket import gethostname
from typing import TypeVar

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the run catches signals: no traceback of an import

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from data.shards import ShardError, fact_differences, foreign_shard, open_shards, shard_facts
from optimizers import AROUND, STEPS, MatrixOptimizer
from optimizers.around.around import Around, arounds_in, read_losses
from optimizers.aux_adamw import AuxAdamW
from optimizers.ema_nesterov import EMANesterov
from optimizers.explain import explained
from optimizers.stage import named_step
from optimizers.starting_point import start_parameters
from records.run.flatten import flatten, literal
from records.run.machine import PEAK_FLOPS, find_compiler, nvidia_driver
from records.run.recipe import (
    AUX_OPTIONS,
    COOLDOWN,
    Recipe,
    RecipeError,
    is_knots,
    list_recipes,
    matches,
    parse_recipe,
    parse_seeds,
    plain_in,
    read_recipe,
    step_name,
    tables_in,
)
from records.run.run_log import Clock, LogError, Progress, RunLog, processor_name, verdict
from records.run.signals import catch_signals, last_words, say
from records.run.step_profile import PROFILED, SKIPPED, TRACED, WARMED, StepProfile, unmarked
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
                       f"{len(blocks)} ({sum(lengths):,} tokens of {steps * batch_tokens + 1:,}). "
                       f"Fetch more data, or train with --steps {len(blocks)}.")
    return blocks[:steps]


def read_block(shard: np.ndarray, start: int, track: Track, world: "World") -> tuple[Tensor, Tensor]:
    """This rank's inputs and targets [rows, context] (int64) of the block that begins at `start`."""
    share = track.batch_tokens // world.size
    block = shard[start : start + track.batch_tokens + 1]
    if block.max() >= track.token_limit:  # the whole block: all ranks stop at the same step
        raise ShardError(f"{shard.filename}: token {block.max()} at {start + block.argmax():,}, expected "
                         f"below {track.token_limit}. Remove the file and fetch it again.")
    rows = torch.from_numpy(block[world.rank * share : (world.rank + 1) * share + 1].astype(np.int64))
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
        if not (found := open_shards(folder, split)):
            told = f"run `python -m {track.fetch}`" if track.fetch else "put them there, or name --data DIR"
            raise RunError(f"no {split} shards (*_{split}_*.bin) in {folder}: {told}.")
        shards[split] = found
    val = shards["val"][0]
    if len(val) <= track.val_tokens:
        raise RunError(f"{val.filename} holds {len(val):,} of the {track.val_tokens + 1:,} tokens needed.")
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


def initialise(model: GPT, init: dict, seed: int) -> None:
    """Start the parameters as [init] says, see start_parameters. RunError for a pattern of no module."""
    head_dim = model.blocks[0].attn.head_dim
    for pattern in start_parameters(dict(model.named_parameters()), init, seed, head_dim, matches):
        raise RunError(f"[init] {pattern!r} matches no module; expected one such as 'mlp.fc'.")


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
    return read_recipe(source, tracks, STEPS, changes, track and track.name, AROUND)


def build_optimizers(
    model: nn.Module, recipe: Recipe, compiled: bool | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW for the embedding, the head and the 1-D parameters; the recipe's step for the hidden matrices;
    then what goes around their update: EMA-Nesterov where the recipe looks ahead, [around], [readout].

    Every group remembers what set_learning_rates needs: `initial_lr` and its `schedule` ("aux" or "matrix"),
    and the `knots` of whatever else changes over the run.
    """
    usual, own = aux_groups(model, recipe)
    optimizers = {"adamw": torch.optim.AdamW(usual, fused=True)} if usual else {}
    options = {"step": recipe.matrix["step"], "reduce_gradients": False, "compile": compiled}
    optimizers["matrix"] = MatrixOptimizer(matrix_groups(model, recipe), **options)
    optimizers |= {"adam": AuxAdamW(own)} if own else {}
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    covered = [p for group in groups for p in group["params"]]
    assert sorted(map(id, covered)) == sorted(map(id, model.parameters())), "each parameter has one optimizer"
    for kind, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group |= {"initial_lr": group["lr"], "schedule": "matrix" if kind == "matrix" else "aux"}
    for group in optimizers["matrix"].param_groups:
        group["knots"] = {key: knots for key, knots in recipe.schedule["matrix"].items() if key in group}
    if ahead := dict(recipe.lookahead):
        kind, late = ("aux", 1) if ahead.get("scaled_by") == "embed_before" else ("matrix", 0)
        ahead |= {"initial_lr": ahead["strength"], "schedule": kind, "late": late,
                  "window": (ahead["start"], ahead["stop"])}  # fmt: skip
        optimizers["lookahead"] = EMANesterov([{"params": model.parameters()} | ahead])
    optimizers |= {name: build_around(model, name, table) for name, table in recipe.surroundings().items()}
    for optimizer in optimizers.values():
        if isinstance(optimizer, Around):
            optimizer.attach(model, optimizers)
    return list(optimizers.values())


def grouped(where: str, named: dict[str, nn.Parameter], tables: dict[str, dict]) -> list[dict]:
    """A parameter group for each pattern that `tables` has values for; the first that matches a name counts.

    Raises RunError for a pattern that is left without a parameter; "*", the rest, may be.
    """
    groups = {pattern: {"params": [], "name": pattern, **values} for pattern, values in tables.items()}
    for name, parameter in named.items():
        if pattern := next((pattern for pattern in groups if matches(pattern, name)), None):
            groups[pattern]["params"].append(parameter)
    for pattern, group in groups.items():
        if pattern != "*" and not group["params"]:
            raise RunError(f'[{where}."{pattern}"] matches none of them; expected one such as {min(named)}.')
    return [group for group in groups.values() if group["params"]]


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is one of the matrices of the blocks."""
    return name.startswith("blocks.") and parameter.ndim >= 2


def aux_groups(model: nn.Module, recipe: Recipe) -> tuple[list[dict], list[dict]]:
    """AdamW's parameter groups: those for torch's, and those for AuxAdamW, which has more options."""
    rest = {name: p for name, p in model.named_parameters() if not is_hidden(name, p)}
    aux, kinds = recipe.aux, {"embed.weight": "embed", "proj.weight": "head"}
    options = {key: aux[key] for key in ("betas", "eps", "weight_decay")}
    options |= {key: aux.get(key, default) for key, default in AUX_OPTIONS.items()}
    usual, own = [], []
    for kind in ("embed", "head", "scalar"):
        named = {name: p for name, p in rest.items() if kinds.get(name, "scalar") == kind}
        tables = {pattern: table for pattern, table in tables_in(aux).items()
                  if any(matches(pattern, name) for name in named)}  # fmt: skip
        for group in grouped("aux", named, tables | {"*": {}}):
            group = {"lr": aux[f"{kind}_lr"]} | options | group
            group |= {"betas": tuple(group["betas"]), "name": kind if group["name"] == "*" else group["name"]}
            more = {key: group.pop(key) for key in AUX_OPTIONS}
            (usual if more == AUX_OPTIONS else own).append(group if more == AUX_OPTIONS else group | more)
    grouped("aux", rest, tables_in(aux))  # each pattern matches something
    return usual, own


def matrix_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """A parameter group for each pattern of [matrix] and one for the rest.

    What [schedule.matrix] changes is a 0-d tensor: a compiled step sees new values without recompiling.
    """
    hidden = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if is_hidden(name, p)}
    groups = grouped("matrix", hidden, recipe.patterns() | {"*": plain_in(recipe.matrix)})
    names = {p: f"{name}.weight" for name, p in hidden.items()}  # which a matrix's random numbers come from
    for group in groups:
        moved = {key: knots[0][1] for key, knots in recipe.schedule["matrix"].items() if key in group}
        dtype = group["params"][0].dtype
        group |= {key: torch.tensor(float(value), dtype=dtype) for key, value in moved.items()}
        group["params"] = [(names[p], p) for p in group["params"]]
        group |= {"head_dim": model.blocks[0].attn.head_dim} if "couple" in group else {}
    return groups


def build_around(model: nn.Module, name: str, table: dict) -> Around:
    """What a table of [around] or [readout] says, over the parameters that it names."""
    over, but, plain = table["params"], table["but"], plain_in(table)
    chosen = {name: parameter for name, parameter in model.named_parameters()
              if any(matches(pattern, name) for pattern in over)
              and not any(matches(pattern, name) for pattern in but)}  # fmt: skip
    values = {key: value for key, value in plain.items() if key not in ("kind", "params", "but")}
    groups = grouped(name, chosen, tables_in(table) | {"*": {}})
    for group in groups:
        knots = {key: value for key, value in (values | group).items() if is_knots(value)}
        group |= {key: points[0][1] for key, points in knots.items()} | {"name": name, "knots": knots}
    return AROUND[table["kind"]](groups, **values)


def value_at(knots: list[list], step: float) -> float:
    """At a step between knots [step, value, shape], from the knot before on; see Recipe for the shapes."""
    before = knots[0]
    for knot in knots[1:]:
        if step < knot[0]:
            x = max((step - before[0]) / (knot[0] - before[0]), 0.0)
            shape = knot[2] if len(knot) > 2 else 1
            if isinstance(shape, list):
                x = 1 / (1 + math.exp((shape[1] - x) / shape[2]))
            else:
                x = 0.5 - 0.5 * math.cos(math.pi * x) if shape == "cosine" else x**shape
            return before[1] + (knot[1] - before[1]) * x
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
    """Set what changes over the run for update `step` (from 0), before its gradient is taken."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["update"] = step
        if "schedule" in group:
            start, stop = group.get("window", (0, math.inf))
            before = max(step - group.get("late", 0), 0)
            factor = learning_rate_factor(before, recipe, group["schedule"])
            group["lr"] = (start <= step < stop) * group["initial_lr"] * factor
        for key, knots in group.get("knots", {}).items():
            value = value_at(knots, step)
            group[key] = group[key].fill_(value) if isinstance(group[key], Tensor) else value


# ------------------------------------------------------------------------------------------------------------
# Checkpoints: written whole or not at all, the last two kept

# What a checkpoint holds: `model` and `optimizers` are their state_dict()s, `curve` the validations so far.
CHECKPOINT = {"run": int, "step": int, "seconds": float, "curve": list, "track": dict, "recipe": str,
              "seeds": str, "data": dict, "model": dict, "optimizers": list}  # fmt: skip


def save_checkpoint(folder: Path, state: dict) -> Path:
    """Write `state` below `folder`; a reader never sees half a file. Raises OSError or RuntimeError."""
    path = folder / f"run{state['run']:03d}_step{state['step']:06d}.pt"
    temporary = path.with_suffix(".tmp")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        for stray in folder.glob("*.tmp"):  # of a process that was killed too
            stray.unlink()
    for old in sorted(folder.glob("*.pt"))[:-2]:
        old.unlink()
    return path


def newest_checkpoint(out: Path, run: Path) -> dict:
    """The newest good checkpoint of `run`, in `out` unless it says where; "*": of any run. `log`: its log.

    Says which checkpoints cannot be read. Raises RunError if none can.
    """
    out, name = run.parent if run.parent != Path() else out, re.sub(r"\.(txt|checkpoints)$", "", run.name)
    files = sorted(out.glob(f"{name}.checkpoints/*.pt"), key=lambda file: file.stat().st_mtime_ns)
    for path in reversed(files):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if all(isinstance(state[key], kind) for key, kind in CHECKPOINT.items()):
                return state | {"log": str(path.parent.with_suffix(".txt"))}
            found = "not a run's"
        except Exception as error:  # whatever a damaged file raises
            found = type(error).__name__
        print(f"cannot read {path} ({found}); trying the one before", file=sys.stderr)
    raise RunError(f"--resume: no good {out}/{name}.checkpoints/*.pt. --checkpoint-every N makes them.")


def read_checkpoint(args: argparse.Namespace, world: "World") -> dict:
    """The newest checkpoint, if the run is resumed; only the first process needs to have it."""
    reads = args.resume and world.rank == 0
    return world.share(world.agreed(lambda: newest_checkpoint(args.out, args.resume) if reads else {}))


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
        raise RunError(f"{torch_is} cannot use the NVIDIA GPU of this machine, driver {driver}. Update it "
                       "or install a torch made for it (pytorch.org); --track nano trains on the CPU.")
    return torch.cuda.is_available()


def compiles(args: argparse.Namespace, track: Track) -> bool:
    """Whether to compile: as asked, else on a GPU. RunError without a compiler or a usable GPU."""
    on_gpu = torch.cuda.is_available() if track.name == "nano" else has_gpu()
    asked = on_gpu if args.compile is None else args.compile
    if asked and not find_compiler(on_gpu):
        compiler = "C compiler (gcc, clang or $CC)" if on_gpu else "C++ compiler (g++, clang++ or $CXX)"
        raise RunError(f"compiling needs a {compiler}, there is none. Install one, or run with --no-compile.")
    return asked


def join_world() -> World:
    """The processes torchrun started, or this one alone without a process group."""
    keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")  # of torchrun, or alone
    told = dict(zip(keys, ("0", "1", "0", "1"), strict=True)) | os.environ
    values = [told[key].split(",")[0] for key in keys]  # "4,2" are the threads of nested regions
    if not all(value.isdecimal() for value in values) or values[3] == "0":
        raise RunError(f"{', '.join(keys)} are {', '.join(values)}; expected whole numbers, or unset them.")
    rank, size, local, threads = map(int, values)
    if size not in (1, 2, 4, 8):
        raise RunError(f"{size} processes do not divide 8; use 1, 2, 4 or 8 (--nproc, CUDA_VISIBLE_DEVICES).")
    if size > 1 and "MASTER_ADDR" not in os.environ:
        raise RunError(f"WORLD_SIZE is {size}, MASTER_ADDR is not set: unset both, or use --nproc {size}.")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:  # more threads collapse when other work runs
        torch.set_num_threads(threads)
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

    In any case: weights, their gradients, the states, LOSS_ROWS rows of logits. For a token: what backward
    needs of each block (saved tensors in bfloat16: 36 bytes a number compiled, 56 eager), and of one more.
    """
    weights = track.num_layers * (4 + 2 * track.mlp_ratio) * track.model_dim**2
    weights += 2 * track.vocab_size * track.model_dim
    a_logit, a_number = (6, 40) if compiled else (22, 58)
    fixed = 32 * weights + a_logit * LOSS_ROWS * track.vocab_size
    return fixed, a_number * track.model_dim * (track.num_layers + 1)


def distributed(model: GPT, world: World) -> nn.Module:
    """The model, its gradients averaged over the processes in the buffers in which they travel."""
    known = signature(DistributedDataParallel).parameters  # of torch 2.13 on
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options = {"gradient_as_bucket_view": True, sync: False}
    return DistributedDataParallel(model, **options) if world.size > 1 else model


def warm_up(recipe: Recipe, world: World, args: argparse.Namespace) -> float:
    """Seconds of compiling, before any clock runs: three updates of a model that is thrown away, one loss."""
    began, shape = time.perf_counter(), (args.micro_batch, recipe.track.context)
    tokens = torch.zeros(shape, dtype=torch.int64, device=world.device)
    model = make_model(recipe, 0, world.device, args.compile)
    optimizers, alone = build_optimizers(model, recipe), World(0, 1, world.device)
    for _ in range(3):  # the first makes the optimizers' states, the second compiles for them
        compute_gradients(model, optimizers, (tokens, tokens), args.micro_batch, alone)
        apply_update(optimizers)
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


def compute_gradients(
    net: nn.Module, optimizers: list[torch.optim.Optimizer], batch: tuple, micro_batch: int, world: World
) -> Tensor:
    """forward_backward at the point where the optimizers want the gradient."""
    for around in arounds_in(optimizers):
        around.before_gradient()
    return forward_backward(net, batch, micro_batch, world)


def apply_update(optimizers: list[torch.optim.Optimizer]) -> None:
    """One update with the gradients at hand, which are gone afterwards."""
    for around in arounds_in(optimizers):
        around.after_gradient()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


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


def start_profile(net: nn.Module, trace: Path, progress: Progress, steps: int) -> Callable[[str], None]:
    """What marks the phases of a step: a trace goes beside the log, a table to the screen (--profile)."""
    if steps < PROFILED:
        raise RunError(f"--profile needs {PROFILED} steps, {steps} are left. Train more, or leave it out.")
    plan = torch.profiler.schedule(wait=SKIPPED, warmup=WARMED, active=TRACED, repeat=1)
    profiler = torch.profiler.profile(schedule=plan)
    mark = StepProfile(profiler, torch.profiler.record_function, trace, progress.say).mark
    net.register_forward_pre_hook(lambda *_: mark("forward"))
    net.register_forward_hook(lambda *_: mark("backward"))
    return mark


def train(
    recipe: Recipe, seed: int, world: World, log: RunLog, args: argparse.Namespace, data: tuple, state: dict
) -> None:
    """One training, from `state` to the recipe's last step. state: a checkpoint, or of a new run its number,
    recipe, seeds and data.

    What ends it earlier leaves a checkpoint: a signal (SystemExit), a loss or gradient that is not finite, a
    damaged shard, a log that cannot be written (RunError).
    """
    track, (shards, blocks, val_shard), run = recipe.track, data, state["run"]
    model = make_model(recipe, seed, world.device, args.compile)
    net = distributed(model, world)
    optimizers = build_optimizers(model, recipe, None if args.compile else False)
    if "step" in state:
        try:
            for part, saved in zip([model, *optimizers], [state["model"], *state["optimizers"]], strict=True):
                part.load_state_dict(saved)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise RunError(f"--resume: the checkpoint does not fit: {str(error).splitlines()[0]}") from None
        log.line(f"resumed at step {state['step']}, world_size: {world.size}")
    first, curve = state.get("step", 0), state.get("curve", [])
    clock = Clock(world.barrier, state.get("seconds", 0.0))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    names = [f"lr.{name}" for name in ("embed", "head", "scalar", *recipe.patterns(), "matrix")]

    def checkpoint(step: int) -> tuple[bool, str]:
        """Whether it was written, and the checkpoint to go on from. Collective: every rank calls it."""
        saved = state | {"step": step, "seconds": clock.seconds, "curve": curve, "model": model.state_dict(),
                         "optimizers": [optimizer.state_dict() for optimizer in optimizers]}  # fmt: skip
        folder = log.path.with_suffix(".checkpoints")
        try:
            return True, str(save_checkpoint(folder, saved) if world.rank == 0 else "")
        except (OSError, RuntimeError) as error:
            last = max(folder.glob("*.pt"), default="no checkpoint")
            return False, f"{last} (step {step} could not be written: {str(error).splitlines()[0]})"

    log.line(f"seed: {seed}", (run, -1))
    board = args.tensorboard and args.tensorboard / f"{log.path.stem}-seed{seed}"
    progress = start_progress(recipe, model, world, first, board)
    batches = training_batches(shards, blocks[first:], track, world)
    last, last_seconds = first, clock.seconds
    mark, trace = unmarked, log.path.with_suffix(".trace.json.gz")
    if args.profile and run == 0 and world.rank == 0:
        mark = start_profile(net, trace, progress, recipe.train_steps - first)
    clock.start()
    for step in range(first, recipe.train_steps + 1):
        if validates(step, recipe) and (not args.validate_ends or step in (0, recipe.train_steps)):
            clock.stop()
            losses, told = read_losses(
                optimizers, lambda: validate(model, val_shard, track, args.micro_batch, world), args.readouts
            )
            val_loss = losses["val_loss"]
            average = 1000 * (clock.seconds - last_seconds) / (step - last) if step > last else math.nan
            columns = " ".join(f"{name}:{loss:.5f}" for name, loss in losses.items()) + told
            line = f"step:{step}/{recipe.train_steps} {columns} train_time:{clock.seconds:.3f}s"
            log.line(line := f"{line} step_avg:{average:.2f}ms", (run, step))
            log.record(seed=seed, step=step, **losses, train_time=clock.seconds)
            progress.say(line)
            progress.validated(step, val_loss)
            curve, last, last_seconds = [*curve, (step, val_loss)], step, clock.seconds
            clock.start()
        if step == recipe.train_steps:
            break
        mark("data")
        try:
            batch = next(batches)
        except ShardError as error:
            clock.stop()
            raise RunError(f"step {step}: {error} --resume goes on from {checkpoint(step)[1]}") from None
        set_learning_rates(optimizers, recipe, step)
        loss = compute_gradients(net, optimizers, batch, args.micro_batch, world)
        mark("wait")
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        ends = torch.full_like(loss, len(STOP) + bool(log.error))
        told = torch.stack([loss, norm / world.size, ends])
        loss, norm, stopping = world.sum(told).tolist()  # the one wait for the device
        loss = loss / track.batch_tokens
        if not (math.isfinite(loss) and math.isfinite(norm)):
            bad = [name for name, p in model.named_parameters() if not p.grad.isfinite().all()]
            told = f"not finite at step {step}: loss {loss}, gradient of {bad[0] if bad else 'no parameter'}"
            told += "; last validation {1:.5f} at step {0}".format(*curve[-1]) if curve else ""
            log.line(told)
            clock.stop()
            for around in reversed(arounds_in(optimizers)):
                around.abandon()
            raise RunError(f"{told}; checkpoint before it: {checkpoint(step)[1]}. Try a lower learning rate.")
        mark("optimizer")
        apply_update(optimizers)
        mark("")
        rates = {name: group["lr"] for name, group in zip(names, groups, strict=False)}
        speed = progress.stepped(step, loss, rates)
        log.record(seed=seed, step=step, loss=loss, grad_norm=norm, tokens_per_s=speed, **rates)
        if stopping or (args.checkpoint_every and (step + 1) % args.checkpoint_every == 0):
            clock.stop()
            written, path = checkpoint(step + 1)
            if stopping and log.error:
                raise RunError(f"{log.error}; --resume goes on from {path}")
            if stopping:
                progress.say(last_words(f"stopped by a signal; go on with --resume from {path}"))
                raise SystemExit(128 + max(STOP, default=signal.SIGTERM))
            if not written:
                print(f"the run goes on, but keeps {path}", file=sys.stderr, flush=True)
            clock.start()
    log.line(told := f"seed {seed}: {verdict(curve, track.target)}", (run, recipe.train_steps + 1))
    progress.say(told)
    progress.close()
    if log.error:
        raise log.error


# ------------------------------------------------------------------------------------------------------------
# Command line


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """How and where to run: the trainer has these options, and so has the script at the head of its logs."""
    add = parser.add_argument
    add("--seeds", metavar="0-4|0,3", help="one run a seed, all in one log; default: 0")
    add("--micro-batch", type=int, metavar="ROWS", help="rows of a forward pass; default: what memory holds")
    add("--checkpoint-every", type=int, metavar="N", help="a checkpoint every N steps; the last two are kept")
    add("--resume", type=Path, nargs="?", const="*", metavar="RUN", help="go on from the newest checkpoint")
    add("--data", type=Path, default=ROOT / "data", metavar="DIR", help="of fineweb10B/, nano/ (data)")
    add("--out", type=Path, default=ROOT / "logs", metavar="DIR", help="logs and checkpoints; default: logs")
    add("--compile", action=BooleanOptionalAction, help="default: on a GPU; on a CPU for several seeds")
    add("--validate-ends", action="store_true", help="only at the first and the last step: for searches")
    add("--readouts", action="store_true", help="validate through each readout alone too: for research")
    add("--profile", action="store_true", help="trace ten steps, beside the log; where their time went")
    add("--tensorboard", type=Path, metavar="DIR", help="write scalars there too")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The options of ./run.sh that reach the trainer: what to run, and how."""
    parser = argparse.ArgumentParser(prog="./run.sh", description="Train and leave a record log.")
    add = parser.add_argument
    add("--track", metavar="NAME|FILE", help="fineweb (default with a GPU), nano (without), or a TOML file")
    add("--recipe", metavar="NAME|FILE", help="a shipped recipe, an entry, a TOML file; or: record")
    add("--recipes", action="store_true", help="list the recipes and leave")
    add("--explain", action="store_true", help="print the stages of the recipe, with every value, and leave")
    add("--steps", type=int, metavar="N", help="train N steps; the schedule follows")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe: matrix.lr=0.03")
    add_run_options(parser)
    add("--plan", action="store_true", help=argparse.SUPPRESS)  # for run.sh
    return parser.parse_args(argv)


def print_plan(recipe: Recipe, args: argparse.Namespace) -> None:
    """For run.sh: the number of GPUs, and what fetches the data if some is missing."""
    compiles(args, recipe.track)
    track, data, fetch = recipe.track, args.data, []
    try:
        open_data(data, recipe)
    except (RunError, ShardError):
        if not track.fetch:
            raise
        if not data.is_dir():
            raise RunError(f"--data {data}: no such folder. Make it to have the data fetched.") from None
        folder, name = data / track.dataset, track.fetch.rpartition(".")[2]
        if foreign_shard(folder, name, track.shards, track.shard_tokens):
            raise  # nothing is fetched into a folder with the user's own shards
        shards = math.ceil(recipe.train_steps / ((track.shard_tokens - 2) // track.batch_tokens))
        if shards > track.shards:
            raise RunError(f"{recipe.train_steps} steps need {shards} shards of {track.shards}") from None
        shards = max([shards, *(int(file.stem[-6:]) for file in folder.glob("*_train_*.bin"))])  # fills gaps
        fetch = [track.fetch] + (["--shards", str(shards)] if track.shards > 1 else [])
    print(torch.cuda.device_count(), *fetch)


def choose_recipe(args: argparse.Namespace, checkpoint: dict) -> Recipe:
    """The recipe of the command line; where that names none, the checkpoint's, if there is one."""
    changes = args.set + ([f"train_steps={args.steps}"] if args.steps is not None else [])
    track = Track(**checkpoint["track"]) if checkpoint else None
    if args.track or not track:
        track = read_track(args.track or ("fineweb" if has_gpu() else "nano"))
    if checkpoint and not args.recipe:
        known = {track.name: track}
        recipe = parse_recipe(checkpoint["recipe"], "checkpoint", known, STEPS, changes, arounds=AROUND)
    else:
        recipe = load_recipe(args.recipe or track.recipe, changes, track)
    if args.track and recipe.track != track:
        told = f"is of track {recipe.track.name}; leave out --track {args.track}"
        raise RunError(f"recipe {recipe.name} {told}.")
    return recipe


def explain(recipe: Recipe) -> Iterator[str]:
    """The stages of every table of [matrix], with the effective value of every hyperparameter."""
    for pattern, table in {"*": recipe.matrix, **recipe.patterns()}.items():
        name = step_name(table)
        yield f"{pattern}: {name}"
        yield from explained(named_step(name), table)


def script_of(recipe: Recipe, args: argparse.Namespace) -> str:
    """The script that repeats the run: what it uses of this project, its recipe and track as values."""
    asked = [] if args.micro_batch is None else ["--micro-batch", str(args.micro_batch)]
    asked += [] if args.compile is None else ["--compile" if args.compile else "--no-compile"]
    rows = [named_step(name).row for name in recipe.step_names()]
    methods = {row.name.partition("(")[0] for row in rows}
    stages = {stage.function.__name__ for row in rows for stage in row.stages}
    around = {AROUND[table["kind"]].__name__ for table in (recipe.around | recipe.readout).values()}
    arguments = ["--seeds", args.seeds or "0", *asked]
    return flatten(ROOT, sorted(methods | stages | around), {"RECIPE": literal(recipe)}, arguments)


def run(
    recipe: Recipe, args: argparse.Namespace, script: str, checkpoint: dict, world: World
) -> None:
    """Train every seed of the command line, all in one log that begins with `script`; or go on with that."""
    args.seeds = args.seeds or checkpoint.get("seeds", "0")
    new = {"recipe": recipe.toml(), "seeds": args.seeds, "track": asdict(recipe.track)}
    if other := [key for key in new if checkpoint and new[key] != checkpoint[key]]:
        differs = "; ".join(f"- {key} {checkpoint[key]}; + {new[key]}" for key in other if key != "recipe")
        differs = recipe.differences(checkpoint["recipe"]) or differs
        raise RunError(f"--resume: the checkpoint is of another run (- checkpoint, + now): {differs}")
    seeds, track = parse_seeds(args.seeds), recipe.track
    if args.checkpoint_every is not None and args.checkpoint_every < 1:
        raise RunError(f"--checkpoint-every {args.checkpoint_every}: expected a number of steps above 0.")
    data = world.agreed(lambda: open_data(args.data, recipe))  # before anything is written
    facts = shard_facts([*(data[0][index] for index in sorted({shard for shard, _ in data[1]})), data[2]])
    if checkpoint and (told := fact_differences(checkpoint["data"], facts)):
        raise RunError(f"--resume: the run used other data (- then, + now): {told}")
    args.compile = world.agreed(lambda: compiles(args, track))
    parts = [table["micro_batches"] for table in recipe.around.values() if "micro_batches" in table]
    if parts and args.micro_batch is None:
        args.micro_batch = track.batch_tokens // track.context // parts[0]
    args.micro_batch = world.agreed(lambda: choose_micro_batch(track, world, args.micro_batch, args.compile))
    catch_signals(STOP, shown=world.rank == 0)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}-{os.urandom(2).hex()}.txt"
    resumed = checkpoint.get("log")
    with RunLog(Path(resumed or args.out / name), resume=bool(resumed), writes=world.rank == 0) as log:
        compile_seconds = warm_up(recipe, world, args) if args.compile else 0.0
        if not resumed:
            versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, Python {python_version()}"
            told = {"id": log.path.stem, "device": world.name, "world_size": world.size, "track": track.name,
                    "recipe": recipe.name, "target": track.target, "seeds": args.seeds,
                    "train_steps": recipe.train_steps, "micro_batch": args.micro_batch,
                    "batch_tokens": track.batch_tokens, "compiled": args.compile,
                    "threads": torch.get_num_threads(),
                    "compile_seconds": round(compile_seconds, 1)}  # fmt: skip
            log.head(script, versions, told | facts, recipe.toml())
        if world.rank == 0:
            gpu = "" if world.device.type == "cuda" else f"no GPU found: {track.name} on the CPU\n"
            say(f"{gpu}{recipe.toml()}\n\nworld size {world.size}, log {log.path}")
        for index, seed in list(enumerate(seeds))[checkpoint.get("run", 0) :]:
            state = checkpoint if index == checkpoint.get("run") else new | {"data": facts, "run": index}
            train(recipe, seed, world, log, args, data, state)
    if world.size > 1:
        dist.destroy_process_group()


@contextmanager
def errors_in_one_line(args: argparse.Namespace) -> Iterator[None]:
    """What a user can mend is told by a machine's first process, without a traceback, and ends the run."""
    told = ""
    try:
        yield
    except (RunError, RecipeError, TrackError, ShardError, LogError) as error:
        told = f"error{getattr(error, 'where', '')}: {error}"
    except torch.OutOfMemoryError:
        told = f"error: out of GPU memory: try --micro-batch {args.micro_batch // 2 or 1}."
    except RuntimeError as error:
        if not re.search("gloo|NCCL|Connection (closed|reset)", str(error)):
            raise
        where, why = f"rank {os.environ.get('RANK')}, host {gethostname()}", str(error).splitlines()[0][:120]
        told = f"error ({where}): the exchange broke off, another process or its node is gone ({why}). "
        told += "--resume goes on from the last checkpoint, if there is one."
    if told:
        sys.exit(last_words(told) if os.environ.get("LOCAL_RANK", "0") == "0" else 1)


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
            return print("\n".join(list_recipes(shipped_tracks(), STEPS, AROUND)))
        node = os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID", "0"))
        if args.plan and args.resume and node != "0":  # the checkpoint is on the first node
            return print(torch.cuda.device_count())
        world = World(0, 1, torch.device("cpu")) if args.plan or args.explain else join_world()
        checkpoint = read_checkpoint(args, world)
        recipe = world.agreed(lambda: choose_recipe(args, checkpoint))
        if args.explain:
            return print("\n".join(explain(recipe)))
        if args.plan:
            return print_plan(recipe, args)
        return run(recipe, args, "" if checkpoint else script_of(recipe, args), checkpoint, world)


if __name__ == "__main__":
    main(sys.argv[1:])
