"""The paired comparison and the sequential level, on made-up entries whose differences are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_text import log_text, run_text, write
from scipy import stats

from records.__main__ import main
from records.judge.compare import compare, read_side
from records.judge.paired import (
    ALPHA,
    FIRST_LOOK,
    PairedComparison,
    p_value,
    seeds_needed,
    sequential_level,
    t_test,
)

RECIPE = ("effective recipe:", "[matrix]", "lr = 0.1")
FACTS = ("device: a processor", "threads: 1", "compiled: True", "micro_batch: 16", *RECIPE)
STEPS = (0, 100, 180, 190, 200)
DIFFERENCES = st.lists(st.floats(-0.1, 0.1).map(lambda x: round(x, 5)), min_size=2, max_size=30)


def entry(folder: Path, offsets: dict[int, float], total: int = 200, facts: tuple[str, ...] = FACTS) -> Path:
    """One run a seed: losses fall by 0.002 a step to 1.37 at step 200, moved by the seed's offset."""
    runs = [
        run_text({s: 1.37 + 0.002 * (200 - s) + offset for s in STEPS}, total=total, seed=seed)
        for seed, offset in offsets.items()
    ]
    return write(folder / "a.txt", log_text(*runs, facts=["track: nano", *facts])).parent


def compared(first: Path, second: Path) -> PairedComparison | None:
    return compare(read_side(first), read_side(second)).paired


LUCK = {0: 0.010, 1: -0.008, 2: 0.003, 3: -0.012, 4: 0.006, 5: 0.001}
OWN = {0: 0.001, 1: -0.001, 2: 0.0005, 3: 0.0, 4: -0.0005, 5: 0.0}


def behind(offset: float) -> dict[int, float]:
    """The same seeds with the same luck, a little noise of their own and `offset` more loss."""
    return {seed: luck + OWN[seed] + offset for seed, luck in LUCK.items()}


def test_what_a_seed_brings_to_both_sides_cancels(tmp_path: Path) -> None:
    pair = compare(read_side(entry(tmp_path / "a", LUCK)), read_side(entry(tmp_path / "b", behind(0.003))))
    assert pair.verdict == "not decided" and pair.paired.verdict == "better"
    assert pair.paired.loss.mean == pytest.approx(0.003)
    assert pair.paired.steps.mean == pytest.approx(0.003 / 0.002)
    assert pair.paired.loss.positive == 6 and pair.paired.correlation > 0.99
    assert pair.paired.doubts == ()


def test_turning_the_sides_turns_the_differences(tmp_path: Path) -> None:
    a, b = entry(tmp_path / "a", LUCK), entry(tmp_path / "b", behind(0.003))
    there, back = compared(a, b), compared(b, a)
    assert (back.verdict, back.loss.p) == ("worse", there.loss.p)
    assert back.steps.mean == -there.steps.mean
    assert (back.loss.low, back.loss.high) == (-there.loss.high, -there.loss.low)


def test_an_entry_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    paired = compared(entry(tmp_path / "a", LUCK), tmp_path / "a")
    assert (paired.loss.mean, paired.loss.p, paired.verdict) == (0.0, 1.0, "not decided")
    assert paired.loss.seeds_needed is None


def test_only_seeds_that_both_ran_once_are_paired(tmp_path: Path) -> None:
    twice = entry(tmp_path / "b", behind(0.003) | {9: 0.0})
    write(
        twice / "again.txt", log_text(run_text({0: 5.5, 200: 1.0}, total=200, seed=0), facts=["track: nano"])
    )
    assert compared(entry(tmp_path / "a", LUCK | {7: 0.0}), twice).seeds == (1, 2, 3, 4, 5)


def test_entries_without_a_shared_seed_are_not_paired(tmp_path: Path) -> None:
    other = {seed + 100: luck for seed, luck in LUCK.items()}
    assert compared(entry(tmp_path / "a", LUCK), entry(tmp_path / "b", other)) is None


def test_one_shared_seed_gives_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = entry(tmp_path / "a", {0: 0.0}), entry(tmp_path / "b", {0: 0.02})
    assert compared(a, b).loss.p is None and compared(a, b).verdict == "not decided"
    main(["compare", str(a), str(b)])
    assert "one seed has no spread" in capsys.readouterr().out


