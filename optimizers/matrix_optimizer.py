"""MatrixOptimizer: any step function on the matrices of any model, on one process or many.

A step function (`optimizers.STEPS`) knows one stack of equal matrices. This module brings the matrices of a
model into such stacks, gives every rank a share of each, moves gradients and weights, compiles, and keeps the
state per parameter. It holds no optimizer's math.

One update with several ranks:

    reduce   every stack: reduce-scatter the gradients, so that a rank gets the mean of the matrices it owns
    step     every stack, as its gradients arrive: the step function on the owned matrices
    gather   every stack: all-gather the stepped weights, while the next stack steps
"""

import functools
import hashlib
import inspect
import itertools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from optimizers.stage import KINDS, Step, exchanged, halves, named_step, row_of_function
from optimizers.stages.circuit import coupled_

# On CPU one call of the step function gets at most this many elements, or one matrix where that is larger:
# small matrices share the cost of the Python calls, large ones need no copy and stay in cache. Elsewhere it
# gets the stack.
CPU_CALL_ELEMENTS = 2**16

Form = tuple[torch.Size, torch.dtype, torch.device]

# What a parameter group may hold beside `step` and its hyperparameters.
GROUP_KEYS = ("params", "param_names", "name", "initial_lr", "flatten", "couple", "head_dim", "knots")


