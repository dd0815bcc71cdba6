"""The trainer from its command line: what it leaves behind, and what it says when things go wrong."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train_gpt
from data.shards import ShardError, plan_blocks, write_shard
from optimizers.groups import PatternError
from records.judge.compare import compare, read_side
from records.judge.logs import read_entry, read_log
from records.judge.tracks import entry_track
from records.run.run_log import RunLog
from records.run.signals import ENDED, REFUSED
from records.run.track import read_track
from tests.made_tracks import write_track
from tests.refusal import refusal_of
from train_gpt import GPT, STEPS, RunError, World

ROOT = Path(train_gpt.__file__).parent
ALONE = World(0, 1, torch.device("cpu"))


def train(out: Path, *options: str, data: Path) -> Path:
    """Run the trainer in this process; the log it wrote."""
    before = set(out.glob("*.txt"))
    train_gpt.main([*options, "--out", str(out), "--data", str(data)])
    (log,) = set(out.glob("*.txt")) - before or before
    return log


def launch(out: Path, *options: str, data: Path, processes: int = 1) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(ROOT / "train_gpt.py"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--out", str(out), "--data", str(data)], **pipes)


def refusal(*options: str, out: Path, data: Path, status: int = REFUSED) -> str:
    """What the trainer says when it refuses, or ends with that status."""
    return refusal_of(lambda: train(out, *options, data=data), status)


def run_alone(log: Path, data: Path, folder: Path) -> Path:
    """Run the script at a log's head in an empty folder beside the data of nano; the log it wrote."""
    (folder / "data").mkdir(parents=True)
    (folder / "script.py").write_text(log.read_text().split("\n" + "=" * 100)[0] + "\n")
    (folder / "data" / "nano").symlink_to(data / "nano")
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, check=True, capture_output=True
    )
    (repeated,) = (folder / "logs").glob("*.txt")
    return repeated


def val_losses(log: Path) -> list[list[str]]:
    """The digits of each run's validation lines."""
    runs = re.split(r"^seed: \d+\n", log.read_text(), flags=re.MULTILINE)[1:]
    return [re.findall(r"^step:\d+/\d+ val_loss:[\d.]+", run, re.MULTILINE) for run in runs]


# -- data


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    batch=st.integers(1, 20),
    steps=st.integers(1, 30),
)
def test_blocks_follow_the_benchmarks_order(lengths, batch, steps):
    shard, position, expected = 0, 0, []
    while len(expected) < steps and shard < len(lengths):
        if position + batch + 1 >= lengths[shard]:
            shard, position = shard + 1, 0
            continue
        expected.append((shard, position))
        position += batch
    if len(expected) < steps:
        with pytest.raises(ShardError, match=f"hold {len(expected)}"):
            plan_blocks(lengths, batch, steps)
    else:
        assert plan_blocks(lengths, batch, steps) == expected


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_share_each_block_in_order(small_track, size):
    track = train_gpt.shipped_tracks()["nano"]
    corpus = train_gpt.open_data(small_track, recipe(steps=40))
    shards, blocks = corpus.train, corpus.blocks
    ranks = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    parts = [list(train_gpt.training_batches(shards, blocks, track, world)) for world in ranks]
    assert len(parts[0]) == 40 and blocks[-1][0] == 1  # over a shard's border
    for number, (shard, start) in enumerate(blocks):
        inputs, targets = (torch.cat([part[number][side] for part in parts]).flatten() for side in (0, 1))
        assert inputs.tolist() == shards[shard][start : start + 1024].tolist()
        assert targets.tolist() == shards[shard][start + 1 : start + 1025].tolist()


def test_a_token_beyond_the_vocabulary_names_file_and_place(small_track):
    write_shard(
        small_track / "nano" / "nano_train_000001.bin", np.r_[np.zeros(1500, int), 300, np.zeros(2000, int)]
    )
    track = train_gpt.shipped_tracks()["nano"]
    shard = train_gpt.open_data(small_track, recipe(steps=1)).train[0]
    with pytest.raises(ShardError, match=r"nano_train_000001.bin: token 300 at 1,500, expected below 256"):
        train_gpt.read_block(shard, 1024, track, ALONE)


# -- schedule and gradients


