"""Tuning, with a stand-in for ./run.sh: final loss 1 + ln(lr / 0.03)^2 + weight decay + seed / 1000."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from records import tune
from records.judge.logs import read_entry
from tests.made_tracks import write_track

PROJECT = Path(__file__).resolve().parents[1]
RECIPE = """description = "for a test"
track = "nano"
train_steps = 10
[matrix]
step = "muon"
lr = 0.02
weight_decay = 0.05
[schedule]
cooldown_frac = 0.5
"""
STAND_IN = """
import math, pathlib, sys, time
words = sys.argv[1:]
value = lambda option: words[words.index(option) + 1]
changes = dict(word.split("=") for option, word in zip(words, words[1:]) if option == "--set")
lr, decay = float(changes.get("matrix.lr", 0.02)), float(changes.get("matrix.weight_decay", 0.05))
if "--refuse" in words:
    sys.exit("error: [matrix] has no 'learning_rate'")
time.sleep(float(value("--sleep")) if "--sleep" in words else 0)
with open(pathlib.Path(value("--out")) / "run.txt", "w") as log:
    log.write("=" * 100 + "\\ntrack: nano\\n" + "=" * 100 + "\\n")
    for seed in map(int, value("--seeds").split(",")):
        loss = 1 + math.log(lr / 0.03) ** 2 + decay + 0.001 * seed
        log.write(f"seed: {seed}\\nstep:0/10 val_loss:5.54518 train_time:0.000s step_avg:nanms\\n")
        if "--fall" in words:
            raise TypeError("a fault of the program")
        if "--full" in words:
            sys.exit("error: out of GPU memory: try --micro-batch 8.")
        if lr > 0.06:
            sys.exit("error: not finite at step 3. Try a lower learning rate.")
        log.write(f"step:10/10 val_loss:{loss:.5f} train_time:1.000s step_avg:100.00ms\\n")
"""


@pytest.fixture
def study(tmp_path):
    """A function that tunes the recipe in this folder; returns the exit code."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def run(trials: int, *options: str, stand_in: tuple[str, ...] = ()) -> int:
        argv = [
            str(tmp_path / "mine.toml"),
            "--trials",
            str(trials),
            "--out",
            str(tmp_path / "study"),
            *options,
        ]
        return tune.main(argv, command=(sys.executable, str(tmp_path / "stand_in.py"), *stand_in))

    return run


def losses(folder: Path) -> dict[str, float]:
    """Trial -> the final loss in its log, where there is one."""
    runs = {
        path.name: read_entry(path).runs
        for path in sorted(folder.glob("trial-*"))
        if list(path.glob("*.txt"))
    }
    return {
        name: run[0].validations[-1].val_loss for name, run in runs.items() if run[0].validations[-1].step
    }


def test_the_best_trial_becomes_a_recipe_that_says_where_it_comes_from(study, tmp_path, capsys):
    assert study(5, "--seeds", "0") == 0
    text = (tmp_path / "study" / "best.toml").read_text()
    best, original = tomllib.loads(text), tomllib.loads(RECIPE)
    rerun = subprocess.run(
        [sys.executable, tmp_path / "stand_in.py", "--out", tmp_path, "--seeds", "0"]
        + [w for k in ("lr", "weight_decay") for w in ("--set", f"matrix.{k}={best['matrix'][k]}")]
    )
    assert rerun.returncode == 0
    lowest = min(losses(tmp_path / "study").values())
    assert read_entry(tmp_path / "run.txt").runs[0].validations[-1].val_loss == lowest
    assert (
        f"{lowest:.5f}, seeds 0" in text and "the best of 5" in text and "in 5 trials" in best["description"]
    )
    for table in (best, original):
        del table["matrix"]["lr"], table["matrix"]["weight_decay"], table["description"]
    assert best == original
    table = capsys.readouterr().out.split("matrix.weight_decay\n")[1].splitlines()[:5]
    assert [float(line.split()[1].replace("diverged", "inf")) for line in table][0] == lowest
    assert (tmp_path / "study" / "trials.svg").read_text().count("matrix.lr") >= 1


