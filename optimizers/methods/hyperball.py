"""The hyperball step at constant |W|, in Muon's, NorMuon's and Adam's direction; and AdamW.

Words and signs as in methods/muon.py.
"""

from optimizers.stage import method
from optimizers.stages.direction import polar_direction
from optimizers.stages.land import hyperball
from optimizers.stages.memory import nesterov
from optimizers.stages.normalise import neuron_variance
from optimizers.stages.precondition import adam
from optimizers.stages.scale import spectral


@method(nesterov, polar_direction, hyperball, lr=0.018)
def muonh() -> None:
    """MuonH (KellerJordan/modded-nanogpt@f411b3d results/20260430_muonh).

    u as in muon;  U = polar(u);  X = W - lr |W| U/|U|;  W <- X |W|/|X|

    lr is the angle of the step in radians, to first order; there is no weight decay. The radius is that of
    the weight at hand (the source's docstring says the initial one; the same up to rounding): a zero weight
    stays zero.
    """


@method(nesterov, polar_direction, neuron_variance, spectral, hyperball, lr=0.018, neuron_beta2=0.95)
def normuonh() -> None:
    """NorMuonH (published result #8; KellerJordan/modded-nanogpt@f411b3d results/20260430_normuonh).

    muonh with U = polar(u) divided by every neuron's running RMS: per row if m >= n, else per column.

    State: neuron_variance [..., m, 1] or [..., 1, n].
    """


@method(adam, hyperball, lr=0.018)
def adamh() -> None:
    """AdamH (published result #4; KellerJordan/modded-nanogpt@f411b3d results/20260430_adamh).

    muonh with U = m^ / (sqrt(v^) + eps), Adam's direction with bias correction.

    State: momentum and variance of the weight's shape, step [..., 1, 1].
    """