def recipe(text: str = "", steps: int = 100) -> train_gpt.Recipe:
    head = f'track = "nano"\ntrain_steps = {steps}\n[matrix]\nstep = "muon"\n'
    return train_gpt.parse_recipe(head + text, "made", train_gpt.shipped_tracks(), STEPS)


def rates(made: train_gpt.Recipe, step: int) -> dict[str, float]:
    optimizers = train_gpt.build_optimizers(GPT(256, 1, 64, 32, 128), made)
    train_gpt.set_learning_rates(optimizers, made, step)
    return {
        group["schedule"]: group["lr"] / group["initial_lr"] for o in optimizers for group in o.param_groups
    }


def test_learning_rate_is_constant_then_linear_to_zero():
    factors = [rates(recipe(), step)["matrix"] for step in (0, 29, 30, 65, 99)]
    assert factors == pytest.approx([1, 1, 1, 0.5, 1 / 70])


def test_cooldowns_warmup_and_power():
    made = recipe(
        "[schedule]\ncooldown_frac = 1.0\naux_cooldown_frac = 0.5\ncooldown_power = 2.0\nwarmup_steps = 20"
    )
    assert rates(made, 10) == pytest.approx({"aux": 0.5, "matrix": 0.5 * 0.9**2})
    assert rates(made, 75) == pytest.approx({"aux": 0.25, "matrix": 0.0625})


def test_a_schedule_planned_for_a_longer_run_is_cut_off():
    made = recipe("[schedule]\ncooldown_frac = 0.5\nsteps = 200")
    assert rates(made, 99)["matrix"] == pytest.approx(1.0)
    assert rates(recipe("[schedule]\ncooldown_frac = 1.0\nsteps = 125"), 75)["aux"] == pytest.approx(0.4)


def test_a_scheduled_hyperparameter_follows_its_points():
    made = recipe("[schedule.matrix]\nmomentum = [[0, 0.8], [50, 0.9]]")
    optimizer = train_gpt.build_optimizers(GPT(256, 1, 64, 32, 128), made)[1]
    for step, momentum in ((0, 0.8), (25, 0.85), (90, 0.9)):
        train_gpt.set_learning_rates([optimizer], made, step)
        assert optimizer.param_groups[0]["momentum"].item() == pytest.approx(momentum)


def test_a_pattern_gives_its_matrices_another_step():
    made = recipe('[matrix."mlp.*"]\nstep = "nora"\n[matrix."attn.q"]\nlr = 0.5')
    optimizer = train_gpt.build_optimizers(GPT(256, 2, 64, 32, 128), made)[1]
    told = [(len(group["params"]), group["lr"], "polar" in group) for group in optimizer.param_groups]
    assert told == [(4, 0.005, False), (2, 0.5, True), (6, 0.02, True)]


