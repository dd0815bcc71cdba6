"""Matrix optimizers: methods of the field as rows of stages, by name."""

from optimizers.matrix_optimizer import MatrixOptimizer
from optimizers.methods import (  # noqa: F401 (each registers itself)
    adam,
    aurora,
    hyperball,
    muon,
    muown,
    rows,
    soap,
    soap_family,
)
from optimizers.stage import STAGES, STEPS

__all__ = ["STAGES", "STEPS", "MatrixOptimizer"]
