"""Parameter groups by patterns of names."""

import pytest

import train_gpt
from optimizers.groups import PatternError
from tests.runs import recipe
from train_gpt import GPT


def test_a_pattern_gives_its_matrices_another_step():
    made = recipe('[matrix."mlp.*"]\nstep = "nora"\n[matrix."attn.q"]\nlr = 0.5')
    optimizer = train_gpt.build_optimizers(GPT(256, 2, 64, 32, 128), made)[1]
    told = [(len(group["params"]), group["lr"], "polar" in group) for group in optimizer.param_groups]
    assert told == [(4, 0.005, False), (2, 0.5, True), (6, 0.02, True)]


def test_a_pattern_without_a_matrix_is_refused():
    with pytest.raises(PatternError, match="mpl"):
        train_gpt.build_optimizers(GPT(256, 1, 64, 32, 128), recipe('[matrix."mpl.*"]\nlr = 0.1'))
