"""python -m tests.on_gpu: three runs of a recipe agree, or it says which does not."""

import pytest

from records.run.track import RECORDS
from tests import on_gpu


@pytest.mark.parametrize(
    ("told", "agrees"),
    [((2.5, 2.501, 2.502), True), ((2.5, 2.5, 2.6), False), ((2.5, float("nan"), 2.5), False),
     ((2.5, "error: out of GPU memory", 2.5), False)],
)  # fmt: skip
def test_a_recipe_agrees_where_all_three_runs_end_at_one_loss(tmp_path, monkeypatch, told, agrees):
    losses = iter(told)
    monkeypatch.setattr(on_gpu, "last_loss", lambda *_: next(losses))
    found, line = on_gpu.compared(RECORDS / "fineweb/01_muon.toml", tmp_path, False, tmp_path)
    assert found == agrees and ("FAILS" in line) == (not agrees)
    assert all(str(loss) in line for loss in told)
