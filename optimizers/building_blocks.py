"""What several step functions share: one short function each.

W is a weight [..., m, n] (m outputs = rows, n inputs = columns), G its gradient, u the momentum mix, U the
update before the learning rate; |.| is the Frobenius norm of each matrix. A function whose name ends in _
changes W. Hyperparameters that a schedule may move (lr, weight_decay, momentum, ...) are floats or 0-d
tensors.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]
Scalar = float | Tensor


# --------------------------------------------------------------------------------------------------
# The contract of a step function


def step_function(step: Callable) -> Callable:
    """Decorator: step(weight, grad, state, *, lr, ...) -> None without autograd, its arguments checked.

    The gradient is taken to the weight's dtype. Raises TypeError for a hyperparameter the step does not know
    (naming it, the nearest known one and all known ones) and ValueError for shapes that do not fit.
    """
    parameters = inspect.signature(step).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]

    @functools.wraps(step)
    def checked(weight: Tensor, grad: Tensor, state: State, **hyperparameters: object) -> None:
        for name in hyperparameters:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise TypeError(
                    f"{step.__name__} has no hyperparameter {name!r}{hint}; known: {', '.join(known)}"
                )
        if weight.ndim < 2 or weight.shape != grad.shape:
            raise ValueError(
                f"{step.__name__} expects a weight [..., m, n] and a gradient of the same shape; "
                f"found {tuple(weight.shape)} and {tuple(grad.shape)}"
            )
        with torch.no_grad():
            step(weight, grad.to(weight.dtype), state, **hyperparameters)

    return checked


def buffer(state: State, name: str, weight: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """state[name], made of zeros at the first call: the weight's shape or [leading dimensions, *shape]."""
    if name not in state:
        state[name] = weight.new_zeros(weight.shape if shape is None else (*weight.shape[:-2], *shape))
    return state[name]


def count_step(state: State, weight: Tensor) -> Tensor:
    """t = 1, 2, ... [..., 1, 1], one count a matrix, kept as a tensor so that counting does not recompile."""
    return buffer(state, "step", weight, (1, 1)).add_(1)


def is_off(strength: Scalar | None) -> bool:
    """Whether an option is switched off: None or the plain number 0. A tensor is on, whatever its value."""
    return not isinstance(strength, Tensor) and not strength


# An optimizer without matrix products lives on memory traffic: blocks of rows of this size stay in a thread's
# own cache from one operation to the next; with smaller ones the cost of Python calls takes over.
ROW_BLOCK_ELEMENTS = 2**16


