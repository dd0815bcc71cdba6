"""Matrix optimizers: interchangeable step functions by name."""

from optimizers.adamw import adamw
from optimizers.aurora import aurora
from optimizers.contra_muon import contra_muon
from optimizers.muon import muon
from optimizers.nora import nora
from optimizers.normuon import normuon, u_normuon
from optimizers.rmnp import rmnp

STEPS = {step.__name__: step for step in (adamw, muon, normuon, u_normuon, rmnp, nora, aurora, contra_muon)}
