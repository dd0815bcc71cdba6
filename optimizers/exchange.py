"""Exchange: gradients to the ranks that own a matrix, stepped weights and states to all."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from optimizers.stacks import MatrixStack, leading, local, weights_of


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
