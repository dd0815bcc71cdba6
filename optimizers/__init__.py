"""Matrix optimizers: methods of the field as rows of stages, by name."""

from optimizers.matrix_optimizer import MatrixOptimizer
from optimizers.methods import adam, aurora, hyperball, muon, rows, soap  # noqa: F401 (each registers itself)
from optimizers.stage import STAGES, STEPS

__all__ = ["STAGES", "STEPS", "MatrixOptimizer"]