class MatrixOptimizer(torch.optim.Optimizer):
    """Steps the matrices of a model with one of this package's step functions, or with one of your own.

        optimizer = MatrixOptimizer(matrices, step="muon", lr=0.02, weight_decay=0.01)

    params: 2-D float32 or float64 parameters, groups of them, or (name, parameter) pairs. A parameter of more
        dimensions is a stack of matrices, [..., m, n]. The rest of a model (gains, biases, embeddings) is for
        another optimizer.
    step: a name in `optimizers.STEPS`, or a function `step(weight, grad, state, *, lr, **hyperparameters)`
        whose state is tensors with the weight's leading dimensions. Groups may carry their own step, lr and
        hyperparameters.
        `precondition="soap"` and the like exchange one of its stages.
    lr, hyperparameters: of the step function; what is left out takes its defaults, so that `param_groups`
        shows every value in effect. They may be changed between steps. A compiled step takes any `lr` without
        recompiling, and any other value that is a 0-d tensor (fill the tensor to change it).
    flatten: True: a parameter of more than two dimensions is one matrix [out, rest], as a convolution's
        kernel wants it; False: a stack of matrices, whatever their shape; None: a stack, but what looks like
        a kernel or a scale is refused. Groups may carry their own.
    reduce_gradients: with an initialised process group, average the gradients over its ranks, as
        DistributedDataParallel does. False: they are averaged already (the model is wrapped in it).
    process_group: the ranks that hold this model, by default all.
    couple: in a group of value matrices, the `name` of the group of the output matrices behind them, block by
        block: both step together, as Circuit-Muon does, by heads of `head_dim`.
    compile: whether to compile the step function. None: on CUDA; on CPU eager measured as fast.

    A parameter without a gradient keeps its weight and state, as in torch.optim. With several ranks and
    `reduce_gradients`, it is stepped where any rank has its gradient; a rank without one counts as zero.

    With several ranks `state[p]` is this rank's part, and `state_dict()` is collective: call it on every one,
    even if only one saves. It returns the whole state on every rank, and loads at any number of ranks.

    Raises TypeError for an unknown hyperparameter, and for a parameter that is no dense float32 or float64
    matrix; ValueError for an unknown step, for no parameters, for a parameter given twice, and for a kernel
    or a scale that is no stack of matrices. `step` raises TypeError where a parameter has changed its dtype,
    device or shape, and RuntimeError, on all ranks, where these hold different parameters.
    """

    watch: "Watch | None" = None  # what surrounds each unit's step: see instruments.measured
    _stacks: list["MatrixStack"]
    _planned_groups: int
    _world: int
    _load: list[float]  # work of each rank

    def __init__(
        self,
        params: Iterable,
        step: str | Callable,
        lr: float | Tensor | None = None,
        *,
        flatten: bool | None = None,
        reduce_gradients: bool = True,
        process_group: dist.ProcessGroup | None = None,
        compile: bool | None = None,
        **hyperparameters: Any,
    ) -> None:
        params = list(params)
        if not params:
            raise ValueError(
                "expected a model's matrices, found an empty list; pass its parameters with ndim >= 2"
            )
        self.reduce_gradients, self.compile, self.process_group = reduce_gradients, compile, process_group
        self._forget_stacks()
        stages = stages_in(hyperparameters)
        step = resolve_step(step, stages)
        hyperparameters = {name: value for name, value in hyperparameters.items() if name not in stages}
        self._given = hyperparameters if lr is None else {"lr": lr, **hyperparameters}
        check_hyperparameters(step, self._given)
        defaults = {"step": step, "flatten": flatten, **hyperparameters_of(step), **self._given}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, maybe with their own step, lr and hyperparameters; raises as the constructor does.

        Values given to the constructor reach a group with another step function where that one knows them.
        """
        stages = stages_in(param_group)
        param_group = {name: value for name, value in param_group.items() if name not in stages}
        step = resolve_step(param_group.get("step", self.defaults["step"]), stages)
        known = hyperparameters_of(step)
        given = {name: value for name, value in param_group.items() if name not in (*GROUP_KEYS, "step")}
        check_hyperparameters(step, given)
        inherited = {name: value for name, value in self._given.items() if name in known}
        values = {**known, **inherited, **given}
        for name, value in values.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"{step.__name__} needs a value for {name!r}; pass {name}=...")
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        check_parameters(params, param_group.get("flatten", self.defaults["flatten"]))
        super().add_param_group({**param_group, **values, "params": params, "step": step})
        for name in self.defaults.keys() - known.keys() - {"step", "flatten"}:
            del self.param_groups[-1][name]  # torch filled in the hyperparameters of another step function

    @torch.compiler.disable  # it compiles what pays: the step function
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns what `closure` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stacks = self._planned_stacks()
        gradients = [gradients_of(stack) for stack in stacks]
        if self._world == 1:
            for together in in_units(stacks, gradients):
                self._step_unit(together, [weights_of(stack) for stack, _ in together])
        elif self.reduce_gradients:
            self._step_shares(stacks, reduce_to_owners(stacks, gradients, self.process_group))
        else:
            shares = [of_stack[stack.owned] for stack, of_stack in zip(stacks, gradients, strict=True)]
            self._step_shares(stacks, shares)
        for stack in stacks:
            if stack.grew:
                self._show_state(stack)
        return loss

    def tell(self, param: Tensor, **tensors: Tensor) -> None:
        """Puts tensors with the parameter's leading dimensions into its state, for the step function to read.

        Every rank is told the same; the state is kept, and told anew where it changes.
        """
        for stack in self._planned_stacks():
            for own, part, within in stack.shares():
                for name, tensor in tensors.items() if own is param else ():
                    stack.grew |= name not in stack.state
                    stack.told.add(name)
                    keep_state(stack, name, tensor.reshape(-1, *tensor.shape[-2:])[within], part)

    def _step_unit(self, together: list["Arrived"], weights: list[list[Tensor]]) -> None:
        with self.watch(together, weights) if self.watch else nullcontext():
            step_unit(together, weights, self.compile)

    def _step_shares(self, stacks: list["MatrixStack"], arriving: Iterable[list[Tensor | None]]) -> None:
        """Steps each stack's owned matrices as their gradients arrive, and sends the weights to all ranks."""
        departed = []
        for together in in_units(stacks, arriving):
            weights = [weights_of(stack) for stack, _ in together]
            self._step_unit(together, [w[s.owned] for w, (s, _) in zip(weights, together, strict=True)])
            for of_stack, (stack, _) in zip(weights, together, strict=True):
                departed.append((of_stack, *gather_from_owners(stack, of_stack, self.process_group)))
        for stepped, work, gathered in departed:
            work.wait()
            torch._foreach_copy_(stepped, gathered)

    def state_dict(self) -> dict[str, Any]:
        """State and groups in torch's usual form, whole on every rank. Collective: call it on every rank.

        The step function is saved by its name, so that `torch.load(..., weights_only=True)` reads the file.
        """
        stacks, own = self._planned_stacks(), self.state
        if self._world > 1:
            self.state = defaultdict(dict, collect_state(stacks, self.process_group))
        try:
            packed = super().state_dict()
        finally:
            self.state = own
        for group in packed["param_groups"]:
            group["step"] = group["step"].__name__
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned at any number of ranks, without communication.

        Raises ValueError, before anything changes, where groups, step functions or shapes differ, and for the
        state of another kind of optimizer.
        """
        check_form(state_dict)
        saved_groups, groups = state_dict["param_groups"], self.param_groups
        expected = [(group["step"].__name__, len(group["params"])) for group in groups]
        found = [(saved["step"], len(saved["params"])) for saved in saved_groups]
        if expected != found:
            raise ValueError(
                f"expected the state of groups (step, parameters) {expected}, found {found}; build "
                "the optimizer with the groups it was saved with"
            )
        states = {}
        for group, saved in zip(groups, saved_groups, strict=True):
            values = {**group, **saved, "step": group["step"], "flatten": group["flatten"]}
            for name, param, index in zip(names_of(group), group["params"], saved["params"], strict=True):
                if index in state_dict["state"]:
                    states[param] = fitting_state(state_dict["state"][index], param, name, values)
        before = [dict(group) for group in groups]
        merged = [
            {**old, **saved, "step": old["step"], "flatten": old["flatten"]}
            for old, saved in zip(before, saved_groups, strict=True)
        ]
        super().load_state_dict({"state": {}, "param_groups": merged})
        for group, old in zip(self.param_groups, before, strict=True):
            for name, value in old.items():  # who schedules by filling this tensor keeps it
                if isinstance(value, Tensor):
                    group[name] = value.fill_(float(group[name]))
        self._forget_stacks()
        self.state.update(states)

    def _planned_stacks(self) -> list["MatrixStack"]:
        """The stacks of all groups; made at first use, when the device and the number of ranks are known."""
        grouped = dist.is_available() and dist.is_initialized()
        world = dist.get_world_size(self.process_group) if grouped else 1
        rank = dist.get_rank(self.process_group) if grouped else 0
        if rank < 0:
            raise RuntimeError("expected a process group that holds this rank; pass its own as process_group")
        if world != self._world and self._stacks:
            if self._world > 1:
                raise RuntimeError(
                    f"expected the {self._world} ranks that share the state, found {world}; call "
                    "state_dict() while they are there and load it afterwards"
                )
            self._forget_stacks()
        if not self._stacks:
            self._world, self._load = world, [0.0] * world
        groups = self.param_groups[self._planned_groups :]
        if groups and world > 1:
            check_ranks(groups, self.process_group)
        new = [stack for group in groups for stack in stacks_of(group, self._load, rank)]
        self._stacks += new
        couple(self._stacks)
        for stack in new:
            adopt_state(stack, {p: self.state.pop(p) for p in stack.params if p in self.state})
            self._show_state(stack)
        for stack in self._stacks:
            check_unchanged(stack)
        self._planned_groups = len(self.param_groups)
        return self._stacks

    def _forget_stacks(self) -> None:
        """Lets the next use make the stacks anew, out of what `self.state` holds."""
        self._stacks, self._planned_groups, self._world, self._load = [], 0, 1, [0.0]

    def _show_state(self, stack: "MatrixStack") -> None:
        """Shows the state of the owned matrices in `self.state`, in torch's form, as views."""
        stack.grew = False
        for param, part, _ in stack.shares():
            if all(stack.steps[part]):
                entire = part.stop - part.start == stack.count(param)
                lead = leading(param, stack.group) if entire else torch.Size([part.stop - part.start])
                self.state[param] = {
                    name: tensor[part].view(*lead, *tensor.shape[1:]) for name, tensor in stack.state.items()
                }

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise TypeError(
                "expected an optimizer without process_group to copy or pickle; build a second one with the "
                "group and load this one's state_dict()"
            )
        own = {
            name: getattr(self, name) for name in ("reduce_gradients", "compile", "process_group", "_given")
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_stacks()


@dataclass
class MatrixStack:
    """The matrices of a parameter group that share shape, dtype and device, and this rank's share of them.

    `forms` is what the parameters were when the stack was made. Rank r owns `counts[r]` matrices in a row;
    `owned` are this rank's. `state` holds the step function's tensors for the owned matrices, [owned, ...];
    `steps[i]` says how often the i-th of them has been stepped, 0 that its state does not count yet, but for
    what is `told`; `grew` that this has changed since the state was last shown; the `partner` steps together
    with it. `seeds`: every matrix's own number, of the parameter's name where it has one, else of its place.
    """

    group: dict[str, Any]
    params: list[Tensor]
    forms: dict[Tensor, Form]
    counts: list[int]
    owned: slice
    seeds: list[int]
    told: set[str] = field(default_factory=set)
    state: dict[str, Tensor] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    grew: bool = False
    partner: "MatrixStack | None" = None

    def shares(self, rank_range: slice | None = None) -> list[tuple[Tensor, slice, slice]]:
        """What lies in a range of the stack (the owned one): (parameter, its place there, the part of it)."""
        target, first, shares = rank_range or self.owned, 0, []
        for param in self.params:
            start, stop = max(target.start, first), min(target.stop, first + self.count(param))
            if start < stop:
                here = slice(start - target.start, stop - target.start)
                shares.append((param, here, slice(start - first, stop - first)))
            first += self.count(param)
        return shares

    def count(self, param: Tensor) -> int:
        """How many matrices a parameter of this stack is."""
        return leading(param, self.group).numel()


# -------------------------------------------------------------------------------------------------
# Step functions and what a group may hold
# -------------------------------------------------------------------------------------------------


def resolve_step(step: str | Callable, stages: Mapping[str, str]) -> Callable:
    """The step function of a name, its stages exchanged; another callable is returned as it is.

    Raises ValueError for an unknown name or stage, and for stages of a function that is no row of them.
    """
    found: Callable = named_step(step) if isinstance(step, str) else step
    if stages and not hasattr(found, "row"):
        raise ValueError(f"{found.__name__} is not a row of stages; expected a method that is, such as muon")
    return exchanged(cast(Step, found), stages) if stages else found


def stages_in(given: dict[str, Any]) -> dict[str, str]:
    """What of the given values names stages: {"precondition": "soap"}."""
    return {kind: given[kind] for kind in KINDS if isinstance(given.get(kind), str)}


@functools.cache
def hyperparameters_of(step: Callable) -> dict[str, Any]:
    """Keyword-only parameters of a step function and their defaults (`Parameter.empty` without)."""
    parameters = inspect.signature(step).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_hyperparameters(step: Callable, given: dict[str, Any]) -> None:
    """Raises TypeError for an unknown name or a value of another kind, ValueError for one out of range."""
    row = row_of_function(step)
    row.check(given)
    for name, value in given.items():
        row.hyperparameters[name].check(value, row.name)


def check_parameters(params: list, flatten: bool | None) -> None:
    """Raises TypeError or ValueError where a parameter, or (name, parameter) pair, cannot be stepped."""
    if not params:
        raise ValueError("expected a group of matrices, found one without parameters; leave it out")
    named = [item if isinstance(item, tuple) else (f"parameter {i}", item) for i, item in enumerate(params)]
    seen = set()
    for name, param in named:
        if not isinstance(param, Tensor):
            raise TypeError(f"expected parameters, found {name} of type {type(param).__name__}")
        found = f"{name} of shape {tuple(param.shape)} and {param.dtype}"
        if id(param) in seen:
            raise ValueError(f"{found} is given twice; tied weights are one parameter, pass it once")
        seen.add(id(param))
        if any(not place.is_replicate() for place in getattr(param, "placements", ())):  # of a DTensor
            raise TypeError(
                f"expected whole matrices on every rank, found {found} as a DTensor cut over ranks; "
                "MatrixOptimizer shares the work out itself: use DistributedDataParallel in place of FSDP"
            )
        if param.layout is not torch.strided:
            raise TypeError(f"expected dense matrices, found {found}, {param.layout}; use another optimizer")
        if param.ndim < 2:
            raise TypeError(f"expected matrices, found {found}; give gains and biases to torch.optim.AdamW")
        check_dtype(found, param)
        if param.numel() == 0:
            raise ValueError(f"expected matrices with elements, found {found}; leave it out")
        if flatten is None and looks_like_a_kernel(param.shape):
            raise ValueError(
                f"expected a stack of matrices [..., m, n], found {found}; pass flatten=True for a "
                "convolution's kernel, to be one matrix [out, rest], flatten=False if it is such a stack, or "
                "give a scale to torch.optim.AdamW"
            )
        if flatten and param.detach().flatten(1).data_ptr() != param.data_ptr():
            raise ValueError(
                f"expected contiguous kernels, found {found} with strides {param.stride()}; a channels_last "
                "weight cannot be seen as one matrix"
            )


def check_dtype(found: str, param: Tensor) -> None:
    """Raises TypeError for a parameter in other than float32 and float64."""
    if param.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"expected float32 or float64 weights, found {found}; keep float32 weights and cast them "
            "where they are used (an embedding in half precision stays with AdamW)"
        )


