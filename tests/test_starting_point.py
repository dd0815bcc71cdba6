"""Where weights start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimizers.starting_point import paired_signs
from train_gpt import GPT, initialise

HEAD = 32


def started(init: dict, seed: int = 3, layers: int = 4) -> dict[str, torch.Tensor]:
    model = GPT(256, layers, 64, HEAD, 128)
    initialise(model, init, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_the_uniform_law_is_torchs_reset_but_for_proj():
    weights = started({"law": "uniform", "bias": "uniform"})
    for name in ("blocks.0.attn.q", "blocks.3.mlp.fc"):
        for part in ("weight", "bias"):
            values = weights[f"{name}.{part}"]
            assert values.abs().max() <= 1 / 8 and values.abs().max() > 0.11
    assert not any(weights[f"{name}.weight"].any() or weights[f"{name}.bias"].any()
                   for name in ("proj", "blocks.1.attn.proj", "blocks.1.mlp.proj"))  # fmt: skip
    assert weights["embed.weight"].std() == pytest.approx(1, rel=0.05)


def test_factors_by_pattern_and_by_layer():
    weights = started({"law": "uniform", "mlp.fc": {"slope": 0.3}, "mlp.proj": {"factor": 3.0}})
    plain = started({"law": "uniform", "mlp.fc": {"factor": 1.0}, "mlp.proj": {"factor": 1.0}})
    for block, factor in enumerate((1.0, 0.9, 0.8, 0.7)):
        name = f"blocks.{block}.mlp.fc.weight"
        torch.testing.assert_close(weights[name], factor * plain[name])
    name = "blocks.2.mlp.proj.weight"
    torch.testing.assert_close(weights[name], 3 * plain[name])
    assert plain[name].abs().max() == pytest.approx(1 / 16, rel=0.05)


def test_a_proj_may_start_as_torch_resets_it():
    weights = started({"proj": {"law": "uniform", "bias": "uniform"}})
    assert weights["proj.weight"].any() and weights["proj.bias"].any()
    assert not weights["blocks.0.attn.proj.weight"].any()


def test_signs_of_the_gains_are_opposite_in_a_block():
    weights = started({"gain_signs": 0.125})
    for block in range(4):
        first, second = (weights[f"blocks.{block}.norm{i}.gains"] for i in (1, 2))
        torch.testing.assert_close(first + second, torch.full((64,), 2.0))
        assert set(first.tolist()) == {0.875, 1.125}
    assert weights["norm1.gains"].eq(1).all() and weights["norm2.gains"].eq(1).all()


def test_paired_blocks_have_opposite_means_in_each_head_and_the_others_stay():
    init = {"gain_signs": 0.125, "paired_from": 2}
    weights, free = started(init), started({"gain_signs": 0.125})
    signs = [(1 - weights[f"blocks.{block}.norm1.gains"]).view(-1, HEAD) for block in (2, 3)]
    torch.testing.assert_close(signs[0].sum(1), -signs[1].sum(1))
    assert not torch.equal(signs[0], -signs[1])
    for block in (0, 1):
        name = f"blocks.{block}.norm1.gains"
        assert torch.equal(weights[name], free[name])


def test_a_last_block_without_a_partner_is_signed_too():
    assert set(started({"gain_signs": 0.5, "paired_from": 1}, layers=2)["blocks.1.norm1.gains"].tolist()) == {
        0.5, 1.5,
    }  # fmt: skip


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_number_of_positive_signs_shrinks_towards_half(seed, shrink):
    h, generator = 128, torch.Generator().manual_seed(seed)
    drawn = int(torch.randint(0, 2, (h,), generator=torch.Generator().manual_seed(seed)).sum())
    first, second = paired_signs(1, h, shrink, generator)
    assert first.gt(0).sum() == round(64 + shrink * (drawn - 64))
    assert first.sum() == -second.sum()


def test_another_seed_is_another_start():
    init = {"gain_signs": 0.125, "paired_from": 2}
    first, second = started(init, seed=1), started(init, seed=2)
    assert all(not torch.equal(first[name], second[name]) for name in first if "norm1.gains" in name[7:])