def row_blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors [..., m, n] side by side in blocks of rows, as views. Compiled or not on CPU: one block."""
    X = tensors[0]
    if X.device.type != "cpu" or torch.compiler.is_compiling():
        return [tensors]
    rows = max(1, torch.get_num_threads() * ROW_BLOCK_ELEMENTS * X.shape[-2] // X.numel())
    return zip(*(T.split(rows, dim=-2) for T in tensors), strict=True)


# --------------------------------------------------------------------------------------------------
# Norms. Entries of 1e20 overflow when squared in float32, and those of 1e-30 vanish: hence the care.


def safe_norm(X: Tensor, dim: int | tuple[int, int] = (-2, -1), floor: float = 0.0) -> Tensor:
    """Root of the sum of squares over dim (kept at size 1), at least `floor`, by the largest entry first.

    So nothing overflows. On CPU, where looking at a value costs nothing, ordinary norms come of one pass in
    place of four.
    """
    if X.is_cpu and not torch.compiler.is_compiling():
        norm = torch.linalg.vector_norm(X, dim=dim, keepdim=True)
        if norm.equal(norm.clamp(max(floor, 1e-12), 1e12)):
            return norm
    largest = X.abs().amax(dim, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)
    norm = largest * torch.linalg.vector_norm(X * (1 / largest), dim=dim, keepdim=True)
    return norm.clamp(min=floor) if floor else norm


def squared(X: Tensor) -> Tensor:
    """X^2, held below overflow so that a moving average of it recovers from a gradient spike."""
    return X.square().clamp(max=0.5 * torch.finfo(X.dtype).max)


def unit(X: Tensor, dim: int | tuple[int, int], floor: float = 1e-10) -> Tensor:
    """X / max(|X|, floor) over dim (-1: rows, -2: columns). Zeros stay zeros."""
    return X * (1 / safe_norm(X, dim).clamp(min=floor))


def rescaled(X: Tensor, target: Tensor) -> Tensor:
    """X * target / max(|X|, 1e-10): X with the norm `target` [..., 1, 1]."""
    return X * (target / safe_norm(X).clamp(min=1e-10))


# --------------------------------------------------------------------------------------------------
# Momentum


def nesterov_momentum(grad: Tensor, state: State, momentum: Scalar, nesterov: bool) -> Tensor:
    """M <- M + (1 - mu)(G - M); u = (1 - mu) G + mu M, or M itself without Nesterov. No bias correction."""
    return nesterov_average_(buffer(state, "momentum", grad), grad, momentum, nesterov)


def nesterov_average_(M: Tensor, grad: Tensor, momentum: Scalar, nesterov: bool) -> Tensor:
    """nesterov_momentum on the momentum M itself, which changes; the result is a tensor of its own."""
    average_(M, grad, momentum)
    if not nesterov:
        return M.clone()
    if isinstance(momentum, Tensor):
        return (1 - momentum) * grad + momentum * M
    return torch.lerp(M, grad, 1 - momentum)


def nesterov_average_by_difference_(M: Tensor, grad: Tensor, momentum: Scalar, nesterov: bool) -> Tensor:
    """nesterov_average_ with D = G - M: M <- M + (1 - mu) D; u = M + mu (1 - mu) D.

    Where memory is the limit, on CPU, one subtraction and two additions take less time than two lerps.
    """
    if isinstance(momentum, Tensor) or not nesterov:
        return nesterov_average_(M, grad, momentum, nesterov)
    D = grad - M
    M.add_(D, alpha=1 - momentum)
    return torch.add(M, D, alpha=momentum * (1 - momentum), out=D)


def heavy_ball_momentum(grad: Tensor, state: State, momentum: Scalar, nesterov: bool) -> Tensor:
    """B <- mu B + G; u = G + mu B, or B itself without Nesterov."""
    B = buffer(state, "momentum", grad).mul_(momentum).add_(grad)
    return grad + momentum * B if nesterov else B


def average_(mean: Tensor, value: Tensor, beta: Scalar) -> Tensor:
    """mean <- beta mean + (1 - beta) value, in place, and in one pass where beta is a number."""
    if isinstance(beta, Tensor):
        return mean.mul_(beta).add_((1 - beta) * value)
    return mean.lerp_(value, 1 - beta)


def adam_direction(grad: Tensor, state: State, betas: tuple[Scalar, Scalar], eps: float) -> Tensor:
    """Adam's (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), elementwise. arXiv 1412.6980."""
    t = count_step(state, grad)
    m = average_(buffer(state, "momentum", grad), grad, betas[0])
    v = average_(buffer(state, "variance", grad), squared(grad), betas[1])
    return m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


# --------------------------------------------------------------------------------------------------
# Update scales


def spectral_scale(weight: Tensor) -> float:
    """sqrt(max(1, m/n)): tall matrices take larger steps, wide ones 1."""
    return max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5


def rms_scale(weight: Tensor) -> float:
    """0.2 sqrt(max(m, n)): gives a polar factor the RMS of AdamW's updates (Moonlight, arXiv 2502.16982)."""
    return 0.2 * max(weight.shape[-2:]) ** 0.5


