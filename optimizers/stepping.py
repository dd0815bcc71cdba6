"""Stepping: the step function of a name and its stages, called on stacks, compiled where it pays."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

from optimizers.stacks import MatrixStack
from optimizers.stage import KINDS, Step, exchanged, halves, named_step, row_of_function
from optimizers.stages.circuit import coupled_

# On CPU one call of the step function gets at most this many elements, or one matrix where that is larger:
# small matrices share the cost of the Python calls, large ones need no copy and stay in cache. Elsewhere it
# gets the stack.
CPU_CALL_ELEMENTS = 2**16


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


def keep_state(stack: MatrixStack, name: str, tensor: Tensor, where: slice) -> None:
    """Copies a state tensor of some owned matrices, [k, ...], into the stack's."""
    if name not in stack.state:
        stack.state[name] = tensor.new_zeros((len(stack.steps), *tensor.shape[1:]))
    stack.state[name][where] = tensor
