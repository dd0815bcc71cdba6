"""Ranks in groups, Holm's correction, on made-up entries whose order is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_text import log_text, run_text, write

from records.judge.compare import compare, side
from records.judge.logs import read_entry
from records.judge.paired import compare_paired
from records.judge.ranking import holm, pair_test, rank
from records.judge.statistics import Summary, summarize_entry
from records.run.track import shipped_tracks

NANO, FINEWEB = (shipped_tracks()[name] for name in ("nano", "fineweb"))
STEPS = (0, 100, *range(180, 231, 5))
P_VALUES = st.lists(st.floats(0, 1), max_size=40)


def summary(folder: Path, later: float, own: float = 0.001, first_seed: int = 0) -> Summary:
    """Twelve runs that meet 1.39 at step 200 + `later` on average, falling by 0.002 a step; `own` noise."""
    chance = np.random.default_rng(sum(map(ord, folder.name)))
    runs = []
    for seed in range(first_seed, first_seed + 12):
        luck = 0.01 * np.random.default_rng(seed).standard_normal() + own * chance.standard_normal()
        curve = {s: 1.39 + 0.002 * (200 + later - s) + luck for s in STEPS}
        runs.append(run_text(curve, total=230, seed=seed))
    write(folder / "a.txt", log_text(*runs, facts=["track: nano"]))
    return summarize_entry(read_entry(folder), NANO.target, NANO.sigma)


def test_a_rank_counts_the_entries_shown_to_be_ahead(tmp_path: Path) -> None:
    later = {"first": 0, "second": 5, "as_second": 5.2, "last": 12}
    ranking = rank([summary(tmp_path / name, steps) for name, steps in later.items()], NANO)
    assert ranking.ranks == {"first": 1, "second": 2, "as_second": 2, "last": 4}
    assert (ranking.pairs, ranking.decided) == (6, 5)
    assert ranking.steps["first"].low < 200 + 2 and ranking.steps["first"].n == 12


def test_entries_of_one_rank_are_not_shown_to_differ(tmp_path: Path) -> None:
    """Noise of several sizes makes what is shown not transitive: a chain is closed, a tie is none."""
    entries = [summary(tmp_path / f"e{i}", 0.7 * i, own=0.0005 * (1 + 5 * (i % 3))) for i in range(9)]
    ranking = rank(entries, NANO)
    tests = {(a.name, b.name): pair_test(a, b, NANO) for i, a in enumerate(entries) for b in entries[i + 1 :]}
    decided = holm([p for p, _ in tests.values()], 0.05)
    assert 0 < sum(decided) == ranking.decided < len(tests)
    for ((a, b), (_, mean)), known in zip(tests.items(), decided, strict=True):
        if known:
            better, worse = (a, b) if mean > 0 else (b, a)
            assert ranking.ranks[better] < ranking.ranks[worse]


def test_few_runs_that_show_little_do_not_rank_well(tmp_path: Path) -> None:
    later = {"first": 0, "second": 5, "third": 10}
    entries = [summary(tmp_path / name, steps) for name, steps in later.items()]
    runs = [run_text({s: 1.39 + 0.002 * (215 + luck - s) for s in STEPS}, total=230, seed=seed)
            for seed, luck in ((0, -12), (1, 10), (2, 2))]  # fmt: skip
    write(tmp_path / "few" / "a.txt", log_text(*runs, facts=["track: nano"]))
    few = summarize_entry(read_entry(tmp_path / "few"), NANO.target, NANO.sigma)
    assert rank([*entries, few], NANO).ranks == {"first": 1, "second": 2, "third": 3, "few": 3}


def test_entries_that_miss_the_target_have_no_rank(tmp_path: Path) -> None:
    ranking = rank([summary(tmp_path / "a", 0), summary(tmp_path / "misses", 100)], NANO)
    assert ranking.ranks == {"a": 1} and (ranking.pairs, ranking.decided) == (0, 0)


def test_without_shared_seeds_and_on_fineweb_the_pairwise_rule_ranks(tmp_path: Path) -> None:
    a, b = summary(tmp_path / "a", 0), summary(tmp_path / "b", 3)
    other = summary(tmp_path / "other", 3, first_seed=100)
    assert pair_test(a, b, NANO)[0] == compare_paired(a, b, "nano").steps.p
    for track, second in ((NANO, other), (FINEWEB, b)):
        known = compare(side(a, track), side(second, track))
        assert pair_test(a, second, track) == pytest.approx((2 * known.p, known.left_hand_side))


def test_without_shared_seeds_and_a_slope_nothing_is_decided(tmp_path: Path) -> None:
    a, b = summary(tmp_path / "a", 0), summary(tmp_path / "b", 20, first_seed=100)
    assert pair_test(a, b, replace(NANO, slope=0.0))[0] == 1.0


@given(P_VALUES, st.sampled_from((0.01, 0.05)))
def test_holm_decides_no_more_than_without_correction_and_no_less_than_bonferroni(
    p_values: list[float], alpha: float
) -> None:
    decided = holm(p_values, alpha)
    for p, known in zip(p_values, decided, strict=True):
        assert (p <= alpha / len(p_values)) <= known <= (p <= alpha)
        assert all(others for other, others in zip(p_values, decided, strict=True) if known and other < p)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]


def test_holm_is_wrong_about_any_of_many_equals_at_most_as_often_as_told() -> None:
    draws = np.random.default_rng(0).uniform(size=(4000, 30))
    assert np.mean([any(holm(row, 0.05)) for row in draws]) < 0.05 + 4 * (0.05 * 0.95 / 4000) ** 0.5
