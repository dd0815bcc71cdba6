"""What a whole step of each recipe costs beside Muon's: forward, backward and everything that updates.

    python -m tests.benchmarks.recipe_costs [--recipes row_floor,bimaxwell] [--rounds 20] [--table FILE.md]

Steps each recipe of track nano and the recipe `muon` in turn, one thread, eager, in the last tenth of the
run, where all that a recipe switches on is on. Milliseconds are CPU time, which leaves out what the processor
gave to other work: the mean over the rounds, since some steps of a recipe do more than others. `update` is
the part of it that is neither forward nor backward. Bytes are those of all optimizers' states, by parameter.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optimizers.world import World, device_name
from records.run.recipe import Recipe
from records.run.recipe_files import shipped_recipes
from records.run.track import RECORDS
from train_gpt import (
    apply_update,
    build_optimizers,
    compute_gradients,
    load_recipe,
    make_model,
    set_learning_rates,
)

ALONE = World(0, 1, torch.device("cpu"))
BEGINNINGS = ("start", "apply", "first", "second")  # keys of updates at which something begins


def beginnings(table: dict) -> set[int]:
    """The updates before and at which something in a recipe's tables begins."""
    found: set[int] = set()
    for key, value in table.items():
        if isinstance(value, dict):
            found |= beginnings(value)
        elif key in BEGINNINGS and isinstance(value, int):
            found |= {max(value - 1, 0), value}
    return found


class Training:
    """A recipe's training, brought to its last tenth by way of the updates at which something begins."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, track = recipe, recipe.track
        self.model = make_model(recipe, 0, ALONE.device, False)
        self.optimizers = build_optimizers(self.model, recipe, False)
        rows = track.batch_tokens // track.context
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, track.vocab_size, (rows, track.context + 1), generator=generator)
        self.batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.micro_batch = rows // recipe.micro_batches()
        self.update = int(0.9 * recipe.train_steps)
        around = beginnings({"around": recipe.around, "readout": recipe.readout})
        for update in sorted(at for at in {0, 1} | around if at < self.update):
            self.step(update)

    def step(self, update: int) -> tuple[float, float]:
        """CPU seconds of an update: of all, and of all but forward and backward."""
        began = time.process_time()
        set_learning_rates(self.optimizers, self.recipe, update)
        set_up = time.process_time()
        compute_gradients(self.model, self.optimizers, self.batch, self.micro_batch, ALONE)
        ready = time.process_time()
        apply_update(self.optimizers)
        ended = time.process_time()
        return ended - began, ended - ready + set_up - began

    def next_step(self) -> tuple[float, float]:
        """The same of the next update."""
        self.update += 1
        return self.step(self.update - 1)

    def state_bytes(self) -> int:
        """Of all optimizers' state tensors."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class RecipeCost:
    """A recipe's step: CPU ms of all and of the update, both beside the recipe muon's, and state's bytes."""

    name: str
    ms: float
    of_muon: float
    update_ms: float
    update_of_muon: float
    bytes_by_parameter: float


def recipe_cost(name: str, rounds: int) -> RecipeCost:
    """Measured in turn with the recipe muon, after the updates at which something begins."""
    muon, own = (Training(load_recipe(RECORDS / "nano" / f"{one}.toml")) for one in ("muon", name))
    times = torch.tensor([(*own.next_step(), *muon.next_step()) for _ in range(rounds)], dtype=torch.float64)
    all_own, update_own, all_muon, update_muon = (1000 * times.mean(0)).tolist()
    parameters = sum(p.numel() for p in own.model.parameters())
    return RecipeCost(name, all_own, all_own / all_muon, update_own, update_own / update_muon,
                      own.state_bytes() / parameters)  # fmt: skip


def recipe_costs(names: list[str], rounds: int) -> Iterator[RecipeCost]:
    """One after the other, each told as it is measured."""
    for name in names:
        row = recipe_cost(name, rounds)
        print(f"{row.name:28}{row.ms:9.1f} ms{row.of_muon:7.2f}{row.update_ms:9.1f} ms"
              f"{row.update_of_muon:7.2f}{row.bytes_by_parameter:7.1f} B", flush=True)  # fmt: skip
        yield row


def table_lines(rows: list[RecipeCost]) -> list[str]:
    """A Markdown table, the cheapest first."""
    head = ["| recipe | ms a step | of muon's | update, ms | of muon's | state, bytes a parameter |",
            "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    return head + [
        f"| {row.name} | {row.ms:.1f} | {row.of_muon:.2f} | {row.update_ms:.1f} | {row.update_of_muon:.2f} "
        f"| {row.bytes_by_parameter:.1f} |"
        for row in sorted(rows, key=lambda row: row.of_muon)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.recipe_costs")
    known = list(shipped_recipes(RECORDS / "nano"))
    parser.add_argument("--recipes", help="names, separated by commas; default: all of track nano")
    parser.add_argument("--rounds", type=int, default=20, help="steps of the recipe and of muon in turn")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    names = options.recipes.split(",") if options.recipes else known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    torch.set_num_threads(1)
    rows = list(recipe_costs(names, options.rounds))
    if options.table:
        machine = f"{device_name(ALONE.device)}, 1 thread, eager, torch {torch.__version__}, CPU time"
        options.table.write_text(
            "\n".join([f"# What a step of each nano recipe costs\n\n{machine}.\n", *table_lines(rows)]) + "\n"
        )


if __name__ == "__main__":
    main()
