"""MatrixOptimizer: the same weights as separate calls of the step function, on any number of ranks."""

import copy
import io
import pickle
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from optimizers import STEPS, MatrixOptimizer
from optimizers.matrix_optimizer import state_shapes
from optimizers.stages.circuit import circuit
from tests.runs import compiled_by, on_ranks

SHAPES = [(6, 6), (6, 6), (10, 4), (4, 10), (3, 10, 4), (6, 6), (4, 10)]
PAIRS = [(8, 6)] * 3 + [(6, 8)] * 3  # value matrices of 2 heads, and the output matrices behind them
SOAP = {"start": "diagonal", "refresh_every": 2}
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
    """Groups with their own step functions, among them state that is a scalar per matrix; and a pair."""
    return [
        {"params": params[:4], "neuron_beta2": 0.9},
        {"params": params[4:7], "step": "namo_d", "lr": 0.03},
        {"params": params[7:10], "couple": "outputs", "head_dim": 4, "step": "soap_muon", **SOAP},
        {"params": params[10:], "name": "outputs"},
    ]


def group_optimizer(params, **options):
    return MatrixOptimizer(grouped(params), step="muon", lr=0.02, weight_decay=0.01, **options)


# -------------------------------------------------------------------------------------------------
# One process


# Bases of one gradient are arbitrary in part: these start from the identity. psgd_kron draws by a matrix's
# own seed, which MatrixOptimizer gives it (test_probes.py).
WELL_DETERMINED = dict.fromkeys(("klsoaph", "soaph", "pmuon"), {"start": "identity"})


@pytest.mark.parametrize("step", sorted(STEPS.keys() - {"psgd_kron"}))
def test_equals_a_call_of_the_step_function_for_every_parameter(step):
    options = WELL_DETERMINED.get(step, {})
    params, expected = parameters(), [param.detach() for param in copies(parameters())]
    states = [{} for _ in expected]
    optimizer = MatrixOptimizer(params, step=step, lr=0.01, **options)
    for t in range(3):
        set_gradients(params, t)
        optimizer.step()
        for weight, param, state in zip(expected, params, states, strict=True):
            STEPS[step](weight, param.grad, state, lr=0.01, **options)
    assert largest_difference(params, expected) < 1e-11
    assert optimizer.state[params[4]].keys() == states[4].keys()
    for name in states[4].keys() - {"seed"}:
        torch.testing.assert_close(optimizer.state[params[4]][name], states[4][name])


def test_coupled_groups_step_as_circuit_muon():
    params = parameters(PAIRS)
    groups = [{"params": params[:3], "couple": "out", "head_dim": 4}, {"params": params[3:], "name": "out"}]
    optimizer = MatrixOptimizer(groups, step="muon", lr=0.1)
    for V, O, t in zip(params[:3], params[3:], range(3), strict=True):  # noqa: E741
        for param in params:
            param.grad = None
        set_gradients([V, O], t)
        start, directions = (V.detach().clone(), O.detach().clone()), []
        for weight in (V, O):
            after = weight.detach().clone()
            STEPS["muon"](after, weight.grad, {}, lr=1.0)
            directions.append(weight.detach() - after)
        optimizer.step()  # the pairs without a gradient stay where they are
        for weight, before, U in zip((V, O), start, circuit(*start, *directions, 4), strict=True):
            torch.testing.assert_close(weight.detach(), before - 0.1 * U)
    V.grad, before = None, O.detach().clone()
    optimizer.step()
    assert torch.equal(O, before)


def test_a_pair_that_does_not_fit_is_refused():
    groups = [{"params": [nn.Parameter(torch.ones(4, 2))], "couple": "out", "head_dim": 2, "name": "v"}]
    with pytest.raises(ValueError, match="expected 1 equal matrices in one group named 'out'.*found none"):
        MatrixOptimizer(groups, step="muon").step()
    groups += [{"params": [nn.Parameter(torch.ones(4, 2))], "name": "out"}]
    for group in groups:
        group["params"][0].grad = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"found \(4, 2\) and \(4, 2\)"):
        MatrixOptimizer(groups, step="muon").step()