def test_without_the_target_the_loss_decides(tmp_path: Path) -> None:
    far = {seed: luck + 1.0 for seed, luck in LUCK.items()}
    farther = {seed: offset + 1.0 for seed, offset in behind(0.003).items()}
    paired = compared(entry(tmp_path / "a", far), entry(tmp_path / "b", farther))
    assert paired.steps is None and paired.verdict == "better"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (("device: another", *FACTS[1:]), "device differs, a processor against another"),
        ((*FACTS[:1], "threads: 2", *FACTS[2:]), "threads differs, 1 against 2"),
        ((*FACTS[:3], "micro_batch: 8"), "micro_batch differs, 16 against 8"),
        ((*FACTS, "[init]", "fc = 0.1"), "initialisation differs, the track's against init.fc = 0.1"),
    ],
)
def test_a_pairing_that_may_not_be_real_is_told(tmp_path: Path, facts: tuple[str, ...], told: str) -> None:
    paired = compared(entry(tmp_path / "a", LUCK), entry(tmp_path / "b", behind(0.003), facts=facts))
    (doubt,) = paired.doubts
    assert doubt.startswith(told)


def test_what_one_side_does_not_state_is_no_doubt(tmp_path: Path) -> None:
    assert compared(entry(tmp_path / "a", LUCK), entry(tmp_path / "b", behind(0.003), facts=())).doubts == ()


def test_runs_of_another_length_are_told(tmp_path: Path) -> None:
    paired = compared(entry(tmp_path / "a", LUCK), entry(tmp_path / "b", behind(0.003), total=210))
    assert "planned for 200 against 210 steps" in paired.doubts[0]


def test_on_fineweb_the_pairwise_rule_decides(tmp_path: Path) -> None:
    runs = [run_text({0: 10.8, 400: 3.27 + 0.001 * seed}, seed=seed) for seed in range(3)]
    a, b = (write(tmp_path / f"{name}.txt", log_text(*runs)) for name in "ab")
    assert "the pairwise rule decides there" in compared(a, b).doubts[0]


def test_json_names_the_paired_figures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = entry(tmp_path / "a", LUCK), entry(tmp_path / "b", behind(0.003))
    main(["compare", "--json", str(a), str(b)])
    ((paired),) = [pair["paired"] for pair in json.loads(capsys.readouterr().out)]
    expected = stats.ttest_1samp([0.003 + own for own in OWN.values()], 0)
    assert (paired["n"], paired["verdict"]) == (6, "better")
    assert [paired[key] for key in ("mean", "low", "high", "p")] == pytest.approx(
        [0.003, *expected.confidence_interval(), expected.pvalue], rel=1e-3
    )
    assert paired["steps_saved"] == pytest.approx(1.5)


@given(DIFFERENCES)
def test_the_test_is_students(differences: list[float]) -> None:
    found = t_test(differences)
    if np.std(differences) > 1e-6:
        known = stats.ttest_1samp(differences, 0)
        assert found.p == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)
        assert (found.low, found.high) == pytest.approx(known.confidence_interval(), abs=1e-9)
    assert found.low <= found.mean <= found.high
    assert found.decided == (found.p < ALPHA)


@given(st.floats(-0.05, 0.05), st.floats(1e-4, 0.05))
def test_the_seeds_needed_decide_and_one_fewer_does_not(mean: float, std: float) -> None:
    needed = seeds_needed(mean, std)
    if needed is None:
        assert p_value(mean, std, 1_000_000) >= ALPHA
        return
    assert p_value(mean, std, needed) < ALPHA
    assert needed == 2 or p_value(mean, std, needed - 1) >= ALPHA


@pytest.mark.parametrize("seeds", [3, 6, 12])
def test_looking_after_every_seed_decides_one_in_a_hundred_comparisons_of_equals(seeds: int) -> None:
    """With draws of its own: 20,000 comparisons, so 1% is known to within 0.3% at four standard errors."""
    draws = np.random.default_rng(seeds).standard_normal((20_000, seeds))
    level = sequential_level(seeds)
    decided = np.zeros(len(draws), dtype=bool)
    for n in range(FIRST_LOOK, seeds + 1):
        decided |= stats.ttest_1samp(draws[:, :n], 0, axis=1).pvalue < level
    assert 0.007 < decided.mean() < 0.013
    assert level == pytest.approx(ALPHA, rel=0.05) if seeds == FIRST_LOOK else level < ALPHA / 2
