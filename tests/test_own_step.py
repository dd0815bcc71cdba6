"""[embed] and [head]: a step function in AdamW's place."""

import pytest
import torch

from optimizers import AROUND, STEPS
from optimizers.explain import explained
from optimizers.own_step import OwnStep
from optimizers.stage import named_step
from records.run.effective import parse_recipe
from records.run.recipe import RecipeError
from records.run.track import shipped_tracks
from train_gpt import GPT, build_optimizers, set_learning_rates

TEXT = """
track = "nano"
train_steps = 10
[matrix]
step = "muon"
[embed]
step = "rownorm"
lr = 0.3
[head]
step = "rownorm"
direction = "centred_rows"
lr = 0.1
"""


def recipe(text: str = TEXT, *changes: str):
    return parse_recipe(text, "made", shipped_tracks(), STEPS, changes, arounds=AROUND)


def with_gradients(dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    model = GPT(32, 1, 64)
    model.embed.to(dtype)
    for p in model.parameters():
        torch.nn.init.normal_(p)
        p.grad = torch.randn_like(p)
    return model


def test_the_effective_recipe_reads_back_as_itself():
    made = recipe()
    assert made.head == made.head | {"step": "rownorm", "direction": "centred_rows", "nesterov": False}
    assert "embed_lr" not in made.aux and "scalar_lr" in made.aux
    assert recipe(made.toml()) == made
    assert recipe(TEXT, "head.lr=0.2").head["lr"] == 0.2
    assert made.step_names() == ["muon", "rownorm", "rownorm(direction=centred_rows)"]
    assert "head: rownorm(direction=centred_rows)" in list(explained(made.own_steps()))


@pytest.mark.parametrize(
    ("change", "told"),
    [("aux.embed_lr=0.1", "one of them"), ("head.step=bogus", "bogus"), ("head.beta=1.0", "'beta'")],
)
def test_what_cannot_be_is_refused(change, told):
    with pytest.raises(RecipeError, match=told):
        recipe(TEXT, change)


def test_embedding_and_head_take_their_step_on_adamws_schedule():
    model, made = with_gradients(), recipe(TEXT, "schedule.aux_cooldown_frac=1.0")
    optimizers = build_optimizers(model, made)
    expected = {}
    for name, step, lr in (
        ("embed.weight", "rownorm", 0.3),
        ("proj.weight", "rownorm(direction=centred_rows)", 0.1),
    ):
        p = model.get_parameter(name)
        expected[name] = p.detach().clone()
        named_step(step)(expected[name], p.grad, {}, lr=lr / 2)
    set_learning_rates(optimizers, made, 5)
    for optimizer in optimizers:
        optimizer.step()
    for name, weight in expected.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), weight)


def test_a_half_precision_embedding_is_stepped_in_float32_and_goes_on_from_its_state():
    one, other = with_gradients(torch.bfloat16), with_gradients(torch.bfloat16)
    step = named_step("rownorm")
    first, second = (OwnStep([model.embed.weight], step, lr=0.5) for model in (one, other))
    before = one.embed.weight.detach().float()
    first.step()
    assert first.state[one.embed.weight]["momentum"].dtype == torch.float32
    moved = before - one.embed.weight.detach().float()
    torch.testing.assert_close(moved.norm(dim=1), torch.full((32,), 0.5), rtol=0.05, atol=0)
    second.step()
    third = OwnStep([other.embed.weight], step, lr=0.1)
    third.load_state_dict(second.state_dict())
    first.step()
    third.step()
    assert torch.equal(one.embed.weight, other.embed.weight)