def test_a_pattern_without_a_matrix_is_refused():
    with pytest.raises(PatternError, match="mpl"):
        train_gpt.build_optimizers(GPT(256, 1, 64, 32, 128), recipe('[matrix."mpl.*"]\nlr = 0.1'))


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_micro_batches_add_up_to_the_whole_batch(micro_batch):
    batch = (torch.arange(8 * 16).view(8, 16) % 256, (torch.arange(8 * 16) + 1).view(8, 16) % 256)
    losses, gradients = [], []
    for rows in (8, micro_batch):
        model = GPT(256, 1, 64, 32, 128).double()
        train_gpt.initialise(model, {"proj": 0.1, "mlp.proj": 0.1}, seed=1)
        losses.append(train_gpt.forward_backward(model, batch, rows, ALONE).item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_initialisation_is_the_baselines_but_for_the_patterns():
    model = GPT(256, 2, 64, 32, 128)
    train_gpt.initialise(model, {"mlp.fc": 0.5, "blocks.1.attn.proj": 0.25}, seed=3)
    std = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert std["embed.weight"] == pytest.approx(1, rel=0.05)
    assert std["blocks.0.attn.q.weight"] == pytest.approx((0.33 / 64) ** 0.5, rel=0.05)
    assert std["blocks.0.mlp.fc.weight"] == pytest.approx(0.5, rel=0.05)
    assert std["blocks.1.attn.proj.weight"] == pytest.approx(0.25, rel=0.05)
    assert std["proj.weight"] == std["blocks.0.attn.proj.weight"] == std["blocks.0.mlp.proj.weight"] == 0
    assert model.norm1.gains.eq(1).all() and model.proj.bias.eq(0).all()
    with pytest.raises(RunError, match="mlp.fx"):
        train_gpt.initialise(model, {"mlp.fx": 0.5}, seed=3)


# -- a run and its log


def test_the_log_is_what_the_reader_expects(small_track, tmp_path):
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "20", "--seeds", "4,2", data=small_track)
    read = read_log(log)
    assert [run.seed for run in read.runs] == [4, 2] and not read.problems
    assert [v.step for v in read.runs[0].validations] == [0, 10, 20]
    assert read.track == "nano" and read.recipe["matrix"]["momentum"] == 0.95
    assert read.runs[0].validations[-1].val_loss < read.runs[0].validations[0].val_loss
    steps = [json.loads(line) for line in log.with_suffix(".jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if "loss" in s and s["seed"] == 2] == list(range(20))
    assert {"grad_norm", "tokens_per_s", "lr.embed", "lr.matrix"} <= set(steps[-2])


def test_a_search_validates_the_ends_only(small_track, tmp_path):
    options = ("--recipe", "muon", "--steps", "20")
    log, whole = (train(tmp_path / n, *options, *more, data=small_track)
                  for n, more in (("ends", ["--validate-ends"]), ("all", [])))  # fmt: skip
    assert val_losses(log) == [[val_losses(whole)[0][k] for k in (0, -1)]]


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler, g++ is not there")
def test_compiled_blocks_train_alike(small_track, tmp_path):
    options = ("--recipe", "muon", "--steps", "10")
    logs = [
        train(tmp_path / str(len(more)), *options, *more, data=small_track) for more in ([], ["--compile"])
    ]
    eager, compiled = ([v.val_loss for v in read_log(log).runs[0].validations] for log in logs)
    assert compiled == pytest.approx(eager, abs=1e-4)
    assert 'ARGUMENTS = ["--seeds", "0", "--compile"]'.replace('"', "'") in logs[1].read_text()


def test_a_seed_repeats_and_another_differs(small_track, tmp_path):
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "10", "--seeds", "0,1", data=small_track)
    again = train(tmp_path / "again", "--recipe", "muon", "--steps", "10", "--seeds", "1,0", data=small_track)
    first, second = val_losses(log)
    assert val_losses(again) == [second, first] and first != second


def test_the_end_of_a_run_says_when_the_target_was_reached(small_track, tmp_path, capsys):
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "20", data=small_track)
    assert re.search(
        r"^seed 0: target 4.0 reached at step 10 with [\d.]+, interpolated [\d.]+; best",
        log.read_text(),
        re.M,
    )
    told = capsys.readouterr().out
    assert "reached at step 10" in told and "momentum = 0.95" in told  # the effective recipe, printed too