def looks_like_a_kernel(shape: torch.Size) -> bool:
    """Whether [..., m, n] is rather a convolution's kernel or a scale than a stack of matrices.

    That is, single rows or columns; 2-D and 3-D kernels of up to 16; and [out, in, k], k below both and 12.
    """
    *lead, m, n = shape
    if not lead:
        return False
    return min(m, n) == 1 or (len(lead) > 1 and max(m, n) <= 16) or (len(lead) == 1 and n < min(*lead, m, 12))


def check_unchanged(stack: "MatrixStack") -> None:
    """Raises TypeError for a parameter that is no longer what the stack was made of."""
    for param in stack.params:
        if form(param) != stack.forms[param]:
            name = dict(zip(stack.group["params"], names_of(stack.group), strict=True))[param]
            then, now = (f"{tuple(shape)}, {dtype}, {device}" for shape, dtype, device in
                         (stack.forms[param], form(param)))  # fmt: skip
            raise TypeError(
                f"expected {name} to stay {then}, found {now}; convert a model before its optimizer is built "
                "and cast weights where they are used"
            )


def form(param: Tensor) -> Form:
    return param.shape, param.dtype, param.device


def names_of(group: dict[str, Any]) -> list[str]:
    """What messages call a group's parameters: as they were named, else by their place."""
    return group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]


