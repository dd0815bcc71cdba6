"""Two nodes, joined by a cable that is not there (tests/two_nodes.py)."""

import pytest

from tests.two_nodes import STEPS, try_all, why_not


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "network namespaces work")
def test_two_nodes_train_as_one_and_end_together(tmp_path, nano_data):
    seen = try_all(tmp_path)
    assert len(seen["alone"]) == STEPS
    assert seen["joined"] == pytest.approx(seen["alone"], rel=1e-5)
    assert seen["seconds"] < 60 and 0 not in seen["codes"] and len(seen["before"]) < STEPS
    assert "the exchange broke off" in seen["last_words"] and "--resume" in seen["last_words"]
    assert seen["resumed"] == pytest.approx(seen["alone"], rel=1e-5)
