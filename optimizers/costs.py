"""What a step of each method costs beside Muon's, in time and in memory: one table.

    python -m optimizers.costs [--matrices nano|124m] [--rounds N] [--only muown,pmuon] [--table FILE.md]
    python -m optimizers.costs --parts soap_muon [--matrices nano|124m]

Steps on the hidden matrices of a track's model, Muon's and the method's in turn, on one thread, in CPU time,
which leaves out what the processor gave to other work. `ms` is the fastest round's; `of Muon's` the median
over the rounds of the ratio. Bytes are those of the state's tensors, by parameter of the matrices; Muon keeps
a float32 momentum: 4. `--parts` tells which operations a method's step consists of.
Whole recipes: `python -m tests.benchmarks.recipe_costs`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from optimizers import STEPS, MatrixOptimizer
from optimizers.benchmark import state_bytes
from optimizers.world import device_name

MATRICES = {
    "nano": {(64, 64): 16, (256, 64): 4, (64, 256): 4},
    "124m": {(768, 768): 4, (3072, 768): 1, (768, 3072): 1},  # of one layer of twelve
}
OPTIONS: dict[str, dict[str, Any]] = {  # a row for each of these too
    "soap_muon": {"refresh_every": 1},
    "shampoo_adam": {"refresh_every": 5, "root_eps": 1e-12},
    "aurora": {"leverage": "gram"},
}
PATIENCE = 60  # seconds after which a method begins no further round


@dataclass(frozen=True)
class Cost:
    """A method's step on all matrices: fastest ms, median ratio to Muon's, state's bytes by parameter."""

    name: str
    ms: float
    of_muon: float
    bytes_by_parameter: float
    rounds: int


def optimizer_of(name: str, shapes: dict[tuple[int, int], int], **options: Any) -> MatrixOptimizer:
    """The method on float32 matrices that have a gradient, its state made."""
    generator, params = torch.Generator().manual_seed(0), []
    for shape, count in shapes.items():
        for _ in range(count):
            p = nn.Parameter(0.02 * torch.randn(shape, generator=generator))
            p.grad = torch.randn(shape, generator=generator)
            params.append(p)
    optimizer = MatrixOptimizer(params, step=name, **options)
    for p in params if name == "isomuon" else ():  # as [around.gradient_noise] would
        optimizer.tell(p, row_noise=torch.ones(len(p), 1), column_noise=torch.ones(1, p.shape[1]))
    optimizer.step()
    return optimizer


def cpu_seconds(work: Callable[[], object]) -> float:
    """What all threads of this process spent on it."""
    began = time.process_time()
    work()
    return time.process_time() - began


def cost(name: str, shapes: dict[tuple[int, int], int], rounds: int, **options: Any) -> Cost:
    """Measured in turn with Muon, after a first step of each. A round is of `refresh_every` steps."""
    muon, own = optimizer_of("muon", shapes), optimizer_of(name, shapes, **options)
    steps = own.param_groups[0].get("refresh_every", 1)

    def run() -> None:
        for _ in range(steps):
            own.step()

    times: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while not times or (len(times) < rounds and time.perf_counter() - begin < PATIENCE):
        times.append((cpu_seconds(muon.step), cpu_seconds(run) / steps))
    told = ", ".join(f"{key}={value}" for key, value in options.items())
    elements = sum(p.numel() for group in own.param_groups for p in group["params"])
    return Cost(
        name=f"{name}({told})" if told else name,
        ms=1000 * min(mine for _, mine in times),
        of_muon=statistics.median(mine / muons for muons, mine in times),
        bytes_by_parameter=state_bytes(own) / elements,
        rounds=len(times),
    )


def costs(names: list[str], shapes: dict[tuple[int, int], int], rounds: int) -> Iterator[Cost]:
    for name in names:
        yield cost(name, shapes, rounds)
        if name in OPTIONS:
            yield cost(name, shapes, rounds, **OPTIONS[name])


def parts(name: str, shapes: dict[tuple[int, int], int], rounds: int, **options: Any) -> Iterator[str]:
    """Each operation's share of the method's CPU time, and its calls a step, as far as 1%: lines."""
    own = optimizer_of(name, shapes, **options)
    with profile(activities=[ProfilerActivity.CPU]) as traced:
        for _ in range(rounds):
            own.step()
    found = sorted(traced.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in found)
    for event in found:
        if (share := event.self_cpu_time_total / whole) >= 0.01:
            yield f"{event.key:32}{share:7.1%}{event.count / rounds:8.1f} a step"


def table_lines(rows: list[Cost]) -> list[str]:
    """A Markdown table, the cheapest first."""
    head = ["| method | ms a step | of Muon's | state, bytes a parameter | rounds |", "|---|---|---|---|---|"]
    return head + [
        f"| {row.name} | {row.ms:.1f} | {row.of_muon:.2f} | {row.bytes_by_parameter:.1f} | {row.rounds} |"
        for row in sorted(rows, key=lambda row: row.of_muon)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matrices", choices=MATRICES, default="nano")
    parser.add_argument("--rounds", type=int, default=15, help="of Muon's step and the method's in turn")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    parser.add_argument("--parts", choices=sorted(STEPS), help="the operations of this method's step")
    options = parser.parse_args(arguments)
    if options.parts:
        torch.set_num_threads(1)
        for told in OPTIONS.get(options.parts, {}), {}:
            print(f"{options.parts} {told or ''}")
            print(*parts(options.parts, MATRICES[options.matrices], options.rounds, **told), sep="\n")
        return
    names = options.only.split(",") if options.only else sorted(STEPS)
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(STEPS))}")
    torch.set_num_threads(1)
    shapes, rows = MATRICES[options.matrices], []
    for row in costs(names, shapes, options.rounds):
        rows.append(row)
        print(f"{row.name:44}{row.ms:10.1f} ms{row.of_muon:9.2f}{row.bytes_by_parameter:8.1f} B", flush=True)
    if options.table:
        matrices = ", ".join(f"{count} of {m}x{n}" for (m, n), count in shapes.items())
        processor = device_name(torch.device("cpu"))
        machine = f"{processor}, 1 thread, torch {torch.__version__}, CPU time, {date.today()}"
        text = "\n".join([f"# What a step costs: {matrices}\n", f"{machine}.\n", *table_lines(rows)])
        draft = options.table.with_suffix(".partial")
        draft.write_text(text + "\n")
        draft.replace(options.table)


if __name__ == "__main__":
    main()
