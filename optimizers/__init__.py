"""Matrix optimizers: methods of the field as rows of stages, by name."""

from optimizers.around import (  # noqa: F401 (each registers itself)
    average,
    gradient_noise,
    gradients,
    head_kfac,
    moves,
    outer_nesterov,
    readouts,
)
from optimizers.around.around import AROUND
from optimizers.matrix_optimizer import MatrixOptimizer
from optimizers.methods import (  # noqa: F401 (each registers itself)
    adam,
    aurora,
    hyperball,
    muon,
    muown,
    rows,
    shampoo,
    soap,
    soap_family,
)
from optimizers.stage import STAGES, STEPS
from optimizers.stages import maxent  # noqa: F401

__version__ = "0.2.0"
__all__ = ["AROUND", "STAGES", "STEPS", "MatrixOptimizer"]
