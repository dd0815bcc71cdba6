"""Methods that normalise rows or columns, O(mn). Words and signs as in methods/muon.py."""

from optimizers.stage import method
from optimizers.stages.direction import rows, sinkhorn, tangent_rows, whitened
from optimizers.stages.land import decay
from optimizers.stages.memory import nesterov
from optimizers.stages.precondition import standardise
from optimizers.stages.scale import row_rms, spectral


@method(nesterov, rows, spectral, decay, lr=0.005, weight_decay=0.1)
def rmnp() -> None:
    """RMNP (MaeChd/muon-eq@99b6c8b RMNP_optimizer.py, branch is_rmnp; Dominator-Index/RMNP@a662ebc).

    u as in muon;  U_i = sqrt(max(1, m/n)) u_i / max(|u_i|, eps) per row;  W <- W (1 - lr wd) - lr U

    Zero rows stay where they are. MOGA over rows (arXiv 2603.09952; no code of the authors, a port:
    Mooler0410/SteptronOss@0c3e771) is scale="width", eps=1e-7: U_i = u_i/(sqrt(n)|u_i|). Over columns it is
    direction="columns", scale="column_width".
    """


@method(nesterov, tangent_rows, spectral, decay, lr=0.005)
def nora() -> None:
    """Nora (Yuan-Jinghui/Nora@925df95 nora.py): momentum orthogonal to the weight row by row.

    u as in muon;  w_i = W_i / max(|W_i|, eps);  v_i = u_i - <u_i, w_i> w_i;
    d_i = v_i / max(|v_i|, eps), all per row;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) d

    The projection uses W before its decay; row norms of W grow to second order in lr (a tangent step without
    retraction): without decay |W_i|^2 after t steps is |W_i|^2 before plus max(1, m/n) times the sum of lr^2,
    whatever the gradient. So a row that starts at zero, as every `proj` of these tracks does, grows by the
    schedule alone: give both projections a start of their own in [init], as RMNP's authors do. The paper has
    no Nesterov (nesterov=False).
    """


@method(rows, row_rms, decay, lr=1e-3, eps=1e-8)
def scale() -> None:
    """SCALE (arXiv 2506.16659; OptimAI-Lab/Minimalist_LLM_Pretraining@f5bd4e7), hidden matrices.

    U_i = G_i / rms(G_i) per row;  W <- W (1 - lr wd) - lr U. No state.

    The paper's columns are rows here, and its L2 norm is an RMS in its code. The code clamps the RMS at 1e-8,
    here the norm. The head adds memory="nesterov", nesterov=false, momentum=.9; the embedding, vocabulary x
    features, takes direction="columns", scale="column_rms". SRON (OpenReview BtQLBWr6zI) is the rule of the
    hidden matrices with eps added to the RMS.
    """


@method(sinkhorn, decay, lr=1e-3)
def sinkgd() -> None:
    """SinkGD (arXiv 2502.06742; no official code, ports: jdinalt/forgather@3f3581c,
    naubull2/sinkgd-pytorch@7145471).

    X = G;  `iterations` times X_i <- sqrt(n) X_i/|X_i|, then X_:j <- sqrt(m) X_:j/|X_:j|;
    W <- W (1 - lr wd) - lr X. No state, no momentum.

    lr is the paper's alpha lr, .05 times .02. The second port leaves out the roots. memory="nesterov" gives
    the same map Muon's u, which is not the paper's.
    """


@method(standardise, whitened, decay, lr=1e-3)
def swan() -> None:
    """SWAN, first version (arXiv 2412.13148; no official code, port: ethansmith2000/SWANOptimizer@1184360).

    g_i = (G_i - mean)/std per row;  D = (g g^T)^-1/2 g, by `iterations` of a coupled iteration, at |g|;
    W <- W (1 - lr wd) - lr D. No state.

    direction="polar" with scale="spectral" is its limit but for the size, MuonEq without momentum. Later
    versions, known from ports only: rows over their RMS, not centred, 10 iterations or 2 on the diagonal.
    """


@method(nesterov, rows, decay, lr=0.005, nesterov=False, eps=1e-8)
def rownorm() -> None:
    """RowNormM (arXiv 2605.18106; timlautk/equivariant_optimizers@a773b3f optim/rownorm.py), for embeddings.

    M <- M + (1 - mu)(G - M);  U_i = M_i/|M_i| per row;  W <- W (1 - lr wd) - lr U

    Rows are tokens. An untied head takes direction="centred_rows": [embed] and [head] of a recipe give the
    two a step function in AdamW's place. eps is added to the norm there, its least value here.
    """
