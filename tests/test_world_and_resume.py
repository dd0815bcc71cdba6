"""The published methods on several ranks, and after a checkpoint: the same training."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from optimizers import MatrixOptimizer
from optimizers.around.gradients import InputNewton
from optimizers.around.outer_nesterov import OuterNesterov

IDENTITY = {"start": "identity"}
METHODS: dict[str, dict[str, Any]] = {
    "sinksoap": {}, "soaph": IDENTITY, "klsoaph": IDENTITY, "pmuon": {},
    "muown": {"contra": 0.4, "growth": 0.5},
    "dynmuon": {"power": -0.25}, "shampoo_adam": {"root_eps": 1e-12, "refresh_every": 2}, "psgd_kron": {},
}  # fmt: skip
WORLDS = (4, 2)
MICRO_BATCHES = 4


class Net(nn.Module):
    """Layers of three shapes, so that ranks own unlike matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.fc, self.proj = (nn.Linear(*size).double() for size in ((6, 6), (6, 12), (12, 6)))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.fc(self.q(x)).relu()).square().sum()


def set_gradients(net: Net, step: int, rank: int, world: int) -> None:
    """Of the mean over this rank's micro-batches, then over the ranks."""
    net.zero_grad()
    micro = torch.randn(MICRO_BATCHES, 30, 6, generator=torch.Generator().manual_seed(step)).double()
    for x in micro[rank::world]:
        (net(x) / len(micro[rank::world])).backward()
    for p in net.parameters() if world > 1 else ():
        dist.all_reduce(p.grad)
        assert p.grad is not None
        p.grad /= world


def trained(name: str, steps: range, rank: int = 0, world: int = 1, state: dict | None = None) -> dict:
    """The weights and optimizers' states after some updates; `state` is what such a training returned."""
    net = Net()
    matrices = [(key, p) for key, p in net.named_parameters() if p.ndim == 2]
    weights = [p for _, p in matrices]
    newton, outer = InputNewton(weights, every=2), OuterNesterov(weights, every=3)
    matrix = MatrixOptimizer(matrices, step=name, reduce_gradients=False, **METHODS[name])
    for around in (newton, outer):
        around.attach(net, {})
    if state:
        net.load_state_dict(state["net"])
        for optimizer, saved in zip((newton, matrix, outer), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    for step in steps:
        for group in newton.param_groups + outer.param_groups:
            group["update"] = step
        newton.before_gradient()
        set_gradients(net, step, rank, world)
        newton.after_gradient()
        matrix.step()
        outer.step()
    packed = [optimizer.state_dict() for optimizer in (newton, matrix, outer)]
    return copy.deepcopy({"net": net.state_dict(), "optimizers": packed})


def on_ranks(rank: int, folder: str) -> None:
    """Trains each method on 4 ranks, then on 2; rank 0 saves the weights."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank >= world:
            break
        store = f"file://{folder}/store{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        weights = {name: trained(name, range(5), rank, world)["net"] for name in METHODS}
        if rank == 0:
            torch.save(weights, f"{folder}/{world}.pt")
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """weights[world][method] after 5 updates inside Newton-Muon and MuLoCo."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(on_ranks, (str(folder),), nprocs=4)
    return {world: torch.load(folder / f"{world}.pt", weights_only=True) for world in WORLDS}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_reach_the_weights_of_one_process(weights, name, world):
    alone = trained(name, range(5))["net"]
    for key, value in weights[world][name].items():
        torch.testing.assert_close(value, alone[key], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_goes_on_bit_for_bit(name):
    whole = trained(name, range(7))["net"]
    resumed = trained(name, range(4, 7), state=trained(name, range(4)))["net"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
