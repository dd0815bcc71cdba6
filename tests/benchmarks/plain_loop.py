"""Our training step beside the plain loop: the benchmark's facts written down, nothing gained.

    python -m tests.benchmarks.plain_loop [--device cuda] [--rounds 15] [--ways ours,plain] [--table FILE]

The plain loop is the published scripts': query, key and value in three products, all logits in float32 with
autograd's cross entropy, the whole model one graph where it is compiled, Muon matrix by matrix. Both train
nano's model and one 256 wide on made tokens, eager and compiled, a step each in turn, one thread; beside them
ours with one part done plainly. Milliseconds are CPU time, the median over the rounds. On a GPU it is
GPT-124M, a pass of 32 rows and an update, and milliseconds are the clock's.
"""

import argparse
import time
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optimizers.polar import COEFFICIENTS
from optimizers.world import World, device_name
from records.run.recipe import Recipe
from records.run.track import RECORDS
from train_gpt import GPT, Attention, build_optimizers, forward_backward, load_recipe, make_model, rotate

SETTINGS = {  # changes of the recipe's track, whether compiled
    "nano eager": ({}, False),
    "nano compiled": ({}, True),
    "256 wide eager": ({"model_dim": 256}, False),
    "256 wide compiled": ({"model_dim": 256}, True),
}
ON_GPU = {"GPT-124M compiled": ({"batch_tokens": 2**15}, True)}


@dataclass(frozen=True)
class Plain:
    """What a loop does the plain way."""

    products: bool = False  # query, key and value in three
    loss: bool = False  # all logits in float32, autograd's cross entropy
    graph: bool = False  # compiled whole, not block by block
    optimizer: bool = False  # Muon matrix by matrix


