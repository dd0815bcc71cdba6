"""Aurora: the semi-orthogonal update whose rows are all equally long. Words and signs as in
methods/muon.py.
"""

from optimizers.stage import method
from optimizers.stages.balanced import balanced
from optimizers.stages.land import decay
from optimizers.stages.memory import nesterov
from optimizers.stages.normalise import neuron_variance
from optimizers.stages.scale import spectral
from optimizers.stages.stiefel import stiefel


@method(nesterov, balanced, neuron_variance, spectral, decay, lr=0.05, weight_decay=0.025)
def aurora() -> None:
    """Aurora (tilde-research/aurora-release@3d79a5c src/aurora.py).

    u as in muon;  U = sqrt(max(1, m/n)) balanced_polar(u);  W <- W (1 - lr wd) - lr U

    Wide matrices balance their columns; square ones take Muon's step. The options are muon's; result #17 is
    contra=.4, update_floor=.35, lr=.0375, weight_decay=0. Result #30 balances wide matrices only:
    balance="wide", iterations=3, beta=.25, norm="schatten4".

    leverage="gram": between two polar factors only row norms are needed, and leverage_scores has them for
    0.14 of a polar factor's time (3072 x 768, one core). Relative difference of the directions (of their
    largest entry), 3072 x 768, rows of uneven length, float32 as float64, from
    tests/benchmarks/polar_accuracy.py: momentum of condition 10: 5e-6 (1e-5); 1e3: 1.7e-3 (3.7e-3); 1e5:
    2.2e-3 (4.3e-3).
    """


@method(nesterov, stiefel, spectral, decay, lr=0.05, weight_decay=0.025)
def riemannian_aurora() -> None:
    """Riemannian Aurora (tilde-research/aurora-release@3d79a5c src/riemannian_aurora.py).

    u as in muon;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) row_balanced_ascent(u); square matrices take
    Muon's step

    Not invariant to the gradient's scale: the ascent direction grows with |u| while U stays at sqrt(min(m,
    n)). As published the non-square branch stops with a dtype error; this is what it computes once everything
    is cast to one dtype.
    """
