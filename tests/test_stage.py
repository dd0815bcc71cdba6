"""Rows of stages: what a step function checks, and how stages are exchanged."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import STAGES, STEPS, MatrixOptimizer
from optimizers.stage import KINDS, Hyperparameter, exchanged, named_step, step_function
from optimizers.stages.precondition import sign


@step_function
def plain_descent(weight, grad, state, *, lr=0.1, momentum=0.0):
    weight.sub_(lr * grad)


STEPS.pop("plain_descent")  # other tests look at the methods of the field only


def test_an_unknown_hyperparameter_is_named_with_the_nearest_and_the_known():
    message = "plain_descent has no hyperparameter 'momentun'; did you mean 'momentum'?; known: lr, momentum"
    with pytest.raises(TypeError) as error:
        plain_descent(torch.ones(2, 2), torch.ones(2, 2), {}, momentun=0.9)
    assert str(error.value) == message


@pytest.mark.parametrize("shapes", [((2, 2), (2, 3)), ((4,), (4,))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="expects a weight"):
        plain_descent(torch.ones(shapes[0]), torch.ones(shapes[1]), {})


def test_a_parameter_is_stepped_without_autograd():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    plain_descent(weight, torch.ones(2, 2, dtype=torch.bfloat16), {})
    torch.testing.assert_close(weight.data, torch.full((2, 2), 0.9))


# --------------------------------------------------------------------------------------------------
# Hyperparameters


def test_every_hyperparameter_of_a_stage_has_a_meaning_and_a_range_where_it_is_a_number():
    for of_kind in STAGES.values():
        for stage in of_kind.values():
            for keyword in stage.hyperparameters:
                assert keyword.meaning, (stage.name, keyword.name)
                assert keyword.within or keyword.kinds == (bool,), (stage.name, keyword.name)


def test_every_default_of_a_method_is_in_its_range():
    for step in STEPS.values():
        for keyword in step.row.hyperparameters.values():
            keyword.check(keyword.default, step.row.name)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=st.floats(), name=st.sampled_from(["lr", "momentum", "weight_decay", "update_floor"]))
def test_a_number_out_of_its_range_never_passes(value, name):
    below = {"[0, 1)": 1, "[0, inf)": math.inf}[STEPS["muon"].row.hyperparameters[name].within]
    inside = 0 <= value < below
    weight = torch.ones(2, 2)
    if not inside:
        with pytest.raises(ValueError, match=f"muon: {name} is .*; expected a number in "):
            STEPS["muon"](weight, weight, {}, **{name: value})
        assert torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("within", "inside", "outside"),
    [
        ("(0, 1]", (1e-300, 1), (0, 1.0000001)),
        ("[1, inf)", (1, 1e308), (0.999, math.inf)),
        ("", (-1e308,), (math.nan,)),
    ],
)
def test_the_ends_of_an_interval_count_as_its_brackets_say(within, inside, outside):
    keyword = Hyperparameter("x", 0.5, float, within, "")
    for value in inside:
        keyword.check(value, "made")
    for value in outside:
        with pytest.raises(ValueError, match="made: x is"):
            keyword.check(value, "made")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("polar_steps", 5.5, "expected a whole number or nothing"),
        ("polar_steps", 0, r"whole number or nothing \(off\) in \[1, inf\)"),
        ("nesterov", 1, "expected true or false"),
        ("polar", "quintics", "expected one of simple, quintic"),
        ("momentum", "much", r"expected a number in \[0, 1\)"),
        ("momentum", True, r"expected a number in \[0, 1\)"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused(name, value, told):
    with pytest.raises((TypeError, ValueError), match=f"muon: {name} is .*{told}"):
        MatrixOptimizer([torch.zeros(2, 2)], step="muon", **{name: value})


def test_a_pair_of_numbers_is_one():
    for wrong in ([0.9], [0.9, 1.0], "0.9", [0.9, "much"]):
        with pytest.raises((TypeError, ValueError), match="adamw: betas is"):
            STEPS["adamw"](torch.ones(2, 2), torch.ones(2, 2), {}, betas=wrong)


# --------------------------------------------------------------------------------------------------
# Exchanging stages


def test_an_exchanged_stage_brings_its_hyperparameters_and_takes_those_of_the_old_one_away():
    step = exchanged(STEPS["aurora"], {"land": "hyperball", "precondition": "soap"})
    assert step.row.name == "aurora(precondition=soap, land=hyperball)"
    assert "covariance_beta" in step.row.hyperparameters and "update_floor" not in step.row.hyperparameters
    assert step.row.hyperparameters["lr"].default == STEPS["aurora"].row.hyperparameters["lr"].default


def test_a_row_is_found_by_its_name_and_exchanging_back_gives_the_method():
    step = exchanged(STEPS["muon"], {"precondition": "equalize", "scale": "rms"})
    assert named_step(step.row.name) is step
    assert exchanged(step, {"precondition": "none", "scale": "spectral"}) is STEPS["muon"]


def test_an_exchanged_row_can_be_exchanged_further():
    once = STEPS["muon"].row.exchanged({"precondition": "soap"})
    assert once.exchanged({"land": "hyperball"}).name == "muon(precondition=soap, land=hyperball)"


def test_muon_with_the_stages_of_another_method_is_that_method():
    weight, twin = torch.ones(6, 4).double(), torch.ones(6, 4).double()
    stages = {
        "memory": "none",
        "precondition": "adam",
        "direction": "none",
        "normalise": "none",
        "scale": "none",
    }
    G = torch.randn(6, 4, dtype=torch.float64)
    exchanged(STEPS["muon"], stages)(weight, G, {}, lr=0.1, eps=1e-10)
    STEPS["adamw"](twin, G, {}, lr=0.1)
    assert torch.equal(weight, twin)


def test_two_meanings_of_one_name_are_told_apart():
    step = exchanged(STEPS["normuon"], {"precondition": "soap"})
    defaults = {name: key.default for name, key in step.row.hyperparameters.items()}
    assert (defaults["precondition_beta2"], defaults["normalise_beta2"]) == (0.9, 0.95)
    with pytest.raises(TypeError, match="'beta2'; did you mean 'precondition_beta2' or 'normalise_beta2'"):
        step(torch.ones(2, 2), torch.ones(2, 2), {}, beta2=0.9)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ({"precondition": "soup"}, "unknown precondition 'soup'; did you mean 'soap'?"),
        ({"land": "none"}, "leave the weights where they are"),
    ],
)
def test_an_impossible_row_says_so(stages, told):
    with pytest.raises(ValueError, match=told):
        exchanged(STEPS["muon"], stages)


def test_a_method_that_is_no_row_has_no_stages_to_exchange():
    with pytest.raises(ValueError, match="plain_descent is not a row of stages"):
        MatrixOptimizer([torch.zeros(2, 2)], step=plain_descent, precondition="soap")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "scale"])
def test_every_stage_of_a_kind_can_stand_in_muon(kind):
    for name in STAGES[kind]:
        step, weight, state = exchanged(STEPS["muon"], {kind: name}), torch.randn(6, 4), {}
        for _ in range(3):
            step(weight, torch.randn(6, 4), state)
        assert weight.isfinite().all(), name


def test_the_optimizer_takes_stages_by_name_and_its_state_says_which():
    weight = torch.nn.Parameter(torch.randn(6, 4))
    weight.grad = torch.randn(6, 4)
    optimizer = MatrixOptimizer([weight], step="muon", precondition="soap", land="hyperball", lr=0.01)
    optimizer.step()
    packed = optimizer.state_dict()
    assert packed["param_groups"][0]["step"] == "muon(precondition=soap, land=hyperball)"
    other = MatrixOptimizer([torch.nn.Parameter(torch.randn(6, 4))], step=packed["param_groups"][0]["step"])
    other.load_state_dict(packed)
    assert inspect.signature(STEPS["muon"]).parameters["lr"].default == 0.02


def test_a_stage_is_a_plain_function():
    assert torch.equal(sign(torch.tensor([[-2.0, 3.0]])), torch.tensor([[-1.0, 1.0]]))