def test_the_script_at_the_head_repeats_the_run(nano_data, tmp_path):
    log = train(tmp_path / "logs", "--recipe", "aurora_contra_floor", "--steps", "6", data=nano_data)
    repeated = run_alone(log, nano_data, tmp_path / "alone")
    assert val_losses(repeated) == val_losses(log)
    assert repeated.read_text().split("\n" + "=" * 100)[0] == log.read_text().split("\n" + "=" * 100)[0]


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_world_sizes_train_alike(nano_data, tmp_path, processes):
    """Aurora, 24 steps on one process and on several: validation losses within 2e-4."""
    alone = train(tmp_path / "alone", "--steps", "24", data=nano_data)
    run = launch(tmp_path / "several", "--steps", "24", data=nano_data, processes=processes)
    told, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    (log,) = (tmp_path / "several").glob("*.txt")
    losses = [[v.val_loss for v in read_log(one).runs[0].validations] for one in (alone, log)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


# -- a track of one's own


@pytest.fixture
def own_track(small_track: Path) -> Path:
    """The file of a track "mine", on the data of `small_track`."""
    sizes = {"num_layers": 1, "model_dim": 32, "mlp_ratio": 2, "context": 64, "batch_tokens": 512}
    late = {"val_tokens": 1024, "val_every": 10, "target": 4.0, "sigma": 0.02, "recipe": "muon"}
    return write_track(small_track.parent / "mine.toml", **sizes, **late, fetch="")


def test_a_track_of_ones_own_runs_under_its_own_name(small_track, own_track, tmp_path):
    options = ("--track", str(own_track), "--steps", "20", "--seeds", "0,1")
    log = train(tmp_path / "logs", *options, data=small_track)
    other = train(tmp_path / "other", *options, "--recipe", "adamw", data=small_track)
    read = read_log(log)
    assert (
        read.track == read.recipe["track"] == "mine" and [v.step for v in read.runs[0].validations][1] == 10
    )
    entries = [read_entry(log), read_entry(other)]
    assert all(entry_track(entry) == read_track(own_track) for entry in entries)
    sides = [read_side(path) for path in (log, other)]
    assert compare(*sides, slope=0.0).first.track.sigma == 0.02
    script = run_alone(log, small_track, tmp_path / "alone")
    assert val_losses(script) == val_losses(log)


def test_a_run_on_ones_own_track_resumes_without_its_file(small_track, own_track, tmp_path):
    options = ("--track", str(own_track), "--steps", "8", "--checkpoint-every", "4")
    log = train(tmp_path / "logs", *options, data=small_track)
    whole = val_losses(log)
    log.with_suffix(".checkpoints").joinpath("run000_step000008.pt").unlink()
    own_track.rename(own_track.with_name("elsewhere.toml"))
    train(tmp_path / "logs", "--resume", data=small_track)
    assert val_losses(log) == whole
    changed = write_track(
        own_track, **{**dataclasses.asdict(read_track(own_track.with_name("elsewhere.toml"))), "target": 3.0}
    )
    told = refusal("--track", str(changed), "--resume", out=tmp_path / "logs", data=small_track)
    assert "checkpoint is of another run" in told and "'target': 3.0" in told


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({"sigma": 0.0}, (), "sigma: expected a number above 0, found 0.0"),
        ({"name": "fineweb"}, (), "name: expected one of its own, found 'fineweb'"),
        ({"recipe": "no_such"}, (), "no recipe 'no_such'"),
        ({"dataset": "elsewhere"}, (), "elsewhere: put them there, or name --data DIR"),
        ({"dataset": "elsewhere"}, ("--plan",), "elsewhere: put them there, or name --data DIR"),
    ],
)
def test_what_keeps_a_track_from_running_is_told(small_track, own_track, tmp_path, changes, options, told):
    write_track(own_track, **{**dataclasses.asdict(read_track(own_track)), **changes})
    assert told in refusal("--track", str(own_track), *options, out=tmp_path / "logs", data=small_track)
    assert not list(tmp_path.glob("logs/*"))


def test_rows_that_the_processes_do_not_divide(own_track):
    track = dataclasses.replace(read_track(own_track), batch_tokens=3 * 64)
    with pytest.raises(RunError, match="2 processes do not divide 3 rows"):
        train_gpt.choose_micro_batch(track, 2, None, False, train_gpt.LOSS_ROWS, None)


# -- checkpoints


def wait_for(out: Path, pattern: str, run: subprocess.Popen) -> None:
    deadline = time.time() + 120
    while not list(out.glob(pattern)):
        assert run.poll() is None and time.time() < deadline, run.communicate()
        time.sleep(0.05)


def test_kill_and_resume_give_the_digits_of_the_run_left_alone(nano_data, tmp_path):
    options = ("--recipe", "aurora_contra_floor", "--steps", "24", "--checkpoint-every", "5")
    options += ("--set", "lookahead.start=3", "--set", "schedule.steps=30")
    alone = train(tmp_path / "alone", *options, data=nano_data)
    killed = launch(tmp_path / "killed", *options, data=nano_data)
    wait_for(tmp_path / "killed", "*.checkpoints/*step000010.pt", killed)
    killed.kill()
    killed.communicate()
    log = train(tmp_path / "killed", "--resume", data=nano_data)
    assert val_losses(log) == val_losses(alone)
    assert len(list(log.parent.glob("*.txt"))) == 1
    assert len(list(log.with_suffix(".checkpoints").glob("*.pt"))) == 2


