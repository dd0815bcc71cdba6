"""What stands around the updates of a run, and what validation reads."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import train_gpt
from records.judge.logs import read_log
from tests.runs import recipe, train
from train_gpt import GPT, World

ALONE = World(0, 1, torch.device("cpu"))
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


@pytest.mark.parametrize("layer", ["attn.q", "attn.v", "attn.proj", "mlp.fc"])
def test_newton_sees_what_each_layer_reads(layer):
    """Also q, k and v, which are one product: against what a hook on the norm, or on the layer, has seen."""
    table = ("every=1", 'params=["attn.*.weight", "mlp.*.weight"]')
    made = train_gpt.load_recipe("muon", [f"around.input_newton.{line}" for line in table])
    model = GPT(256, 1, 64, 32, 128).double()
    newton = train_gpt.build_optimizers(model, made)[-1]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    seen = []
    if layer in ("attn.q", "attn.v"):
        model.blocks[0].norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    else:
        module = model.blocks[0].get_submodule(layer)
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = (torch.arange(8 * 16).view(8, 16) % 256,) * 2
    train_gpt.set_learning_rates([newton], made, 0)
    train_gpt.compute_gradients(model, [newton], batch, 4, ALONE)
    newton.after_gradient()
    x = torch.cat(seen).flatten(0, -2)
    expected = 0.95 * 0.001 * torch.eye(64) + 0.05 * x.mT @ x / len(x)
    weight = model.get_parameter(f"blocks.0.{layer}.weight")
    torch.testing.assert_close(newton.state[weight]["covariance"][0], expected.detach())