def test_what_is_due_by_the_count_of_steps_is_due_on_every_way():
    params = parameters([(6, 6)] * 3)
    late, state, optimizer = params[1].detach().clone(), {}, None
    for t in range(7):
        if t in (0, 4):  # a new optimizer goes on from the state of the old one
            packed = optimizer and optimizer.state_dict()
            optimizer = MatrixOptimizer(params, step="soap_muon", refresh_every=2)
            _ = packed and optimizer.load_state_dict(packed)
        set_gradients(params, t)
        if t == 0:
            params[1].grad = None
        else:
            STEPS["soap_muon"](late, params[1].grad, state, refresh_every=2)
        optimizer.step()
    torch.testing.assert_close(params[1].detach(), late)


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
    optimizer = group_optimizer(parameters([*SHAPES, *PAIRS]))
    first, second, values, _ = optimizer.param_groups
    assert (first["lr"], first["neuron_beta2"], first["momentum"]) == (0.02, 0.9, 0.95)
    assert (second["step"], second["lr"], second["weight_decay"]) == (STEPS["namo_d"], 0.03, 0.01)
    assert "neuron_beta2" not in second and "clip" not in first
    assert (values["couple"], values["head_dim"], values["refresh_every"]) == ("outputs", 4, 2)


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


@pytest.mark.parametrize(
    "shape",
    [
        (8, 3, 3, 3),
        (8, 4, 1, 1),
        (64, 32, 3),
        (16, 1, 4),
        (5, 1, 1),
        (7, 1, 9),
        (768, 3, 16, 16),
        (4, 2, 3, 3, 3),
    ],
)
def test_kernels_and_scales_are_no_stacks_of_matrices(shape):
    with pytest.raises(ValueError, match=f"parameter 0 of shape {re.escape(str(shape))}.*flatten=True"):
        MatrixOptimizer([torch.zeros(shape)], step="muon")
    with pytest.raises(ValueError, match=r"kernel\.weight of shape"):
        MatrixOptimizer([("kernel.weight", torch.zeros(shape))], step="muon")
    MatrixOptimizer([torch.zeros(shape)], step="muon", flatten=False)


@pytest.mark.parametrize("shape", [(3, 10, 4), (8, 64, 16), (2, 3, 20, 4), (6, 6)])
def test_stacks_of_matrices_need_no_word(shape):
    MatrixOptimizer([torch.zeros(shape)], step="muon")


def test_a_flattened_kernel_is_stepped_as_one_matrix():
    kernel, linear = parameters([(6, 3, 2, 2), (4, 4)])
    expected, state = kernel.detach().clone().flatten(1), {}
    groups = [{"params": [kernel], "flatten": True}, {"params": [linear]}]
    optimizer = MatrixOptimizer(groups, step="normuon", lr=0.1)
    for t in range(2):
        set_gradients([kernel, linear], t)
        STEPS["normuon"](expected, kernel.grad.flatten(1), state, lr=0.1)
        optimizer.step()
    torch.testing.assert_close(kernel.detach().flatten(1), expected)
    assert optimizer.state[kernel]["momentum"].shape == (6, 12)
    other = MatrixOptimizer([{"params": [kernel], "flatten": True}, {"params": [linear]}], step="normuon")
    other.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(other.state[kernel]["momentum"], state["momentum"])


def test_a_kernel_that_cannot_be_seen_as_a_matrix_is_refused():
    kernel = torch.zeros(6, 3, 2, 2).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="channels_last"):
        MatrixOptimizer([kernel], step="muon", flatten=True)


