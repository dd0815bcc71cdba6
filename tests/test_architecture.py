"""The model and the baseline against numbers of the benchmark's own script (float64)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import train_gpt
from records.run.track import shipped_tracks
from train_gpt import GPT, build_optimizers, parse_recipe, set_learning_rates

GOLDEN = Path(__file__).parent / "golden"
BASELINE = """
track = "fineweb"
train_steps = 12
[matrix]
step = "muon"
lr = 0.025
weight_decay = 0.05
[aux]
embed_lr = 0.7
head_lr = 0.004
scalar_lr = 0.015
weight_decay = 0.001
"""


def golden_model() -> GPT:
    model = GPT(vocab_size=512, num_layers=2, model_dim=256).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = (
                np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape))
                * 0.02
            )
            parameter.copy_(torch.from_numpy(values + name.endswith("gains")))
    return model


def tokens(seed: int, rows: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 512, (rows, 64)))


def test_loss_and_gradients_are_the_benchmarks():
    golden = json.loads((GOLDEN / "model.json").read_text())
    model = golden_model()
    loss = model(tokens(5, 2), tokens(6, 2))
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss_sum"], rel=1e-10)
    assert {name for name, _ in model.named_parameters()} == set(golden["parameters"])
    for name, parameter in model.named_parameters():
        expected = golden["parameters"][name]
        assert list(parameter.shape) == expected["shape"]
        assert parameter.grad.abs().sum().item() == pytest.approx(expected["grad_abs_sum"], rel=1e-8), name
        assert parameter.grad.flatten()[:8].tolist() == pytest.approx(expected["grad_first8"], rel=1e-8), name


def test_twelve_steps_of_the_baseline_are_the_benchmarks():
    golden = json.loads((GOLDEN / "trajectory_baseline.json").read_text())
    recipe = parse_recipe(BASELINE, "baseline", shipped_tracks(), train_gpt.STEPS)
    model = golden_model()
    optimizers = build_optimizers(model, recipe)
    for step, expected in enumerate(golden["losses"]):
        loss = model(tokens(100 + step, 4), tokens(200 + step, 4))
        assert loss.item() == pytest.approx(expected, rel=1e-8), step
        loss.backward()
        set_learning_rates(optimizers, recipe, step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert model(tokens(5, 2), tokens(6, 2)).item() == pytest.approx(golden["final_loss"], rel=1e-8)
    for name, parameter in model.named_parameters():
        assert parameter.norm().item() == pytest.approx(golden["final_param_fro_norms"][name], rel=1e-8), name
