"""A candidate against a base, with a stand-in for ./run.sh: loss 1 + lr + seed + chance of both."""

import shutil
import sys
from pathlib import Path

import pytest

from records import tune
from records.judge.logs import read_entry
from records.tune_paired import contender

BASE = 'description = "for a test"\ntrack = "nano"\ntrain_steps = 10\n[matrix]\nstep = "muon"\nlr = 0.1\n'
STAND_IN = """
import pathlib, random, sys
words = sys.argv[1:]
value = lambda option, otherwise: words[words.index(option) + 1] if option in words else otherwise
changes = dict(word.split("=") for option, word in zip(words, words[1:]) if option == "--set")
lr, seed, steps = float(changes.get("matrix.lr", 0.1)), int(value("--seeds", "")), value("--steps", "10")
steps = changes.get("train_steps", steps)
if "--refuse" in words:
    sys.exit("error: refused")
with open(pathlib.Path(value("--out", "")) / "run.txt", "w") as log:
    log.write("=" * 100 + "\\ntrack: nano\\n" + "=" * 100 + f"\\nseed: {seed}\\n")
    log.write(f"step:0/{steps} val_loss:5.54518 train_time:0.000s step_avg:nanms\\n")
    if lr > 1 and seed == 1001:
        sys.exit("error: not finite at step 3. Try a lower learning rate.")
    loss = 1 + lr + 0.1 * (seed % 7) + random.Random(f"{lr} {seed}").gauss(0, 0.001)
    log.write(f"step:{steps}/{steps} val_loss:{loss:.5f} train_time:1.000s step_avg:100.00ms\\n")
"""


@pytest.fixture
def compared(tmp_path):
    """A function that compares the recipe, changed, with itself; returns the exit code."""
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def run(*options: str, base: str | None = None) -> int:
        argv = [str(tmp_path / "base.toml"), "--paired", base or str(tmp_path / "base.toml")]
        command = (sys.executable, str(tmp_path / "stand_in.py"))
        return tune.main([*argv, "--out", str(tmp_path / "runs"), *options], command=command)

    return run


def trained(tmp_path: Path) -> list[str]:
    """The seeds that were run, by the folders of base and candidate."""
    return sorted(f"{path.parent.name[:4]} {path.name}" for path in (tmp_path / "runs").glob("*/seed-*"))


def test_it_stops_as_soon_as_it_is_decided(compared, tmp_path, capsys):
    assert compared("--set", "matrix.lr=0.02") == 0
    told = capsys.readouterr().out
    assert "better after 3 of 12 seeds: 0.08" in told and "an early stop flatters" in told
    assert len(trained(tmp_path)) == 6


def test_a_worse_candidate_is_told(compared, capsys):
    assert compared("--set", "matrix.lr=0.25") == 0
    assert "worse after 3 of 12 seeds: 0.1" in capsys.readouterr().out


def test_what_the_seeds_do_not_decide_is_told_with_its_interval(compared, tmp_path, capsys):
    assert compared("--set", "matrix.lr=0.1001", "--seeds", "5-10") == 0
    assert "not decided by 6 seeds" in capsys.readouterr().out
    assert len(trained(tmp_path)) == 12


def test_the_same_command_goes_on_where_it_stood(compared, tmp_path, capsys):
    assert compared("--set", "matrix.lr=0.1001", "--seeds", "5-10") == 0
    first = capsys.readouterr().out
    (candidate,) = [
        p for p in (tmp_path / "runs").iterdir() if str(p) in first.splitlines()[-1].split(" and ")[0]
    ]
    shutil.rmtree(candidate / "seed-9")
    kept = (candidate / "seed-8" / "run.txt").stat().st_mtime_ns
    assert compared("--set", "matrix.lr=0.1001", "--seeds", "5-10") == 0
    assert capsys.readouterr().out == first
    assert (candidate / "seed-8" / "run.txt").stat().st_mtime_ns == kept


def test_candidates_share_the_runs_of_their_base(compared, tmp_path):
    for lr in ("0.02", "0.03"):
        assert compared("--set", f"matrix.lr={lr}") == 0
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_other_arguments_are_other_runs(compared, tmp_path):
    for steps in ("20", "30"):
        assert compared("--set", "matrix.lr=0.02", "--", "--steps", steps) == 0
    totals = {read_entry(path).runs[0].total_steps for path in (tmp_path / "runs").glob("*/seed-1000")}
    assert totals == {20, 30}


def test_a_candidate_that_diverges_is_worse(compared, tmp_path, capsys):
    assert compared("--set", "matrix.lr=1.5") == 0
    assert "worse: the candidate diverged at seed 1001" in capsys.readouterr().out


def test_a_base_that_diverges_is_refused(compared, tmp_path, capsys):
    (tmp_path / "other.toml").write_text(BASE.replace("description", "base"))
    (tmp_path / "base.toml").write_text(BASE)
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN.replace("if lr > 1", 'if "other" in words[1]'))
    assert compared(base=str(tmp_path / "other.toml")) == 2
    assert "the base diverged at seed 1001" in capsys.readouterr().err


def test_runs_of_another_length_are_refused(compared, capsys):
    assert compared("--set", "train_steps=20") == 2
    assert "trained for 10 steps, the candidate for 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "the candidate is the base"),
        (("--set", "matrix.lr=0.02", "--seeds", "0-1"), "expected at least 3 seeds"),
        (("--set", "matrix.lr=0.02", "--", "--refuse"), "error: refused"),
    ],
)
def test_what_cannot_be_compared_is_told(compared, capsys, options, told):
    assert compared(*options) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("options", [["muon"], ["muon", "--trials", "3", "--set", "matrix.lr=1"]])
def test_a_command_line_that_mixes_search_and_comparison_is_refused(options):
    with pytest.raises(SystemExit):
        tune.main(options)


def test_a_name_means_the_recipe_of_the_named_track(tmp_path):
    for track in ("nano", "warm"):
        assert contender("muon", track, (), tmp_path, ()).recipe.parent.parent.name == track
