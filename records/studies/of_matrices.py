"""Studies of single updates: random matrices, and the momenta of a short training of Muon on nano."""

import functools
import statistics
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from optimizers import MatrixOptimizer
from optimizers.instruments import measure, singular_values
from optimizers.polar import DEFAULT_STEPS, polar
from optimizers.stage import STEPS, named_step
from optimizers.stages.precondition import equalize
from records.publish.pictures import COLOURS, Picture
from records.studies.page import Cell, Findings, Study, Table
from records.studies.short_training import ALONE, trained
from train_gpt import load_recipe, make_model

SEEDS = range(10)
SHAPES = ((64, 64), (256, 64), (64, 256))
METHODS = {"simple": 12, "quintic": 5, "polar_express": 8, "cans": 8}
TRAINED = 60  # updates of Muon before momenta are taken
KINDS = ("attn.q", "attn.v", "attn.proj", "mlp.fc", "mlp.proj")

Matrices = dict[str, list[Tensor]]  # a kind of matrix -> examples of it


def gaussian(seed: int, shape: tuple[int, int], row_spread: float = 0.0) -> Tensor:
    """Entries of a normal law, rows scaled by a log-normal one of that spread (0: not), float64."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(shape, generator=generator, dtype=torch.float64)
    return X * (row_spread * torch.randn((shape[0], 1), generator=generator, dtype=torch.float64)).exp()


def random_matrices(row_spread: float) -> Matrices:
    told = f", rows scaled by exp({row_spread:g} z)" if row_spread else ""
    return {
        f"random {m}x{n}{told}": [gaussian(seed, (m, n), row_spread) for seed in SEEDS] for m, n in SHAPES
    }


@functools.cache
def momenta() -> Matrices:
    """Muon's momenta after TRAINED updates of nano, seed 0, by kind of matrix; one of each layer."""
    recipe = load_recipe("muon")
    model = make_model(recipe, 0, ALONE.device, False)
    optimizers, _ = trained(model, recipe, range(TRAINED))
    matrix = next(each for each in optimizers if isinstance(each, MatrixOptimizer))
    named = {name: matrix.state[p]["momentum"] for name, p in model.named_parameters() if p in matrix.state}
    return {
        f"momenta, {kind}": [M.double() for name, M in named.items() if name.endswith(f"{kind}.weight")]
        for kind in KINDS
    }


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


# --------------------------------------------------------------------------------------------------
# polar_methods


