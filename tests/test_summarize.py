import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from log_text import CURVE, log_text, run_text, shifted, write

from records.__main__ import main
from records.judge.logs import read_entry
from records.judge.tracks import entry_track, shipped_track
from records.run.track import Track, TrackError, shipped_tracks

NANO = shipped_tracks()["nano"]
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


def script_of(track: Track) -> str:
    return f"import torch\nRECIPE = Recipe(\n    name='muon',\n    track={track!r},\n)\n"


def test_the_track_of_an_entry(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", log_text(run_text(), facts=["track: nano"]))
    assert entry_track(read_entry(tmp_path)) == shipped_track(read_entry(tmp_path)) == NANO
    write(tmp_path / "b.txt", log_text(run_text(), facts=["device: a GPU"]))
    with pytest.raises(TrackError, match="logs of one track, found fineweb, nano"):
        entry_track(read_entry(tmp_path))


def test_a_track_of_ones_own_is_the_one_in_the_scripts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mars = replace(NANO, name="mars", target=4.0, sigma=0.002)
    write(tmp_path / "a.txt", log_text(run_text(seed=0), script=script_of(mars), facts=["track: mars"]))
    assert entry_track(read_entry(tmp_path)) == mars
    main(["summarize", "--json", str(tmp_path)])
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["sigma"], told["first_significant_step"]) == (4.0, 0.002, 250)
    with pytest.raises(TrackError, match="say track 'mars'; known: fineweb, nano"):
        shipped_track(read_entry(tmp_path))


@pytest.mark.parametrize(
    ("scripts", "told"),
    [
        (["import torch\n"], "in all their scripts, found logs without it"),
        (["import torch\nRECIPE = Recipe(track=Track(name=f()))\n"], "found logs without it"),
        ([script_of(replace(NANO, name="venus"))], "found logs without it"),
        ([script_of(replace(NANO, name="mars", sigma=s)) for s in (0.1, 0.2)], "found several that differ"),
        ([script_of(replace(NANO, name="mars", sigma=0.0))], "sigma: expected a number above 0, found 0.0"),
        (["import torch\nRECIPE = Recipe(track=Track(name='mars', sigm=1))\n"], "sigm: expected a known key"),
    ],
)
def test_a_track_that_the_scripts_do_not_tell_is_refused(
    tmp_path: Path, scripts: list[str], told: str
) -> None:
    for i, script in enumerate(scripts):
        write(tmp_path / f"{i}.txt", log_text(run_text(seed=i), script=script, facts=["track: mars"]))
    with pytest.raises(TrackError, match=told):
        entry_track(read_entry(tmp_path))


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


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "0", "low"])
def test_a_target_is_a_number_above_zero(tmp_path, capsys, number):
    log = write(tmp_path / "a.txt", log_text(run_text()))
    for command in (["summarize", str(log)], ["compare", str(log), str(log)]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, f"--target={number}"])
        assert stopped.value.code == 2
        assert f"expected a number above 0, found '{number}'" in capsys.readouterr().err


def test_what_could_steer_a_terminal_does_not_reach_it(tmp_path, capsys):
    name = "a\x1b[31m\x9b\udce4.txt"
    write(tmp_path / name, log_text(run_text()) + "step:1/400 val_loss:\x1b[31mbroken\n")
    assert main(["summarize", str(tmp_path / name)]) == 0
    told = capsys.readouterr().out
    assert "a?[31m??.txt" in told and not set(told) & {"\x1b", "\x9b"}
    assert main(["summarize", str(tmp_path / "\x1b[2Jgone.txt")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_an_interrupt_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("records.judge.summarize.read_entry", interrupted)
    assert main(["summarize", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "records summarize: interrupted, nothing was changed\n"


def test_a_table_of_very_many_validations_is_shortened(tmp_path, capsys):
    curve = {step: 5 - step / 1000 for step in range(4001)}
    log = write(tmp_path / "long.txt", log_text(run_text(curve, 4000, seed=0), facts=("track: nano",)))
    assert main(["summarize", str(log)]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 1100 and "of 4001 validations" in told
    assert "\n3625 " in told and "\n4000 " in told  # the first significant step, the last
    assert main(["summarize", "--json", str(log)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["validations"] == 4001 and len(found["steps"]) < 1100
