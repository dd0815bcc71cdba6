"""AdamW on a matrix: the elementwise baseline."""

from optimizers.stage import method
from optimizers.stages.land import decay
from optimizers.stages.precondition import adam


@method(adam, decay, lr=0.0015, eps=1e-10)
def adamw() -> None:
    """AdamW (arXiv 1711.05101), equal to torch.optim.AdamW.

    m <- b1 m + (1 - b1) G;  v <- b2 v + (1 - b2) G^2;  W <- W (1 - lr wd) - lr m^ / (sqrt(v^) + eps),
    m^ = m / (1 - b1^t), v^ = v / (1 - b2^t).

    State: momentum and variance of the weight's shape, step [..., 1, 1]. Entries of G^2 beyond the dtype's
    range are held at half its maximum.
    """