def polar_methods(train: bool) -> Findings:
    """What the iterations leave of singular values: least, largest, and root-mean-square |s - 1|."""
    matrices = random_matrices(0.0) | momenta()
    rows: list[list[Cell]] = []
    errors: dict[str, list[float]] = {method: [] for method in METHODS}
    by_quintic: list[float] = []
    for kind, examples in matrices.items():
        for method, steps in METHODS.items():
            assert DEFAULT_STEPS[method] == steps
            s = torch.cat([torch.linalg.svdvals(polar(X, method)) for X in examples])
            error = float((s - 1).square().mean().sqrt())
            errors[method].append(error)
            by_quintic += [float(s.min()), float(s.max())] if method == "quintic" else []
            rows.append([kind, f"{method}-{steps}", float(s.min()), float(s.max()), error])
    curves = response()

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (method, values) in enumerate(curves["out"].items()):
            axes.plot(
                curves["in"], values, color=COLOURS[i], label=f"{method}-{METHODS[method]}", linewidth=1.4
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("singular value over the Frobenius norm, before")
        axes.set_ylabel("after")
        axes.legend(frameon=False)

    order = sorted(METHODS, key=lambda method: statistics.fmean(errors[method]))
    told = ", ".join(f"{method}-{METHODS[method]} {statistics.fmean(errors[method]):.2g}" for method in order)
    verdict = ("The claim shows: " if order[-1] == "quintic" else "The claim does not show: ") + (
        f"the RMS distance of singular values from 1, averaged over the kinds of matrices, is {told}; the "
        f"quintic leaves them between {min(by_quintic):.2g} and {max(by_quintic):.3g}."
    )
    header = ["matrices", "method", "least s", "largest s", "RMS distance from 1"]
    return Findings(
        verdict, seeds_told(), [Table("Singular values after the iterations", header, rows)],
        {"response.svg": Picture(curves, draw, 6.5, 4.0)}, {"rows": rows, "response": curves},
    )  # fmt: skip


def response() -> dict:
    """s before and after each method, of diagonal matrices at Frobenius norm 1, 64 by 64."""
    s = torch.logspace(-4, -0.05, 60, dtype=torch.float64)
    out = {}
    for method in METHODS:
        after = []
        for value in s:
            rest = ((1 - value**2) / 63).sqrt()
            D = torch.diag(torch.cat([value[None], rest.expand(63)]))
            after.append(float(polar(D, method)[0, 0].abs()))
        out[method] = after
    return {"in": s.tolist(), "out": out}


def seeds_told() -> str:
    return f"random matrices of seeds {SEEDS.start} to {SEEDS.stop - 1}, momenta of seed 0"


# --------------------------------------------------------------------------------------------------
# row_uniformity

UNIFORM = {
    "muon": {}, "normuon": {"polar": "simple"}, "u_normuon": {}, "muoneq": {"mode": "r", "polar": "simple"},
    "aurora": {}, "riemannian_aurora": {},
}  # fmt: skip


def row_uniformity(train: bool) -> Findings:
    """Variation of the update's row norms against its alignment with the momentum's polar factor."""
    matrices = random_matrices(1.0) | momenta()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in UNIFORM}
    rows = []
    for kind, examples in matrices.items():
        for name, options in UNIFORM.items():
            numbers = [first_update(name, X, options) for X in examples]
            variation, alignment = (mean([one[key] for one in numbers])
                                    for key in ("row_variation", "polar_alignment"))  # fmt: skip
            rows.append([kind, name, variation, alignment])
            if variation is not None and alignment is not None:
                found[name].append((variation, alignment))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, points) in enumerate(found.items()):
            axes.plot(*zip(*points, strict=True), "o", color=COLOURS[i], markersize=4, label=name)
        axes.set_xlabel("variation of the row norms of the update")
        axes.set_ylabel("alignment with the polar factor")
        axes.legend(frameon=False)

    def average(name: str, which: int, kinds: str) -> float:
        column = [row[2 + which] for row in rows if row[1] == name and kinds in str(row[0])]
        return statistics.fmean(value for value in column if isinstance(value, float))

    tall = "256x64"
    told = "; ".join(
        f"{name} {average(name, 0, tall):.2g} and {average(name, 1, tall):.3f}" for name in UNIFORM
    )
    better = [
        name for name in ("aurora", "riemannian_aurora")
        if average(name, 0, tall) < average("muon", 0, tall) / 2
        and average(name, 1, tall) > average("u_normuon", 1, tall)
    ]  # fmt: skip
    verdict = (
        f"Row-norm variation and alignment on random tall matrices: {told}. "
        + (f"{' and '.join(better)} even out the rows and stay closer to the polar factor than u_normuon: "
           "the claim shows on these." if better else
           "Neither Aurora is both more even than Muon and closer to the polar factor than u_normuon: the "
           "claim does not show on these.")
    )  # fmt: skip
    header = ["matrices", "method", "row-norm variation", "alignment"]
    return Findings(
        verdict, seeds_told() + "; the first update of each method from a weight of zeros",
        [Table("Rows and alignment", header, rows)], {"uniformity.svg": Picture(found, draw, 6.5, 4.2)},
        {"rows": rows},
    )  # fmt: skip