# -------------------------------------------------------------------------------------------------
# Stacks of matrices
# -------------------------------------------------------------------------------------------------


def stacks_of(group: dict[str, Any], load: list[float], rank: int) -> Iterator[MatrixStack]:
    """The stacks of a group, shared out evenly over the ranks; adds to `load`, the work of each rank.

    Every rank owns an equal share of a stack; what does not divide goes to the ranks with the least work.
    """
    alike: dict[tuple, list[Tensor]] = {}
    names = group.get("param_names", map(str, range(len(group["params"]))))
    seeds = {param: zlib.crc32(name.encode()) for name, param in zip(names, group["params"], strict=True)}
    for name, param in zip(names_of(group), group["params"], strict=True):
        check_dtype(f"{name} of shape {tuple(param.shape)} and {param.dtype}", param)  # model.half() since
        alike.setdefault((*matrix_shape(param, group), param.dtype, param.device), []).append(param)
    for (m, n, *_), params in alike.items():
        share, left = divmod(sum(leading(param, group).numel() for param in params), len(load))
        lightest = sorted(range(len(load)), key=load.__getitem__)[:left]
        counts = [share + (owner in lightest) for owner in range(len(load))]
        for owner, count in enumerate(counts):
            load[owner] += count * m * n * min(m, n)  # a product of the matrix with its smaller side
        first = sum(counts[:rank])
        owned = slice(first, first + counts[rank])
        forms = {param: form(param) for param in params}
        own = [seeds[param] + index for param in params for index in range(leading(param, group).numel())]
        yield MatrixStack(group, params, forms, counts, owned, own, steps=[0] * counts[rank])


