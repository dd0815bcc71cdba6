"""Stacks: the matrices of a parameter group that are alike, and a rank's share of them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.stage import halves

Form = tuple[torch.Size, torch.dtype, torch.device]


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


def check_dtype(found: str, param: Tensor) -> None:
    """Raises TypeError for a parameter in other than float32 and float64."""
    if param.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"expected float32 or float64 weights, found {found}; keep float32 weights and cast them "
            "where they are used (an embedding in half precision stays with AdamW)"
        )


def check_unchanged(stack: MatrixStack) -> None:
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
