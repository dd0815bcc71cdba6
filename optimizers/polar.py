"""Polar factors X = U S V^T -> U V^T of stacks of matrices, and functions of singular values built on them.

The iterations are odd quintic polynomials applied to all singular values at once, X <- aX + (bA + cA^2)X with
A = X X^T on the short side; a method is its table of (a, b, c), whose last row repeats.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from optimizers.norms import gram_root, safe_norm, schatten4_norm

Table = list[tuple[float, float, float]]  # (a, b, c) of every iteration

COEFFICIENTS = {
    # Fixed point 1: converges to the exact factor. modded-nanogpt track 3 baseline; Aurora.
    "simple": ((2.0, -1.5, 0.5),),
    # Steepest at 0, does not converge: singular values end in 0.7..1.2. Muon, Keller Jordan's blog, 2024.
    "quintic": ((3.4445, -4.7750, 2.0315),),
    # Minimax for every step, safety factor 1.01 folded in. "The Polar Express", arXiv 2505.16932.
    "polar_express": (
        (8.2051, -22.9019, 16.4607),
        (4.0664, -2.8612, 0.5184),
        (3.9096, -2.8234, 0.5250),
        (3.2856, -2.4153, 0.4853),
        (2.2779, -1.6198, 0.3985),
        (1.8726, -1.2307, 0.3585),
        (1.8564, -1.2132, 0.3568),
        (1.875, -1.25, 0.375),
    ),
    # Chebyshev-optimal steps, "CANS", arXiv 2506.10935.
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
}
METHODS = (*COEFFICIENTS, "svd")
DEFAULT_STEPS = {"simple": 12, "quintic": 5, "polar_express": 8, "cans": 8}


# CANS's polynomials are so steep at 1 that bfloat16's rounding makes them diverge; taken at s/1.02 they hold.
BFLOAT16_SAFETY = {"cans": 1.02}

# From this aspect on the iterations run on the small Gram matrix. At aspect r, 3 iterations and a restart are
# (4r + 18) n^3 FLOPs there and (12r + 6) n^3 on X itself; 768 x 3072 measured 0.63 of the time on one core.
GRAM_ASPECT = 2


# From this side on a product by oneDNN is worth the cost of its call (20 us).
ONEDNN_SIDE = 128


def polar(
    X: Tensor, method: str = "simple", steps: int | None = None, gram: bool | None = None,
    norm: str = "frobenius",
) -> Tensor:  # fmt: skip
    """The polar factor U V^T of every matrix of X = U S V^T [..., m, n].

    method: simple, quintic, polar_express, cans (Newton-Schulz iterations) or svd (exact).
    steps: iterations; None takes the method's default (12, 5, 8, 8). svd has none.
    gram: whether to iterate on the small Gram matrix; None does where max(m, n) >= 2 min(m, n).
    norm: the iterations start from X / (|X| + 1e-7), "frobenius", or from X / max(S4(X), 1e-7), "schatten4":
        S4 is closer to the largest singular value, hence the small ones begin nearer to 1 (records #20 on).
    The iterations run in iteration_dtype(X), bfloat16 on CUDA and in X's dtype on CPU; the result has X's.
    Zero singular values stay zero with every method, so a zero matrix gives a zero matrix; a matrix much
    smaller than 1e-7 fades towards zero instead of being blown up. Raises ValueError for an unknown method.

    Largest |s - 1| left, 768 x 3072 with singular values in geometric progression, float32 (and the same in
    bfloat16, simulated on CPU), from tests/benchmarks/polar_accuracy.py. Small singular values stay small:

        condition        10                   1e3                1e5
        simple           1.9e-6 (4.0e-3)      0.49 (0.40)        0.99 (0.70)
        quintic          0.32   (0.32)        0.94 (0.92)        1.00 (0.97)
        polar_express    1.4e-6 (4.5e-3)      0.29 (0.23)        0.99 (0.65)
        cans             0.054  (0.062)       0.11 (0.11)        0.98 (0.44)
        svd              1.5e-6               1.4e-6             1.8e-6

    There |gram - direct| / |direct| is at most 6.8e-5 in float32 and 0.54 in bfloat16 (cans, condition 1e5),
    at most 2.8 times the direct form's own rounding error, 3.4e-5 and 0.54; in float64 5.0e-13.
    """
    if method == "svd":
        return exact_polar(X)
    tall = X.shape[-2] > X.shape[-1]
    Y = normalized(X.mT if tall else X, norm)
    if gram is None:
        gram = Y.shape[-1] >= GRAM_ASPECT * Y.shape[-2]
    Y = (iterated_on_gram if gram else iterated)(Y, coefficients(method, steps, Y.dtype))
    return (Y.mT if tall else Y).to(X.dtype)


def iterated(X: Tensor, table: Table) -> Tensor:
    """The quintics of the table, one after the other, on the singular values of a wide X."""
    for a, b, c in table:
        X = quintic_step(X, a, b, c)
    return X


def quintic_step(X: Tensor, a: float, b: float, c: float) -> Tensor:
    """aX + (bA + cA^2)X, A = X X^T: applies s -> as + bs^3 + cs^5 to the singular values of a wide X."""
    A = product(X, X.mT)
    return weighted_sum(a, X, 1.0, weighted_sum(b, A, c, A, A), X)


def weighted_sum(beta: float, C: Tensor, alpha: float, A: Tensor, B: Tensor) -> Tensor:
    """beta C + alpha A B on stacks of matrices."""
    if multiplies_by_onednn(A):
        return product(A, B).mul_(alpha).add_(C, alpha=beta)
    if A.ndim == 2:  # by baddbmm a 768 x 768 quintic in bfloat16 took 1.07 times as long on CPU
        return torch.addmm(C, A, B, beta=beta, alpha=alpha)
    stacks = (T.reshape(-1, *T.shape[-2:]) for T in (C, A, B))
    return torch.baddbmm(*stacks, beta=beta, alpha=alpha).reshape(C.shape)


def product(A: Tensor, B: Tensor) -> Tensor:
    """A B, by oneDNN where multiplies_by_onednn(A)."""
    if multiplies_by_onednn(A):
        return torch.ops.mkldnn._linear_pointwise(A.contiguous(), B.mT, None, "none", [], "")
    return A @ B


def multiplies_by_onednn(A: Tensor) -> bool:
    """Whether A is a large enough float32 matrix, alone, on an AMD processor with AVX-512.

    torch multiplies float32 by MKL, which keeps to AVX2 there: oneDNN took half the time. On Intel MKL has
    AVX-512 too and takes the sum of weighted_sum along.
    """
    return (
        not torch.compiler.is_compiling()  # first: what follows cannot be traced
        and A.ndim == 2
        and A.device.type == "cpu"
        and A.dtype == torch.float32
        and min(A.shape) >= ONEDNN_SIDE
        and torch.backends.mkldnn.is_available()
        and "AVX512" in torch.backends.cpu.get_cpu_capability()
        and made_by_amd()
    )


@functools.cache
def made_by_amd() -> bool:
    """Whether the processor says so, on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()


def iterated_on_gram(X: Tensor, table: Table) -> Tensor:
    """The same with fewer products where X is much wider than high ("Gram Newton-Schulz", Dao lab, 2026).

    All factors commute: with G = X X^T and q = aI + bG + cG^2, X <- q X means G <- q G q, and the product Q
    of all q of a block meets X once at the block's end. Then G is made anew (see gram_blocks). On its way to
    the identity G leaves rests whose products are denormal, which some processors multiply a hundred times
    slower: rests below the root of the smallest normal number become zero.
    """
    smallest = torch.finfo(X.dtype).tiny ** 0.5
    for block in gram_blocks(table, torch.finfo(X.dtype).eps):
        G = product(X, X.mT)
        q = Q = gram_factor(G, *block[0])
        for row in block[1:]:
            G = F.hardshrink(product(product(q, G), q), smallest)
            q = gram_factor(G, *row)
            Q = product(q, Q)
        X = product(Q, X)
    return X


def gram_blocks(table: Table, eps: float) -> list[Table]:
    """The iterations between two restarts: at most 3, and fewer where rounding would take over.

    G resolves squares of singular values down to eps, and every iteration blows up what lies below by a^2.
    Beyond 1/8 a bfloat16 iteration can diverge (simple keeps its blocks of 3; polar_express has 1, 1, 2, 2,
    2).
    """
    blocks: list[Table] = []
    growth = 1.0
    for row in table:
        if not blocks or len(blocks[-1]) == 3 or eps * growth > 1 / 8:
            blocks.append([])
            growth = 1.0
        blocks[-1].append(row)
        growth *= row[0] ** 2
    return blocks


def gram_factor(G: Tensor, a: float, b: float, c: float) -> Tensor:
    """aI + bG + cG^2."""
    q = weighted_sum(b, G, c, G, G)
    q.diagonal(dim1=-2, dim2=-1).add_(a)
    return q


def exact_polar(X: Tensor) -> Tensor:
    """U V^T by singular value decomposition; singular values below 4 eps of the largest count as zero."""
    Y = X / safe_norm(X).clamp(min=torch.finfo(X.dtype).tiny)
    U, S, Vt = torch.linalg.svd(Y, full_matrices=False)
    kept = (4 * torch.finfo(S.dtype).eps * S[..., :1] < S).to(U.dtype)
    return (U * kept.unsqueeze(-2)) @ Vt


def coefficients(method: str, steps: int | None = None, dtype: torch.dtype = torch.float32) -> Table:
    """The (a, b, c) of every iteration of a method; beyond its table the last row repeats."""
    if method not in COEFFICIENTS:
        raise ValueError(f"polar method must be one of {', '.join(METHODS)}; found {method!r}")
    table = COEFFICIENTS[method]
    safety = BFLOAT16_SAFETY.get(method, 1.0) if dtype == torch.bfloat16 else 1.0
    rows = (table[min(k, len(table) - 1)] for k in range(DEFAULT_STEPS[method] if steps is None else steps))
    return [(a / safety, b / safety**3, c / safety**5) for a, b, c in rows]


def normalized(X: Tensor, norm: str = "frobenius") -> Tensor:
    """X / (|X| + 1e-7), or X / max(S4(X), 1e-7), in the iterations' dtype."""
    size, dtype = safe_norm(X), iteration_dtype(X)
    if norm == "frobenius":
        return (X / (size + 1e-7)).to(dtype)
    Y = (X / (size + torch.finfo(X.dtype).tiny)).to(dtype)
    return Y * (size / (size * gram_root(Y)).clamp(min=1e-7)).to(dtype)


def iteration_dtype(X: Tensor) -> torch.dtype:
    """What Newton-Schulz iterations on X run in: bfloat16 on CUDA (float64 excepted), on CPU X's dtype.

    On CPU float32 runs in bfloat16 too after torch.set_float32_matmul_precision("medium"), torch's leave to
    do so, where oneDNN multiplies bfloat16. A compiled step cannot read that setting and keeps float32.
    """
    if X.is_cuda:
        return X.dtype if X.dtype == torch.float64 else torch.bfloat16
    allowed = (
        X.device.type == "cpu"
        and X.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and torch.get_float32_matmul_precision() == "medium"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.bfloat16 if allowed else X.dtype


# sum_k coefficient_k X_k over the iterates of `simple` maps s -> about s^p. modded-nanogpt@f411b3d
# results/20260509_contra_soft_muon; the last iterate, X_12, has no weight.
SOFT_COEFFICIENTS = {
    0.1: (
        0.1091613623, 0.07085664498, 0.05210528973, 0.05457295795, 0.05011334061, 0.03334622198,
        0.05022104481, 0.1053727358, 0.1187323776, 0.1185061091, 0.1185059576, 0.1185059576,
    ),
}  # fmt: skip


def soft_polar(X: Tensor, p: float = 0.1, scale: str = "none") -> tuple[Tensor, Tensor]:
    """(U f(S) V^T, U V^T) of every X = U S V^T [..., m, n], f(s) about (s/s4)^p, s4 the Schatten-4 norm
    of X.

    Both come of one run of 12 simple iterations from X / max(s4, 1e-7). scale "frobenius" brings the first
    factor to Schatten-4 norm sqrt(min(m, n)), "frobenius_sqrt" half the way (geometrically), "none" leaves
    it. Raises ValueError for a p without table and for an unknown scale.
    """
    if p not in SOFT_COEFFICIENTS:
        raise ValueError(f"soft_polar has coefficients for p in {list(SOFT_COEFFICIENTS)}; found {p}")
    exponents = {"none": 0.0, "frobenius_sqrt": 0.5, "frobenius": 1.0}
    if scale not in exponents:
        raise ValueError(f"soft_polar scale must be one of {list(exponents)}; found {scale!r}")
    Y = normalized(X.mT if X.shape[-2] > X.shape[-1] else X, "schatten4")
    soft = torch.zeros_like(Y)
    for coefficient in SOFT_COEFFICIENTS[p]:
        soft = soft + coefficient * Y
        Y = quintic_step(Y, *COEFFICIENTS["simple"][0])
    soft = soft * (Y.shape[-2] ** 0.5 / schatten4_norm(soft).clamp(min=1e-10)) ** exponents[scale]
    soft, Y = soft.to(X.dtype), Y.to(X.dtype)
    return (soft.mT, Y.mT) if X.shape[-2] > X.shape[-1] else (soft, Y)