def test_a_signal_leaves_a_checkpoint_and_says_so(nano_data, tmp_path):
    run = launch(
        tmp_path / "logs", "--recipe", "muon", "--steps", "400", "--checkpoint-every", "2", data=nano_data
    )
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


# -- around the update

SURROUNDED = """
track = "nano"
train_steps = 20
lookahead = { strength = 0.3, start = 2, stop = 14, scaled_by = "embed_before" }
around.head_kfac = { params = ["proj.weight"], start = 3, apply = 5, stop = 18, every = 2 }
around.beyond = { kind = "extrapolated_gradient", average = "tail", strength = [[10, 0.0], [12, 0.4]] }
around.rre = { params = ["mlp.*.weight"], start = 5, stop = 20, every = 3, keep = 3 }
around.trail = { kind = "pulses", but = ["embed.weight"], start = 4, every = 5, stop = 14, strength = -0.1 }
readout.velocity = { params = ["attn.*.weight"], start = 6 }
readout.phase = { params = ["mlp.*.weight"], first = 6, second = 9, since = 15 }
init = { law = "uniform", bias = "uniform", gain_signs = 0.125, "mlp.fc".slope = 0.3 }

[matrix]
step = "muon"

[aux]
"*.gains".bias_correction = false
"embed.weight" = { master = true, betas = [0.8, 0.99] }

[readout.tail]
kind = "average"
start = 8
tau = 3.0
"*bias".blend = 1.0
"embed.weight".blend = 0.0
"""


@pytest.fixture
def surrounded(tmp_path) -> Path:
    """A recipe with all that may stand around an update."""
    (tmp_path / "surrounded.toml").write_text(SURROUNDED)
    return tmp_path / "surrounded.toml"


def validation_columns(log: Path) -> list[list[str]]:
    """What every validation line says but times."""
    lines = [line.split() for line in log.read_text().splitlines() if re.match(r"step:\d+/\d+ ", line)]
    return [[word for word in line if not word.startswith(("train_time", "step_avg"))] for line in lines]


def test_what_surrounds_an_update_goes_on_from_a_checkpoint(small_track, tmp_path, surrounded):
    log = train(tmp_path / "logs", "--recipe", str(surrounded), "--checkpoint-every", "7", data=small_track)
    whole = validation_columns(log)
    last = sorted(log.with_suffix(".checkpoints").glob("*.pt"))[-1]
    assert last.name == "run000_step000014.pt"
    train(tmp_path / "logs", "--resume", data=small_track)
    assert validation_columns(log) == whole


def test_the_log_tells_the_readout_and_the_trained_weights_loss(small_track, tmp_path, surrounded):
    options = ("--recipe", str(surrounded), "--readouts")
    log = train(tmp_path / "logs", *options, data=small_track)
    columns = [dict(word.split(":") for word in line) for line in validation_columns(log)]
    told = {int(line["step"].split("/")[0]): line for line in columns}
    assert set(told[0]) == {"step", "val_loss"}
    assert told[10]["readout"] == "velocity+tail" and told[20]["readout"] == "velocity+phase+tail"
    assert {"raw_val_loss", "tail_val_loss", "phase_val_loss"} <= set(told[20])
    assert told[20]["val_loss"] != told[20]["raw_val_loss"]
    run = read_log(log).runs[0]
    assert run.validations[-1].val_loss == float(told[20]["val_loss"]) and not run.problems