def test_the_first_trial_is_the_recipe_itself(study, tmp_path, capsys):
    assert study(1) == 0
    assert "matrix.lr=0.02 matrix.weight_decay=0.05" in capsys.readouterr().out


def test_the_same_command_goes_on_where_the_study_stands(study, tmp_path):
    assert study(3) == 0
    before = losses(tmp_path / "study")
    assert study(3) == 0
    assert losses(tmp_path / "study") == before
    assert study(5) == 0
    after = losses(tmp_path / "study")
    assert len(list((tmp_path / "study").glob("trial-*"))) == 5
    assert {name: after[name] for name in before} == before


def start_process(tmp_path: Path, trials: int, *stand_in: str) -> subprocess.Popen:
    """The same search in a process and a process group of its own."""
    code = (
        f"import sys; from records import tune; sys.exit(tune.main({[str(tmp_path / 'mine.toml')]!r} + "
        f"['--trials', '{trials}', '--out', {str(tmp_path / 'study')!r}], "
        f"command={(sys.executable, str(tmp_path / 'stand_in.py'), *stand_in)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, start_new_session=True)


def test_processes_share_the_trials_of_a_study(study, tmp_path):
    processes = [start_process(tmp_path, 5, "--sleep", "0.1") for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list((tmp_path / "study").glob("trial-*"))) == 5
    assert len(set(losses(tmp_path / "study").values())) == len(losses(tmp_path / "study"))


def test_a_killed_trial_is_run_again_and_not_counted(study, tmp_path, capsys):
    process = start_process(tmp_path, 2, "--sleep", "60")
    while not (tmp_path / "study" / "trial-000" / "console.out").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert study(2) == 0
    assert "matrix.lr=0.02 matrix.weight_decay=0.05" in capsys.readouterr().out
    assert sorted(losses(tmp_path / "study")) == ["trial-001", "trial-002"]


def test_a_diverged_trial_is_infinite_and_the_search_goes_on(study, tmp_path, capsys):
    assert study(6, "--param", "matrix.lr:log:0.02:0.2") == 0
    output = capsys.readouterr().out
    assert "diverged" in output and len(losses(tmp_path / "study")) < 6
    assert tomllib.loads((tmp_path / "study" / "best.toml").read_text())["matrix"]["lr"] <= 0.06


@pytest.mark.parametrize("trials", [0, -3])
def test_a_search_of_no_trials_is_refused(study, tmp_path, trials, capsys):
    with pytest.raises(SystemExit) as stopped:
        study(trials)
    assert stopped.value.code == 2 and "expected a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("param", "told"),
    [
        ("matrix.lr:linear:-1:2", "lr = -1"),
        ("matrix.momentum:linear:0.5:2", "momentum = 2"),
        ("matrix.foo:linear:0.5:2", "has no 'foo'"),
    ],
)
def test_a_range_that_leaves_its_hyperparameters_is_refused(study, tmp_path, param, told, capsys):
    assert study(2, "--param", param) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_a_recipe_that_is_not_utf8_is_named(study, tmp_path, capsys):
    (tmp_path / "mine.toml").write_bytes(b'description = "\xff"')
    assert study(2) == 2 and "expected TOML in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--fall", "TypeError: a fault of the program"),
        ("--full", "error: out of GPU memory: try --micro-batch 8."),
    ],
)
def test_a_run_that_ends_otherwise_has_not_diverged(study, capsys, option, told):
    assert study(2, stand_in=(option,)) == 2
    assert f"console.out says: {told}" in capsys.readouterr().err


def test_nothing_but_diverged_trials_is_an_error(study, tmp_path, capsys):
    assert study(3, "--param", "matrix.lr:log:0.07:0.2") == 1
    assert "every trial diverged" in capsys.readouterr().err
    assert not (tmp_path / "study" / "best.toml").exists()


