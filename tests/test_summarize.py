import json
import subprocess
import sys
from pathlib import Path

import pytest
from log_text import CURVE, log_text, run_text, shifted, write

from records.__main__ import main
from records.judge.tracks import TrackError, entry_track, read_tracks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    for seed in range(3):
        write(tmp_path / "entry" / f"{seed}.txt", log_text(run_text(shifted(0.0001 * seed), seed=seed)))
    return tmp_path / "entry"


def test_json_has_the_promised_keys(entry: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["summarize", "--json", str(entry)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["name"], summary["runs"], summary["target"]) == ("entry", 3, 3.28)
    assert summary["first_significant_step"] == 375
    assert summary["mean_val_loss"] == pytest.approx(3.27622)
    assert summary["statistic"] == pytest.approx(0.00378 * 3**0.5)
    assert summary["first_crossing_step"] == pytest.approx(374.2, abs=0.2)
    assert [run["seed"] for run in summary["per_run"]] == [0, 1, 2]
    assert summary["warnings"] == []


def test_json_of_several_entries_is_a_list(entry: Path, capsys: pytest.CaptureFixture) -> None:
    main(["summarize", "--json", str(entry), str(entry / "0.txt")])
    assert [summary["runs"] for summary in json.loads(capsys.readouterr().out)] == [3, 1]


def test_json_has_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "a.txt", log_text(run_text(CURVE | {400: float("nan")})))
    main(["summarize", "--json", str(tmp_path / "a.txt")])
    summary = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert summary["per_run"][0]["last_val_loss"] is None


def test_another_target(entry: Path, capsys: pytest.CaptureFixture) -> None:
    main(["summarize", "--json", "--target", "4.0", str(entry)])
    assert json.loads(capsys.readouterr().out)["first_significant_step"] == 250


def test_text_tells_the_result_and_the_warnings(entry: Path, capsys: pytest.CaptureFixture) -> None:
    write(entry / "7.txt", log_text(run_text(seed=7), facts=["device: another GPU"]))
    assert main(["summarize", str(entry)]) == 0
    text = capsys.readouterr().out
    assert "entry: 4 runs, 4 files, 400 steps" in text
    assert "target 3.28: reached at step 375, the first significant step" in text
    assert "  - different devices: " in text
    assert "  - seeds missing from the sequence 0-2, 7: 3-6" in text


def test_text_of_an_entry_that_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "a.txt", log_text(run_text(shifted(0.01))))
    main(["summarize", str(tmp_path / "a.txt")])
    assert "not shown at any common step; at the last one, 400" in capsys.readouterr().out


def test_no_run_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "a.txt", "nothing\n")
    assert main(["summarize", str(tmp_path / "a.txt")]) == 1
    assert "no validation line" in capsys.readouterr().out


def test_no_file_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture) -> None:
    assert main(["summarize", "/no/such/log"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = write(tmp_path / "a.txt", log_text(run_text(seed=0), facts=["device: \x1b[31mred"]))
    write(tmp_path / "b.txt", log_text(run_text(shifted(0.1), seed=1) + "step:1/2 val_loss:\x1b[2J\n"))
    main(["summarize", str(a.parent)])
    assert "\x1b" not in capsys.readouterr().out


def test_the_tracks_are_those_of_the_trainer() -> None:
    tracks = read_tracks()
    assert (tracks["fineweb"].target, tracks["fineweb"].sigma, tracks["fineweb"].val_every) == (
        3.28,
        0.0013,
        125,
    )
    assert "nano" in tracks


def test_a_trainer_without_a_table_of_tracks_is_told(tmp_path: Path) -> None:
    for source in ("x = 1", "TRACKS = {'a': Track(target=f())}", "TRACKS = {**others}", "TRACKS = {"):
        with pytest.raises(TrackError, match="expected TRACKS"):
            read_tracks(write(tmp_path / "train_gpt.py", source))


def test_the_track_of_an_entry(tmp_path: Path) -> None:
    from records.judge.logs import read_entry

    write(tmp_path / "a.txt", log_text(run_text(), facts=["track: nano"]))
    assert entry_track(read_entry(tmp_path)).name == "nano"
    write(tmp_path / "b.txt", log_text(run_text(), facts=["device: a GPU"]))
    with pytest.raises(TrackError, match="logs of one track, found fineweb, nano"):
        entry_track(read_entry(tmp_path))
    write(tmp_path / "c" / "a.txt", log_text(run_text(), facts=["track: mars"]))
    with pytest.raises(TrackError, match="say track 'mars'; known: fineweb"):
        entry_track(read_entry(tmp_path / "c"))


def test_help_names_all_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(
        name in text
        for name in ("summarize", "compare", "check", "submit", "leaderboard", "report", "extract")
    )


def test_records_do_not_import_torch(entry: Path) -> None:
    code = (
        "import sys; from records.__main__ import main; "
        f"main(['summarize', {str(entry)!r}]); main(['check', {str(entry)!r}]); "
        f"main(['compare', {str(entry)!r}, {str(entry)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
