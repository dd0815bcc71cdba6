"""MatrixOptimizer: any step function on the matrices of any model, on one process or many.

A step function (`optimizers.STEPS`) knows one stack of equal matrices. `stacks` brings matrices into
such stacks and gives every rank a share of each, `exchange` moves gradients and weights, `stepping` calls and
compiles; here the state is kept per parameter. None of them holds an optimizer's math.

One update with several ranks:

    reduce   every stack: reduce-scatter the gradients, so that a rank gets the mean of the matrices it owns
    step     every stack, as its gradients arrive: the step function on the owned matrices
    gather   every stack: all-gather the stepped weights, while the next stack steps
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from optimizers.exchange import check_ranks, collect_state, gather_from_owners, reduce_to_owners
from optimizers.stacks import (
    MatrixStack,
    check_dtype,
    check_unchanged,
    couple,
    gradients_of,
    leading,
    matrix_shape,
    names_of,
    stacks_of,
    weights_of,
)
from optimizers.stage import row_of_function
from optimizers.stepping import (
    Arrived,
    Watch,
    check_hyperparameters,
    hyperparameters_of,
    in_units,
    keep_state,
    resolve_step,
    stages_in,
    step_unit,
)

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
    _stacks: list[MatrixStack]
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

    @torch._disable_dynamo  # it compiles what pays, the step function; the public name imports dynamo at once
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

    def _step_shares(self, stacks: list[MatrixStack], arriving: Iterable[list[Tensor | None]]) -> None:
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

    def _planned_stacks(self) -> list[MatrixStack]:
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

    def _show_state(self, stack: MatrixStack) -> None:
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


def looks_like_a_kernel(shape: torch.Size) -> bool:
    """Whether [..., m, n] is rather a convolution's kernel or a scale than a stack of matrices.

    That is, single rows or columns; 2-D and 3-D kernels of up to 16; and [out, in, k], k below both and 12.
    """
    *lead, m, n = shape
    if not lead:
        return False
    return min(m, n) == 1 or (len(lead) > 1 and max(m, n) <= 16) or (len(lead) == 1 and n < min(*lead, m, 12))


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
