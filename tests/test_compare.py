import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_text import CURVE, log_text, run_text, shifted, write

from records import RecordError
from records.__main__ import main
from records.judge.compare import compare, published_side, read_side, runs_needed

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "track3_logs"


def write_entry(folder: Path, offset: float, n: int = 4, facts: tuple[str, ...] = ()) -> Path:
    for seed in range(n):
        curve = shifted(offset + 0.0004 * (seed - (n - 1) / 2))
        write(folder / f"{seed}.txt", log_text(run_text(curve, seed=seed), facts=["device: a GPU", *facts]))
    return folder


def test_13_against_11_is_not_decided() -> None:
    pair = compare(published_side("13"), published_side("11"))
    assert pair.left_hand_side == pytest.approx(0.00167, abs=5e-6)
    assert pair.verdict == "not decided"


def test_12_against_6_is_decided() -> None:
    pair = compare(published_side("12"), published_side("6"))
    assert pair.left_hand_side == pytest.approx(0.00648, abs=5e-6)
    assert pair.verdict == "better"
    assert compare(published_side("6"), published_side("12")).verdict == "worse"


def test_11_against_9_is_worth_31_steps(capsys: pytest.CaptureFixture) -> None:
    pair = compare(published_side("11"), published_side("9"))
    assert (pair.step_difference, pair.verdict) == (25, "not decided")
    assert pair.loss_difference == pytest.approx(-0.0014)
    main(["compare", "published:11", "published:9"])
    text = capsys.readouterr().out
    assert "takes 25 steps fewer than published:9 at 0.00140 more loss, which is worth 31 steps" in text


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published logs (../shared/track3_logs) are not here")
def test_the_worked_examples_from_the_logs_themselves() -> None:
    """Their means have digits that the published ones do not: the left-hand sides differ a little."""
    pair = compare(read_side(PUBLISHED / "13"), read_side(PUBLISHED / "11"))
    assert pair.left_hand_side == pytest.approx(0.00185, abs=5e-6)
    assert pair.rounded_left_hand_side == pytest.approx(0.00167, abs=5e-6)
    assert pair.verdict == "not decided"
    assert compare(read_side(PUBLISHED / "12"), read_side(PUBLISHED / "06")).verdict == "better"


@given(st.floats(-0.01, 0.01), st.integers(1, 40), st.integers(1, 40))
def test_the_runs_needed_decide_and_fewer_do_not(gain: float, n1: int, n2: int) -> None:
    needed = runs_needed(gain, n1, n2, asked=0.004)
    if needed is None:
        assert abs(gain) < 1e-8
        return
    a, b = needed
    assert a >= n1 and b >= n2
    decided = [
        abs(gain) / (1 / i + 1 / j) ** 0.5 / 0.004 for i, j in ((a, b), (a - 1 or 1, b), (a, b - 1 or 1))
    ]
    assert decided[0] >= 1 - 1e-8
    assert a == n1 or decided[1] < 1 + 1e-8
    assert b == n2 or decided[2] < 1 + 1e-8


def test_runs_needed_by_hand() -> None:
    assert runs_needed(0.004, 1, 1, asked=0.004) == (2, 2)
    assert runs_needed(0.004, 1, 4, asked=0.004) == (2, 4)
    assert runs_needed(0.001, 10, 100, asked=0.004) == (20, 100)
    assert runs_needed(0.0, 10, 10, asked=0.004) is None


