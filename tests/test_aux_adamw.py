"""AdamW without bias correction and with a master copy."""

import copy

import pytest
import torch
from torch import nn

from optimizers.aux_adamw import AuxAdamW


def gradients(steps: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def test_with_bias_correction_it_is_torchs():
    p, q = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    options = {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-10, "weight_decay": 0.05}
    own, torchs = AuxAdamW([p], **options), torch.optim.AdamW([q], **options)
    for G in gradients(5, 5):
        p.grad, q.grad = G.clone(), G.clone()
        own.step()
        torchs.step()
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def test_without_bias_correction_moments_count_as_they_are():
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = AuxAdamW([p], lr=0.01, betas=(0.8, 0.99), eps=1e-10, bias_correction=False)
    m = v = expected = torch.zeros(3, dtype=torch.float64)
    for G in gradients(4, 3):
        p.grad = G.clone()
        adam.step()
        m, v = 0.8 * m + 0.2 * G, 0.99 * v + 0.01 * G**2
        expected = expected - 0.01 * m / (v.sqrt() + 1e-10)
    torch.testing.assert_close(p.detach(), expected)


def test_the_first_step_without_bias_correction_is_result_44s():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    p.grad = torch.tensor([3.0, -1e-3], dtype=torch.float64)
    AuxAdamW([p], lr=0.01, betas=(0.8, 0.99), eps=1e-10, bias_correction=False).step()
    assert p.tolist() == pytest.approx([-0.02, 0.02])


def test_a_master_gathers_what_bfloat16_would_round_away():
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    plain = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    with_master = AuxAdamW([p], lr=1e-4, master=True)
    without = AuxAdamW([plain], lr=1e-4)
    for _ in range(200):
        p.grad, plain.grad = torch.ones_like(p), torch.ones_like(p)
        with_master.step()
        without.step()
    assert plain.eq(1).all() and p.float().sub(0.98).abs().max() < 0.004
    assert torch.equal(p, with_master.state[p]["master"].bfloat16())


def test_a_master_takes_in_what_others_do_to_the_weight():
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    adam = AuxAdamW([p], lr=0.0, master=True)
    p.grad = torch.ones_like(p)
    adam.step()
    with torch.no_grad():
        p += 0.5
    adam.step()
    assert adam.state[p]["master"].eq(1.5).all()


def test_a_float64_weight_is_its_own_master():
    p = nn.Parameter(torch.ones(4, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    adam = AuxAdamW([p], lr=0.1, master=True)
    adam.step()
    assert set(adam.state[p]) == {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_state_survives_a_checkpoint_bit_for_bit(dtype):
    p = nn.Parameter(torch.ones(6, dtype=dtype))
    adam = AuxAdamW([p], lr=0.01, master=True)
    steps = gradients(6, 6)
    for G in steps[:3]:
        p.grad = G.to(dtype)
        adam.step()
    q = nn.Parameter(p.detach().clone())
    other = AuxAdamW([q], lr=0.01, master=True)
    other.load_state_dict(copy.deepcopy(adam.state_dict()))
    for G in steps[3:]:
        p.grad, q.grad = G.to(dtype), G.to(dtype)
        adam.step()
        other.step()
    assert torch.equal(p, q)
