"""What each polar method leaves of the singular values, and how well the Gram form agrees.

    python -m tests.benchmarks.polar_accuracy

Matrices 768 x 3072 with singular values in geometric progression from 1 to 1/condition. First table: largest
|s - 1| of the result, direct form. Second: |gram - direct| / |direct|, and beside it the direct form's own
rounding error, |direct - direct in float64| / |direct in float64|. Third: Aurora's direction with
leverage="gram" against "polar" on the transpose with unevenly long rows: relative difference in Frobenius
norm, and largest difference of an entry over the largest entry. bfloat16 is simulated on CPU: products
rounded to bfloat16.
"""

import torch
from torch import Tensor

from optimizers.polar import COEFFICIENTS, coefficients, iterated, iterated_on_gram, polar
from optimizers.stages.balanced import balanced_polar

CONDITIONS = (10, 1e3, 1e5)
SHAPE = (768, 3072)


def matrix_of_condition(condition: float) -> Tensor:
    """A float64 wide matrix with the given condition, of Frobenius norm 1."""
    m, n = SHAPE
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, m, generator=generator, dtype=torch.float64)).Q
    X = left @ (condition ** -torch.linspace(0, 1, m, dtype=torch.float64)[:, None] * right.mT)
    return X / torch.linalg.matrix_norm(X)


def relative(X: Tensor, reference: Tensor) -> float:
    """|X - reference| / |reference| in Frobenius norm."""
    return ((X.double() - reference.double()).norm() / reference.double().norm()).item()


def main() -> None:
    print(f"largest |s - 1|, {SHAPE[0]} x {SHAPE[1]}")
    print(f"{'method':14}{'dtype':10}" + "".join(f"{condition:>10.0e}" for condition in CONDITIONS))
    matrices = [matrix_of_condition(condition) for condition in CONDITIONS]
    for method in (*COEFFICIENTS, "svd"):
        for dtype in (torch.float32, torch.bfloat16):
            if method == "svd" and dtype == torch.bfloat16:
                continue
            rows = None if method == "svd" else coefficients(method, dtype=dtype)
            inputs = [X.to(dtype) for X in matrices]
            results = [polar(X, "svd") if rows is None else iterated(X, rows) for X in inputs]
            errors = [(torch.linalg.svdvals(Y.float()) - 1).abs().max().item() for Y in results]
            print(f"{method:14}{str(dtype)[6:]:10}" + "".join(f"{error:10.1e}" for error in errors))

    print("\nGram form against direct form (own rounding error of the direct form)")
    for method in COEFFICIENTS:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            rows = coefficients(method, dtype=dtype)
            cells = []
            for X in matrices:
                direct = iterated(X.to(dtype), rows)
                agreement = relative(iterated_on_gram(X.to(dtype), rows), direct)
                cells.append(f"{agreement:10.1e} ({relative(direct, iterated(X, rows)):.1e})")
            print(f"{method:14}{str(dtype)[6:]:10}" + "".join(cells))

    print('\nAurora, leverage "gram" against "polar": Frobenius, largest entry')
    for condition, X in zip(CONDITIONS, matrices, strict=True):
        u = X.mT * torch.logspace(0, -1, SHAPE[1], dtype=torch.float64)[:, None]
        for dtype in (torch.float64, torch.float32):
            by_gram = balanced_polar(u.to(dtype), "simple", None, 2, 0.5, "gram")
            by_polar = balanced_polar(u.to(dtype), "simple", None, 2, 0.5, "polar")
            largest = ((by_gram - by_polar).abs().max() / by_polar.abs().max()).item()
            print(f"{condition:8.0e} {str(dtype)[6:]:8} {relative(by_gram, by_polar):.1e} {largest:.1e}")


if __name__ == "__main__":
    main()
