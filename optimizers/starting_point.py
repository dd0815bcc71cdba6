"""Where the weights start: laws of the field, drawn from generators of their own."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optimizers.groups import matches


@torch.no_grad()
def start_parameters(
    named: Mapping[str, Tensor], init: dict[str, Any], seed: int, head_dim: int
) -> list[str]:
    """Gains 1, biases 0, embedding N(0, 1), every `proj` 0, other weights N(0, 0.33/inputs), unless told.

    init: `law` "uniform" draws the weights from +-1/sqrt(inputs), as torch resets a linear layer, `bias`
    "uniform" the biases too. A pattern of modules -> the standard deviation of a normal law, or a table:
    `std` or `law`, `factor`, `slope` (of L blocks the l-th from 0 takes 1 - slope l/(L - 1)), `bias`; one
    that names a `proj` lets it start elsewhere than at 0. gain_signs: see sign_gains.
    Returns the patterns that match no module.
    """
    generator = torch.Generator().manual_seed(seed)
    patterns = [key for key in init if key not in KEYS]
    modules = {name.rpartition(".")[0] for name in named}
    depth = max(
        [int(number) for name in named for number in re.findall(r"^blocks\.(\d+)\.", name)], default=0
    )
    for name, parameter in named.items():
        module, _, kind = name.rpartition(".")
        pattern = next((pattern for pattern in patterns if matches(pattern, module)), None)
        rule = rule_of(init, pattern, module)
        if kind == "gains":
            parameter.fill_(1)
        elif kind == "bias":
            bound = named[f"{module}.weight"].shape[1] ** -0.5 if rule["bias"] == "uniform" else 0.0
            parameter.copy_(uniform(parameter.shape, bound, generator))
        else:
            block = re.match(r"blocks\.(\d+)\.", name)
            slope = 1 - rule["slope"] * int(block[1]) / max(depth, 1) if block else 1.0
            parameter.copy_(slope * rule["factor"] * drawn(rule, parameter.shape, generator))
    if init.get("gain_signs"):
        sign_gains(named, init, seed, depth + 1, head_dim, generator)
    return [pattern for pattern in patterns if not any(matches(pattern, module) for module in modules)]


KEYS = ("law", "bias", "gain_signs", "paired_from", "paired_shrink")


def rule_of(init: dict[str, Any], pattern: str | None, module: str) -> dict[str, Any]:
    """How a module starts: the pattern's rule over the recipe's, over the baseline's."""
    said = init[pattern] if pattern else {}
    own = said if isinstance(said, dict) else {"std": said}
    at_zero = module.endswith("proj")
    law = {"law": "zero" if at_zero else "normal" if module == "embed" else init.get("law", "normal")}
    if at_zero and own.keys() & {"factor", "slope"}:
        law = {"law": init.get("law", "normal")}
    bias = {"bias": "zero" if at_zero else init.get("bias", "zero")}
    std = {"std": 1.0 if module == "embed" else None, "factor": 1.0, "slope": 0.0}
    law = law if "std" not in own else {"law": "normal"}
    return law | bias | std | own


def drawn(rule: dict[str, Any], shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Weights [outputs, inputs] by their law."""
    inputs = shape[1]
    if rule["law"] == "uniform":
        return uniform(shape, inputs**-0.5, generator)
    std = 0.0 if rule["law"] == "zero" else (0.33 / inputs) ** 0.5 if rule["std"] is None else rule["std"]
    return torch.randn(shape, generator=generator) * std if std else torch.zeros(())


def uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    """Uniform between -bound and bound; a bound of 0 draws nothing."""
    return bound * (2 * torch.rand(shape, generator=generator) - 1) if bound else torch.zeros(())


def sign_gains(
    named: Mapping[str, Tensor], init: dict[str, Any], seed: int, blocks: int, head_dim: int,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """norm1.gains = 1 - a s, norm2.gains = 1 + a s, a = gain_signs, s a vector of random signs a block.

    From block `paired_from` on, blocks go in pairs (published results #44 to #46): of every h = head_dim
    channels the first block has p' = round(h/2 + paired_shrink (p - h/2)) positive signs, p of h drawn ones,
    the second h - p', each in an order of its own. A last block without a partner is signed like the first.
    """
    a, paired_from = init["gain_signs"], init.get("paired_from", blocks)
    width = len(named["blocks.0.norm1.gains"])
    signs: list[Tensor] = []
    while (block := len(signs)) < blocks:
        if block < paired_from or block + 1 == blocks:
            signs.append(2.0 * torch.randint(0, 2, (width,), generator=generator) - 1)
        else:
            own = torch.Generator().manual_seed(0xA9170000 + 1009 * seed + 9176 * block)
            signs += paired_signs(width // head_dim, head_dim, init.get("paired_shrink", 0.5), own)
    for block, s in enumerate(signs):
        named[f"blocks.{block}.norm1.gains"].copy_(1 - a * s)
        named[f"blocks.{block}.norm2.gains"].copy_(1 + a * s)


def paired_signs(heads: int, h: int, shrink: float, generator: torch.Generator) -> list[Tensor]:
    """Signs [heads * h] of two blocks, whose means within each head are opposite."""
    first, second = [], []
    for _ in range(heads):
        p = int(torch.randint(0, 2, (h,), generator=generator).sum())
        positive = min(max(round(h / 2 + shrink * (p - h / 2)), 0), h)
        ones = torch.arange(h) < positive
        first.append(ones[torch.randperm(h, generator=generator)])
        second.append(~ones[torch.randperm(h, generator=generator)])
    return [2.0 * torch.cat(signs) - 1 for signs in (first, second)]
