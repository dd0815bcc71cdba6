"""Runs that are stopped, killed and resumed."""

import re
import signal
import time

import numpy as np
import pytest
import torch

import train_gpt
from data.shards import write_shard
from records.judge.logs import read_log
from tests.runs import launch, launch_small, refusal, train, val_losses, wait_for


def test_kill_and_resume_give_the_digits_of_the_run_left_alone(small_file, tmp_path):
    data, options = tmp_path / "data", ("--track", str(small_file), "--steps", "120")
    options += ("--checkpoint-every", "5")
    options += ("--set", "lookahead.start=30", "--set", "schedule.steps=150")
    alone = train(tmp_path / "alone", *options, data=data)
    killed = launch(tmp_path / "killed", *options, data=data)
    wait_for(tmp_path / "killed", "*.checkpoints/*step000020.pt", killed)
    killed.kill()
    killed.communicate()
    log = train(tmp_path / "killed", "--resume", data=data)
    assert val_losses(log) == val_losses(alone)
    assert len(list(log.parent.glob("*.txt"))) == 1
    assert len(list(log.with_suffix(".checkpoints").glob("*.pt"))) == 2


def test_a_signal_leaves_a_checkpoint_and_says_so(small_file, tmp_path):
    run = launch_small(small_file, "--steps", "5000", "--checkpoint-every", "2")
    wait_for(tmp_path / "logs", "*.checkpoints/*.pt", run)
    run.send_signal(signal.SIGTERM)
    told, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert "stopped by a signal; go on with --resume" in errors and "Traceback" not in errors


