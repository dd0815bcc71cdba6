"""Methods told from their declarations: the map of methods, and the stages of a recipe with their values."""

from collections.abc import Iterator, Mapping

from optimizers.stage import KINDS, STEPS, Row, Step, exchanged

# Methods that a reader may look for, and why none of them is a row.
MISSING = {
    "Intrinsic Muon (arXiv 2605.09238)": "for LoRA pairs and orthonormal weights; else it is Muon",
    "gate, up and down projections of SwiGLU, routers (arXiv 2605.18106)": "these models have none",
}


def method_map() -> str:
    """A Markdown table: each method, its stage of each kind; below it, what is missing and why."""
    head = ["method", *KINDS]
    rows = [[f"`{name}`", *stage_names(step.row)] for name, step in sorted(STEPS.items())]
    table = [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]
    return "\n".join([*table, "", *(f"Not here: {name}: {why}." for name, why in MISSING.items())])


def stage_names(row: Row) -> list[str]:
    """The row's stage of each kind; a method that is no row has a rule of its own."""
    if not row.stages:
        return ["a rule of its own", *[""] * (len(KINDS) - 1)]
    found = {stage.kind: stage.name for stage in row.stages}
    return [found.get(kind, "") for kind in KINDS]


def explained(tables: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """For each pattern of matrices, its table of [matrix]: the stages and every hyperparameter."""
    for pattern, values in tables.items():
        stages = {kind: str(values[kind]) for kind in KINDS if kind in values}
        step = exchanged(STEPS[str(values["step"])], stages)
        yield f"{pattern}: {step.row.name}"
        yield from stages_told(step, values)


def stages_told(step: Step, values: Mapping[str, object]) -> Iterator[str]:
    """The stages of a method, and each hyperparameter: value, default where it differs, range, meaning."""
    row = step.row
    told: set[str] = set()
    parts = [
        (f"{stage.kind}: {stage.name}", names) for stage, names in zip(row.stages, row.keywords, strict=True)
    ]
    for title, names in parts or [("a rule of its own", tuple(row.hyperparameters))]:
        yield f"  {title}"
        for name in names:
            if name in told:
                continue
            told.add(name)
            keyword = row.hyperparameters[name]
            value = values.get(name, keyword.default)
            default = "" if value == keyword.default else f" (default {keyword.default})"
            yield f"    {name} = {value}{default}: {keyword.meaning}; {keyword.expected}"
