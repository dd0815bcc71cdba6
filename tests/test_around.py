"""What surrounds an update: against the published scripts' numbers, and its rules one by one."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from optimizers.around.around import Around, arounds_in, read_losses, read_out, swapped
from optimizers.around.average import ExtrapolatedGradient, TailAverage, with_row_norms
from optimizers.around.head_kfac import HeadKFAC
from optimizers.around.moves import Pulses, RREMove, extrapolation
from optimizers.around.readouts import PhaseReadout, VelocityReadout, across
from optimizers.aux_adamw import AuxAdamW
from optimizers.ema_nesterov import EMANesterov

GOLDEN = Path(__file__).parent / "golden"
SHAPES = [(24, 24), (48, 16), (16, 48)]


def parameter(shape: tuple[int, ...] = (3, 4), seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def updated(around: Around, p: Tensor, updates: int, first: int = 0) -> list[Tensor]:
    """The weights after each of some updates that add 1, and what the object makes of each."""
    after = []
    for update in range(first, first + updates):
        for group in around.param_groups:
            group["update"] = update
        with torch.no_grad():
            p += 1
        around.step()
        after.append(p.detach().clone())
    return after


def reading(around: Around, p: Tensor) -> Tensor:
    return read_out([around]).get(p, p.detach())


# -- numbers of the published scripts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("case", "eta"), [("capped", 0.2), ("free", 0.02)])
def test_the_velocity_readout_is_result_38s(shape, case, eta):
    golden = np.load(GOLDEN / "velocity_readout_record38.npz")
    W = np.random.default_rng(7).standard_normal(shape) * 0.5
    p = nn.Parameter(torch.from_numpy(W))
    readout = VelocityReadout([p], start=1)
    for t in range(1, 5):
        G = np.random.default_rng(7 + 1000 * t).standard_normal(shape) * np.geomspace(1, 0.01, shape[1])
        with torch.no_grad():
            p -= eta * torch.from_numpy(G)
        readout.param_groups[0]["update"] = t - 1
        readout.step()
    expected = torch.from_numpy(golden[f"s7_{shape[0]}x{shape[1]}_{case}"])
    torch.testing.assert_close(reading(readout, p), expected, rtol=0, atol=1e-8)


def iterates() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "rre_record34.npz"))


@pytest.mark.parametrize("damping", [1.0, 0.875])
def test_the_extrapolation_is_result_34s(damping):
    golden = iterates()
    x = torch.from_numpy(np.stack([golden[f"s7_x{i}"] for i in range(4)]))
    (move,) = extrapolation([x], damping, limit=torch.inf)
    np.testing.assert_allclose(x[-1] + move, golden[f"s7_damping{damping}"], atol=1e-8)


def test_the_extrapolation_is_cut_to_its_limit():
    golden = iterates()
    x = torch.from_numpy(np.stack([golden[f"s7_x{i}"] for i in range(4)]))
    parts = [x[:, :50], x[:, 50:].unflatten(1, (10, 15))]
    moves = extrapolation(parts, 0.875, 0.001)
    moved = torch.cat([(part[-1] + move).flatten() for part, move in zip(parts, moves, strict=True)])
    np.testing.assert_allclose(moved, golden["s7_capped"], atol=1e-8)


def test_the_extrapolations_absolute_damping_counts_for_small_steps():
    golden = iterates()
    x = np.stack([golden[f"s7_x{i}"] for i in range(4)])
    y = torch.from_numpy(x[0] + 1e-6 * (x - x[0]))
    (move,) = extrapolation([y], 0.875, limit=torch.inf)
    np.testing.assert_allclose(y[-1] + move, golden["s7_tiny_damping0.875"], atol=1e-8)


def test_the_heads_gradient_is_result_2600s():
    golden, shape = np.load(GOLDEN / "open_output_kfac.npz"), (40, 16)
    layer = nn.Linear(16, 40).double()
    kfac = HeadKFAC([layer.weight], start=1, apply=2, stop=99, every=2, row_step=1, fed_by="")
    kfac.attach(layer, {})
    for t in range(1, 9):
        ramp = min(max((t - 1 - 2) / 3, 0), 1)
        kfac.param_groups[0] |= {"update": t - 1, "strength": 0.25 + 0.5 * ramp, "damping": 0.15 - 0.1 * ramp}
        X = np.random.default_rng(7 + 1000 * t + 700).standard_normal((32, 16)) * np.geomspace(1, 0.05, 16)
        G = np.random.default_rng(7 + 1000 * t).standard_normal(shape) * np.geomspace(1, 0.01, 16)
        kfac.before_gradient()
        for part in torch.from_numpy(X + 0.3).chunk(2):  # two micro-batches
            layer(part)
        layer.weight.grad = torch.from_numpy(G)
        kfac.after_gradient()
        np.testing.assert_allclose(layer.weight.grad, golden[f"s7_40x16_g{t}"], atol=5e-8)


# -- readouts


def test_the_average_begins_at_its_start_and_is_blended():
    p = parameter()
    tail = TailAverage([p], start=2, tau=4.0, blend=0.25)
    after = updated(tail, p, 1)
    assert not read_out([tail])
    after += updated(tail, p, 3, first=1)
    average = after[1]
    for w in after[2:]:
        average = average + (w - average) / 4
    torch.testing.assert_close(reading(tail, p), 0.75 * after[3] + 0.25 * average)
    assert torch.equal(p, after[3])


def test_without_tau_the_readout_goes_back_towards_earlier_weights():
    p = parameter()
    reference = TailAverage([p], start=1, since=3, blend=0.075)
    after = updated(reference, p, 2)
    assert not read_out([reference])
    after += updated(reference, p, 1, first=2)
    torch.testing.assert_close(reading(reference, p), after[2] - 0.075 * (after[2] - after[0]))


def test_blends_by_group():
    p, q = parameter(), parameter((5,))
    tail = TailAverage([{"params": [p], "blend": 0.0}, {"params": [q]}], start=1, tau=2.0, blend=1.0)
    updated(tail, p, 2)
    assert set(read_out([tail])) == {q}


def test_an_average_may_start_behind_along_the_look_aheads_average():
    p = parameter((4, 6))
    ahead = EMANesterov([p])
    tail = TailAverage([p], start=1, tau=10.0, behind=0.5, blend=1.0)
    tail.attach(nn.Module(), {"lookahead": ahead})
    ahead.look_ahead()
    with torch.no_grad():
        p += torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)
    ahead.step()
    tail.param_groups[0]["update"] = 0
    tail.step()
    behind = p - 5.0 * ahead.state[p]["average"]
    torch.testing.assert_close(reading(tail, p), with_row_norms(behind, p, p))


def test_rows_of_what_is_read_get_the_averages_norms_and_an_empty_row_stays_trained():
    X, like, trained = parameter((3, 4)), parameter((3, 4), 1), parameter((3, 4), 2)
    X = X.detach().clone()
    X[1] = 0
    read = with_row_norms(X, like, trained)
    torch.testing.assert_close(read[[0, 2]].norm(dim=1), like[[0, 2]].norm(dim=1))
    assert torch.equal(read[1], trained[1])


def test_vectors_have_no_rows():
    x = parameter((4,))
    assert with_row_norms(x, 2 * x, x) is x


def test_the_phase_readout_moves_across_the_later_way_at_its_length():
    p = parameter((4, 4))
    phase = PhaseReadout([p], first=1, second=2, since=3, strength=0.5)
    W0, W1, W2 = (parameter((4, 4), seed).detach() for seed in (1, 2, 3))
    for update, W in enumerate((W0, W1, W2)):
        p.data.copy_(W)
        phase.param_groups[0]["update"] = update
        phase.step()
    z = across(W2, W0, W1)
    torch.testing.assert_close(reading(phase, p), W2 + 0.5 * z)
    torch.testing.assert_close(z.norm(), (W2 - W1).norm())
    assert (z * (W2 - W1)).sum().abs() < 1e-9 and (z * (W1 - W0)).sum() < 0


def test_readouts_follow_one_another_and_each_may_be_read_alone():
    p = parameter()
    first = TailAverage([{"params": [p], "name": "first"}], start=1, blend=0.5)
    second = TailAverage([{"params": [p], "name": "second"}], start=1, blend=0.5)
    after = updated(first, p, 1)
    second.param_groups[0]["update"] = 0
    second.step()
    after += updated(first, p, 1, first=1)
    losses, told = read_losses([first, second], lambda: p.mean().item(), each=True)
    raw = after[1].mean().item()
    expected = {"val_loss": raw - 0.75, "raw_val_loss": raw, "first_val_loss": raw - 0.5}
    assert losses == pytest.approx(expected | {"second_val_loss": raw - 0.5})
    assert told == " readout:first+second"


def test_without_a_readout_one_loss_is_validated():
    assert read_losses([EMANesterov([parameter()])], lambda: 3.0) == ({"val_loss": 3.0}, "")


def test_weights_are_put_back_bit_for_bit_even_after_an_error():
    p = parameter(dtype=torch.bfloat16)
    own = p.detach().clone()
    with pytest.raises(KeyError), swapped({p: torch.full_like(p, 1 / 3, dtype=torch.float32)}):
        assert torch.equal(p, torch.full_like(p, 1 / 3))
        raise KeyError
    assert torch.equal(p, own)


# -- moves and points


def test_pulses_take_the_first_way_in_once_more():
    p = parameter()
    pulses = Pulses([p], start=1, every=2, stop=5, strength=0.5)
    after = updated(pulses, p, 7)
    ways = [(after[i] - after[i - 1])[0, 0].item() for i in range(1, 7)]
    # ways of 2 at updates 3 and 5: moved by .5 * 2, then by .5 * (2 + 2)
    assert ways == pytest.approx([1, 2, 1, 3, 1, 1])


def test_rre_moves_only_at_multiples_with_a_full_list():
    p = parameter((6,))
    rre = RREMove([p], start=2, stop=12, every=5, keep=4, limit=1.0)
    after = updated(rre, p, 13)
    ways = torch.stack(after).diff(dim=0)[:, 0]
    moved = [update + 2 for update, way in enumerate(ways) if abs(way.item() - 1) > 1e-6]
    assert moved == [5, 10]


def test_rre_of_weights_that_do_not_move_leaves_them():
    p = parameter((6,))
    rre = RREMove([p], start=1, stop=9, every=4)
    before = p.detach().clone()
    for update in range(4):
        rre.param_groups[0]["update"] = update
        rre.step()
    assert torch.equal(p, before)


@given(st.integers(0, 2**31), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_the_gradients_point_lies_beyond_the_weights_and_they_come_back_bit_for_bit(seed, dtype):
    p = parameter((3, 5), seed, dtype)
    tail = TailAverage([p], start=1, tau=3.0)
    beyond = ExtrapolatedGradient([p], average="tail", strength=0.45)
    beyond.attach(nn.Module(), {"tail": tail})
    beyond.before_gradient()  # no average yet
    beyond.after_gradient()
    updated(tail, p, 3)
    own, E = p.detach().clone(), tail.state[p]["average"]
    beyond.before_gradient()
    wide = own.to(E.dtype)
    assert torch.equal(p, (wide + 0.45 * (wide - E)).to(dtype))
    beyond.abandon()
    assert torch.equal(p, own)


def test_a_point_beyond_a_readout_that_is_no_average_is_refused():
    beyond = ExtrapolatedGradient([parameter()], average="velocity")
    with pytest.raises(ValueError, match="velocity"):
        beyond.attach(nn.Module(), {"velocity": VelocityReadout([parameter()], start=1)})


def test_an_average_follows_the_master_copy():
    p = parameter((4,), dtype=torch.bfloat16)
    adam, tail = AuxAdamW([p], lr=1e-3, master=True), TailAverage([p], start=1, tau=2.0)
    tail.attach(nn.Module(), {"adam": adam})
    for update in range(3):
        p.grad = torch.ones_like(p)
        adam.step()
        tail.param_groups[0]["update"] = update
        tail.step()
    assert not torch.equal(adam.state[p]["master"], p.float())
    masters = (adam.state[p]["master"] + 1e-3 * k for k in (2, 1, 0))
    expected = next(masters)
    for master in masters:
        expected = expected + (master - expected) / 2
    torch.testing.assert_close(tail.state[p]["average"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: TailAverage([p], start=1, tau=3.0),
        lambda p: VelocityReadout([p], start=1),
        lambda p: PhaseReadout([p], first=1, second=2, since=3),
        lambda p: Pulses([p], start=1, every=2, stop=9, strength=0.3),
        lambda p: RREMove([p], start=1, stop=9, every=4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_state_survives_a_checkpoint_bit_for_bit(make, dtype):
    p = parameter((3, 4), dtype=dtype)
    around = make(p)
    updated(around, p, 3)
    q = nn.Parameter(p.detach().clone())
    other = make(q)
    other.load_state_dict(copy.deepcopy(around.state_dict()))
    updated(around, p, 4, first=3)
    updated(other, q, 4, first=3)
    assert torch.equal(p, q) and torch.equal(reading(around, p), reading(other, q))


def test_arounds_are_found_among_optimizers():
    p = parameter()
    ahead, tail = EMANesterov([p]), TailAverage([p], start=1)
    assert arounds_in([torch.optim.SGD([p]), ahead, tail]) == [ahead, tail]