def first_update(name: str, X: Tensor, options: Mapping[str, object]) -> dict[str, float | None]:
    """The instruments' numbers of one update whose momentum is X."""
    before = 0.02 * gaussian(99, (X.shape[0], X.shape[1]))
    after = before.clone()
    own = {"weight_decay": 0.0, "momentum": 0.0} | dict(options)
    own = {key: value for key, value in own.items() if key in STEPS[name].row.hyperparameters}
    named_step(name)(after, X, {}, lr=0.01, **own)
    return measure(X[None], before[None], after[None], lr=0.01)[0].numbers


# --------------------------------------------------------------------------------------------------
# equilibration


def equilibration(train: bool) -> Findings:
    """Stable rank and condition before and after equalising rows, columns, both; what 5 steps leave then."""
    matrices = random_matrices(1.0) | momenta()
    rows = []
    for kind, examples in matrices.items():
        for mode in ("as it is", "r", "c", "rc"):
            numbers = [spectrum(X if mode == "as it is" else equalize(X, mode=mode)) for X in examples]
            rows.append([kind, mode, *(statistics.median(column) for column in zip(*numbers, strict=True))])
    kinds = list(matrices)
    at = {(row[0], row[1]): row for row in rows}

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for axes, column, label in (
            (left, 2, "stable rank"),
            (right, 4, "RMS |s - 1| after 5 quintic steps"),
        ):
            for i, mode in enumerate(("as it is", "r", "c", "rc")):
                axes.plot([at[kind, mode][column] for kind in kinds], range(len(kinds)), "o",
                          color=COLOURS[i], label=mode, markersize=4)  # fmt: skip
            axes.set_yticks(range(len(kinds)), kinds if axes is left else [""] * len(kinds), fontsize=8)
            axes.set_xlabel(label)
        left.legend(frameon=False, fontsize=8)

    def wins(mode: str, column: int, larger: bool) -> int:
        pairs = [(at[kind, mode][column], at[kind, "as it is"][column]) for kind in kinds]
        return sum((a > b) == larger for a, b in pairs)

    told = "; ".join(
        f"{mode}: stable rank up in {wins(mode, 2, True)}, condition down in {wins(mode, 3, False)}, "
        f"residual down in {wins(mode, 4, False)}" for mode in ("r", "c", "rc")
    )  # fmt: skip
    shows = all(wins("r", column, larger) > len(kinds) / 2 for column, larger in ((2, True), (4, False)))
    verdict = (
        f"Of {len(kinds)} kinds of matrices, {told}. "
        + ("For rows the claim shows in most." if shows else "For rows the claim does not show in most.")
    )  # fmt: skip
    header = ["matrices", "equalised", "stable rank", "condition", "RMS distance from 1 after 5 steps"]
    return Findings(
        verdict, seeds_told(), [Table("Medians", header, rows)],
        {"equilibration.svg": Picture({"rows": rows}, draw, 9.5, 4.0)}, {"rows": rows},
    )  # fmt: skip


def spectrum(X: Tensor) -> tuple[float, float, float]:
    """Stable rank, condition, and the RMS distance of singular values from 1 after 5 quintic steps."""
    s = singular_values(X[None])[0]
    left = torch.linalg.svdvals(polar(X, "quintic")) - 1
    return float(s.square().sum() / s[0] ** 2), float(s[0] / s[-1]), float(left.square().mean().sqrt())


STUDIES = (
    Study(
        "polar_methods",
        "iterations of a few steps leave singular values away from 1, Muon's quintic most of all",
        "Aurora fig. 1; for fig. 2 see polar_error", polar_methods,
    ),
    Study(
        "row_uniformity",
        "normalising rows after the polar factor costs alignment with it; Aurora's are even and keep more",
        "Aurora figs. 3 and 9", row_uniformity,
    ),
    Study(
        "equilibration",
        "equalising rows or columns before the polar factor raises the stable rank, lowers the condition and "
        "lets five Newton-Schulz steps come closer",
        "MuonEq", equilibration,
    ),
)  # fmt: skip
