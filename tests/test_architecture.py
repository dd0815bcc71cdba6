"""The model and the baseline against numbers of the benchmark's own script (float64)."""

import json
from pathlib import Path

import pytest

import train_gpt
from records.baseline import BASELINE, made_model, made_tokens
from records.run.track import shipped_tracks
from train_gpt import build_optimizers, parse_recipe, set_learning_rates

GOLDEN = Path(__file__).parent / "golden"


def test_loss_and_gradients_are_the_benchmarks():
    golden = json.loads((GOLDEN / "model.json").read_text())
    model = made_model()
    loss = model(made_tokens(5, 2), made_tokens(6, 2))
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
    model = made_model()
    optimizers = build_optimizers(model, recipe)
    for step, expected in enumerate(golden["losses"]):
        loss = model(made_tokens(100 + step, 4), made_tokens(200 + step, 4))
        assert loss.item() == pytest.approx(expected, rel=1e-8), step
        loss.backward()
        set_learning_rates(optimizers, recipe, step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert model(made_tokens(5, 2), made_tokens(6, 2)).item() == pytest.approx(golden["final_loss"], rel=1e-8)
    for name, parameter in model.named_parameters():
        assert parameter.norm().item() == pytest.approx(golden["final_param_fro_norms"][name], rel=1e-8), name
