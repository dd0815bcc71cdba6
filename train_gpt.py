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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from platform import python_version

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the run catches signals: no traceback of an import

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from data.shards import Corpus, ShardError, fact_differences, foreign_shard, open_corpus, shards_needed
from optimizers import AROUND, STEPS, MatrixOptimizer
from optimizers.around.around import Around, arounds_in, read_losses
from optimizers.aux_adamw import AuxAdamW
from optimizers.ema_nesterov import EMANesterov
from optimizers.explain import explained
from optimizers.groups import PatternError, adamw_groups, around_of, learning_rates, matrix_groups
from optimizers.own_step import own_steps
from optimizers.softcap_kernel import fast_softcapped
from optimizers.starting_point import start_parameters
from optimizers.step_profile import ProfileError, marks, unmarked
from optimizers.world import World, WorldError, device_name, distributed, gone_process, has_gpu, join_world
from records import RecordError
from records.observe import observing
from records.run import RunEnded, RunError
from records.run.effective import AUX_OPTIONS, parse_recipe
from records.run.machine import choose_micro_batch, compiles, peak_share
from records.run.options import add_run_options, parse_arguments
from records.run.recipe import Recipe, parse_seeds, run_differences, split
from records.run.recipe_files import list_recipes, read_recipe
from records.run.run_log import Clock, Progress, RunLog, tensorboard, verdict
from records.run.schedule import learning_rate_factor, validates, value_at
from records.run.signals import DIVERGED, ENDED, REFUSED, catch_signals, leave, say
from records.run.track import Track, default_track, read_track, shipped_tracks
from records.script import script_of

ROOT = Path(__file__).resolve().parent
USER_ERRORS = (RecordError, ShardError, WorldError, PatternError, ProfileError)


# ------------------------------------------------------------------------------------------------------------
# Data: shards in name order, read in blocks; the order never depends on the seed


def read_block(shard: np.memmap, start: int, track: Track, world: World) -> tuple[Tensor, Tensor]:
    """This rank's inputs and targets [rows, context] (int64) of the block that begins at `start`."""
    share = track.batch_tokens // world.size
    block = shard[start : start + track.batch_tokens + 1]
    if block.max() >= track.token_limit:  # the whole block: all ranks stop at the same step
        raise ShardError(f"{shard.filename}: token {block.max()} at {start + block.argmax():,}, expected "
                         f"below {track.token_limit}. Remove the file and fetch it again.")
    rows = torch.from_numpy(block[world.rank * share : (world.rank + 1) * share + 1].astype(np.int64))
    return rows[:-1].view(-1, track.context), rows[1:].view(-1, track.context)


