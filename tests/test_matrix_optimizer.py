"""MatrixOptimizer: the same weights as separate calls of the step function, on any number of ranks."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from optimizers import STEPS, MatrixOptimizer

SHAPES = [(6, 6), (6, 6), (10, 4), (4, 10), (3, 10, 4), (6, 6), (4, 10)]
MICRO_BATCHES = 12  # divides by 1, 2, 3 and 4 ranks


def parameters(shapes=SHAPES, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def copies(params):
    return [nn.Parameter(param.detach().clone()) for param in params]


def set_gradients(params, step, rank=0, world=1):
    """The mean over this rank's micro-batches of step `step`: the same over all ranks at any world size."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        micro = torch.randn(MICRO_BATCHES, *param.shape, generator=generator, dtype=param.dtype)
        param.grad = micro[rank::world].mean(0)


def train(optimizer, params, steps, rank=0, world=1):
    for step in steps:
        set_gradients(params, step, rank, world)
        optimizer.step()


def largest_difference(params, others):
    return max((a - b).abs().max().item() for a, b in zip(params, others, strict=True))


def grouped(params):
    """Two groups with their own step functions, among them state that is a scalar per matrix."""
    return [
        {"params": params[:4], "neuron_beta2": 0.9},
        {"params": params[4:], "step": "namo_d", "lr": 0.03},
    ]


def group_optimizer(params, **options):
    return MatrixOptimizer(grouped(params), step="muon", lr=0.02, weight_decay=0.01, **options)


# -------------------------------------------------------------------------------------------------
# One process


@pytest.mark.parametrize("step", sorted(STEPS))
def test_equals_a_call_of_the_step_function_for_every_parameter(step):
    params, expected = parameters(), [param.detach() for param in copies(parameters())]
    states = [{} for _ in expected]
    optimizer = MatrixOptimizer(params, step=step, lr=0.01)
    for t in range(3):
        set_gradients(params, t)
        optimizer.step()
        for weight, param, state in zip(expected, params, states, strict=True):
            STEPS[step](weight, param.grad, state, lr=0.01)
    assert largest_difference(params, expected) < 1e-11
    assert optimizer.state[params[4]].keys() == states[4].keys()
    for name, tensor in states[4].items():
        torch.testing.assert_close(optimizer.state[params[4]][name], tensor)


def test_gradients_are_left_as_they_were():
    params = parameters()
    set_gradients(params, 0)
    before = [param.grad.clone() for param in params]
    MatrixOptimizer(params, step="muon").step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))


def test_a_parameter_without_gradient_keeps_weight_and_state():
    params = parameters()
    optimizer = MatrixOptimizer(params, step="muon", weight_decay=0.1)
    train(optimizer, params, [0])
    weight, momentum = params[1].detach().clone(), optimizer.state[params[1]]["momentum"].clone()
    other = params[0].detach().clone()
    set_gradients(params, 1)
    params[1].grad = None
    optimizer.step()
    assert torch.equal(params[1], weight) and torch.equal(optimizer.state[params[1]]["momentum"], momentum)
    assert not torch.equal(params[0], other)


def test_a_parameter_that_joins_later_begins_with_its_own_first_step():
    params = parameters([(6, 6)] * 3)
    optimizer = MatrixOptimizer(params, step="namo", lr=0.01)
    late, state = params[1].detach().clone(), {}
    for t in range(3):
        set_gradients(params, t)
        if t == 0:
            params[1].grad = None
        else:
            STEPS["namo"](late, params[1].grad, state, lr=0.01)
        optimizer.step()
    torch.testing.assert_close(params[1].detach(), late)


def test_a_transposed_stack_of_matrices_is_updated_in_place():
    stored = torch.randn(4, 6, 3, dtype=torch.float64)
    param = nn.Parameter(stored.permute(2, 0, 1))  # [3, 4, 6], not contiguous
    expected = param.detach().clone()
    set_gradients([param], 0)
    STEPS["nora"](expected, param.grad, {}, lr=0.1)
    MatrixOptimizer([param], step="nora", lr=0.1).step()
    torch.testing.assert_close(param.detach(), expected)


