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