def test_readouts_do_not_touch_the_training(small_track, tmp_path, surrounded):
    recipe = train_gpt.load_recipe(surrounded)
    without = dataclasses.replace(recipe, readout={"tail": recipe.readout["tail"]})
    weights = []
    for made in (recipe, without):
        model = GPT(256, 2, 64, 32, 128)
        optimizers = train_gpt.build_optimizers(model, made)
        for step in range(16):
            batch = tuple(torch.arange(8 * 16).view(8, 16) % 251 + shift + step for shift in (0, 1))
            train_gpt.set_learning_rates(optimizers, made, step)
            train_gpt.compute_gradients(model, optimizers, batch, 8, ALONE)
            train_gpt.apply_update(optimizers)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_the_look_ahead_may_follow_the_embeddings_rate_of_the_step_before():
    text = (
        "[schedule]\ncooldown_frac = 1.0\naux_cooldown_frac = 0.5\n[lookahead]\nstrength = 0.4\nstart = 2\n"
    )
    made = recipe(text + 'scaled_by = "embed_before"')
    optimizers = train_gpt.build_optimizers(GPT(256, 1, 64, 32, 128), made)
    strengths = {}
    for step in (1, 2, 51, 76):
        train_gpt.set_learning_rates(optimizers, made, step)
        strengths[step] = optimizers[-1].param_groups[0]["lr"]
    assert strengths == pytest.approx({1: 0, 2: 0.4, 51: 0.4, 76: 0.2})


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_kfac_sees_what_the_head_reads(micro_batch):
    table = 'params = ["proj.weight"]\nstart = 0\napply = 9\nstop = 99\nrow_step = 4'
    made = train_gpt.load_recipe("muon", [f"around.head_kfac.{line}" for line in table.splitlines()])
    model, read = GPT(256, 2, 64, 32, 128), []
    optimizers = train_gpt.build_optimizers(model, made)
    model.norm2.register_forward_hook(lambda module, inputs, output: read.append(output.detach()))
    batch = tuple(torch.arange(8 * 16).view(8, 16) % 251 + shift for shift in (0, 1))
    train_gpt.set_learning_rates(optimizers, made, 0)
    train_gpt.compute_gradients(model, optimizers, batch, micro_batch, ALONE)
    train_gpt.apply_update(optimizers)
    X = torch.cat(read).flatten(0, 1)[::4]
    torch.testing.assert_close(optimizers[-1].state[model.proj.weight]["fast"], X.mT @ X / len(X))


def test_a_diverging_step_leaves_the_weights_where_they_were(small_track, tmp_path, surrounded):
    recipe = train_gpt.load_recipe(surrounded)
    model = GPT(256, 2, 64, 32, 128)
    optimizers = train_gpt.build_optimizers(model, recipe)
    batch = tuple(torch.arange(8 * 16).view(8, 16) % 251 + shift for shift in (0, 1))
    for step in range(13):
        train_gpt.set_learning_rates(optimizers, recipe, step)
        before = [p.detach().clone() for p in model.parameters()]
        train_gpt.compute_gradients(model, optimizers, batch, 8, ALONE)
        moved = any(not torch.equal(p, own) for p, own in zip(model.parameters(), before, strict=True))
        assert moved == (step >= 2)  # ahead, then beyond the average
        if step == 12:
            for around in reversed(train_gpt.arounds_in(optimizers)):
                around.abandon()
            assert all(torch.equal(p, own) for p, own in zip(model.parameters(), before, strict=True))
        else:
            train_gpt.apply_update(optimizers)


def test_the_log_says_which_data_was_used(small_track, tmp_path):
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "10", data=small_track)
    told = [fact for fact in read_log(log).facts if fact.startswith("shard ")]
    assert [re.sub("digest [0-9a-f]{16}$", "", fact) for fact in told] == [
        "shard nano_train_000001.bin: 30,000 tokens, ",  # ten steps do not reach the second shard
        "shard nano_val_000000.bin: 4,000 tokens, ",
    ]


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


@pytest.mark.parametrize("found", [{"a": 1}, [1, 2], {"run": 0, "step": "four"}])
def test_a_foreign_checkpoint_is_named_and_passed_over(small_track, tmp_path, capsys, found):
    foreign = tmp_path / "logs" / "other.checkpoints" / "run000_step000004.pt"
    foreign.parent.mkdir(parents=True)
    torch.save(found, foreign)
    assert "no good" in refusal("--resume", out=tmp_path / "logs", data=small_track)
    assert f"cannot read {foreign}" in capsys.readouterr().err


def test_a_run_that_lives_is_not_resumed(nano_data, tmp_path):
    options = ("--recipe", "muon", "--steps", "400", "--checkpoint-every", "2")
    run = launch(tmp_path / "logs", *options, data=nano_data)
    wait_for(tmp_path / "logs", "*.checkpoints/*.pt", run)
    told = refusal("--resume", out=tmp_path / "logs", data=nano_data)
    run.kill()
    run.communicate()
    assert f"is being written by process {run.pid} on " in told