def test_accepts_the_step_function_of_a_user_and_a_closure():
    def sign(weight, grad, state, *, lr):
        weight.sub_(lr * grad.sign())

    param = nn.Parameter(torch.zeros(2, 3))
    optimizer = MatrixOptimizer([("layer", param)], step=sign, lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (param - 1).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0
    assert torch.equal(param.detach(), torch.full((2, 3), 0.5))


def test_param_groups_show_every_value_in_effect_and_carry_their_own():
    optimizer = group_optimizer(parameters())
    first, second = optimizer.param_groups
    assert (first["lr"], first["neuron_beta2"], first["momentum"]) == (0.02, 0.9, 0.95)
    assert (second["step"], second["lr"], second["weight_decay"]) == (STEPS["namo_d"], 0.03, 0.01)
    assert "neuron_beta2" not in second and "clip" not in first


def test_learning_rate_schedulers_and_changed_hyperparameters_take_effect():
    params, expected = parameters([(6, 6)]), parameters([(6, 6)])[0].detach()
    optimizer = MatrixOptimizer(params, step="muon", lr=0.1)
    scheduler, state = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), {}
    for t in range(3):
        optimizer.param_groups[0]["momentum"] = 0.9 + 0.01 * t
        set_gradients(params, t)
        STEPS["muon"](expected, params[0].grad, state, lr=0.1 * 0.5**t, momentum=0.9 + 0.01 * t)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(params[0].detach(), expected)


