"""Normalise: U -> U, one size for every neuron or entry of the direction."""

from typing import Annotated

from torch import Tensor

from optimizers.norms import average_, rescaled, safe_norm, unit
from optimizers.stage import Scalar, State, buffer, stage

NeuronBeta2 = Annotated[Scalar | None, "[0, 1)", "the records' neuron variance: what it keeps; nothing: off"]


@stage("normalise")
def neuron_variance(U: Tensor, state: State, *, neuron_beta2: NeuronBeta2 = None) -> Tensor:
    """NorMuon as records #9-#11 have it: each neuron by its running RMS, then back to the norm before.

    v <- b2 v + (1 - b2) mean U^2 per row (m >= n) or per column (m < n); U / sqrt(max(v, 1e-10)), rescaled to
    |U|.
    """
    if neuron_beta2 is None:
        return U
    m, n = U.shape[-2:]
    per_row = m >= n
    v = buffer(state, "neuron_variance", U, (m, 1) if per_row else (1, n))
    average_(v, U.square().mean(-1 if per_row else -2, keepdim=True), neuron_beta2)
    return rescaled(U * v.clamp(min=1e-10).rsqrt(), safe_norm(U))


@stage("normalise")
def row_variance(
    U: Tensor, state: State, *,
    beta2: Annotated[Scalar, "[0, 1)", "what the average of the rows' squares keeps"] = 0.95,
    eps: Annotated[float, "[0, inf)", "added to roots and norms"] = 1e-10,
    neuron_beta2: NeuronBeta2 = None,
) -> Tensor:  # fmt: skip
    """v_i <- b2 v_i + (1 - b2) mean_j U_ij^2; U_i / (sqrt(v_i) + eps); rescaled to its norm before.

    NorMuon's own form (arXiv 2510.05491); neuron_beta2 puts the records' in its place.
    """
    if neuron_beta2 is not None:
        return neuron_variance(U, state, neuron_beta2=neuron_beta2)
    size = safe_norm(U)
    v = buffer(state, "row_variance", U, (U.shape[-2], 1))
    U = U / (average_(v, U.square().mean(-1, keepdim=True), beta2).sqrt() + eps)
    return U * (size / (safe_norm(U) + eps))


@stage("normalise")
def unit_rows(U: Tensor) -> Tensor:
    """Every row to norm sqrt(min(m, n)/m), the RMS row norm of an exact polar factor. U-NorMuon."""
    m, n = U.shape[-2:]
    return (min(m, n) / m) ** 0.5 * unit(U, -1)


@stage("normalise")
def entry_variance(
    U: Tensor, state: State, *,
    beta2: Annotated[Scalar, "[0, 1)", "what the average of the direction's squares keeps"] = 0.95,
    eps: Annotated[float, "[0, inf)", "added to the root and to the norm"] = 1e-8,
) -> Tensor:  # fmt: skip
    """v <- b2 v + (1 - b2) U^2 elementwise; U / (sqrt(v) + eps), to RMS 0.2. AdaMuon."""
    v = average_(buffer(state, "entry_variance", U), U.square(), beta2)
    X = U / (v.sqrt() + eps)
    return X * (0.2 * (X.shape[-2] * X.shape[-1]) ** 0.5 / (safe_norm(X) + eps))
