"""Instruments around a training: what is written beside the log, on two ranks and after a resume too."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from optimizers import MatrixOptimizer
from optimizers.observer import Observer
from records.run.instrument_log import MOST_NEURONS, InstrumentLog, read_neurons, read_numbers
from tests.runs import on_ranks


class Net(nn.Module):
    """Two layers, the units between them cut off at zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.proj = (nn.Linear(*size, bias=False).double() for size in ((5, 9), (9, 5)))
        self.fc.weight.data[:3] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.fc(x).relu())


def train(log: Path, steps: range, rank: int = 0, world: int = 1) -> None:
    """Updates with a gradient that is the same on every rank; each sees its part of the validation tokens."""
    net = Net()
    optimizer = MatrixOptimizer(net.named_parameters(), step="muon", reduce_gradients=False)
    writer = InstrumentLog(log, seed=4, measurements=3)
    observer = Observer([optimizer], {"mlp": net.proj}, 2, writer.write)
    tokens = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).double()
    for step in steps:
        with observer.validating(step), torch.no_grad():
            net(tokens[rank::world])
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).double()
        with observer.updating(step):
            optimizer.step()


def save_on_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    train(Path(folder) / "two.txt", range(5), rank, 2)
    dist.destroy_process_group()


def test_lines_stand_at_every_second_step_for_each_matrix_and_layer(tmp_path):
    train(tmp_path / "one.txt", range(5))
    lines = read_numbers(tmp_path / "one.txt")
    assert {(line["step"], line["name"]) for line in lines} == {
        (step, name) for step in (0, 2, 4) for name in ("fc.weight", "proj.weight", "mlp")
    }
    (first,) = [line for line in lines if (line["step"], line["name"]) == (0, "mlp")]
    assert (first["units"], first["dead"]) == (9, 3)
    by_step = read_neurons(tmp_path / "one.txt")[4, "fc.weight", "weight"]
    assert list(by_step) == [0, 2, 4] and by_step[0].shape == (9,)


def test_two_ranks_find_what_one_does(tmp_path):
    train(tmp_path / "one.txt", range(5))
    on_ranks(save_on_ranks, tmp_path, 2)
    alone, together = (read_numbers(tmp_path / name) for name in ("one.txt", "two.txt"))
    assert len(alone) == len(together) == 9
    for one, two in zip(alone, together, strict=True):
        assert one.pop("name") == two.pop("name")
        assert {key for key in one if one[key] is None} == {key for key in two if two[key] is None}
        one, two = ({key: value for key, value in each.items() if value is not None} for each in (one, two))
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9)


def test_repeated_steps_count_once_and_a_damaged_file_is_begun_anew(tmp_path):
    log = tmp_path / "one.txt"
    train(log, range(5))
    before = read_numbers(log)
    with log.with_suffix(".instruments.jsonl").open("a") as file:
        file.write('{"seed": 4, "st')
    damaged = log.with_suffix(".instruments.npz")
    whole = damaged.read_bytes()
    for content in (whole[:100], whole[:100] + bytes(200) + whole[300:]):
        damaged.write_bytes(content)
        read_neurons(log)  # never an error
    damaged.write_bytes(whole[:100])
    assert read_neurons(log) == {}
    train(log, range(1))
    assert len(read_numbers(log)) == len(before)
    assert list(read_neurons(log)[4, "mlp", "activation"]) == [0]


def test_neurons_that_would_not_fit_are_left_out(tmp_path):
    log = InstrumentLog(tmp_path / "one.txt", seed=0, measurements=MOST_NEURONS // 10)
    log.write(0, {}, {"small": {"weight": np.ones(8)}, "large": {"weight": np.ones(11)}})
    assert list(read_neurons(tmp_path / "one.txt")) == [(0, "small", "weight")]
