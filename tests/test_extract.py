from pathlib import Path

import pytest
from log_text import SCRIPT, log_text, run_text, write

from records.__main__ import main


def test_the_script_comes_out_as_it_went_in(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = write(tmp_path / "a.txt", log_text(run_text()))
    assert main(["extract", str(log)]) == 0
    assert capsys.readouterr().out == SCRIPT
    assert main(["extract", str(log), "-o", str(tmp_path / "script.py")]) == 0
    assert (tmp_path / "script.py").read_text() == SCRIPT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "script.py"]


def test_line_ends_and_letters_are_kept(tmp_path: Path) -> None:
    script = (
        SCRIPT.replace("A script", "Ein Skript für \N{GREEK SMALL LETTER BETA}")
        .replace("\n", "\r\n")
        .encode()
    )
    text = script + log_text(run_text(), script="")[1:].encode()
    main(["extract", str(write(tmp_path / "a.txt", text)), "-o", str(tmp_path / "script.py")])
    assert (tmp_path / "script.py").read_bytes() == script


def test_a_log_without_script_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = write(tmp_path / "a.txt", log_text(run_text(), script=""))
    assert main(["extract", str(log), "-o", str(tmp_path / "script.py")]) == 2
    assert "expected a script that ends at a line of 100 = signs" in capsys.readouterr().err
    assert not (tmp_path / "script.py").exists()


def test_half_a_script_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = write(tmp_path / "a.txt", log_text(run_text(), script=f"import os\nx = '{'x' * 100_000}'\n"))
    assert main(["extract", str(log)]) == 2
    assert "line 2 of the script is longer than 65536 bytes" in capsys.readouterr().err


def test_a_log_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = write(tmp_path / "a.txt", log_text(run_text()))
    for name in ("a.txt", "b.log"):
        (tmp_path / "b.log").write_text("precious")
        assert main(["extract", str(log), "-o", str(tmp_path / name)]) == 2
        assert "name another file with -o" in capsys.readouterr().err
    assert log.read_text() == log_text(run_text()) and (tmp_path / "b.log").read_text() == "precious"