def couple(stacks: list[MatrixStack]) -> None:
    """Makes partners of the stacks of a group and of that which it names in `couple`; both have one owner.

    Raises ValueError where the two groups are not as many equal matrices each.
    """
    for stack in stacks:
        wanted = stack.group.get("couple")
        if wanted is None or stack.partner is not None:
            continue
        found = [other for other in stacks if other.group.get("name") == wanted]
        if len(found) != 1 or sum(found[0].counts) != sum(stack.counts) or found[0] is stack:
            told = ", ".join(str(sum(other.counts)) for other in found) or "none"
            raise ValueError(
                f"expected {sum(stack.counts)} equal matrices in one group named {wanted!r} to couple "
                f"{stack.group.get('name')!r} with, found {told}"
            )
        halves(stack.group["step"]), halves(found[0].group["step"])  # raise for what cannot be coupled
        stack.partner, found[0].partner = found[0], stack
        found[0].counts, found[0].owned, found[0].steps = stack.counts, stack.owned, list(stack.steps)


def leading(param: Tensor, group: dict[str, Any]) -> torch.Size:
    """The dimensions by which a parameter [..., m, n] is a stack; none for a flattened one."""
    return torch.Size() if group["flatten"] else param.shape[:-2]


def matrix_shape(param: Tensor, group: dict[str, Any]) -> tuple[int, int]:
    """(m, n) of a parameter's matrices."""
    m, n = (param.shape[0], param[0].numel()) if group["flatten"] else param.shape[-2:]
    return m, n


def matrices_in(tensor: Tensor, flatten: bool | None) -> list[Tensor]:
    """[..., m, n] -> its matrices as views, whatever the strides; [out, ...] -> one, where flattened."""
    if tensor.ndim == 2:
        return [tensor]
    if flatten:
        return [tensor.flatten(1)]
    return [matrix for part in tensor.unbind() for matrix in matrices_in(part, flatten)]


def weights_of(stack: MatrixStack) -> list[Tensor]:
    weights = [local(param.detach()) for param in stack.params]
    return [matrix for weight in weights for matrix in matrices_in(weight, stack.group["flatten"])]


def local(tensor: Tensor) -> Tensor:
    """A replicated DTensor's tensor on this rank; any other as it is."""
    return getattr(tensor, "to_local", lambda: tensor)()


def gradients_of(stack: MatrixStack) -> list[Tensor | None]:
    """The gradient of every matrix of a stack, None where there is none; TypeError for a sparse one."""
    gradients: list[Tensor | None] = []
    for param in stack.params:
        if param.grad is None:
            gradients += [None] * stack.count(param)
        elif param.grad.layout is not torch.strided:
            raise TypeError(
                f"expected dense gradients, found layout {param.grad.layout} for a parameter of shape "
                f"{tuple(param.shape)}; use nn.Embedding(sparse=False), or another optimizer for it"
            )
        else:
            whole = param.grad.full_tensor() if hasattr(param.grad, "full_tensor") else param.grad
            gradients += matrices_in(whole, stack.group["flatten"])
    return gradients


Arrived = tuple[MatrixStack, list[Tensor | None]]  # a stack and the gradients of its owned matrices
Watch = Callable[[list[Arrived], list[list[Tensor]]], AbstractContextManager[None]]


def in_units(stacks: list[MatrixStack], arriving: Iterable[list[Tensor | None]]) -> Iterator[list[Arrived]]:
    """What steps together, as soon as the gradients are there: a stack alone, or a stack and its partner."""
    here: dict[int, Arrived] = {}
    for stack, gradients in zip(stacks, arriving, strict=True):
        if stack.partner is None:
            yield [(stack, gradients)]
        elif id(stack.partner) in here:
            pair = [here.pop(id(stack.partner)), (stack, gradients)]
            yield sorted(pair, key=lambda arrived: "couple" not in arrived[0].group)
        else:
            here[id(stack)] = stack, gradients


