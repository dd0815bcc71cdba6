"""The table of what a step costs beside Muon's."""

import pytest

from optimizers import costs


def test_the_cheapest_stands_first():
    rows = [costs.Cost(name, 1.0, of_muon, 4.0, 1) for name, of_muon in (("b", 2.0), ("a", 1.0), ("c", 3.0))]
    assert [line.split()[1] for line in costs.table_lines(rows)[2:]] == ["a", "b", "c"]


def test_the_state_is_counted_by_parameter(tmp_path, monkeypatch):
    monkeypatch.setitem(costs.MATRICES, "nano", {(8, 8): 2, (8, 4): 1})
    costs.main(["--only", "muon,soap_muon", "--rounds", "2", "--table", str(tmp_path / "table.md")])
    lines = (tmp_path / "table.md").read_text().splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert {row[0]: row[3] for row in rows}["muon"] == "4.0"
    bytes_of_soap = 4 * (2 * (2 * 64 + 4 * 64 + 1 + 8) + 32 + 32 + 2 * 64 + 2 * 16 + 1 + 8) / 160
    assert float({row[0]: row[3] for row in rows}["soap_muon"]) == pytest.approx(bytes_of_soap, abs=0.05)
    assert {row[0] for row in rows} == {"method", "muon", "soap_muon", "soap_muon(refresh_every=1)"}


def test_an_unknown_method_is_named(capsys):
    with pytest.raises(SystemExit):
        costs.main(["--only", "mu"])
    assert "unknown: mu; known: " in capsys.readouterr().err
