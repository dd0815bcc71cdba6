"""Methods that treat every row by itself, O(mn). Words and signs as in methods/muon.py."""

from optimizers.stage import method
from optimizers.stages.direction import rows, tangent_rows
from optimizers.stages.land import decay
from optimizers.stages.memory import nesterov
from optimizers.stages.scale import spectral


@method(nesterov, rows, spectral, decay, lr=0.005, weight_decay=0.1)
def rmnp() -> None:
    """RMNP (MaeChd/muon-eq@99b6c8b RMNP_optimizer.py, branch is_rmnp; Dominator-Index/RMNP@a662ebc).

    u as in muon;  U_i = sqrt(max(1, m/n)) u_i / max(|u_i|, eps) per row;  W <- W (1 - lr wd) - lr U

    Zero rows stay where they are.
    """


@method(nesterov, tangent_rows, spectral, decay, lr=0.005)
def nora() -> None:
    """Nora (Yuan-Jinghui/Nora@925df95 nora.py): momentum orthogonal to the weight row by row.

    u as in muon;  w_i = W_i / max(|W_i|, eps);  v_i = u_i - <u_i, w_i> w_i;
    d_i = v_i / max(|v_i|, eps), all per row;  W <- W (1 - lr wd) - lr sqrt(max(1, m/n)) d

    The projection uses W before its decay; row norms of W grow to second order in lr (a tangent step without
    retraction). So a row that starts at zero grows by the schedule alone, never by the gradient: give
    projections a start of their own in [init].
    """