def step_unit(unit: list[Arrived], weights: list[list[Tensor]], compiling: bool | None) -> None:
    """Steps a stack, or a pair of them whose directions are coupled before they land; updates `weights`.

    Of a pair, matrices are stepped where both have a gradient.
    """
    if len(unit) == 1:
        ((stack, gradients),) = unit
        advance(stack, weights[0], gradients, compiling, stack.group["step"])
        return
    both = [
        all(g is not None for g in pair) for pair in zip(*(gradients for _, gradients in unit), strict=True)
    ]
    directions = []
    for (stack, gradients), of_stack in zip(unit, weights, strict=True):
        present = [g if is_there else None for g, is_there in zip(gradients, both, strict=True)]
        directions.append([weight.clone() for weight in of_stack])
        advance(stack, directions[-1], present, compiling, halves(stack.group["step"])[0])
    if any(both):
        here = [i for i, is_there in enumerate(both) if is_there]
        V, O, U_V, U_O = ([of_stack[i] for i in here] for of_stack in (*weights, *directions))  # noqa: E741
        coupled_((V, O), (U_V, U_O), unit[0][0].group["head_dim"])
    for (stack, _), of_stack, of_direction in zip(unit, weights, directions, strict=True):
        steered = [U if is_there else None for U, is_there in zip(of_direction, both, strict=True)]
        advance(stack, of_stack, steered, compiling, halves(stack.group["step"])[1], lands=True)


def advance(
    stack: MatrixStack, weights: list[Tensor], gradients: list[Tensor | None], compiling: bool | None,
    step: Callable, lands: bool = False,
) -> None:  # fmt: skip
    """Calls `step`, the group's or a half of it, on the owned matrices that have a gradient.

    Updates `weights` and the state. Matrices with and without state never share a call: a step function
    begins where it finds no state. lands: the second half, which takes the state as the first has left it.
    """
    if not weights:
        return
    whole_step, (m, n), device = stack.group["step"], weights[0].shape, weights[0].device.type
    values = {name: stack.group[name] for name in hyperparameters_of(whole_step)}
    compiling = device == "cuda" if compiling is None else compiling
    if compiling and not isinstance(values["lr"], Tensor):
        values["lr"] = torch.tensor(values["lr"], dtype=weights[0].dtype)
    limit = max(1, CPU_CALL_ELEMENTS // (m * n)) if device == "cpu" else len(weights)
    # What is due every so many steps is known here: no step function waits for the device to say it.
    periodic = row_of_function(whole_step).takes("refresh") and not lands
    every = values["refresh_every"] if periodic else 1
    for start, stop, started, due in runs(gradients, stack.steps, limit, every):
        single, part = stop - start == 1, slice(start, stop)
        present = [gradient for gradient in gradients[part] if gradient is not None]
        weight = weights[start] if single else torch.stack(weights[part])
        gradient = present[0] if single else torch.stack(present)
        where = start if single else part
        held = {key: value[where] for key, value in stack.state.items() if started or key in stack.told}
        state = dict(held)
        if row_of_function(whole_step).takes("seed") and not started:
            seeds = torch.tensor(stack.seeds[stack.owned][start:stop], device=device).view(-1, 1, 1)
            state["seed"] = seeds[0] if single else seeds
        # The first step of a matrix creates its state. It runs as written, so that one form only is compiled.
        function = compiled(step, weight.shape) if compiling and started else step
        function(weight, gradient, state, **values, **({"refresh": due} if periodic else {}))
        if not single:
            torch._foreach_copy_(weights[part], list(weight.unbind()))
        for name, tensor in state.items():
            if tensor is not held.get(name):
                keep_state(stack, name, tensor if not single else tensor[None], part)
        stack.grew |= not started or len(state) > len(held)
        stack.steps[start:stop] = [count + (not lands) for count in stack.steps[start:stop]]


def runs(
    gradients: list[Tensor | None], steps: list[int], limit: int, every: int
) -> Iterator[tuple[int, int, bool, bool]]:
    """(start, stop, started, due) of at most `limit` neighbours with a gradient that are alike in both.

    started: whether they have state; due: whether their count of steps is a multiple of `every`.
    """
    kinds = [(grad is not None, count > 0, count % every == 0)
             for grad, count in zip(gradients, steps, strict=True)]  # fmt: skip
    for (present, started, due), neighbours in itertools.groupby(range(len(kinds)), key=kinds.__getitem__):
        first, *others = neighbours
        stop = first + 1 + len(others)
        for start in range(first, stop, limit) if present else ():
            yield start, min(start + limit, stop), started, due


@functools.cache
def compiled(step: Callable, shape: torch.Size) -> Callable:
    """The step function compiled for stacks of a shape. Every shape has its own count of recompilations.

    A torch without `isolate_recompiles` (2.11 and before) counts all shapes of all steps of this package
    together, since `step_function` gives them one code object: there the limit of 8 is raised.
    """
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        options["isolate_recompiles"] = True
    else:
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, config.accumulated_recompile_limit)
    return torch.compile(step, **options)


