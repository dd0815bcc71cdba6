"""Muon and what leans on it: momentum, orthogonalised.

In all docstrings W is a weight [..., m, n] (m outputs = rows, n inputs = columns), G its gradient, u the
momentum, |.| the Frobenius norm of each matrix. State: `momentum` of the weight's shape, and what the
docstring adds. Hyperparameters are those of the stages; the values in a declaration are the method's own
defaults.
"""

from optimizers.stage import method
from optimizers.stages.direction import polar_direction, soft_direction
from optimizers.stages.land import decay, namo_d_scale, namo_scale
from optimizers.stages.memory import heavy_ball, nesterov
from optimizers.stages.noise import noise_polar_direction
from optimizers.stages.normalise import entry_variance, neuron_variance, row_variance, unit_rows
from optimizers.stages.power import power_direction
from optimizers.stages.precondition import equalize, second_moment, sign
from optimizers.stages.scale import rms, spectral


@method(nesterov, polar_direction, neuron_variance, spectral, decay, lr=0.02)
def muon() -> None:
    """Muon (Keller Jordan's blog, 2024; track 3 baseline: KellerJordan/modded-nanogpt@f411b3d
    train_gpt_simple.py).

    M <- M + (1 - mu)(G - M);  u = (1 - mu) G + mu M;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) polar(u)

    Options of the records, off by default: contra (#11), neuron_beta2 (#10: .95; state neuron_variance),
    update_floor (#9: .35), radial_brake (#29: .5), norm="schatten4" (#20 on), temper (#38), row_floor and
    cautious weight decay with decay_last (#46). The blog's Muon is polar="quintic"
    (5 steps). A zero gradient from the start leaves W to its weight decay.
    """


@method(nesterov, polar_direction, neuron_variance, spectral, decay, lr=0.0375, contra=0.4)
def contra_muon() -> None:
    """Contra-Muon (published result #11; KellerJordan/modded-nanogpt@f411b3d results/20260501_contra_muon).

    u as in muon;  O = polar(u);  D = O - (contra/2) u/opnorm(u), rescaled to |O|;
    W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D, opnorm by 5 power iterations from the ones vector.

    Result #11 is neuron_beta2=.95, update_floor=.35; its printed weight decay of .025 was never applied.
    """


@method(nesterov, soft_direction, neuron_variance, spectral, decay, lr=0.0375, contra=0.4)
def soft_muon() -> None:
    """Soft-Muon (published result #20; KellerJordan/modded-nanogpt@f411b3d
    results/20260509_contra_soft_muon).

    u as in muon;  S, P = soft_polar(u, p);  D = P pushed by contra max(-blend, 0) (see contra_muon);
    D <- D + max(blend, 0)(S - D);  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D

    blend, a schedulable hyperparameter: -1 is Contra-Muon, 0 Muon, 1 Soft-Muon, between them straight lines;
    a recipe takes it from -1 over 0 to 1 during training. S and P come of one run of 12 simple iterations
    from u / (its Schatten-4 norm), hence blend 0 is muon up to that iteration's convergence. soft_scale: see
    soft_polar; #20 itself is soft_scale="polar", norm="schatten4", neuron_beta2=.95, update_floor=.3825.
    """


@method(nesterov, polar_direction, row_variance, spectral, decay, lr=0.02, polar="quintic")
def normuon() -> None:
    """NorMuon (arXiv 2510.05491), as zichongli5/NorMuon@d45c9a4 computes it.

    u as in muon;  D = polar(u);  v_i <- b2 v_i + (1 - b2) mean_j D_ij^2 per row;  D_i <- D_i / (sqrt(v_i) +
    eps); D rescaled to its norm before;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D

    State: row_variance [..., m, 1]. neuron_beta2 replaces this normalisation (beta2, eps) by the one of
    results #9-#11: per row if m >= n else per column, v clamped at 1e-10 under the root.
    """


@method(nesterov, polar_direction, unit_rows, spectral, decay, lr=0.02)
def u_normuon() -> None:
    """U-NorMuon, NorMuon without the running variance (Aurora paper, appendix A).

    u as in muon;  D = polar(u);  every row of D to norm sqrt(min(m, n)/m), the RMS row norm of an exact polar
    factor;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D
    """