def test_the_first_signal_answers_and_the_second_ends_the_run(nano_data, tmp_path):
    options = ("--recipe", "muon", "--steps", "400", "--checkpoint-every", "2", "--micro-batch", "1")
    run = launch(tmp_path / "logs", *options, data=nano_data)
    wait_for(tmp_path / "logs", "*.checkpoints/*.pt", run)
    run.send_signal(signal.SIGINT)
    assert run.stderr.readline() == "stopping after this step; again to stop now\n"
    run.send_signal(signal.SIGINT)
    told, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT and "Traceback" not in errors
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_terminal_that_goes_leaves_a_checkpoint(nano_data, tmp_path):
    """SIGHUP, and nobody reads what is printed."""
    run = launch(tmp_path / "logs", "--recipe", "muon", "--steps", "400", data=nano_data)
    wait_for(tmp_path / "logs", "*.txt", run)
    run.stdout.close()
    run.stderr.close()
    while "step:25/" not in next((tmp_path / "logs").glob("*.txt")).read_text():  # printing did not end it
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGHUP)
    assert run.wait(timeout=60) == 128 + signal.SIGHUP
    assert list((tmp_path / "logs").glob("*.checkpoints/*.pt"))


# -- when things go wrong


def spoil(shard: Path, place: int, token: int) -> None:
    tokens = np.fromfile(shard, "<u2")
    tokens[512 + place] = token
    tokens.tofile(shard)


def test_a_bad_token_leaves_a_checkpoint_of_the_step_before(small_track, tmp_path, monkeypatch):
    monkeypatch.setattr("data.shards.DIGEST_BYTES", 1000)  # the shard is small: its digest sees every token
    shard = small_track / "nano" / "nano_train_000001.bin"
    spoil(shard, 5 * 1024 + 10, 300)
    told = refusal("--recipe", "muon", "--steps", "8", out=tmp_path / "logs", data=small_track, status=ENDED)
    (checkpoint,) = tmp_path.glob("logs/*.checkpoints/*.pt")
    assert f"token 300 at {5 * 1024 + 10:,}" in told and str(checkpoint) in told and "step000005" in told
    spoil(shard, 5 * 1024 + 10, (5 * 1024 + 10) % 251)  # mended, the run goes on to the digits of a whole one
    log = train(tmp_path / "logs", "--resume", data=small_track)
    whole = train(tmp_path / "whole", "--recipe", "muon", "--steps", "8", data=small_track)
    assert val_losses(log) == val_losses(whole)


def test_a_full_disk_costs_a_checkpoint_not_the_run(small_track, tmp_path, monkeypatch, capsys):
    options = ("--recipe", "muon", "--steps", "10", "--checkpoint-every", "4")
    save = torch.save

    def full(state, path):
        save(state, path)
        if state["step"] == 8:
            os.truncate(path, 1000)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    log = train(tmp_path / "logs", *options, data=small_track)
    (kept,) = log.with_suffix(".checkpoints").iterdir()
    assert f"keeps {kept} (step 8 could not be written: [Errno 28] No space" in capsys.readouterr().err
    assert len(val_losses(log)[0]) == 2


def test_a_log_that_cannot_be_written_ends_the_run_with_a_checkpoint(small_track, tmp_path, monkeypatch):
    write = RunLog._append

    class Full:
        def __init__(self, file):
            self.name, self.tell, self.truncate = file.name, file.tell, file.truncate

        def write(self, data):
            raise OSError(28, "No space left on device")

    def append(log, file, text):
        write(log, Full(file) if "step:10/" in text else file, text)

    monkeypatch.setattr(RunLog, "_append", append)
    told = refusal("--recipe", "muon", "--steps", "20", out=tmp_path / "logs", data=small_track, status=ENDED)
    (checkpoint,) = tmp_path.glob("logs/*.checkpoints/*.pt")
    assert "No space left on device" in told and str(checkpoint) in told and "step000011" in told
    monkeypatch.undo()


def test_a_start_that_fails_leaves_no_log(small_track, tmp_path):
    refusal("--set", 'matrix."mpl.*".lr=0.1', out=tmp_path / "logs", data=small_track)
    assert not list(tmp_path.glob("logs/*"))