def test_a_run_that_does_not_start_stops_the_search_with_its_reason(study, tmp_path, capsys):
    assert study(3, stand_in=("--refuse",)) == 2
    assert "[matrix] has no 'learning_rate'" in capsys.readouterr().err
    assert study(3) == 0
    assert len(losses(tmp_path / "study")) == 3


def test_the_value_is_the_mean_over_the_seeds(study, tmp_path, capsys):
    assert study(1, "--seeds", "1000,2000") == 0
    assert f"val_loss {1 + 0.164402 + 0.05 + 1.5:.5f}" in capsys.readouterr().out


def test_arguments_after_two_dashes_reach_every_run(study, tmp_path, capsys):
    assert study(1, "--", "--refuse") == 2
    assert "learning_rate" in capsys.readouterr().err


def test_a_track_of_ones_own_reaches_every_run(study, tmp_path, capsys):
    track = write_track(tmp_path / "mars.toml")
    assert study(1, "--track", str(track)) == 0
    assert f"# Further arguments: --track {track}\n" in (tmp_path / "study" / "best.toml").read_text()
    assert study(1, "--track", str(tmp_path / "venus.toml")) == 2
    assert "no track" in capsys.readouterr().err


def test_another_search_in_the_same_folder_is_refused(study, capsys):
    assert study(1) == 0
    assert study(2, "--seeds", "1001") == 2
    assert "holds a study with other seeds" in capsys.readouterr().err


def test_a_best_value_at_the_edge_of_its_range_is_pointed_out(study, capsys):
    assert (
        study(4, "--param", "matrix.lr:log:0.02:0.021", "--param", "matrix.weight_decay:linear:0.049:0.9")
        == 0
    )
    assert (
        "the best matrix.weight_decay lies at the edge of matrix.weight_decay:linear"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "param", ["matrix.lr", "matrix.lr:log:0:1", "a.b:linear:2:1", "a.b:cubic:1:2", "a.b:log:x:1"]
)
def test_a_range_that_is_none_is_refused(study, tmp_path, capsys, param):
    assert study(1, "--param", param) == 2
    assert f"--param {param}: expected KEY:KIND:LOW:HIGH" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_an_unknown_recipe_is_refused(capsys):
    assert tune.main(["no_such_recipe", "--trials", "1"]) == 2
    assert "no recipe 'no_such_recipe'" in capsys.readouterr().err


def test_the_default_ranges_surround_the_recipe():
    recipe = {"matrix": {"step": "muon", "lr": 0.02, "weight_decay": 0.04}}
    assert list(map(str, tune.default_ranges(recipe))) == [
        "matrix.lr:log:0.005:0.08",
        "matrix.weight_decay:log:0.01:0.16",
    ]
    recipe["matrix"]["weight_decay"] = 0.0
    assert str(tune.default_ranges(recipe)[1]) == "matrix.weight_decay:linear:0:0.1"
    del recipe["matrix"]["weight_decay"]
    assert len(tune.default_ranges(recipe)) == 1


def test_a_key_with_a_dot_in_it_is_quoted():
    recipe = {"init": {"attn.proj": 0.15}, "matrix": {"lr": 0.02}}
    assert tune.look_up(recipe, 'init."attn.proj"') == 0.15
    assert tune.look_up(recipe, "matrix.lr") == 0.02
    assert tune.look_up(recipe, "init.attn.proj") is None


@pytest.mark.parametrize("gpu, track", [(False, "nano"), (True, "fineweb")])
def test_a_name_on_two_tracks_is_that_of_the_machines_track(monkeypatch, tmp_path, gpu, track):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(tune, "on_gpu", lambda: gpu)
    argv = ["own_soap_bimaxwell", "--trials", "1", "--out", str(tmp_path / "study")]
    assert tune.main(argv, command=(sys.executable, str(tmp_path / "stand_in.py"))) == 0
    assert f'track = "{track}"\n' in (tmp_path / "study" / "best.toml").read_text()