def training_batches(
    shards: list[np.memmap], blocks: list[tuple[int, int]], track: Track, world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of each block, on the device; a thread reads two ahead, over shard borders too."""

    def fetch(shard: int, start: int) -> tuple[Tensor, Tensor]:
        inputs, targets = read_block(shards[shard], start, track, world)
        if world.device.type == "cpu":
            return inputs, targets
        pinned = inputs.pin_memory(), targets.pin_memory()
        return pinned[0].to(world.device, non_blocking=True), pinned[1].to(world.device, non_blocking=True)

    with ThreadPoolExecutor(1, thread_name_prefix="data") as reader:
        ahead = deque(reader.submit(fetch, *block) for block in blocks[:2])
        for block in [*blocks[2:], None, None][: len(blocks)]:
            pair = ahead.popleft().result()
            if block:
                ahead.append(reader.submit(fetch, *block))
            yield pair


def open_data(data: Path, recipe: Recipe) -> Corpus:
    """What the recipe's run reads below the folder `data`. Raises ShardError, see open_corpus."""
    track = recipe.track
    needs = max(recipe.train_steps, track.start.get("train_steps", 0)), track.batch_tokens, track.val_tokens
    return open_corpus(data / track.dataset, *needs, track.fetch)


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
    def forward(ctx: BackwardCFunction, value: Tensor, gradients: tuple, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, scale: Tensor) -> tuple[Tensor | None, ...]:
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
        self.softcapped, self.head_dim = softcapped, head_dim
        initialise(self, {}, seed=0)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """inputs, targets: [rows, time] of int64 -> the loss summed over all targets, in nats."""
        x = self.norm1(self.embed(inputs))
        precision = torch.promote_types(x.dtype, torch.float32)
        angles = self.get_buffer("angles")[: inputs.size(1), None]
        cos, sin = angles.cos().to(precision), angles.sin().to(precision)
        with sdpa_kernel(ATTENTION, set_priority=True):
            for block in self.blocks:
                x = block(x, cos, sin)
        return summed_loss(self.proj, self.norm2(x).flatten(0, -2), targets.flatten(), self.softcapped)


def initialise(model: GPT, init: dict, seed: int) -> None:
    """Start the parameters as [init] says, see start_parameters. RunError for a pattern of no module."""
    for pattern in start_parameters(dict(model.named_parameters()), init, seed, model.head_dim):
        raise RunError(f"[init] {pattern!r} matches no module; expected one such as 'mlp.fc'.")


@torch.no_grad()
def validate(model: GPT, shard: np.memmap, track: Track, micro_batch: int, world: World) -> float:
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
    """The recipe of a TOML file or of a shipped name, see records.run.recipe_files.read_recipe (RecipeError).

    track: the one it is for if it names none; a track that is not shipped takes the recipes of all.
    """
    tracks = shipped_tracks()
    if track and track.name not in tracks:
        tracks, changes = tracks | {track.name: track}, [*changes, f'track="{track.name}"']
    return read_recipe(source, tracks, STEPS, changes, track.name if track else None, AROUND)


def build_optimizers(model: GPT, recipe: Recipe, compiled: bool | None = None) -> list[torch.optim.Optimizer]:
    """AdamW for the embedding and the head, but for [embed] and [head], and for 1-D parameters; the recipe's
    step for the hidden matrices; then what goes around their update: EMA-Nesterov, [around], [readout].

    Every group remembers what set_learning_rates needs: `initial_lr` and its `schedule` ("aux" or "matrix"),
    and the `knots` of whatever else changes over the run.
    """
    named = dict(model.named_parameters())
    hidden = {name: p for name, p in named.items() if name.startswith("blocks.") and p.ndim >= 2}
    rest = {name: p for name, p in named.items() if name not in hidden}
    matrix, moved = recipe.matrix, recipe.schedule["matrix"]
    ends = own_steps(rest, recipe.own_steps())  # which takes them out of the rest
    usual, own = adamw_groups(rest, *split(recipe.aux), AUX_OPTIONS)
    groups = matrix_groups(hidden, *split(matrix), moved, model.head_dim)
    optimizers: dict[str, torch.optim.Optimizer]
    optimizers = {"adamw": torch.optim.AdamW(usual, fused=True)} if usual else {}
    optimizers["matrix"] = MatrixOptimizer(groups, matrix["step"], reduce_gradients=False, compile=compiled)
    optimizers |= ends | ({"adam": AuxAdamW(own)} if own else {})
    covered = [p for made in optimizers.values() for group in made.param_groups for p in group["params"]]
    assert sorted(map(id, covered)) == sorted(map(id, model.parameters())), "each parameter has one optimizer"
    for kind, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group |= {"initial_lr": group["lr"], "schedule": "matrix" if kind == "matrix" else "aux"}
    if ahead := dict(recipe.lookahead):
        kind, behind = ("aux", 1) if ahead.get("scaled_by") == "embed_before" else ("matrix", 0)
        ahead |= {"initial_lr": ahead["strength"], "schedule": kind, "schedule_behind": behind,
                  "window": (ahead["start"], ahead["stop"])}  # fmt: skip
        optimizers["lookahead"] = EMANesterov([{"params": list(model.parameters()), **ahead}])
    for name, table in recipe.surroundings().items():
        optimizers[name] = around_of(name, named, *split(table))
    for optimizer in optimizers.values():
        if isinstance(optimizer, Around):
            optimizer.attach(model, optimizers)
    return list(optimizers.values())


def set_learning_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    """Set what changes over the run for update `step` (from 0), before its gradient is taken."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["update"] = step
        if "schedule" in group:
            start, stop = group.get("window", (0, math.inf))
            before = max(step - group.get("schedule_behind", 0), 0)
            factor = learning_rate_factor(before, recipe, group["schedule"])
            group["lr"] = (start <= step < stop) * group["initial_lr"] * factor
        for key, knots in group.get("knots", {}).items():
            value = value_at(knots, step)
            group[key] = group[key].fill_(value) if isinstance(group[key], Tensor) else value


# ------------------------------------------------------------------------------------------------------------
# Checkpoints: written whole or not at all, the last two kept

# What a checkpoint holds: `model` and `optimizers` are their state_dict()s, `curve` the validations so far.
CHECKPOINT = {"run": int, "step": int, "seconds": float, "curve": list, "track": dict, "recipe": str,
              "seeds": str, "data": dict, "asked": dict, "model": dict, "optimizers": list}  # fmt: skip
ASKED = ("checkpoint_every", "compile", "micro_batch", "validate_ends", "readouts")  # options in `asked`


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
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = {"asked": {}} | loaded  # which older checkpoints lack
            if all(isinstance(state[key], kind) for key, kind in CHECKPOINT.items()):
                track = asdict(Track(**state["track"]))  # with what tracks had not yet then
                return state | {"track": track, "log": str(path.parent.with_suffix(".txt"))}
            found = "not a run's"
        except Exception as error:  # whatever a damaged file raises
            found = type(error).__name__
        print(f"cannot read {path} ({found}); trying the one before", file=sys.stderr)
    raise RunError(f"--resume: no good {out}/{name}.checkpoints/*.pt. --checkpoint-every N makes them.")


def read_checkpoint(args: argparse.Namespace, world: World) -> dict:
    """The newest checkpoint, if the run is resumed; only the first process needs to have it. An option that
    `args` leaves open is as the run had it.
    """
    reads = args.resume and world.rank == 0
    found = world.agreed(lambda: newest_checkpoint(args.out, args.resume) if reads else {}, USER_ERRORS)
    found = world.share(found)
    given = {key for key, value in vars(args).items() if value is not None}
    vars(args).update({key: value for key, value in found.get("asked", {}).items() if key not in given})
    return found


# ------------------------------------------------------------------------------------------------------------
# The loop

STOP: list[int] = []  # signals that ask the run to end


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
        model.softcapped = fast_softcapped(softcapped, device)
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def warm_up(recipe: Recipe, world: World, args: argparse.Namespace) -> float:
    """Seconds of compiling, before any clock runs: three updates of a model that is thrown away, one loss."""
    began, track, rows = time.perf_counter(), recipe.track, args.micro_batch
    shape = rows * max(recipe.micro_batches() // world.size, 1), track.context
    drawn = torch.randint(track.token_limit, shape, generator=torch.Generator().manual_seed(0))
    tokens = drawn.to(world.device)  # of equal tokens some decompositions fail
    model = make_model(recipe, 0, world.device, args.compile)
    optimizers, alone = build_optimizers(model, recipe), World(0, 1, world.device)
    args.observe(model, optimizers, Path("warm-up"), 0)  # hooks, which are compiled too
    for _ in range(3):  # the first makes the optimizers' states, the second compiles for them
        compute_gradients(model, optimizers, (tokens, tokens), rows, alone)
        apply_update(optimizers)
    with torch.no_grad():
        model(tokens[:rows], tokens[:rows])
    world.barrier()
    return round(time.perf_counter() - began, 1)


def forward_backward(net: nn.Module, batch: tuple[Tensor, ...], micro_batch: int, world: World) -> Tensor:
    """Gradients of the loss summed over the global batch; returns this rank's part of that loss (float64).

    DistributedDataParallel averages over ranks, while the last micro-batch runs backward: hence the factor.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    pairs = list(zip(*(part.split(micro_batch) for part in batch), strict=True))
    for left, (x, y) in zip(reversed(range(len(pairs))), pairs, strict=True):
        with net.no_sync() if isinstance(net, DistributedDataParallel) and left else nullcontext():
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


def warm_start(net: nn.Module, model: GPT, data: Corpus, track: Track, rows: int, world: World) -> None:
    """What the track's [start] says: steps at constant rates, uncompiled, on the data's first blocks."""
    recipe = Recipe("start", track, **track.start, schedule={"matrix": {}}, init={}, lookahead={})
    optimizers = build_optimizers(model, recipe, False)
    for batch in training_batches(data.train, data.blocks[: recipe.train_steps], track, world):
        compute_gradients(net, optimizers, batch, rows, world)
        apply_update(optimizers)


def start_progress(recipe: Recipe, model: GPT, world: World, first: int, board: Path | None) -> Progress:
    """The screen, and tensorboard if asked."""
    track, leads = recipe.track, world.rank == 0
    weights = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    share = peak_share(track, weights, world.size, device_name(world.device))
    writer = tensorboard(board) if board and leads else None
    return Progress(recipe.train_steps, first, track.batch_tokens, share, leads, writer)


def train(
    recipe: Recipe, seed: int, world: World, log: RunLog, args: argparse.Namespace, data: Corpus, state: dict
) -> None:
    """One training, from `state` to the recipe's last step. state: a checkpoint, or of a new run its number,
    recipe, seeds and data.

    What ends it earlier leaves a checkpoint: a signal (SystemExit), a loss or gradient that is not finite, a
    damaged shard, a log that cannot be written (RunError).
    """
    track, run = recipe.track, state["run"]
    model = make_model(recipe, seed, world.device, args.compile)
    net = distributed(model, world)
    if track.start and "step" not in state:
        warm_start(net, model, data, track, args.micro_batch, world)
    optimizers = build_optimizers(model, recipe, None if args.compile else False)
    if "step" in state:
        try:
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise RunError(f"--resume: the checkpoint does not fit: {str(error).splitlines()[0]}") from None
        log.line(f"resumed at step {state['step']}, world_size: {world.size}")
    first, curve = state.get("step", 0), state.get("curve", [])
    clock = Clock(world.barrier, state.get("seconds", 0.0))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    watch = args.observe(model, optimizers, log.path, seed)
    validation = model, data.val, track, args.micro_batch, world

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
    batches = training_batches(data.train, data.blocks[first : recipe.train_steps], track, world)
    last, last_seconds = first, clock.seconds
    profile = net, log.path.with_suffix(".trace.json.gz"), progress.say, recipe.train_steps - first
    mark = marks(*profile) if args.profile and run == world.rank == 0 else unmarked
    clock.start()
    for step in range(first, recipe.train_steps + 1):
        if validates(step, recipe) and (not args.validate_ends or step in (0, recipe.train_steps)):
            clock.stop()
            with watch.validating(step):
                losses, readout = read_losses(optimizers, lambda: validate(*validation), args.readouts)
            val_loss = losses["val_loss"]
            average = 1000 * (clock.seconds - last_seconds) / (step - last) if step > last else math.nan
            columns = " ".join(f"{name}:{loss:.5f}" for name, loss in losses.items()) + readout
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
            raise RunEnded(f"step {step}: {error} --resume goes on from {checkpoint(step)[1]}") from None
        set_learning_rates(optimizers, recipe, step)
        loss = compute_gradients(net, optimizers, batch, args.micro_batch, world)
        mark("wait")
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        ends = torch.full_like(loss, len(STOP) + bool(log.error))
        of_rank = torch.stack([loss, norm / world.size, ends])
        loss, norm, stopping = world.sum(of_rank).tolist()  # the one wait for the device
        loss = loss / track.batch_tokens
        if not (math.isfinite(loss) and math.isfinite(norm)):
            gradients = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
            bad = next((name for name, grad in gradients if not grad.isfinite().all()), "no parameter")
            told = f"not finite at step {step}: loss {loss}, gradient of {bad}"
            told += "; last validation {1:.5f} at step {0}".format(*curve[-1]) if curve else ""
            log.line(told)
            clock.stop()
            for around in reversed(arounds_in(optimizers)):
                around.abandon()
            raise RunEnded(f"{told}; checkpoint before it: {checkpoint(step)[1]}. {DIVERGED}")
        mark("optimizer")
        with watch.updating(step):
            apply_update(optimizers)
        mark("")
        rates = learning_rates(groups)
        speed = progress.stepped(step, loss, rates)
        log.record(seed=seed, step=step, loss=loss, grad_norm=norm, tokens_per_s=speed, **rates)
        if stopping or (args.checkpoint_every and (step + 1) % args.checkpoint_every == 0):
            clock.stop()
            written, path = checkpoint(step + 1)
            if stopping and log.error:
                raise RunEnded(f"{log.error}; --resume goes on from {path}")
            if stopping:
                told, status = f"go on with --resume from {path}", 128 + max(STOP, default=signal.SIGTERM)
                progress.close()
                leave(f"stopped by a signal; {told}", status, world.rank == 0)
            if not written:
                print(f"the run goes on, but keeps {path}", file=sys.stderr, flush=True)
            clock.start()
    log.line(told := f"seed {seed}: {verdict(curve, track.target)}", (run, recipe.train_steps + 1))
    progress.say(told)
    progress.close()
    if log.error:
        raise RunEnded(str(log.error))


# ------------------------------------------------------------------------------------------------------------
# Command line


def print_plan(recipe: Recipe, args: argparse.Namespace) -> None:
    """For run.sh: the number of GPUs, and what fetches the data if some is missing."""
    compiles(args.compile, has_gpu(checked=recipe.track.dataset != "nano"))
    track, data, fetch = recipe.track, args.data, []
    try:
        open_data(data, recipe)
    except ShardError:
        folder, name = data / track.dataset, track.fetch.rpartition(".")[2]
        if not track.fetch or foreign_shard(folder, name, track.shards, track.shard_tokens):
            raise  # nothing is fetched into a folder with the user's own shards
        if not data.is_dir():
            raise RunError(f"--data {data}: no such folder. Make it to have the data fetched.") from None
        sizes = track.batch_tokens, track.shard_tokens, track.shards
        count = str(shards_needed(folder, recipe.train_steps, *sizes))
        fetch = [track.fetch, "--shards", count] if track.shards > 1 else [track.fetch]
    say(" ".join([str(torch.cuda.device_count()), *fetch]))  # to nobody where run.sh was ended


def choose_recipe(args: argparse.Namespace, checkpoint: dict) -> Recipe:
    """The recipe of the command line; where that names none, the checkpoint's, if there is one."""
    changes = args.set + ([f"train_steps={args.steps}"] if args.steps is not None else [])
    track = Track(**checkpoint["track"]) if checkpoint else None
    if args.track or not track:
        track = read_track(args.track or default_track(has_gpu()))
    if checkpoint and not args.recipe:
        known = {track.name: track}
        recipe = parse_recipe(checkpoint["recipe"], "checkpoint", known, STEPS, changes, arounds=AROUND)
    else:
        recipe = load_recipe(args.recipe or track.recipe, changes, track)
    if args.track and recipe.track != track:
        raise RunError(f"recipe {recipe.name} is of track {recipe.track.name}; drop --track {args.track}.")
    return recipe


def run(recipe: Recipe, args: argparse.Namespace, script: str, checkpoint: dict, world: World) -> None:
    """Train every seed of the command line, all in one log that begins with `script`; or go on with that."""
    args.seeds = args.seeds or checkpoint.get("seeds", "0")
    asked = {option: vars(args)[option] for option in ASKED}
    new = {"recipe": recipe.toml(), "seeds": args.seeds, "track": asdict(recipe.track)}
    if checkpoint and (told := run_differences(checkpoint, new)):
        raise RunError(f"--resume: the checkpoint is of another run (- checkpoint, + now): {told}")
    seeds, track = parse_seeds(args.seeds), recipe.track
    data = world.agreed(lambda: open_data(args.data, recipe), USER_ERRORS)  # before anything is written
    facts = data.facts()
    if checkpoint and (told := fact_differences(checkpoint["data"], facts)):
        raise RunError(f"--resume: the run used other data (- then, + now): {told}")
    on_gpu = world.agreed(lambda: has_gpu(checked=track.dataset != "nano"), USER_ERRORS)
    args.compile = world.agreed(lambda: compiles(args.compile, on_gpu), USER_ERRORS)
    memory = torch.cuda.mem_get_info(world.device) if on_gpu else None
    sizes = track, world.size, args.micro_batch, args.compile, LOSS_ROWS, memory, recipe.micro_batches()
    args.micro_batch = world.agreed(lambda: choose_micro_batch(*sizes), USER_ERRORS)
    catch_signals(STOP, shown=world.rank == 0)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}-{os.urandom(2).hex()}.txt"
    resumed = checkpoint.get("log")
    with RunLog(Path(resumed or args.out / name), resume=bool(resumed), writes=world.rank == 0) as log:
        compile_seconds = warm_up(recipe, world, args) if args.compile else 0.0
        if not resumed:
            versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, Python {python_version()}"
            head = {"id": log.path.stem, "device": device_name(world.device), "world_size": world.size,
                    "track": track.name, "recipe": recipe.name, "target": track.target, "seeds": args.seeds,
                    "train_steps": recipe.train_steps, "micro_batch": args.micro_batch,
                    "batch_tokens": track.batch_tokens, "compiled": args.compile,
                    "threads": torch.get_num_threads(), "compile_seconds": compile_seconds}  # fmt: skip
            log.head(script, versions, head | facts, recipe.toml())
        if world.rank == 0:
            gpu = "" if world.device.type == "cuda" else f"no GPU found: {track.name} on the CPU\n"
            say(f"{gpu}{recipe.toml()}\n\nworld size {world.size}, log {log.path}")
        for index, seed in list(enumerate(seeds))[checkpoint.get("run", 0) :]:
            state = checkpoint if index == checkpoint.get("run") else new | {"data": facts, "run": index}
            train(recipe, seed, world, log, args, data, state | {"asked": asked})
    if world.size > 1:
        dist.destroy_process_group()