# -------------------------------------------------------------------------------------------------
# What it refuses


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MatrixOptimizer([], step="muon"), ValueError, "empty list"),
        (lambda: MatrixOptimizer([{"params": []}], step="muon"), ValueError, "without parameters"),
        (lambda: MatrixOptimizer([torch.zeros(3)], step="muon"), TypeError, r"shape \(3,\)"),
        (lambda: MatrixOptimizer([torch.zeros(2, 0)], step="muon"), ValueError, "with elements"),
        (
            lambda: MatrixOptimizer([torch.zeros(3, 3).bfloat16()], step="muon"),
            TypeError,
            "keep float32 weights",
        ),
        (lambda: MatrixOptimizer([torch.zeros(3, 3).half()], step="muon"), TypeError, "float16"),
        (lambda: MatrixOptimizer([torch.zeros(3, 3).to_sparse()], step="muon"), TypeError, "dense"),
        (lambda: MatrixOptimizer([[1.0]], step="muon"), TypeError, "type list"),
        (lambda: MatrixOptimizer(parameters(), step="muoon"), ValueError, "'muon'"),
        (lambda: MatrixOptimizer(parameters(), step="muon", momentm=0.9), TypeError, "mean 'momentum'"),
        (lambda: MatrixOptimizer(parameters(), step="muon", beta=1), TypeError, "known: lr, weight_decay"),
        (
            lambda: MatrixOptimizer([{"params": parameters(), "step": "nora", "polar": "svd"}], step="muon"),
            TypeError,
            "nora has no hyperparameter 'polar'",
        ),
    ],
)
def test_refuses_clearly(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_refuses_a_parameter_given_twice_and_leaves_the_optimizer_usable():
    params = parameters()
    with pytest.raises(ValueError, match="given twice"):
        MatrixOptimizer([params[0], params[0]], step="muon")
    optimizer = MatrixOptimizer(params, step="muon")
    with pytest.raises(TypeError, match="float32"):
        optimizer.add_param_group({"params": [torch.zeros(2, 2, dtype=torch.bfloat16)]})
    assert len(optimizer.param_groups) == 1


def test_refuses_sparse_gradients():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        MatrixOptimizer(embedding.parameters(), step="muon").step()


def test_a_required_hyperparameter_must_be_given():
    def step(weight, grad, state, *, lr, strength):
        weight.sub_(lr * strength * grad)

    with pytest.raises(TypeError, match="'strength'"):
        MatrixOptimizer(parameters(), step=step, lr=0.1)


# -------------------------------------------------------------------------------------------------
# State


def test_resumed_run_has_the_same_bits():
    params = parameters(dtype=torch.float32)
    optimizer = group_optimizer(params)
    train(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    resumed = copies(params)
    other = group_optimizer(resumed)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    train(optimizer, params, range(3, 6))
    train(other, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))


def test_state_dict_has_torchs_form_and_the_parameters_shapes():
    params = parameters()
    optimizer = MatrixOptimizer(params, step="muon", lr=0.3)
    train(optimizer, params, [0])
    packed = optimizer.state_dict()
    assert [tuple(packed["state"][i]["momentum"].shape) for i in range(len(SHAPES))] == SHAPES
    assert packed["param_groups"][0]["step"] == "muon" and packed["param_groups"][0]["lr"] == 0.3
    assert packed["param_groups"][0]["params"] == list(range(len(SHAPES)))


def test_loading_keeps_the_tensor_that_a_schedule_fills():
    params, momentum = parameters(), torch.tensor(0.5)
    optimizer = MatrixOptimizer(params, step="muon", momentum=momentum)
    saved = copy.deepcopy(optimizer.state_dict())
    momentum.fill_(0.9)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["momentum"] is momentum and momentum.item() == 0.5


def test_refuses_the_state_of_another_optimizer_and_stays_as_it_was():
    params = parameters()
    optimizer = MatrixOptimizer(params, step="muon")
    train(optimizer, params, [0])
    before = optimizer.state[params[0]]["momentum"].clone()
    with pytest.raises(ValueError, match="nora"):
        optimizer.load_state_dict(MatrixOptimizer(parameters(), step="nora").state_dict())
    with pytest.raises(ValueError, match="muon"):
        optimizer.load_state_dict(MatrixOptimizer(parameters(SHAPES[:2]), step="muon").state_dict())
    wrong = copy.deepcopy(optimizer.state_dict())
    wrong["state"][4]["momentum"] = torch.zeros(2, 10, 4)
    with pytest.raises(ValueError, match="leading dimensions"):
        optimizer.load_state_dict(wrong)
    assert torch.equal(optimizer.state[params[0]]["momentum"], before)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
def test_copied_optimizer_steps_on_its_own(duplicate):
    params = parameters()
    optimizer = group_optimizer(params)
    train(optimizer, params, range(2))
    other = duplicate(optimizer)
    copied = [param for group in other.param_groups for param in group["params"]]
    train(optimizer, params, [2])
    train(other, copied, [2])
    assert all(torch.equal(a, b) for a, b in zip(params, copied, strict=True))


# -------------------------------------------------------------------------------------------------
# Compiling


def test_a_schedule_does_not_recompile():
    params = parameters([(6, 6)] * 2 + [(6, 4)], dtype=torch.float32)
    eager = copies(params)
    momentum = torch.tensor(0.9)
    compiled_optimizer = MatrixOptimizer(params, step="nora", momentum=momentum, compile=True)
    eager_optimizer = MatrixOptimizer(eager, step="nora", momentum=momentum)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for step in range(20):
        momentum.fill_(0.8 + 0.005 * step)
        for optimizer, own in ((compiled_optimizer, params), (eager_optimizer, eager)):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 20)
            train(optimizer, own, [step])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each of the two shapes
    assert largest_difference(params, eager) < 1e-5


# -------------------------------------------------------------------------------------------------
# Several ranks (gloo)


