"""Matrix optimizers: interchangeable step functions by name."""

from optimizers.adamuon import adamuon
from optimizers.adamw import adamw
from optimizers.aurora import aurora
from optimizers.contra_muon import contra_muon
from optimizers.hyperball import adamh, muonh, normuonh
from optimizers.matrix_optimizer import MatrixOptimizer  # noqa: F401 (for users of the package)
from optimizers.muon import muon
from optimizers.muoneq import muoneq
from optimizers.muonsq import muonsq
from optimizers.namo import namo, namo_d
from optimizers.nora import nora
from optimizers.normuon import normuon, u_normuon
from optimizers.riemannian_aurora import riemannian_aurora
from optimizers.rmnp import rmnp
from optimizers.soap_muon import soap_muon
from optimizers.soft_muon import soft_muon

STEPS = {
    step.__name__: step
    for step in (
        adamw, muon, normuon, u_normuon, muoneq, rmnp, nora, aurora, riemannian_aurora, contra_muon,
        soft_muon, namo, namo_d, adamuon, muonh, normuonh, adamh, muonsq, soap_muon,
    )
}  # fmt: skip