def test_a_replicated_dtensor_is_stepped_and_a_cut_one_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        (plain,) = parameters([(6, 4)])
        whole, cut = (
            nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, [place]))
            for place in (Replicate(), Shard(0))
        )
        with pytest.raises(TypeError, match="DTensor cut over ranks"):
            MatrixOptimizer([cut], step="muon")
        set_gradients([plain], 0)
        whole.grad = distribute_tensor(plain.grad, mesh, [Replicate()])
        for param in (plain, whole):
            MatrixOptimizer([param], step="muon").step()
        torch.testing.assert_close(whole.to_local(), plain)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
def test_weights_converted_after_construction_are_named_at_the_step(convert, steps_before):
    model = nn.Linear(4, 6, bias=False)
    optimizer = MatrixOptimizer(model.named_parameters(), step="muon")
    for t in range(steps_before):
        train(optimizer, [model.weight], [t])
    convert(model)
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.raises(
        TypeError, match=r"expected .*float32.* found .*weight|expected weight to stay \(6, 4\)"
    ):
        optimizer.step()


def test_weights_of_another_precision_after_a_step_are_named():
    model = nn.Linear(4, 6, bias=False)
    optimizer = MatrixOptimizer(model.parameters(), step="muon")
    train(optimizer, [model.weight], [0])
    model.double()
    set_gradients([model.weight], 1)
    with pytest.raises(TypeError, match=r"parameter 0 to stay \(6, 4\), torch.float32.*found.*float64"):
        optimizer.step()


# -------------------------------------------------------------------------------------------------
# State


