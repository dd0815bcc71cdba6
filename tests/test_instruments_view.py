"""The report's section on instruments."""

import re
from pathlib import Path

import numpy as np
import pytest

from records.judge.logs import read_entry
from records.publish.instruments_view import instruments_section, layer_and_kind, measured_run, neuron_choices
from records.publish.report import report
from records.run.instrument_log import InstrumentLog
from tests.made_logs import write_log

MATRICES = [f"blocks.{layer}.{kind}.weight" for layer in (0, 1) for kind in ("attn.q", "mlp.fc")]


def write_instruments(log: Path, seed: int, scale: float) -> None:
    """Three measurements of four matrices and two layers, the second layer's units dying."""
    writer = InstrumentLog(log, seed, measurements=3)
    for step in (0, 25, 50):
        numbers = {name: {"row_variation": scale * (step + 1), "angle": None} for name in MATRICES}
        layers = {f"blocks.{i}.mlp": {"units": 8, "dead": i * step // 25, "faint": i} for i in (0, 1)}
        rows = {name: {"update": scale * np.arange(8.0), "leverage": np.ones(8)} for name in MATRICES}
        rows |= {name: {"activation": np.arange(8.0) + step} for name in layers}
        writer.write(step, numbers | layers, rows)


@pytest.fixture
def folders(tmp_path):
    """Two entries that were measured and one that was not."""
    for name, scale in (("muon", 1.0), ("aurora", 0.1), ("plain", 0.0)):
        write_log(tmp_path / name / "a.txt")
        if scale:
            write_instruments(tmp_path / name / "a.txt", 3, scale)
    return tmp_path


def measured(folders: Path, name: str):
    return measured_run(name, [folders / name / "a.txt"])


def test_a_run_is_read_back_without_what_is_not_defined(folders):
    run = measured(folders, "aurora")
    assert run.numbers["blocks.1.attn.q.weight"] == {
        "row_variation": [(0, 0.1), (25, pytest.approx(2.6)), (50, pytest.approx(5.1))]
    }
    assert run.numbers["blocks.1.mlp"]["dead"] == [(0, 0), (25, 1), (50, 2)]
    steps, grid = run.neurons["blocks.0.mlp.fc.weight", "update"]
    assert steps == [0, 25, 50] and grid.shape == (8, 3)
    assert measured(folders, "plain") is None


def test_the_mlps_neurons_come_first_and_only_what_all_runs_have(folders):
    choices = neuron_choices([measured(folders, "muon"), measured(folders, "aurora")])
    assert choices[0] == ("blocks.0.mlp.fc.weight", "update")
    assert not [name for name, _ in choices if "attn" in name]


def test_layers_and_kinds_are_read_from_names():
    assert layer_and_kind("blocks.11.attn.proj.weight") == (11, "attn.proj")
    assert layer_and_kind("kernel") == (0, "kernel")


def test_a_report_has_the_section_where_an_entry_was_measured(folders):
    page = report([read_entry(folders / name) for name in ("muon", "aurora", "plain")])
    assert re.findall(r'<div id="(instruments|dead|neurons|histograms)"', page) == [
        "instruments", "dead", "neurons", "histograms",
    ]  # fmt: skip
    assert "muon: seed 3; aurora: seed 3" in page
    assert 'id="instruments"' not in report([read_entry(folders / "plain")])
    assert instruments_section([]) == ""
