"""Random numbers inside a step: a function of the matrix's seed, the step and the entry, without a generator.

So a matrix gets the same numbers at any world size, in a stack or alone, compiled or not, after a resume.
"""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF  # 32 bits, in int64 tensors


def standard_normal(seed: Tensor, step: Tensor | int, draw: int, weight: Tensor) -> Tensor:
    """Normal numbers of the weight's shape [..., m, n] and dtype. seed, step: [..., 1, 1], whole numbers.

    draw: tells several draws of one step apart. By Box and Muller from two hashes an entry.
    """
    step = step.long() if isinstance(step, Tensor) else torch.full_like(seed, step)
    stream = hashed(hashed(hashed(seed & WORD) ^ (step & WORD)) ^ draw)
    m, n = weight.shape[-2:]
    entry = torch.arange(2 * m * n, device=weight.device).view(2, m, n)
    radius, angle = (unit_interval(hashed(stream ^ hashed(part)), weight.dtype) for part in entry)
    return (-2 * radius.log()).sqrt() * (2 * torch.pi * angle).cos()


def hashed(x: Tensor) -> Tensor:
    """A bijection of 32-bit words that changes half of the bits, by two rounds of shift and multiply."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & WORD  # a product below 2^59: int64 holds it
    return x ^ (x >> 16)


def unit_interval(x: Tensor, dtype: torch.dtype) -> Tensor:
    """32-bit words as numbers in (0, 1]."""
    return (x.to(dtype) + 0.5) * 2.0**-32
