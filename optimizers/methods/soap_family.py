"""SOAP's relatives: bases that turn at every step. Words and signs as in methods/muon.py.

All under KellerJordan/modded-nanogpt@f411b3d records/track_3_optimization/results.
"""

from optimizers.stage import method
from optimizers.stages.direction import polar_direction
from optimizers.stages.eigenbases import (
    adam_in_bases,
    balanced_squares,
    kl_soap,
    long_neuron_variance,
    streaming_powers,
)
from optimizers.stages.land import decay, hyperball
from optimizers.stages.memory import late_average, nesterov
from optimizers.stages.normalise import neuron_variance
from optimizers.stages.scale import spectral


@method(nesterov, balanced_squares, long_neuron_variance, spectral, decay, lr=0.04, weight_decay=0.025)
def sinksoap() -> None:
    """SinkSOAP (published result #26, 20260514_sinksoap).

    u as in muon;  D = Ql sqrt(a) (Ql^T u Qr) sqrt(b) Qr^T, a and b balancing rows and columns of the squares,
    Ql and Qr the eigenvectors of this step's averages of G G^T and G^T G;  D at norm sqrt(min(m, n)), and
    each neuron of a matrix that is not square over its running RMS;
    W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D. No polar factor.

    State: row_covariance [..., m, m], column_covariance [..., n, n], neuron_variance. Published, the
    neuron's RMS is clamped at 1e-10; here at 1e-5, as in the other records.
    """


@method(nesterov, adam_in_bases, hyperball, lr=0.018, nesterov=False)
def soaph() -> None:
    """SOAP-H (published result #27, 20260518_soaph).

    M <- mu M + (1 - mu) G;  U = M over the root of the average square of G, in bases that follow the
    eigenvectors of the averages of G G^T and G^T G by one QR a step;  W on its sphere as in muonh.

    State: momentum and variance of the weight's shape, covariances and bases of both sides.
    """


@method(late_average, kl_soap, hyperball, lr=0.018)
def klsoaph() -> None:
    """KL-SOAP-H (published results #19, 20260508_klsoap_h_clean_tuple_sweep, and #25).

    soaph with covariances of whitened gradients, see kl_soap. The first gradient makes the bases, enters
    neither M nor V and moves nothing. Not invariant to the gradient's scale.

    State: as soaph, and row_scale [..., m, 1], column_scale [..., 1, n]. The source clamps scales at 1e-30
    before the root and replaces what is not finite; held gradients make that idle.
    """


@method(
    nesterov, streaming_powers, polar_direction, neuron_variance, spectral, decay,
    lr=0.035, weight_decay=0.025,
)  # fmt: skip
def pmuon() -> None:
    """PMuon (published result #18, 20260507_pmuon).

    u as in muon;  D = A^-.3 u C^-.3, A and C running sums of u u^T and u^T u (of u: the source's README says
    G);  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) polar(D). Muon's options hold.

    State: momentum, covariances and bases of both sides, and the matrix's seed [..., 1, 1] of the first
    bases. Published, those come from the device's generator and so depend on rank and run.
    """
