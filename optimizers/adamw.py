"""AdamW on a matrix: the elementwise baseline."""

from torch import Tensor

from optimizers.building_blocks import Scalar, State, adam_direction, decay_, step_function


@step_function
def adamw(
    weight: Tensor, grad: Tensor, state: State, *, lr: Scalar = 0.0015, weight_decay: Scalar = 0.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.95), eps: float = 1e-10,
) -> None:  # fmt: skip
    """AdamW (arXiv 1711.05101), equal to torch.optim.AdamW.

    m <- b1 m + (1 - b1) G;  v <- b2 v + (1 - b2) G^2;  W <- W (1 - lr wd) - lr m^ / (sqrt(v^) + eps),
    m^ = m / (1 - b1^t), v^ = v / (1 - b2^t). weight, grad [..., m, n]; state: momentum and variance of the
    weight's shape, step [..., 1, 1]. Entries of G^2 beyond the dtype's range are held at half its maximum.
    """
    U = adam_direction(grad, state, betas, eps)
    decay_(weight, U, lr, weight_decay)
    weight.sub_(lr * U)