# -------------------------------------------------------------------------------------------------
# State
# -------------------------------------------------------------------------------------------------


def keep_state(stack: MatrixStack, name: str, tensor: Tensor, where: slice) -> None:
    """Copies a state tensor of some owned matrices, [k, ...], into the stack's."""
    if name not in stack.state:
        stack.state[name] = tensor.new_zeros((len(stack.steps), *tensor.shape[1:]))
    stack.state[name][where] = tensor


def adopt_state(stack: MatrixStack, states: dict[Tensor, dict[str, Tensor]]) -> None:
    """Takes over the owned matrices' state; `states[p]` has that of the whole parameter or of this part."""
    for param, part, within in stack.shares():
        for name, tensor in states.get(param, {}).items():
            lead = leading(param, stack.group)
            if tensor.shape[: len(lead)] == lead:
                tensor = tensor.reshape(-1, *tensor.shape[len(lead) :])[within]
            keep_state(stack, name, tensor, part)
        counted = stack.state["step"][part].flatten().tolist() if "step" in states.get(param, {}) else ()
        known = [int(count) for count in counted] or [1] * (part.stop - part.start)
        stack.steps[part] = known if param in states else [0] * len(known)


def check_form(state_dict: dict[str, Any]) -> None:
    """Raises ValueError for what `MatrixOptimizer.state_dict` does not return."""
    form = state_dict if isinstance(state_dict, dict) else {}
    states, groups = form.get("state"), form.get("param_groups")
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise ValueError("expected a state_dict of MatrixOptimizer, found no 'state' of dicts of tensors")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError("expected a state_dict of MatrixOptimizer, found no 'param_groups'")
    if not all({"step", "params"} <= group.keys() for group in groups):
        raise ValueError(
            "expected a state_dict of MatrixOptimizer, found another optimizer's: its groups have no 'step'"
        )


def fitting_state(
    state: dict[str, Tensor], param: Tensor, name: str, group: dict[str, Any]
) -> dict[str, Tensor]:
    """A loaded state on the parameter's device, and in its precision where it is float32 or float64.

    Raises ValueError unless it is what the group's step function keeps for this parameter.
    """
    lead, told = leading(param, group), f"the state of {name}, of shape {tuple(param.shape)},"
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.shape[: len(lead)] != lead:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"expected {key!r} in {told} to be a tensor with leading dimensions {tuple(lead)}, found "
                f"{found}; the state is of another model"
            )
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    expected = state_shapes(param, group)
    if not expected.items() <= shapes.items():  # coupled steps keep more
        raise ValueError(f"expected in {told} tensors {expected}, found {shapes}; it is of another model")
    wide = (torch.float32, torch.float64)
    return {
        key: tensor.to(param.device, param.dtype if tensor.dtype in wide else tensor.dtype)
        for key, tensor in state.items()
    }


