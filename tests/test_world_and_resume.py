"""Methods, and all that recipes have around an update, on several ranks and after a checkpoint: the same."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from optimizers import AROUND, STEPS, MatrixOptimizer
from optimizers.around.around import read_losses
from optimizers.around.gradients import InputNewton
from optimizers.around.outer_nesterov import OuterNesterov
from optimizers.world import World
from records.run.effective import parse_recipe
from records.run.recipe import Recipe
from records.run.track import shipped_tracks
from tests.runs import on_ranks
from train_gpt import GPT, apply_update, build_optimizers, compute_gradients, distributed, set_learning_rates

IDENTITY = {"start": "identity"}
METHODS: dict[str, dict[str, Any]] = {
    "sinksoap": {}, "soaph": IDENTITY, "klsoaph": IDENTITY, "pmuon": {},
    "muown": {"contra": 0.4, "growth": 0.5},
    "dynmuon": {"power": -0.25}, "shampoo_adam": {"root_eps": 1e-12, "refresh_every": 2}, "psgd_kron": {},
}  # fmt: skip
MICRO_BATCHES = 4

VOCABULARY, ROWS, TIME, UPDATES, KILLED_AT = 32, 8, 16, 10, 7
ALONE = World(0, 1, torch.device("cpu"))
HEAD = 'track = "nano"\ntrain_steps = 10\n'
RECIPES = {  # between them everything in AROUND, and the memories that look far back
    "record": """
        lookahead = { strength = 0.3, start = 2, stop = 8, decay = 0.9, scaled_by = "embed_before" }
        around.head_kfac = { params = ["proj.weight"], start = 2, apply = 3, stop = 9, every = 2 }
        around.beyond = { kind = "extrapolated_gradient", average = "average", strength = 0.45 }
        readout.average = { start = 5, tau = 2, "proj.weight".blend = 0.8 }
        readout.velocity = { params = ["mlp.*.weight"], start = 4, factor = 2.0 }
        [matrix]
        step = "muon"
        memory = "bimaxwell"
        begin = 2
        precondition = "soap"
        start = "diagonal"
        refresh_every = 1
        norm = "schatten4"
        eps_rule = "clamp"
        row_floor = 0.3825
        radial_brake = 0.5
        weight_decay = 0.025
        cautious = true
        decay_last = true
        [aux]
        "*bias" = { bias_correction = false, betas = [0.8, 0.97] }
        "embed.weight".master = true
        """,
    "circuit": """
        around.pulses = { start = 2, every = 3, stop = 9, strength = 0.3 }
        around.rre = { params = ["*.weight"], start = 1, stop = 9, every = 4 }
        readout.phase = { first = 3, second = 5, since = 8 }
        [matrix]
        step = "muon"
        memory = "kmaxwell"
        averages = 3
        begin = 2
        age = 20.0
        "attn.proj" = { step = "muon" }
        "attn.v" = { couple = "attn.proj" }
        """,
    "isomuon": """
        around.gradient_noise = { params = ["attn.*.weight", "mlp.*.weight"], micro_batches = 8 }
        around.outer_nesterov = { every = 3 }
        [matrix]
        step = "isomuon"
        """,
    "maxent": """
        around.input_newton = { params = ["attn.*.weight", "mlp.*.weight"], every = 2 }
        around.mean_gradient = { tokens = 128 }
        [matrix]
        step = "muonh"
        [matrix."attn.q"]
        memory = "maxent"
        precondition = "radial_reset"
        begin = 2
        reset_begin = 2
        late = 0.5
        """,
}  # fmt: skip


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


def recipe_of(name: str) -> Recipe:
    return parse_recipe(HEAD + RECIPES[name], name, shipped_tracks(), STEPS, arounds=AROUND)


def batch_of(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """This rank's rows of step's batch."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (2, ROWS, TIME), generator=generator)
    share = ROWS // world
    return tuple(tokens[:, rank * share : (rank + 1) * share])  # type: ignore[return-value]


def recipe_trained(name: str, world: World, steps: range = range(UPDATES), saved: dict | None = None) -> dict:
    """Weights, optimizers' states and losses after these updates; `saved` is what earlier ones returned."""
    recipe, model = recipe_of(name), GPT(VOCABULARY, 2, 32, 16, TIME).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.proj.weight, std=0.1)
    net, optimizers = distributed(model, world), build_optimizers(model, recipe)
    if saved:
        for part, state in zip([model, *optimizers], [saved["model"], *saved["optimizers"]], strict=True):
            part.load_state_dict(copy.deepcopy(state))
    micro_batch = 1 if "gradient_noise" in recipe.around else ROWS // world.size
    for step in steps:
        set_learning_rates(optimizers, recipe, step)
        compute_gradients(net, optimizers, batch_of(step, world.rank, world.size), micro_batch, world)
        apply_update(optimizers)
    tokens = batch_of(100, 0, 1)
    with torch.no_grad():
        losses, _ = read_losses(optimizers, lambda: model(*tokens).item())
    state: dict[str, Any] = {"model": model.state_dict(), "losses": losses}
    return copy.deepcopy(state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]})


def save_on_ranks(rank: int, folder: str, world: int) -> None:
    """Trains each method and recipe on so many ranks; the first saves what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    weights = {name: trained(name, range(5), rank, world)["net"] for name in METHODS}
    here = World(rank, world, ALONE.device)
    recipes = {name: recipe_trained(name, here) for name in RECIPES}
    if rank == 0:
        torch.save({"weights": weights, "recipes": recipes}, f"{folder}/saved.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of several ranks: `weights` by method, inside Newton-Muon and MuLoCo, and `recipes`."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(partial(save_on_ranks, world=request.param), folder, request.param)
    return torch.load(folder / "saved.pt", weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_ranks_reach_the_weights_of_one_process(ranks, name):
    expected = trained(name, range(5))["net"]
    for key, value in ranks["weights"][name].items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_goes_on_bit_for_bit(name):
    whole = trained(name, range(7))["net"]
    resumed = trained(name, range(4, 7), state=trained(name, range(4)))["net"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    """What one process trains of each recipe."""
    return {name: recipe_trained(name, ALONE) for name in RECIPES}


def test_no_mechanism_is_left_out() -> None:
    recipes = [recipe_of(name) for name in RECIPES]
    assert {table["kind"] for one in recipes for table in one.surroundings().values()} == set(AROUND)


@pytest.mark.parametrize("name", RECIPES)
def test_ranks_train_and_read_out_as_one_process(ranks: dict, alone: dict[str, dict], name: str) -> None:
    found, expected = ranks["recipes"][name], alone[name]
    for key, value in expected["model"].items():
        torch.testing.assert_close(found["model"][key], value, rtol=0, atol=1e-8, msg=key)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-9)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_checkpoint_goes_on_bit_for_bit(alone: dict[str, dict], name: str) -> None:
    saved = recipe_trained(name, ALONE, range(KILLED_AT))
    resumed = recipe_trained(name, ALONE, range(KILLED_AT, UPDATES), saved)
    assert all(torch.equal(value, resumed["model"][key]) for key, value in alone[name]["model"].items())
    assert resumed["losses"] == alone[name]["losses"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_of_several_ranks_goes_on_in_one(ranks: dict, alone: dict[str, dict], name: str) -> None:
    resumed = recipe_trained(name, ALONE, range(UPDATES, UPDATES + 1), ranks["recipes"][name])
    went_on = recipe_trained(name, ALONE, range(UPDATES, UPDATES + 1), alone[name])
    assert resumed["losses"] == pytest.approx(went_on["losses"], rel=1e-9)
