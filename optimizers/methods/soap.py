"""SOAP-Muon: Muon on momentum preconditioned in the eigenbases of the gradient's covariances."""

from optimizers.stage import method
from optimizers.stages.direction import polar_direction
from optimizers.stages.land import decay
from optimizers.stages.memory import nesterov
from optimizers.stages.normalise import neuron_variance
from optimizers.stages.scale import spectral
from optimizers.stages.soap import soap


@method(
    nesterov, soap, polar_direction, neuron_variance, spectral, decay,
    lr=0.0375, contra=0.4, neuron_beta2=0.95, update_floor=0.35,
)  # fmt: skip
def soap_muon() -> None:
    """SOAP-Muon (published result #14, branch of the MLP weights; modded-nanogpt@f411b3d
    results/20260504_contra_muon_mlp_soapish). SOAP: arXiv 2409.11321.

    u as in muon;  D = preconditioned(u) in the eigenbases Qr, Qc of L and R, averages of G G^T and G^T G;
    then as contra_muon with D in u's place (contra, neuron normalisation and floor are on, as in #14).

    #14 adds eps to the root; from #16 on eps_rule="clamp", with denominator_floor, trust (attn.proj) and,
    from #20 on, soap_part. #44 has refresh_every=1: about 4 times Muon's time, 64 wide, on one core.

    State: variance of the weight's shape, row_covariance and row_basis [..., m, m], column_covariance and
    column_basis [..., n, n], step [..., 1, 1], neuron_variance. #14's printed weight decay of .025 was never
    applied.
    """
