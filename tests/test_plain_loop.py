"""The loop that the speed is compared with computes what ours does."""

import pytest
import torch

from tests.benchmarks import plain_loop


def test_every_way_trains_alike():
    losses = {
        name: [loop.step()[2] for _ in range(4)]
        for name, loop in plain_loop.loops("nano eager", torch.float32, torch.device("cpu")).items()
    }
    assert set(losses) == {"ours", "plain", "products", "loss", "optimizer"}
    for name, seen in losses.items():
        assert seen == pytest.approx(losses["ours"], rel=1e-5), name


def test_prints_and_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plain_loop, "loops", lambda *_: {"ours": Made(2, 1), "plain": Made(3, 4)})
    plain_loop.main(["--rounds", "2", "--settings", "nano eager", "--table", str(tmp_path / "table.md")])
    row = "| nano eager | plain | 3000.0 | 1.50 | 4000.0 | 4.00 | 2.33 |"
    assert row in capsys.readouterr().out
    assert row in (tmp_path / "table.md").read_text()


class Made:
    def __init__(self, passes, update):
        self.times = passes, update, 0.0

    def step(self):
        return self.times