def test_resumed_run_has_the_same_bits():
    params = parameters([*SHAPES, *PAIRS], dtype=torch.float32)
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
    ("change", "told"),
    [
        (lambda state: state.pop("momentum"), "found {"),
        (lambda state: state.update(momentum=torch.zeros(4, 4)), r"\(6, 8\).*found.*\(4, 4\)"),
        (lambda state: state.update(momentum=3.0), "found float"),
    ],
)
def test_state_of_another_shape_is_refused_at_load(change, told):
    (param,) = parameters([(6, 8)])
    optimizer = MatrixOptimizer([("w", param)], step="muon")
    train(optimizer, [param], [0])
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"][0])
    with pytest.raises(ValueError, match=f"state of w, of shape .*{told}"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_steps_state_is_known_without_data(name):
    """Its own state loads; a stranger's is told at once."""
    params = parameters([(6, 8), (3, 10, 4)])
    optimizer = MatrixOptimizer(params, step=name, lr=0.01)
    train(optimizer, params, [0])
    for param in params:
        kept = {key: tuple(tensor.shape) for key, tensor in optimizer.state[param].items()}
        assert state_shapes(param, optimizer.param_groups[0]) == kept


@pytest.mark.parametrize(
    "state",
    [
        torch.optim.SGD([torch.zeros(2, 2)]).state_dict(),
        {},
        [],
        {"state": {}, "param_groups": {}},
        {"state": {0: 1}, "param_groups": []},
        {"state": {}, "param_groups": [{"step": "muon"}]},
    ],
)
def test_what_is_no_state_of_this_optimizer_is_refused(state):
    with pytest.raises(ValueError, match="expected a state_dict of MatrixOptimizer"):
        MatrixOptimizer(parameters([(2, 2)]), step="muon").load_state_dict(state)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
def test_copied_optimizer_steps_on_its_own(duplicate):
    params = parameters([*SHAPES, *PAIRS])
    optimizer = group_optimizer(params)
    train(optimizer, params, range(2))
    other = duplicate(optimizer)
    copied = [param for group in other.param_groups for param in group["params"]]
    train(optimizer, params, [2])
    train(other, copied, [2])
    assert all(torch.equal(a, b) for a, b in zip(params, copied, strict=True))


# -------------------------------------------------------------------------------------------------
# Compiling


@pytest.mark.filterwarnings("ignore")
def test_step_may_stand_in_compiled_code_from_the_first_on():
    (param,), (eager,) = parameters([(6, 6)]), parameters([(6, 6)])
    optimizer = MatrixOptimizer([param], step="muon")
    step = torch.compile(optimizer.step, backend="eager")
    for t in range(2):
        set_gradients([param], t)
        step()
    train(MatrixOptimizer([eager], step="muon"), [eager], range(2))
    assert torch.equal(param, eager)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_schedule_does_not_recompile(monkeypatch, backend):
    compiled_by(backend, monkeypatch)
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


def save_on_ranks(rank, folder):
    """Trains on 4, then 3, then 2 ranks, so that processes start once; each saves what the tests compare."""
    torch.set_num_threads(1)
    for world in (4, 3, 2):
        if rank >= world:
            break
        store = f"file://{folder}/store{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        results = {"missing": missing_gradients(rank)}
        if world == 4:
            results |= {"pair": in_pairs(rank), "refusals": refusals(rank)}
        for reduces in (True, False):
            params = parameters([*SHAPES, *PAIRS])
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


def in_pairs(rank):
    """Three steps and the state of two models, one on ranks 0 and 1, one on ranks 2 and 3."""
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    params = parameters([*SHAPES, *PAIRS], seed=rank // 2)
    optimizer = group_optimizer(params, process_group=pair)
    train(optimizer, params, range(3), rank % 2, 2)
    return {"weights": [param.detach() for param in params], "state": optimizer.state_dict()["state"]}


def refusals(rank):
    """What ranks are told that hold other parameters, or a group that is not theirs."""
    told = []
    others = dist.new_group([0, 1])
    shapes, seed = [(6, 6), (4, 6)], rank // 2
    for params, group in (
        (parameters(shapes[: 1 + rank % 2]), None),
        (parameters(shapes, seed=seed), None),
        (parameters(shapes), others if rank > 1 else None),
    ):
        if group is None and told[1:]:
            continue
        set_gradients(params, 0)
        try:
            MatrixOptimizer(params, step="muon", process_group=group).step()
        except RuntimeError as error:
            told.append(str(error))
    return told


@pytest.fixture(scope="module")
def alone():
    """Weights after 3 and 6 steps and the state after 3, of one process."""
    params = parameters([*SHAPES, *PAIRS])
    optimizer = group_optimizer(params)
    train(optimizer, params, range(3))
    at3, state = [param.detach().clone() for param in params], copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, range(3, 6))
    return {"weights3": at3, "state": state, "weights": [param.detach() for param in params]}


@pytest.fixture(scope="module")
def ranks(alone, tmp_path_factory):
    """ranks[world][rank]: what each process of save_on_ranks saved."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(alone["weights3"], folder / "alone3.pt")
    on_ranks(save_on_ranks, folder, 4)
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


def test_two_models_on_two_pairs_of_ranks_train_apart(ranks):
    for rank, results in enumerate(ranks[4]):
        params = parameters([*SHAPES, *PAIRS], seed=rank // 2)
        optimizer = group_optimizer(params)
        train(optimizer, params, range(3))
        assert largest_difference(results["pair"]["weights"], params) < 1e-12
        torch.testing.assert_close(results["pair"]["state"], optimizer.state_dict()["state"])


def test_ranks_with_other_parameters_are_told_at_the_first_step(ranks):
    for rank, results in enumerate(ranks[4]):
        shapes, values, *group = results["refusals"]
        assert "those of ranks [1, 3] differ" in shapes and "those of ranks [2, 3] differ" in values
        assert not group if rank < 2 else "a process group that holds this rank" in group[0]


def test_a_process_group_is_not_copied():
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        optimizer = MatrixOptimizer(parameters(), step="muon", process_group=dist.group.WORLD)
        with pytest.raises(TypeError, match="without process_group"):
            copy.deepcopy(optimizer)
    finally:
        dist.destroy_process_group()
