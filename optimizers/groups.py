"""Parameter groups: which of a model's parameters a table of values is for, by patterns of their names."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optimizers.around.around import AROUND, Around

Values = Mapping[str, Any]  # values by name
Group = dict[str, Any]


class PatternError(ValueError):
    """A pattern names no parameter. The message says which, and a name that it could be."""


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern names a module, from its block on ("mlp.*") or in full ("blocks.0.mlp.fc")."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (re.sub(r"^blocks\.\d+\.", "", module), module))


def grouped(where: str, named: Mapping[str, Tensor], tables: Mapping[str, Values]) -> list[Group]:
    """A parameter group for each pattern that `tables` has values for; the first that matches a name counts.

    Raises PatternError for a pattern that is left without a parameter; "*", the rest, may be.
    """
    groups: dict[str, Group] = {key: {"params": [], "name": key, **values} for key, values in tables.items()}
    for name, parameter in named.items():
        if pattern := next((pattern for pattern in groups if matches(pattern, name)), None):
            groups[pattern]["params"].append(parameter)
    for pattern, group in groups.items():
        if pattern != "*" and not group["params"]:
            told = f"matches none of them; expected one such as {min(named)}."
            raise PatternError(f'[{where}."{pattern}"] {told}')
    return [group for group in groups.values() if group["params"]]


def adamw_groups(
    named: Mapping[str, Tensor], aux: Values, patterns: Mapping[str, Values], extra: Values
) -> tuple[list[Group], list[Group]]:
    """AdamW's groups of embedding, head and 1-D parameters: those for torch's, and those for AuxAdamW.

    aux: `embed_lr`, `head_lr`, `scalar_lr`, AdamW's options; patterns: what some parameters have otherwise;
    extra: the defaults of what only AuxAdamW can do. Raises PatternError for a pattern that matches nothing.
    """
    kinds = {"embed.weight": "embed", "proj.weight": "head"}
    options = {key: aux[key] for key in ("betas", "eps", "weight_decay")}
    options |= {key: aux.get(key, default) for key, default in extra.items()}
    usual: list[Group] = []
    own: list[Group] = []
    for kind in ("embed", "head", "scalar"):
        of_kind = {name: p for name, p in named.items() if kinds.get(name, "scalar") == kind}
        tables = {pattern: table for pattern, table in patterns.items()
                  if any(matches(pattern, name) for name in of_kind)}  # fmt: skip
        for group in grouped("aux", of_kind, tables | {"*": {}}):
            group = {"lr": aux[f"{kind}_lr"]} | options | group
            group |= {"betas": tuple(group["betas"]), "name": kind if group["name"] == "*" else group["name"]}
            more = {key: group.pop(key) for key in extra}
            (usual if more == extra else own).append(group if more == extra else group | more)
    grouped("aux", named, patterns)  # each pattern matches something
    return usual, own


def matrix_groups(
    named: Mapping[str, Tensor], matrix: Values, patterns: Mapping[str, Values],
    moved: Mapping[str, Sequence], head_dim: int,
) -> list[Group]:  # fmt: skip
    """A group of MatrixOptimizer for each of the patterns, and one with the values of `matrix` for the rest.

    moved: the knots of hyperparameters that change over the run. They are 0-d tensors: a compiled step sees
    new values without recompiling.
    """
    modules = {name.removesuffix(".weight"): p for name, p in named.items()}
    names = {p: name for name, p in named.items()}  # which a matrix's random numbers come from
    groups = grouped("matrix", modules, {**patterns, "*": matrix})
    for group in groups:
        knots = {key: points for key, points in moved.items() if key in group}
        dtype = group["params"][0].dtype
        group |= {key: torch.tensor(float(points[0][1]), dtype=dtype) for key, points in knots.items()}
        group |= {"params": [(names[p], p) for p in group["params"]], "knots": knots}
        group |= {"head_dim": head_dim} if "couple" in group else {}
    return groups


def around_of(
    name: str, named: Mapping[str, Tensor], table: Values, patterns: Mapping[str, Values]
) -> Around:
    """What a table of [around] or [readout] says, over the parameters in `params` but not in `but`."""

    def among(patterns: Iterable[str], parameter: str) -> bool:
        return any(matches(pattern, parameter) for pattern in patterns)

    values = {key: value for key, value in table.items() if key not in ("kind", "params", "but")}
    over, but = table["params"], table["but"]
    chosen = {key: p for key, p in named.items() if among(over, key) and not among(but, key)}
    groups = grouped(name, chosen, {**patterns, "*": {}})
    for group in groups:
        lists = {key: value for key, value in (values | group).items() if isinstance(value, list) and value}
        knots = {key: value for key, value in lists.items() if isinstance(value[0], list)}
        group |= {key: points[0][1] for key, points in knots.items()} | {"name": name, "knots": knots}
    return AROUND[table["kind"]](groups, **values)


def learning_rates(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What a step reports: "lr.embed", "lr.matrix" and so on, of every named group that a schedule moves."""
    named = ((group["name"], group["lr"]) for group in groups if {"name", "schedule"} <= group.keys())
    return {f"lr.{'matrix' if name == '*' else name}": lr for name, lr in named}