@method(nesterov, second_moment, polar_direction, spectral, decay, lr=0.1, weight_decay=0.0125)
def muonsq() -> None:
    """Muon^2 (published result #7; KellerJordan/modded-nanogpt@f411b3d results/20260501_muonsq).

    u as in muon;  v <- b2 v + (1 - b2) G^2 elementwise, of the raw gradient;
    W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) polar(u / (sqrt(v) + eps))

    State: variance of the weight's shape. No bias correction: a factor common to all entries cancels in the
    polar factor.
    """


@method(heavy_ball, equalize, polar_direction, rms, decay, lr=1e-3, weight_decay=0.1, polar="quintic")
def muoneq() -> None:
    """MuonEq (MaeChd/muon-eq@99b6c8b muoneq.py).

    B <- mu B + G;  u = G + mu B;  W <- W (1 - lr wd) - lr 0.2 sqrt(max(m, n)) polar(equalized(u))

    mode: "r" rows, "c" columns, "rc" both. eps is added to the sum of squares under the root. The decay takes
    the plain lr, without the RMS factor.
    """


@method(heavy_ball, sign, polar_direction, entry_variance, decay, lr=0.01, weight_decay=0.01, polar="quintic")
def adamuon() -> None:
    """AdaMuon (MaeChd/muon-eq@99b6c8b adamuon.py, matrix branch).

    B <- mu B + G;  u = G + mu B;  D = polar(sign(u));  v <- b2 v + (1 - b2) D^2 elementwise;
    X = D / (sqrt(v) + eps), to RMS 0.2;  W <- W (1 - lr wd) - lr X

    State: entry_variance of the weight's shape. The code has one coefficient for momentum and v; here beta2
    is its own. No bias correction of v (it cancels in the RMS).
    """


@method(nesterov, polar_direction, namo_scale, lr=0.01, polar="quintic")
def namo() -> None:
    """NAMO (minxin-zhg/namo@a3f37b0 src/namo.py): Muon whose step length adapts to the gradient's noise.

    u as in muon;  s <- b2 s + (1 - b2)|G|^2;  a = lr sqrt(1 - b2^t)/(1 - mu^t) |u|/(sqrt(s) + eps);
    W <- W (1 - wd min(a, 1)) - min(0.2 sqrt(max(m, n)) a, 1) polar(u)

    State: norm_squared and step [..., 1, 1]. As in the code |u| is of the Nesterov mix, the decay takes a
    without the shape factor, and eps stands outside the root (the docstring there has it inside).
    """


@method(nesterov, polar_direction, namo_d_scale, lr=0.01, polar="quintic")
def namo_d() -> None:
    """NAMO-D (minxin-zhg/namo@a3f37b0 src/namo.py), namo with a step length for every column, wide matrices
    too.

    V_j <- b2 V_j + (1 - b2)|G_:j|^2;  k_j = |u_:j|/(sqrt(V_j) + eps), clipped to [c M, M/c], M = mean_j k_j,
    c = clip;  a_j = lr sqrt(1 - b2^t)/(1 - mu^t) k_j;
    W_:j <- W_:j max(1 - wd min(a_j, 1), 0) - min(0.2 sqrt(max(m, n)) a_j, 1) polar(u)_:j

    State: column_norm_squared [..., 1, n], step [..., 1, 1].
    """


@method(heavy_ball, power_direction, neuron_variance, spectral, decay, lr=0.02, weight_decay=0.025)
def dynmuon() -> None:
    """DynMuon (published result #28; KellerJordan/modded-nanogpt@f411b3d results/20260519_dynmuon).

    B <- mu B + H;  u = H + mu B, H = G/divisor;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) U S^p V^T of
    u = U S V^T, as far as two terms of a series go

    power, a schedulable hyperparameter, falls in #28 from .116 to -.25 along a sigmoid. 0 is Muon with heavy
    ball. divisor counts, because |u|^p does.
    """


@method(nesterov, noise_polar_direction, neuron_variance, spectral, decay, lr=0.025, weight_decay=0.05)
def isomuon() -> None:
    """IsoMuon (open pull request of modded-nanogpt, 20260919_isomuon_3190@7ce846c1), on result #36.

    u as in muon;  D = b^-1/2 polar(b^-1/2 u a^-1/2) a^-1/2 at norm sqrt(min(m, n)), b and a the noise of
    rows and columns in their mean;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) D

    The noise is the variance of the micro-batches' gradients, which [around.gradient_noise] gives: a recipe
    without it is muon.
    """
