"""How long each optimizer's step takes on the 72 hidden matrices of the 124M model, and how near to the best.

    python -m optimizers.benchmark [--device cpu|cuda] [--share 1/4] [--only muon,nora] [--json FILE]

Beside the milliseconds stands the work that a step must do: `flops`, of its matrix products (counted as they
run, 2 m k n each; elementwise work and decompositions are not counted), and `bytes`: every weight, gradient
and state tensor read once, every weight and state tensor written once. The machine's own speed is measured
in the same rounds: bare products (torch.matmul) of the shapes that Newton-Schulz has, and a bare copy.
`share` is the time that the work takes at those speeds over the time of the step: 1 is a step that costs
nothing but its products (or, where it has next to none, moving its tensors once).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from optimizers import STEPS, MatrixOptimizer
from optimizers.world import device_name

HIDDEN_MATRICES = {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}


@dataclass
class Measurement:
    """One optimizer's step on all 72 matrices. `round_*` are the machine's speeds in the same `rounds`."""

    name: str
    ms: float
    flops: float
    bytes: float
    share: float
    state_bytes_per_parameter: float
    rounds: int
    round_matmul_flops_per_s: float
    round_copy_bytes_per_s: float


def hidden_matrices(share: Fraction, device: str) -> list[nn.Parameter]:
    """`share` of the matrices of each shape, float32 with a gradient; ValueError where that is not whole."""
    params = []
    for shape, count in HIDDEN_MATRICES.items():
        if (share * count).denominator != 1 or not 0 < share <= 1:
            raise ValueError(f"expected 1, 1/2, 1/3, 1/4, 1/6 or 1/12 of the matrices, found {share}")
        for _ in range(int(share * count)):
            param = nn.Parameter(0.02 * torch.randn(shape, device=device))
            param.grad = torch.randn_like(param)
            params.append(param)
    return params


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class MediumMatrixOptimizer(MatrixOptimizer):
    """Steps under set_float32_matmul_precision("medium"): bfloat16 in polar, as torch.optim.Muon has."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            return super().step(closure)
        finally:
            torch.set_float32_matmul_precision(precision)


def contenders() -> list[dict[str, Make]]:
    """Optimizers by name, in groups that are measured in alternation."""
    ours: dict[str, Make] = {name: partial(MatrixOptimizer, step=name, lr=1e-4) for name in STEPS}
    groups: list[dict[str, Make]] = [
        {"torch.optim.AdamW(fused)": partial(torch.optim.AdamW, lr=1e-4, fused=True)}
        | {name: ours.pop(name) for name in ("adamw", "rmnp", "nora")},
        {
            "torch.optim.Muon(5 steps)": partial(torch.optim.Muon, lr=1e-4, ns_steps=5),
            "muon(quintic 5, medium)": partial(MediumMatrixOptimizer, step="muon", polar="quintic", lr=1e-4),
            "muon(quintic 5)": partial(MatrixOptimizer, step="muon", polar="quintic", lr=1e-4),
        },
        {
            "muon": ours.pop("muon"),
            "aurora(leverage=gram)": partial(MatrixOptimizer, step="aurora", leverage="gram", lr=1e-4),
            "aurora": ours.pop("aurora"),
        },
    ]
    return groups + [{name: make} for name, make in ours.items()]


def seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bare_products(device: str) -> tuple[Callable[[], None], float]:
    """The products of a Newton-Schulz step on a square and a wide matrix, nothing else; their FLOPs."""
    lead, dtype = ((48,), torch.bfloat16) if device == "cuda" else ((), torch.float32)
    square = torch.randn(*lead, 768, 768, device=device, dtype=dtype)
    wide = torch.randn(*lead, 768, 3072, device=device, dtype=dtype)
    pairs = [(square, square), (square, square), (square, wide), (wide, wide.mT)]
    outputs = [a @ b for a, b in pairs]

    def multiply() -> None:
        for (a, b), out in zip(pairs, outputs, strict=True):
            torch.matmul(a, b, out=out)

    return multiply, sum(2.0 * a.numel() * b.shape[-1] for a, b in pairs)


def bare_copy(device: str) -> tuple[Callable[[], object], float]:
    """A copy much larger than the caches, and the bytes it moves: read and written."""
    source = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return partial(target.copy_, source), 2.0 * source.nbytes


def linear_flops(input_shape: tuple, weight_shape: tuple, *_: object, **__: object) -> int:
    """FLOPs of oneDNN's linear layer, unknown to torch's counter: input [m, k] times weight [n, k]^T."""
    return 2 * input_shape[0] * input_shape[1] * weight_shape[0]


