"""The learning rate's factor, and values that change over a run."""

import pytest

import train_gpt
from records.run.recipe_files import shipped_recipes
from records.run.schedule import learning_rate_factor
from records.run.track import RECORDS, shipped_tracks
from tests.runs import recipe
from train_gpt import GPT


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


@pytest.mark.parametrize("name", shipped_recipes(RECORDS / "nano"))
def test_no_hyperparameter_of_a_recipe_comes_between_a_group_and_its_schedule(name):
    made = train_gpt.load_recipe(name, (), shipped_tracks()["nano"])
    optimizers = train_gpt.build_optimizers(GPT(256, 2, 64, 32, 128), made)
    step = made.train_steps * 3 // 4
    for update in (0, step):  # what changes is a tensor from the first on
        train_gpt.set_learning_rates(optimizers, made, update)
    for group in (group for optimizer in optimizers[:2] for group in optimizer.param_groups):
        factor = learning_rate_factor(step, made, group["schedule"])
        assert type(group["lr"]) is float and group["lr"] == group["initial_lr"] * factor


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
