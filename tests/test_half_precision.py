"""bfloat16, as on a GPU: the model's activations against float64, every optimizer's state through a file."""

import copy
import io

import pytest
import torch

import train_gpt
from optimizers import STEPS
from records.run.track import shipped_tracks
from train_gpt import GPT, build_optimizers, parse_recipe, set_learning_rates


def model_on_a_gpu(dim: int, layers: int) -> GPT:
    """A small model whose embedding, and so whose activations, are in bfloat16, every weight at work."""
    model = GPT(64, layers, dim, dim // 2, 32)
    train_gpt.initialise(model, {"proj": 0.05, "attn.proj": 0.05, "mlp.proj": 0.05}, seed=0)
    model.embed.to(torch.bfloat16)
    return model


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(seed))


def test_activations_in_bfloat16_against_float64():
    model = model_on_a_gpu(dim=128, layers=2)
    exact = copy.deepcopy(model).double()
    losses = [each(tokens(1), tokens(2)) for each in (model, exact)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=2e-3)
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = (p.grad.double() - q.grad).norm() / q.grad.norm()
        assert error < 0.03, name


def updates(model: GPT, optimizers: list, recipe: train_gpt.Recipe, steps: range) -> None:
    for step in steps:
        set_learning_rates(optimizers, recipe, step)
        for ahead in optimizers[2:]:
            ahead.look_ahead()
        model(tokens(step), tokens(step + 1)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("step", sorted(STEPS))
def test_a_run_with_a_bfloat16_embedding_resumes_from_a_file(step):
    text = f'train_steps = 9\n[matrix]\nstep = "{step}"\n[lookahead]\nstrength = 0.6\n'
    nano = shipped_tracks()["nano"]
    recipe = parse_recipe(text, "made", {"nano": nano}, STEPS, track="nano")
    model, resumed = (model_on_a_gpu(dim=32, layers=1) for _ in range(2))
    optimizers, others = build_optimizers(model, recipe), build_optimizers(resumed, recipe)
    updates(model, optimizers, recipe, range(2))
    file = io.BytesIO()
    torch.save((model.state_dict(), [optimizer.state_dict() for optimizer in optimizers]), file)
    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights)
    for optimizer, state in zip(others, states, strict=True):
        optimizer.load_state_dict(state)
    updates(model, optimizers, recipe, range(2, 4))
    updates(resumed, others, recipe, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