def product_flops(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> float:
    """FLOPs of the matrix products of one step, counted on a matrix of each shape, run uncompiled."""
    compiling = getattr(optimizer, "compile", None)
    if isinstance(optimizer, MatrixOptimizer):
        optimizer.compile = False
    onednn = torch.backends.mkldnn.is_available()
    formulas = {torch.ops.mkldnn._linear_pointwise: linear_flops} if onednn else {}
    gradients = [param.grad for param in params]
    counts: dict[torch.Size, int] = {}
    flops = 0.0
    for param in params:
        counts[param.shape] = counts.get(param.shape, 0) + 1
    for shape, count in counts.items():
        chosen = next(param for param in params if param.shape == shape)
        for param in params:
            param.grad = chosen.grad if param is chosen else None
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            optimizer.step()
        flops += count * counter.get_total_flops()
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
    if isinstance(optimizer, MatrixOptimizer):
        optimizer.compile = compiling
    return flops


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
    return sum(tensor.nbytes for tensor in tensors)


def measure(
    group: dict[str, Callable], share: Fraction, repeats: int, patience: float, device: str
) -> list[Measurement]:
    """Best of `repeats` rounds, each the bare work and then every optimizer of the group.

    After `patience` seconds no further round begins.
    """
    (multiply, multiply_flops), (copy, copy_bytes) = bare_products(device), bare_copy(device)
    optimizers, flops = {}, {}
    for name, make in group.items():
        params = hidden_matrices(share, device)
        optimizers[name] = make(params)
        optimizers[name].step()
        flops[name] = product_flops(optimizers[name], params)
        for _ in range(3 if device == "cuda" else 0):  # compiles
            optimizers[name].step()
    best: dict[str, float] = {}
    rounds, begin = 0, time.perf_counter()
    while rounds == 0 or (rounds < repeats and time.perf_counter() - begin < patience):
        rounds += 1
        bare = {"multiply": multiply, "copy": copy}
        for name, work in (bare | {name: optimizer.step for name, optimizer in optimizers.items()}).items():
            best[name] = min(seconds(work, device), best.get(name, float("inf")))
    matmul_speed, copy_speed = multiply_flops / best["multiply"], copy_bytes / best["copy"]
    measurements = []
    for name, optimizer in optimizers.items():
        params = [param for param_group in optimizer.param_groups for param in param_group["params"]]
        state = state_bytes(optimizer)
        moved = 3 * sum(param.nbytes for param in params) + 2 * state
        least = max(flops[name] / matmul_speed, moved / copy_speed)
        measurements.append(
            Measurement(
                name=name,
                ms=1000 * best[name] / float(share),
                flops=flops[name] / float(share),
                bytes=moved / float(share),
                share=least / best[name],
                state_bytes_per_parameter=state / sum(param.numel() for param in params),
                rounds=rounds,
                round_matmul_flops_per_s=matmul_speed,
                round_copy_bytes_per_s=copy_speed,
            )
        )
    return measurements


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--share", type=Fraction, help="of the 72 matrices; times are scaled to all (cpu: 1/12)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the fastest counts")
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds after which a group begins no further round"
    )
    parser.add_argument("--only", help="names, separated by commas; one brings its group along")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    share = options.share or Fraction(1, 12 if options.device == "cpu" else 1)
    groups = contenders()
    if options.only:
        wanted, known = set(options.only.split(",")), {name for group in groups for name in group}
        if wanted - known:
            parser.error(f"unknown: {', '.join(sorted(wanted - known))}; known: {', '.join(sorted(known))}")
        groups = [group for group in groups if wanted & group.keys()]
    facts = {
        "date": date.today().isoformat(),
        "device": device_name(torch.device(options.device)),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "matrices": {f"{m}x{n}": count for (m, n), count in HIDDEN_MATRICES.items()},
        "share_measured": str(share),
    }
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    print(
        f"{'':28}{'ms':>10}{'GFLOP':>9}{'MB':>8}{'share':>8}{'state B/param':>15}{'TFLOP/s':>16}{'GB/s':>11}"
    )
    rows = []
    for group in groups:
        for row in measure(group, share, options.repeats, options.patience, options.device):
            rows.append(row)
            print(
                f"{row.name:28}{row.ms:10.1f}{row.flops / 1e9:9.0f}{row.bytes / 1e6:8.0f}{row.share:8.2f}"
                f"{row.state_bytes_per_parameter:15.2f}{row.round_matmul_flops_per_s / 1e12:16.3f}"
                f"{row.round_copy_bytes_per_s / 1e9:11.1f}",
                flush=True,
            )
    if options.json:
        draft = options.json.with_suffix(".partial")
        draft.write_text(json.dumps(facts | {"optimizers": [asdict(row) for row in rows]}, indent=1) + "\n")
        draft.replace(options.json)


if __name__ == "__main__":
    main()
