"""Matrix optimizers: methods of the field as rows of stages, by name."""

from optimizers.around import average, head_kfac, moves, readouts  # noqa: F401 (each registers itself)
from optimizers.around.around import AROUND
from optimizers.matrix_optimizer import MatrixOptimizer
from optimizers.methods import adam, aurora, hyperball, muon, rows, soap  # noqa: F401 (each registers itself)
from optimizers.stage import STAGES, STEPS
from optimizers.stages import maxent  # noqa: F401

__all__ = ["AROUND", "STAGES", "STEPS", "MatrixOptimizer"]