def test_two_validation_shards_are_refused(small_track, tmp_path):
    write_shard(small_track / "nano" / "other_val_000001.bin", np.arange(4000) % 250)
    told = refusal("--steps", "9", out=tmp_path / "logs", data=small_track)
    assert "expected one val shard, found nano_val_000000.bin and other_val_000001.bin" in told


def test_a_loss_that_is_not_finite_ends_the_run_with_a_checkpoint(small_track, tmp_path):
    options = (
        "--recipe",
        "muon",
        "--steps",
        "40",
        "--set",
        "aux.embed_lr=1e38",
        "--set",
        "aux.scalar_lr=1e30",
    )
    told = refusal(*options, out=tmp_path / "logs", data=small_track, status=ENDED)
    assert re.search(
        r"not finite at step \d+: loss .*, gradient of \S+; last validation [\d.]+ at step 0", told
    )
    (log,) = (tmp_path / "logs").glob("*.txt")
    assert "not finite at step" in log.read_text() and val_losses(log)[0][0].startswith("step:0/40")
    (checkpoint,) = log.with_suffix(".checkpoints").glob("*.pt")
    assert str(checkpoint) in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--recipe", "auroro_contra_floor"), "nearest: aurora_contra_floor"),
        (("--set", "matrix.lrr=1"), "did you mean 'lr'"),
        (("--set", "schedule.cooldown=1"), "did you mean 'cooldown_"),
        (("--set", "matrix.step=muonn"), "nearest: 'muon'"),
        (("--set", "matrix.lr=fast"), "lr = 'fast'"),
        (("--set", "matrix.lr"), "expected KEY=VALUE"),
        (("--steps", "0"), "train_steps = 0"),
        (("--checkpoint-every", "-1"), "--checkpoint-every: -1: expected a number of steps above 0"),
        (("--seeds", "0-99999999"), "expected at most 1,000"),
        (("--steps", "1000000000"), "at most 999,999,999"),
        (("--set", "name=a/../../escaped"), "expected letters"),
        (("--set", "matrix.polar=foo"), "polar = 'foo'"),
        (("--steps", "5000"), "Fetch more data, or train with --steps 58"),
        (("--steps", "9", "--micro-batch", "3"), "does not divide the 8 rows"),
        (("--seeds", "1-"), "--seeds 1-"),
        (("--track", "fineweb", "--recipe", "adamw"), "is of track nano"),
    ],
)
def test_refusals_name_what_was_expected(small_track, tmp_path, options, told):
    assert told in refusal(*options, out=tmp_path / "logs", data=small_track)
    assert not list(tmp_path.glob("logs/*"))


def test_missing_data_says_what_fetches_it(small_track, tmp_path):
    assert "python -m data.nano" in refusal(out=tmp_path / "logs", data=tmp_path / "nowhere")


def test_a_cut_shard_is_refused_before_training(small_track, tmp_path):
    shard = small_track / "nano" / "nano_train_000002.bin"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert f"{shard}: cut short" in refusal(out=tmp_path / "logs", data=small_track)


def test_an_unwritable_log_folder(small_track, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write the log" in refusal("--steps", "9", out=tmp_path / "file", data=small_track)


def test_a_world_that_does_not_divide_eight(small_track, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "3 processes do not divide 8" in refusal("--steps", "9", out=tmp_path / "logs", data=small_track)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("WORLD_SIZE", "2", "MASTER_ADDR is not set"),
        ("WORLD_SIZE", "0", "0 processes do not divide 8"),
        ("WORLD_SIZE", "two", "expected whole numbers"),
        ("OMP_NUM_THREADS", "0", "expected whole numbers"),
        ("OMP_NUM_THREADS", "-1", "expected whole numbers"),
    ],
)
def test_a_stale_environment_is_named(small_track, tmp_path, monkeypatch, variable, value, told):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv(variable, value)
    assert told in refusal("--steps", "9", out=tmp_path / "logs", data=small_track)
    assert not list(tmp_path.glob("logs/*"))


def test_threads_of_nested_regions_are_a_valid_setting(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
    assert train_gpt.join_world().size == 1


def test_out_of_memory_says_the_micro_batch_to_try(small_track, tmp_path, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train_gpt, "forward_backward", exhausted)
    told = refusal("--steps", "9", out=tmp_path / "logs", data=small_track, status=ENDED)
    assert "try --micro-batch 4" in told