def on_ranks(rank, folder):
    """Trains on 4, then 3, then 2 ranks, so that processes start once; each saves what the tests compare."""
    torch.set_num_threads(1)
    for world in (4, 3, 2):
        if rank >= world:
            break
        store = f"file://{folder}/store{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        results = {"missing": missing_gradients(rank)}
        for reduces in (True, False):
            params = parameters()
            optimizer = group_optimizer(params, reduce_gradients=reduces)
            share = (rank, world) if reduces else (0, 1)
            train(optimizer, params, range(3), *share)
            state = optimizer.state_dict()
            train(optimizer, params, range(3, 6), *share)
            results[reduces] = {"weights": [param.detach() for param in params], "state": state}
        results["state elements"] = sum(t.numel() for s in optimizer.state.values() for t in s.values())
        if world == 2:
            four = torch.load(f"{folder}/4-0.pt", weights_only=True)
            params = [nn.Parameter(weight) for weight in torch.load(f"{folder}/alone3.pt")]
            optimizer = group_optimizer(params)
            optimizer.load_state_dict(four[True]["state"])
            train(optimizer, params, range(3, 6), rank, world)
            results["resumed"] = [param.detach() for param in params]
        torch.save(results, f"{folder}/{world}-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()


def missing_gradients(rank):
    """One step where the first parameter has a gradient on rank 0 only, the second on no rank."""
    params = parameters([(6, 6)] * 3)
    set_gradients(params, 0)
    params[1].grad = None
    if rank > 0:
        params[0].grad = None
    MatrixOptimizer(params, step="adamw", lr=0.1, eps=1.0).step()
    return [param.detach() for param in params]


@pytest.fixture(scope="module")
def alone():
    """Weights after 3 and 6 steps and the state after 3, of one process."""
    params = parameters()
    optimizer = group_optimizer(params)
    train(optimizer, params, range(3))
    at3, state = [param.detach().clone() for param in params], copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, range(3, 6))
    return {"weights3": at3, "state": state, "weights": [param.detach() for param in params]}


@pytest.fixture(scope="module")
def ranks(alone, tmp_path_factory):
    """ranks[world][rank]: what each process of on_ranks saved."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(alone["weights3"], folder / "alone3.pt")
    multiprocessing.spawn(on_ranks, (str(folder),), nprocs=4)
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for world in (2, 3, 4)
    }


@pytest.mark.parametrize("reduces", [True, False])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_reach_the_weights_of_one_process(ranks, alone, world, reduces):
    for results in ranks[world]:
        assert largest_difference(results[reduces]["weights"], alone["weights"]) < 1e-12


@pytest.mark.parametrize("world", [2, 3, 4])
def test_all_ranks_hold_the_same_bits(ranks, world):
    first, *others = [results[True]["weights"] for results in ranks[world]]
    for weights in others:
        assert all(torch.equal(a, b) for a, b in zip(first, weights, strict=True))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_rank_gets_the_whole_state(ranks, alone, world):
    for results in ranks[world]:
        assert results[True]["state"].keys() == alone["state"].keys()
        torch.testing.assert_close(results[True]["state"]["state"], alone["state"]["state"])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_state_evenly(ranks, world):
    held = [results["state elements"] for results in ranks[world]]
    whole = sum(t.numel() for state in ranks[4][0][True]["state"]["state"].values() for t in state.values())
    assert sum(held) == whole and max(held) < 1.5 * whole / world


def test_state_saved_by_four_ranks_continues_on_two_and_on_one(ranks, alone):
    for results in ranks[2]:
        assert largest_difference(results["resumed"], alone["weights"]) < 1e-12
    params = [nn.Parameter(weight.clone()) for weight in alone["weights3"]]
    optimizer = group_optimizer(params)
    optimizer.load_state_dict(ranks[4][0][True]["state"])
    train(optimizer, params, range(3, 6))
    assert largest_difference(params, alone["weights"]) < 1e-12


@pytest.mark.parametrize("world", [2, 3, 4])
def test_a_missing_gradient_counts_as_zero_unless_no_rank_has_one(ranks, world):
    params = parameters([(6, 6)] * 3)
    set_gradients(params, 0)
    params[0].grad /= world
    params[1].grad = None
    before = params[1].detach().clone()
    MatrixOptimizer(params, step="adamw", lr=0.1, eps=1.0).step()
    for results in ranks[world]:
        assert largest_difference(results["missing"], params) < 1e-12
        assert torch.equal(results["missing"][1], before)
