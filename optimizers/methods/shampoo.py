"""Shampoo and PSGD Kron: a factor on each side of the momentum. Words and signs as in methods/muon.py.

Both under KellerJordan/modded-nanogpt@f411b3d records/track_3_optimization/results.
"""

from optimizers.stage import method
from optimizers.stages.kron import kron
from optimizers.stages.land import decay, hyperball
from optimizers.stages.memory import corrected_average
from optimizers.stages.shampoo import shampoo


@method(corrected_average, shampoo, decay, lr=0.01, weight_decay=0.1, momentum=0.9)
def shampoo_adam() -> None:
    """Shampoo, grafted onto Adam's norm (published result #35; the package distributed_shampoo beside #21).

    M <- mu M + (1 - mu) G;  u = M/(1 - mu^t);  P = L^-1/4 u R^-1/4 at |A|, A = u/(sqrt(v) + eps);
    W <- W (1 - lr wd) - lr P

    #35 calls itself one-sided, its code has both sides and pseudo-inverse roots. #21 is lr=.0015,
    weight_decay=.2, beta2=.95, root_eps=1e-12, graft_eps=1e-10, refresh_every=5. The package merges
    dimensions whose product is at most 8192 into one; this does not.

    State: momentum and variance of the weight's shape; covariance and root of both sides; step.
    """


@method(corrected_average, kron, hyperball, lr=0.025)
def psgd_kron() -> None:
    """PSGD Kron on the hyperball (published result #33, 20260527_psgd).

    M <- mu M + (1 - mu) G;  u = M/(1 - mu^t);  U = (Q0^T Q0) u (Q1^T Q1), see kron;  W on its sphere as in
    muonh

    The start of the factors sees the gradient's scale: #33 has gradients of the mean over tokens. Published,
    the probes come from each rank's generator.

    State: momentum; row_factor, column_factor; step and the matrix's seed [..., 1, 1].
    """
