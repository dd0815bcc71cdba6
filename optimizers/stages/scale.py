"""Scale: the size of an update by the shape of its matrix, m outputs and n inputs."""

from torch import Tensor

from optimizers.stage import stage


@stage("scale", by_rows=True)
def spectral(W: Tensor) -> float:
    """sqrt(max(1, m/n)): tall matrices take larger steps, wide ones 1."""
    return max(1.0, W.shape[-2] / W.shape[-1]) ** 0.5


@stage("scale", by_rows=True)
def rms(W: Tensor) -> float:
    """0.2 sqrt(max(m, n)): gives a polar factor the RMS of AdamW's updates (Moonlight, arXiv 2502.16982)."""
    return 0.2 * max(W.shape[-2:]) ** 0.5


@stage("scale", by_rows=True)
def row_rms(W: Tensor) -> float:
    """sqrt(n): gives a row of norm 1 entries of RMS 1. SCALE, SRON."""
    return W.shape[-1] ** 0.5


@stage("scale")
def column_rms(W: Tensor) -> float:
    """sqrt(m): gives a column of norm 1 entries of RMS 1. SCALE's embedding."""
    return W.shape[-2] ** 0.5


@stage("scale", by_rows=True)
def width(W: Tensor) -> float:
    """1/sqrt(n): rows of norm 1 at norm 1 as a map from inputs of RMS 1 to the largest output, one learning
    rate for all widths. MOGA (arXiv 2603.09952), (2, mean) -> inf.
    """
    return W.shape[-1] ** -0.5


@stage("scale")
def column_width(W: Tensor) -> float:
    """sqrt(m)/n: columns of norm 1 at norm 1 as a map from inputs of mean size 1 to outputs of RMS 1. MOGA
    (arXiv 2603.09952), (1, mean) -> (2, mean).
    """
    return W.shape[-2] ** 0.5 / W.shape[-1]
