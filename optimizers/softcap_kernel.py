"""The trainer's loss as one Triton kernel for a GPU: softcapped cross entropy and its gradient, row by row.

A row of logits is read twice, from the cache the second time, and overwritten with its gradient: no float32
copy of the logits exists. torch for GPUs brings Triton; without it, as on a CPU, nothing is made here.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

with suppress(ImportError):  # a torch for CPUs has none
    import triton
    import triton.language as tl

COLUMNS = 8192  # of a row at a time
WARPS = 32  # so that the rows being worked on stay in the L2 cache for the second reading


class Softcapped(Protocol):
    """The summed loss of logits [rows, vocabulary], and its gradient where it is asked for."""

    def __call__(
        self, logits: Tensor, targets: Tensor, differentiate: bool
    ) -> tuple[Tensor, Tensor | None]: ...


class Launchable(Protocol):
    """A Triton kernel: it is launched on a grid, then called with its arguments."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...


@cache
def softcap_kernel() -> Launchable:
    """The kernel, a program a row: z [rows, columns] -> losses [rows] in float32, and the gradient over z.

    With c = 15 / sqrt(z^2 + 15^2), c z lies within 15: a sum of exp(c z - 15) neither over- nor underflows.
    """

    @triton.jit
    def kernel(
        z, targets, losses, stride,
        columns: tl.constexpr, DIFFERENTIATE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        z += row * stride
        parts = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(z + at, mask=at < columns, other=0.0).to(tl.float32)
            capped = x * (15.0 * tl.rsqrt(x * x + 225.0))
            parts += tl.where(at < columns, tl.exp(capped - 15.0), 0.0)
        log_sum = 15.0 + tl.log(tl.sum(parts, axis=0))
        target = tl.load(targets + row)
        z_target = tl.load(z + target).to(tl.float32)
        log_p = z_target * (15.0 * tl.rsqrt(z_target * z_target + 225.0)) - log_sum
        tl.store(losses + row, -log_p)
        if DIFFERENTIATE:
            series = log_p * (1.0 + log_p * (0.5 + log_p * (1.0 / 6.0)))  # of exp - 1, where that cancels
            at_target = tl.where(log_p > -0.01, series, tl.exp(log_p) - 1.0)
            for start in range(0, columns, BLOCK):
                at = start + tl.arange(0, BLOCK)
                x = tl.load(z + at, mask=at < columns, other=0.0).to(tl.float32)
                c = 15.0 * tl.rsqrt(x * x + 225.0)
                p = tl.where(at == target, at_target, tl.exp(c * x - log_sum))
                tl.store(z + at, (p * c * c * c).to(z.dtype.element_ty), mask=at < columns)

    made: Launchable = kernel
    return made


def softcapped_in_place(logits: Tensor, targets: Tensor, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """As the trainer's `softcapped`; the logits [rows, vocabulary] become the gradient."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    launch = softcap_kernel()[(len(logits),)]
    fixed = {"columns": logits.size(1), "DIFFERENTIATE": differentiate, "BLOCK": COLUMNS}
    launch(logits, targets, losses, logits.stride(0), **fixed, num_warps=WARPS)
    return losses.sum(), logits if differentiate else None


def differs(reference: Softcapped, device: torch.device) -> str:
    """Where the kernel and the reference differ on a device, in words; empty where they agree."""
    generator = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(16, COLUMNS + 100, generator=generator)).to(device, torch.bfloat16)
    targets = torch.arange(16, device=device)
    loss, gradient = reference(logits.float(), targets, True)
    own_loss, own_gradient = softcapped_in_place(logits, targets, True)
    assert gradient is not None and own_gradient is not None
    off = [abs(own_loss.item() / loss.item() - 1), (own_gradient - gradient).abs().max().item()]
    return "" if off[0] < 1e-4 and off[1] < 8e-3 else f"loss by {off[0]:.0e}, gradient by {off[1]:.0e}"


def fast_softcapped(reference: Softcapped, device: torch.device) -> Softcapped:
    """For a compiled model: on a GPU the kernel, if it agrees there with the reference; else that."""
    compiled: Softcapped = torch.compile(reference, dynamic=False)
    if device.type != "cuda":
        return compiled
    try:
        told = differs(reference, device)
    except Exception as error:  # whatever a compiler or a driver raises
        told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if told:
        print(f"the loss's Triton kernel is left out, it differs here ({told})", file=sys.stderr, flush=True)
    return compiled if told else softcapped_in_place