def neuron_normalized(U: Tensor, state: State, beta2: Scalar) -> Tensor:
    """NorMuon as records #9-#11 have it: each neuron by its running RMS, then back to the norm before.

    v <- b2 v + (1 - b2) mean U^2 per row (m >= n) or per column (m < n); U / sqrt(max(v, 1e-10)), rescaled to
    |U|.
    """
    m, n = U.shape[-2:]
    per_row = m >= n
    v = buffer(state, "neuron_variance", U, (m, 1) if per_row else (1, n))
    average_(v, U.square().mean(-1 if per_row else -2, keepdim=True), beta2)
    return rescaled(U * v.clamp(min=1e-10).rsqrt(), safe_norm(U))


def floored(U: Tensor, weight: Tensor, floor: Scalar) -> Tensor:
    """u/w floor: U grown to |U| = floor |W| where it is smaller; both norms are clamped at 1e-8."""
    return U * (floor * safe_norm(weight).clamp(min=1e-8) / safe_norm(U).clamp(min=1e-8)).clamp(min=1)


# --------------------------------------------------------------------------------------------------
# Changing the weight


def decay_(weight: Tensor, U: Tensor, lr: Scalar, weight_decay: Scalar, cautious: bool = False) -> None:
    """W <- W (1 - lr wd); cautious: only where U W > 0, that is where U shrinks W too (arXiv 2510.12402)."""
    if is_off(weight_decay):
        return
    rate = lr * weight_decay
    weight.mul_(1 - rate * (U * weight > 0) if cautious else 1 - rate)


def inner(X: Tensor, Y: Tensor) -> Tensor:
    """<X, Y> of every matrix [..., 1, 1]."""
    return (X * Y).sum((-2, -1), keepdim=True)


def radially_braked(U: Tensor, weight: Tensor, outward: Scalar) -> Tensor:
    """Record #29: the part of U along W scaled by `outward` where the step -U would move W outward."""
    along = inner(U, weight) / safe_norm(weight).square().clamp(min=1e-12)
    return U - (1 - outward) * along.clamp(max=0) * weight


def radial_step_(weight: Tensor, U: Tensor, lr: Scalar) -> None:
    """W - lr U at the first-order radius |W| - lr <U, W>/|W|: the tangential part does not grow |W|."""
    radius = safe_norm(weight).clamp(min=1e-8)
    target = (radius - lr * inner(U, weight) / radius).clamp(min=1e-8)
    weight.sub_(lr * U)
    weight.mul_(target / safe_norm(weight).clamp(min=1e-8))


def hyperball_(weight: Tensor, U: Tensor, lr: Scalar) -> None:
    """W <- W - lr |W| U/|U|, back to its norm before: |W| never changes, and a zero weight stays zero."""
    radius = safe_norm(weight)
    weight.sub_(lr * radius * unit(U, (-2, -1)))
    weight.copy_(rescaled(weight, radius))


def apply_update_(
    weight: Tensor, U: Tensor, state: State, *, lr: Scalar, weight_decay: Scalar, cautious: bool = False,
    neuron_beta2: Scalar | None = None, update_floor: Scalar = 0.0, radial_brake: Scalar | None = None,
) -> None:  # fmt: skip
    """W <- W (1 - lr wd) - lr U with the options of the records, in the records' order.

    neuron_beta2 (None = off): neuron normalisation; radial_brake (None or 1 = off): the outward scale,
    keeping the first-order radius; update_floor (0 = off): u/w floor; then decay, then the step.
    """
    if neuron_beta2 is not None:
        U = neuron_normalized(U, state, neuron_beta2)
    braked = radial_brake is not None and not is_off(1 - radial_brake)
    if braked:
        U = radially_braked(U, weight, radial_brake)
    if not is_off(update_floor):
        U = floored(U, weight, update_floor)
    decay_(weight, U, lr, weight_decay, cautious)
    if braked:
        radial_step_(weight, U, lr)
    else:
        weight.sub_(lr * U)