@contextmanager
def errors_in_one_line(args: argparse.Namespace) -> Iterator[None]:
    """What a user can mend is told by a machine's first process, without a traceback, and ends the run."""
    try:
        yield
    except USER_ERRORS as error:
        told = f"error{getattr(error, 'where', '')}: {error}"
        status = ENDED if isinstance(error, RunEnded) else REFUSED
        leave(told, status, os.environ.get("LOCAL_RANK", "0") == "0")
    except torch.OutOfMemoryError:  # of this process, maybe of no other
        leave(f"error: out of GPU memory: try --micro-batch {args.micro_batch // 2 or 1}.", ENDED, True)
    except torch.linalg.LinAlgError as error:
        leave(f"error: {str(error).splitlines()[0]} {DIVERGED}", ENDED, True)
    except RuntimeError as error:
        leave(gone_process(error), ENDED, os.environ.get("LOCAL_RANK", "0") == "0")


def replay(recipe: Recipe, argv: list[str]) -> None:
    """What the script at the head of a log does: the run again, with the same recipe."""
    parser = argparse.ArgumentParser(description=f"Train with the recipe {recipe.name} of this script.")
    add_run_options(parser, ROOT)
    args = parser.parse_args(argv)
    with errors_in_one_line(args):
        world = join_world()
        checkpoint = read_checkpoint(args, world)
        run(recipe, args, Path(__file__).read_text(), checkpoint, world)


def main(argv: list[str]) -> None:
    """Do what the command line says."""
    args = parse_arguments(argv, ROOT)
    with errors_in_one_line(args):
        if args.recipes:
            return say("\n".join(list_recipes(shipped_tracks(), STEPS, AROUND)))
        world = World(0, 1, torch.device("cpu")) if args.plan or args.explain else join_world()
        checkpoint = read_checkpoint(args, world)
        recipe = world.agreed(lambda: choose_recipe(args, checkpoint), USER_ERRORS)
        if args.explain:
            return say("\n".join(explained({"*": recipe.matrix} | recipe.patterns() | recipe.own_steps())))
        if args.plan:
            return print_plan(recipe, args)
        args.observe = observing(args.instruments, recipe, args.seeds) if args.instruments else args.observe
        return run(recipe, args, "" if checkpoint else script_of(recipe, args, ROOT), checkpoint, world)


if __name__ == "__main__":
    main(sys.argv[1:])