def three_products(self: Attention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Attention.forward with its products apart."""
    q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q, self.k, self.v))
    q, k = (rotate(F.rms_norm(part, (self.head_dim,)), cos, sin) for part in (q, k))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=15.36 / self.head_dim)
    return self.proj(y.transpose(1, 2).flatten(-2))


class PlainLoss(nn.Module):
    """The model with autograd's cross entropy of all logits."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.model.norm1(self.model.embed(inputs))
        angles = self.model.get_buffer("angles")[: inputs.size(1), None]
        cos, sin = angles.cos().float(), angles.sin().float()
        for block in self.model.blocks:
            x = block(x, cos, sin)
        z = self.model.proj(self.model.norm2(x)).float().flatten(0, -2)
        return F.cross_entropy(15 * z * (z.square() + 15**2).rsqrt(), targets.flatten(), reduction="sum")


class PlainMuon(torch.optim.Optimizer):
    """Muon, one matrix after the other: Nesterov momentum, twelve Newton-Schulz steps on each."""

    def __init__(self, params: list[nn.Parameter], defaults: dict, precision: torch.dtype) -> None:
        super().__init__(params, defaults)
        self.precision = precision

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                U = self.polar_factor(p.grad.lerp(momentum, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(U, alpha=group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5)

    def polar_factor(self, M: Tensor) -> Tensor:
        X = (M.mT if M.size(0) > M.size(1) else M).to(self.precision)
        X = X / (X.norm() + 1e-7)
        for a, b, c in COEFFICIENTS["simple"] * 12:
            A = X @ X.mT
            X = a * X + (b * A + c * A @ A) @ X
        return (X.mT if M.size(0) > M.size(1) else X).to(M.dtype)


class Loop:
    """Trains the recipe's model at a constant rate on made tokens, with what `plain` says done plainly."""

    def __init__(
        self, recipe: Recipe, compiled: bool, plain: Plain, precision: torch.dtype, device: torch.device
    ) -> None:
        track, self.compiled, self.world = recipe.track, compiled, World(0, 1, device)
        model = make_model(recipe, 0, device, compiled and not plain.graph)
        if plain.products:
            for block in model.blocks:
                block.attn.forward = MethodType(three_products, block.attn)
        self.net = PlainLoss(model) if plain.loss else model
        if compiled and plain.graph:
            self.net.compile(dynamic=False)
        self.optimizers = build_optimizers(model, recipe, compiled)
        if plain.optimizer:
            ours = self.optimizers[-1]
            params = [p for group in ours.param_groups for p in group["params"]]
            self.optimizers[-1] = PlainMuon(params, recipe.matrix, precision)
        generator = torch.Generator().manual_seed(0)
        rows = track.batch_tokens // track.context
        drawn = torch.randint(0, track.token_limit, (rows, track.context + 1), generator=generator)
        tokens = drawn.to(device)
        self.batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step(self) -> tuple[float, float, float]:
        """Seconds of forward and backward and of the update; the loss summed over the tokens."""
        began = now(self.world.device)
        loss = forward_backward(self.net, self.batch, len(self.batch[0]), self.world)
        ready = now(self.world.device)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return ready - began, now(self.world.device) - ready, loss.item()


def now(device: torch.device) -> float:
    """Seconds of this process' CPU time; on a GPU of the clock, when it has done all."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def loops(
    setting: str, precision: torch.dtype, device: torch.device, asked: Collection[str] = ()
) -> dict[str, Loop]:
    """Ours, the plain one, and ours with one part plain (only the `asked`); "graph" where it is compiled."""
    changes, compiled = (SETTINGS | ON_GPU)[setting]
    recipe = load_recipe(RECORDS / ("nano/muon.toml" if setting in SETTINGS else "fineweb/01_muon.toml"))
    recipe = replace(recipe, track=replace(recipe.track, **changes))
    parts = [field.name for field in fields(Plain) if compiled or field.name != "graph"]
    ways = {"ours": Plain(), "plain": Plain(True, True, True, True)}
    ways |= {part: Plain(**{part: True}) for part in parts}
    return {name: Loop(recipe, compiled, way, precision, device)
            for name, way in ways.items() if name in (asked or ways)}  # fmt: skip


def medians(contenders: dict[str, Loop], rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of forward and backward and of the update, after three steps that compile."""
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in contenders}
    for at in range(3 + rounds):
        for name, loop in contenders.items():
            passes, update, _ = loop.step()
            if at >= 3:
                times[name].append((1000 * passes, 1000 * update))
    return {name: tuple(map(median, zip(*seen, strict=True))) for name, seen in times.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.plain_loop")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each loop in turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--polar", choices=("float32", "bfloat16"), help="of the plain loop (cpu: float32, cuda: bfloat16)"
    )
    parser.add_argument("--settings", help="separated by commas (all)")
    parser.add_argument("--ways", help="separated by commas, ours among them (all)")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    device, polar = torch.device(options.device), options.polar
    polar = polar or ("float32" if device.type == "cpu" else "bfloat16")
    all_settings = SETTINGS if device.type == "cpu" else ON_GPU
    settings = options.settings.split(",") if options.settings else all_settings
    ways = options.ways.split(",") if options.ways else ()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # one code, many models
    lines = ["| model | | passes, ms | over ours | update, ms | over ours | step over ours |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for setting in settings:
        ms = medians(loops(setting, getattr(torch, polar), device, ways), options.rounds)
        ours = ms["ours"]
        for name, (passes, update) in ms.items():
            what = name if name in ("ours", "plain") else f"plain {name}"
            lines.append(f"| {setting} | {what} | {passes:.1f} | {passes / ours[0]:.2f} | {update:.1f} "
                         f"| {update / ours[1]:.2f} | {(passes + update) / sum(ours):.2f} |")  # fmt: skip
        print("\n".join(lines[-len(ms) :]), flush=True)
    if options.table:
        clock = "1 thread, CPU time" if device.type == "cpu" else "the clock's time"
        machine = f"{device_name(device)}, torch {torch.__version__}, {clock}"
        head = f"# Our step beside the plain loop\n\n{machine}; its polar factors in {polar}.\n"
        options.table.write_text("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main()