def state_shapes(param: Tensor, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The state that a group's step function keeps for a parameter, from a step on a tensor without data.

    Empty for a function that cannot run so: one of a user's own that looks at values.
    """
    step = group["step"]
    state: dict[str, Tensor] = {}
    if row_of_function(step).takes("seed"):
        state["seed"] = torch.empty((*leading(param, group), 1, 1), dtype=torch.int64, device="meta")
    shape = (*leading(param, group), *matrix_shape(param, group))
    weight = torch.empty(shape, dtype=param.dtype, device="meta")
    try:
        step(weight, weight.clone(), state, **{key: group[key] for key in hyperparameters_of(step)})
    except (RuntimeError, NotImplementedError):
        return {}
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


# -------------------------------------------------------------------------------------------------
# Ranks
# -------------------------------------------------------------------------------------------------


def places(stack: MatrixStack) -> list[int]:
    """Where each matrix lies in a buffer of equal slots, one a rank; a short share leaves its end free."""
    slot = max(stack.counts)
    return [rank * slot + index for rank, count in enumerate(stack.counts) for index in range(count)]


def collective(name: str, earlier_name: str) -> Callable:
    """torch.distributed's function of that name; torch 2.13 renamed it, and warns of the earlier name."""
    return getattr(dist, name, None) or getattr(dist, earlier_name)


def check_ranks(groups: list[dict[str, Any]], process_group: dist.ProcessGroup | None) -> None:
    """Raises RuntimeError on every rank where these hold different parameters: they would wait for ever."""
    held = [(group["step"].__name__, group["flatten"], [(p.shape, p.dtype, bits(p)) for p in group["params"]])
            for group in groups]  # fmt: skip
    digests: list[Any] = [None] * dist.get_world_size(process_group)
    own = hashlib.sha256(repr(held).encode()).hexdigest()
    dist.all_gather_object(digests, own, group=process_group)
    if len(set(digests)) > 1:
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        raise RuntimeError(
            f"expected the same parameters, in one order, on every rank; those of ranks {others} differ from "
            "rank 0's in number, shape, dtype, step or value; for a model on some ranks pass process_group"
        )


def bits(param: Tensor) -> int:
    """A checksum of a parameter's values, the same whatever the order of the summation."""
    integers = torch.int32 if param.dtype == torch.float32 else torch.int64
    return int(local(param.detach()).contiguous().view(integers).sum(dtype=torch.int64))


def reduce_to_owners(
    stacks: list[MatrixStack],
    gradients: list[list[Tensor | None]],
    process_group: dist.ProcessGroup | None,
) -> Iterator[list[Tensor | None]]:
    """For each stack the owned matrices' gradients, averaged over the ranks; None where no rank has one.

    All reductions start before the first is waited for.
    """
    # Whether any rank has a gradient: asked for first, so that the answer comes while the reductions travel.
    flags = torch.tensor([grad is not None for of_stack in gradients for grad in of_stack], dtype=torch.int32)
    flags, world = flags.to(stacks[0].params[0].device), dist.get_world_size(process_group)
    asked = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=process_group, async_op=True)
    reduce_scatter = collective("reduce_scatter_single", "reduce_scatter_tensor")
    travelling = []
    for stack, of_stack in zip(stacks, gradients, strict=True):
        weight, slot = weights_of(stack)[0], max(stack.counts)
        buffer = weight.new_zeros((world * slot, *weight.shape[-2:]))
        slots = buffer.unbind()
        for place, gradient in zip(places(stack), of_stack, strict=True):
            if gradient is not None:
                slots[place].copy_(gradient)
        own = weight.new_empty((slot, *weight.shape[-2:]))
        travelling.append((reduce_scatter(own, buffer, group=process_group, async_op=True), own, buffer))
    asked.wait()
    has_gradient = iter(flags.tolist())
    for stack in stacks:
        work, own, _ = travelling.pop(0)
        work.wait()
        own.div_(world)
        present = [next(has_gradient) for _ in range(sum(stack.counts))][stack.owned]
        yield [grad if has else None for grad, has in zip(own, present, strict=False)]


def gather_from_owners(
    stack: MatrixStack, weights: list[Tensor], process_group: dist.ProcessGroup | None
) -> tuple[dist.Work, list[Tensor]]:
    """Starts sending the owned `weights` to all ranks; (work, the weights that are there when it is done)."""
    slot = max(stack.counts)
    own = weights[0].new_zeros((slot, *weights[0].shape))
    if stack.steps:
        torch._foreach_copy_(list(own.unbind())[: len(stack.steps)], weights[stack.owned])
    everyone = own.new_empty((len(stack.counts) * slot, *weights[0].shape))
    all_gather = collective("all_gather_single", "all_gather_into_tensor")
    work = all_gather(everyone, own, group=process_group, async_op=True)
    arrived = everyone.unbind()
    return work, [arrived[place] for place in places(stack)]


def collect_state(
    stacks: list[MatrixStack], process_group: dist.ProcessGroup | None
) -> dict[Tensor, dict[str, Tensor]]:
    """The state of every parameter that has been stepped, on every rank, from those that hold its parts."""
    held = [({name: (t.shape[1:], t.dtype) for name, t in s.state.items()}, s.steps) for s in stacks]
    held_by_rank: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(held_by_rank, held, group=process_group)
    parts: dict[Tensor, dict[str, list[Tensor]]] = {}
    for index, stack in enumerate(stacks):
        first = 0
        for rank, count in enumerate(stack.counts):
            forms, steps = held_by_rank[rank][index]
            shares = stack.shares(slice(first, first + count))
            first += count
            for name, (shape, dtype) in forms.items():
                tensor = torch.empty((count, *shape), dtype=dtype, device=stack.params[0].device)
                if rank == dist.get_rank(process_group):
                    tensor.copy_(stack.state[name])
                dist.broadcast(tensor, group=process_group, group_src=rank)
                for param, part, _ in shares:
                    if all(steps[part]):
                        parts.setdefault(param, {}).setdefault(name, []).append(tensor[part])
    groups = {param: stack.group for stack in stacks for param in stack.params}
    return {
        param: {
            name: torch.cat(pieces).view(*leading(param, groups[param]), *pieces[0].shape[1:])
            for name, pieces in state.items()
        }
        for param, state in parts.items()
    }
