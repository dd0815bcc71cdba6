"""The trainer from its command line: what it leaves behind, and what it says when things go wrong."""

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import train_gpt
from data.shards import ShardError, write_shard
from records.judge.compare import compare, read_side
from records.judge.logs import read_entry, read_log
from records.judge.tracks import entry_track
from records.run import signals
from records.run.instrument_log import read_numbers
from records.run.run_log import RunLog
from records.run.signals import DIVERGED, ENDED
from records.run.track import read_track
from tests.made_tracks import write_small_track, write_track
from tests.runs import compiled_by, launch, recipe, refusal, run_alone, train, val_losses
from train_gpt import GPT, RunError, World

ALONE = World(0, 1, torch.device("cpu"))


# -- data


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
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_train_alike_and_their_units_are_heard(small_track, tmp_path, monkeypatch, backend):
    compiled_by(backend, monkeypatch)
    options = ("--recipe", "rmnp", "--steps", "10", "--instruments", "10")
    logs = [
        train(tmp_path / str(len(more)), *options, *more, data=small_track) for more in ([], ["--compile"])
    ]
    eager, compiled = ([v.val_loss for v in read_log(log).runs[0].validations] for log in logs)
    assert compiled == pytest.approx(eager, abs=1e-4)
    heard, of_compiled = ([line["median"] for line in read_numbers(log) if "dead" in line] for log in logs)
    assert heard and of_compiled == pytest.approx(heard, rel=1e-3)
    assert 'ARGUMENTS = ["--seeds", "0", "--compile"]'.replace('"', "'") in logs[1].read_text()


def test_a_seed_repeats_and_another_differs(small_track, tmp_path):
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "10", "--seeds", "0,1", data=small_track)
    again = train(tmp_path / "again", "--recipe", "muon", "--steps", "10", "--seeds", "1,0", data=small_track)
    first, second = val_losses(log)
    assert val_losses(again) == [second, first] and first != second


def test_the_end_of_a_run_says_when_the_target_was_reached(small_track, tmp_path, capsys):
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "20", data=small_track)
    assert re.search(r"^seed 0: target 4.0 reached at step 10 with [\d.]+; best", log.read_text(), re.M)
    told = capsys.readouterr().out
    assert "reached at step 10" in told and "momentum = 0.95" in told  # the effective recipe, printed too


def test_the_script_at_the_head_repeats_the_run(nano_data, tmp_path):
    track = write_small_track(tmp_path / "small.toml", dataset="nano")
    options = ("--track", str(track), "--recipe", "aurora_contra_floor", "--steps", "6")
    log = train(tmp_path / "logs", *options, data=nano_data)
    repeated = run_alone(log, nano_data, tmp_path / "alone")
    assert val_losses(repeated) == val_losses(log)
    assert repeated.read_text().split("\n" + "=" * 100)[0] == log.read_text().split("\n" + "=" * 100)[0]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_world_sizes_train_alike(nano_data, tmp_path, processes):
    """Aurora, 24 steps on real text, on one process and on several: validation losses within 2e-4."""
    track = write_small_track(tmp_path / "small.toml", dataset="nano", val_every=25)
    options = ("--track", str(track), "--recipe", "aurora", "--steps", "24")
    alone = train(tmp_path / "alone", *options, data=nano_data)
    run = launch(tmp_path / "several", *options, data=nano_data, processes=processes)
    told, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    (log,) = (tmp_path / "several").glob("*.txt")
    losses = [[v.val_loss for v in read_log(one).runs[0].validations] for one in (alone, log)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


def test_the_log_says_which_data_was_used(small_track, tmp_path):
    log = train(tmp_path / "logs", "--recipe", "muon", "--steps", "10", data=small_track)
    told = [fact for fact in read_log(log).facts if fact.startswith("shard ")]
    assert [re.sub("digest [0-9a-f]{16}$", "", fact) for fact in told] == [
        "shard nano_train_000001.bin: 30,000 tokens, ",  # ten steps do not reach the second shard
        "shard nano_val_000000.bin: 4,000 tokens, ",
    ]


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


def test_a_track_with_a_start_begins_where_a_run_of_it_ends(small_track, own_track, tmp_path):
    options = ("--track", str(own_track), "--seeds", "0,1")
    constant = ("--recipe", "muon", "--set", "schedule.steps=100", "--steps", "6")
    before = train(tmp_path / "before", *options, *constant, data=small_track)
    start = {"train_steps": 6} | {key: read_log(before).recipe[key] for key in ("matrix", "aux")}
    write_track(own_track, **dataclasses.asdict(read_track(own_track)) | {"start": start})
    shorter = ("--recipe", "adamw", "--steps", "4", "--checkpoint-every", "2")  # than the start
    log = train(tmp_path / "logs", *options, *shorter, data=small_track)
    runs = zip(read_log(before).runs, read_log(log).runs, strict=True)
    assert all(then.validations[-1].val_loss == now.validations[0].val_loss for then, now in runs)
    assert val_losses(run_alone(log, small_track, tmp_path / "alone")) == val_losses(log)
    whole = val_losses(log)
    log.with_suffix(".checkpoints").joinpath("run001_step000004.pt").unlink()
    train(tmp_path / "logs", "--resume", data=small_track)
    assert val_losses(log) == whole


def test_on_a_track_with_a_start_no_init_is_free(small_track, own_track, tmp_path):
    start = {"train_steps": 6, "matrix": {"step": "rownorm", "lr": 0.1}, "aux": read_track(own_track).aux}
    write_track(own_track, **dataclasses.asdict(read_track(own_track)) | {"start": start})
    options = ("--track", str(own_track), "--recipe", "muon")
    told = refusal(*options, out=tmp_path, data=small_track)
    assert "[start.matrix] of track mine leaves values out: weight_decay = 0.0" in told
    told = refusal(*options, "--set", 'init."mlp.fc"=0.1', out=tmp_path, data=small_track)
    assert "[init] is not free on track mine" in told


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
    assert told.endswith(f"checkpoint before it: {checkpoint}. {DIVERGED}")


def test_a_decomposition_that_fails_ends_the_run_in_one_line(small_track, tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpt, "apply_update", lambda _: torch.linalg.cholesky(-torch.eye(2)))
    told = refusal("--recipe", "muon", "--steps", "9", out=tmp_path, data=small_track, status=ENDED)
    assert told.startswith("error: linalg.cholesky: ") and told.endswith(DIVERGED)


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


@pytest.mark.parametrize("option", ["--explain", "--recipes"])
def test_a_reader_that_has_left_is_no_error(option, monkeypatch):
    left = []
    monkeypatch.setattr(signals, "leave_screen", lambda: left.append(True))
    monkeypatch.setattr(sys, "stdout", mock.Mock(write=mock.Mock(side_effect=BrokenPipeError)))
    train_gpt.main(["--track", "nano", option])
    assert left