@pytest.mark.slow  # in processes of their own; tests/test_world_and_resume.py compares the same quickly
def test_resume_on_another_number_of_processes(nano_data, tmp_path):
    options = ("--recipe", "normuon", "--steps", "12", "--checkpoint-every", "6")
    alone = train(tmp_path / "alone", *options, data=nano_data)
    checkpoint = sorted(alone.with_suffix(".checkpoints").glob("*.pt"))[0]
    checkpoint.with_name("run000_step000012.pt").unlink()
    run = launch(tmp_path / "alone", "--resume", "--checkpoint-every", "6", data=nano_data, processes=2)
    told, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    final = float(re.findall(r"step:12/12 val_loss:([\d.]+)", told)[0])
    assert final == pytest.approx(read_log(alone).runs[0].validations[-1].val_loss, abs=2e-4)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(small_track, tmp_path, capsys):
    options = ("--recipe", "muon", "--steps", "10", "--checkpoint-every", "4")
    log = train(tmp_path / "logs", *options, data=small_track)
    before, newest = sorted(log.with_suffix(".checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    log_text = log.read_text()
    train(tmp_path / "logs", "--resume", data=small_track)
    assert f"cannot read {newest}" in capsys.readouterr().err
    assert val_losses(log) == [re.findall(r"^step:\d+/\d+ val_loss:[\d.]+", log_text, re.M)]


def test_resume_against_another_recipe_shows_the_difference(small_track, tmp_path):
    out, options = tmp_path / "logs", ("--recipe", "muon", "--steps", "8", "--checkpoint-every", "4")
    train(out, *options, data=small_track)
    told = refusal(*options, "--resume", "--set", "matrix.lr=0.5", out=out, data=small_track)
    assert "- lr = 0.02" in told and "+ lr = 0.5" in told


def test_resume_without_a_checkpoint(small_track, tmp_path):
    assert "--checkpoint-every" in refusal("--resume", out=tmp_path / "logs", data=small_track)


def test_resume_on_other_data_shows_the_difference(small_track, tmp_path):
    train(tmp_path / "logs", "--recipe", "muon", "--steps", "8", "--checkpoint-every", "4", data=small_track)
    write_shard(small_track / "nano" / "nano_val_000000.bin", np.arange(4000) % 250)
    told = refusal("--resume", out=tmp_path / "logs", data=small_track)
    assert "other data" in told and "- shard nano_val_000000.bin" in told and "+ shard nano_val" in told
    assert "nano_train" not in told


@pytest.mark.parametrize("ending", ["", ".txt", ".checkpoints"])
def test_resume_takes_the_name_of_a_log(small_track, tmp_path, ending):
    options = ("--recipe", "muon", "--steps", "10", "--checkpoint-every", "4")
    logs = [train(tmp_path / "logs", *options, "--seeds", seed, data=small_track) for seed in "12"]
    before = [log.read_text() for log in logs]
    train_gpt.main(
        ["--out", str(tmp_path / "logs"), "--data", str(small_track), "--resume", logs[0].stem + ending]
    )
    assert [log.read_text() for log in logs] == [f"{before[0]}resumed at step 8, world_size: 1\n", before[1]]


def test_options_beside_resume_are_compared_with_the_runs_own_recipe(small_track, tmp_path):
    train(tmp_path / "logs", "--recipe", "nora", "--steps", "8", "--checkpoint-every", "4", data=small_track)
    told = refusal("--resume", "--set", "matrix.lr=0.5", out=tmp_path / "logs", data=small_track)
    assert "+ lr = 0.5" in told and "muon" not in told and told.count("; ") == 1


def test_a_checkpoint_from_before_tracks_had_a_start_goes_on(small_track, tmp_path):
    asked = ("--recipe", "muon", "--steps", "8", "--checkpoint-every", "4")
    log = train(tmp_path / "logs", *asked, data=small_track)
    last, whole = log.with_suffix(".checkpoints") / "run000_step000008.pt", val_losses(log)
    last.unlink()
    older = last.with_name("run000_step000004.pt")
    state = torch.load(older)
    del state["track"]["start"]
    torch.save(state, older)
    train(tmp_path / "logs", "--resume", data=small_track)
    assert last.exists() and val_losses(log) == whole


def test_a_resumed_run_goes_on_as_it_was_asked_for(small_track, tmp_path):
    asked = ("--checkpoint-every", "3", "--micro-batch", "2", "--validate-ends")
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "10", *asked, data=small_track)
    last, whole = log.with_suffix(".checkpoints") / "run000_step000009.pt", val_losses(log)
    last.unlink()
    train(tmp_path / "logs", "--resume", data=small_track)
    assert last.exists() and val_losses(log) == whole
    last.unlink()
    older = last.with_name("run000_step000006.pt")
    torch.save({key: value for key, value in torch.load(older).items() if key != "asked"}, older)
    train(tmp_path / "logs", "--resume", "--checkpoint-every", "4", data=small_track)
    assert last.with_name("run000_step000008.pt").exists() and not last.exists()


@pytest.mark.parametrize("found", [{"a": 1}, [1, 2], {"run": 0, "step": "four"}])
def test_a_foreign_checkpoint_is_named_and_passed_over(small_track, tmp_path, capsys, found):
    foreign = tmp_path / "logs" / "other.checkpoints" / "run000_step000004.pt"
    foreign.parent.mkdir(parents=True)
    torch.save(found, foreign)
    assert "no good" in refusal("--resume", out=tmp_path / "logs", data=small_track)
    assert f"cannot read {foreign}" in capsys.readouterr().err


def test_a_run_that_lives_is_not_resumed(small_file, tmp_path):
    run = launch_small(small_file, "--steps", "5000", "--checkpoint-every", "2")
    wait_for(tmp_path / "logs", "*.checkpoints/*.pt", run)
    told = refusal("--resume", out=tmp_path / "logs", data=tmp_path / "data")
    run.kill()
    run.communicate()
    assert f"is being written by process {run.pid} on " in told


def test_the_first_signal_answers_and_the_second_ends_the_run(small_file, tmp_path):
    run = launch_small(small_file, "--steps", "5000", "--checkpoint-every", "2", "--micro-batch", "1")
    wait_for(tmp_path / "logs", "*.checkpoints/*.pt", run)
    run.send_signal(signal.SIGINT)
    assert run.stderr.readline() == "stopping after this step; again to stop now\n"
    run.send_signal(signal.SIGINT)
    told, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT and "Traceback" not in errors
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_terminal_that_goes_leaves_a_checkpoint(small_file, tmp_path):
    """SIGHUP, and nobody reads what is printed."""
    run = launch_small(small_file, "--steps", "5000")
    wait_for(tmp_path / "logs", "*.txt", run)
    run.stdout.close()
    run.stderr.close()
    while "step:25/" not in next((tmp_path / "logs").glob("*.txt")).read_text():  # printing did not end it
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGHUP)
    assert run.wait(timeout=60) == 128 + signal.SIGHUP
    assert list((tmp_path / "logs").glob("*.checkpoints/*.pt"))