def test_more_seeds_are_told_where_it_is_not_decided(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = write_entry(tmp_path / "a", 0.0), write_entry(tmp_path / "b", 0.001)
    assert main(["compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "a against b: not decided" in text
    assert (
        "seeds that would decide at this difference: 28 more of a (32 in all), 28 more of b (32 in all)"
        in text
    )
    main(["compare", str(a), str(a)])
    assert "no number of seeds decides" in capsys.readouterr().out


def test_intervals_hold_the_difference(tmp_path: Path) -> None:
    pair = compare(read_side(write_entry(tmp_path / "a", 0.0)), read_side(write_entry(tmp_path / "b", 0.002)))
    loss, steps = pair.loss_at_common_step, pair.steps_to_target
    assert pair.common_step == 400
    assert loss.estimate == pytest.approx(0.002)
    assert loss.low < 0.002 < loss.high
    assert loss.high - loss.low == pytest.approx(2 * 1.96 * (2 * 0.0004**2 * 1.25 / 4) ** 0.5, rel=0.15)
    assert steps.low < steps.estimate < steps.high


def test_one_run_gives_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = write_entry(tmp_path / "a", 0.0, n=1), write_entry(tmp_path / "b", 0.002)
    pair = compare(read_side(a), read_side(b))
    assert (pair.loss_at_common_step.low, pair.loss_at_common_step.high) == (None, None)
    main(["compare", str(a), str(b)])
    assert "one run has no spread" in capsys.readouterr().out


def test_json_of_all_pairs_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = [
        str(write_entry(tmp_path / name, offset)) for name, offset in (("a", 0.0), ("b", 0.001), ("c", 0.1))
    ]
    main(["compare", "--json", *paths])
    pairs = json.loads(capsys.readouterr().out)
    assert [(p["first"]["name"], p["second"]["name"], p["verdict"]) for p in pairs] == [
        ("a", "b", "not decided"),
        ("a", "c", "better"),
        ("b", "c", "better"),
    ]
    main(["compare", *paths])
    rows = capsys.readouterr().out.split("left-hand side of row against column")[1].splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["a", "b", "c"]
    assert rows[0].endswith("+") and rows[2].count(" -") == 4


def test_turning_the_sides_turns_the_sign(tmp_path: Path) -> None:
    a, b = (read_side(write_entry(tmp_path / name, offset)) for name, offset in (("a", 0.0), ("b", 0.003)))
    there, back = compare(a, b), compare(b, a)
    assert there.left_hand_side == pytest.approx(-back.left_hand_side)
    assert there.runs_needed == back.runs_needed


def test_entries_of_different_tracks_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = write_entry(tmp_path / "a", 0.0), write_entry(tmp_path / "b", 0.0, facts=("track: nano",))
    assert main(["compare", str(a), str(b)]) == 2
    assert "expected entries of one track" in capsys.readouterr().err


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="published:99: expected a number from 1 to 46"):
        read_side("published:99")
    with pytest.raises(RecordError, match="expected a validation to compare at, found no run"):
        read_side(write(tmp_path / "a.txt", "nothing"))
    with pytest.raises(RecordError, match="found a loss not finite"):
        read_side(
            write(tmp_path / "b.txt", log_text(run_text(CURVE | {375: float("nan"), 400: float("nan")})))
        )
    assert main(["compare", "published:9"]) == 2


def test_steps_count_at_the_slope_of_the_track(tmp_path: Path) -> None:
    curve = {0: 5.0, 100: 2.0, 180: 1.50, 190: 1.45, 200: 1.40}
    text = log_text(run_text(curve, total=200), facts=["track: nano"])
    one = read_side(write(tmp_path / "a.txt", text))
    assert compare(one, one).slope == pytest.approx(0.000494, rel=1e-3)
    assert compare(published_side("9"), published_side("11")).slope == pytest.approx(0.000045)
    assert compare(one, one, slope=0.1).slope == 0.1


def test_a_track_without_a_slope_compares_at_equal_steps_only(tmp_path: Path) -> None:
    curve = {0: 5.0, 100: 2.0, 180: 1.50, 190: 1.45, 200: 1.40}
    text = log_text(run_text(curve, total=200), facts=["track: nano"])
    one = read_side(write(tmp_path / "a.txt", text))
    one = replace(one, track=replace(one.track, slope=0.0))
    assert compare(one, replace(one, mean=2.0)).verdict == "better"
    with pytest.raises(RecordError, match="track nano states no slope: expected one in its file, or --slope"):
        compare(one, replace(one, step=190))
    assert compare(one, replace(one, step=190), slope=0.0).verdict == "not decided"
