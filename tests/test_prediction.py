"""Rank agreement with the published results, on made-up entries whose order is known."""

import numpy as np
import pytest
from scipy import stats

from records.publish.leaderboard import read_standings, track_pages
from records.publish.prediction import (
    kendall,
    pairings,
    prediction_picture,
    prediction_text,
    rank_agreement,
    reversals,
    spearman,
)
from records.run.recipe import toml_lines
from tests.made_logs import NANO, RECIPE, write_log

# Result -> published steps: 2 is Adam (5625), 1 Muon (3600), 12 (3325), 17 (3175), 10 and 9 both 3250.
STEPS = [{"number": n} for n in (1, 2, 6, 9, 10, 12, 17)]


@pytest.fixture
def entries(tmp_path):
    """A function that makes entries of the published results, each this many sigma slower than the first."""

    def make(**sigmas: float):
        for name, offset in sigmas.items():
            recipe = RECIPE | {"published": int(name.removeprefix("result").split("_")[0])}
            folder = tmp_path / "nano" / name
            write_log(folder / "a.txt", offset=offset * NANO.sigma, recipe=recipe)
            (folder / "recipe.toml").write_text("\n".join(toml_lines(recipe)))
        return read_standings(tmp_path / "nano", NANO)

    return make


def paired(found):
    return pairings(found, NANO, STEPS)


def test_the_same_order_agrees_in_full(entries):
    found = paired(entries(result17=0.0, result12=0.4, result1=0.8, result2=1.2))
    assert [p.number for p in found] == [17, 12, 1, 2]
    agreement = rank_agreement(found)
    assert {value.estimate for value in agreement.values()} == {1.0}
    assert not reversals(found)


def test_the_opposite_order_disagrees_in_full(entries):
    agreement = rank_agreement(paired(entries(result17=1.2, result12=0.8, result1=0.4, result2=0.0)))
    assert {value.estimate for value in agreement.values()} == {-1.0}


def test_correlations_by_row_are_scipy_s():
    x, y = np.random.default_rng(0).integers(6, size=(2, 5, 8)).astype(float)  # with ties
    for by_row, known in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        assert list(by_row(x, y)) == pytest.approx([known(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_a_reversal_contradicts_where_both_tracks_decide_it(entries):
    found = paired(entries(result17=1.2, result6=-6.0, result1=1.1))
    by_pair = {(r.better.number, r.worse.number): r for r in reversals(found)}
    far, near = by_pair[17, 6], by_pair[17, 1]
    assert (far.decided_published, far.decided_here) == (True, True)
    assert near.decided_published and not near.decided_here
    text = prediction_text(found)
    assert "2 are ordered otherwise here; 1 of these are decided on both tracks" in " ".join(text.split())


def test_equal_published_steps_are_no_reversal(entries):
    assert not reversals(paired(entries(result9=1.0, result10=0.0)))


def test_intervals_hold_the_noise_of_runs(entries):
    found = paired(entries(result17=0.0, result12=0.05, result1=0.1, result6=0.15, result2=3.0))
    tau = rank_agreement(found)["Kendall's tau"]
    assert tau.low < tau.estimate <= tau.high <= 1.0
    (first, *_) = found
    assert np.std(first.crossings) > 0 and abs(np.median(first.crossings) - first.steps) < 5


def test_entries_that_name_no_result_or_miss_the_target_are_left_out(entries):
    found = entries(result17=0.0, result12=40.0)
    assert [p.number for p in paired(found)] == [17]
    assert not pairings(found, NANO, [])


def test_of_several_entries_of_a_result_the_fastest_counts(entries):
    found = paired(entries(result12=0.4, result12_again=0.2, result12_slow=0.6, result17=0.0))
    assert [p.name for p in found] == ["result17", "result12_again"]


def test_the_page_of_a_track_holds_the_prediction_and_its_figure(entries, tmp_path):
    entries(result17=0.0, result12=0.4, result1=0.8)
    (tmp_path / "fineweb").mkdir()
    assert "prediction.svg" not in track_pages(NANO, tmp_path)[-1].pictures
    published = "[" + ", ".join(f'{{"number": {n["number"]}}}' for n in STEPS) + "]"
    (tmp_path / "fineweb" / "published.json").write_text(published)
    page = track_pages(NANO, tmp_path)[-1]
    assert "## Does nano predict fineweb?" in page.text and "Kendall's tau 1.00" in page.text
    page.write()
    assert not page.differences() and (tmp_path / "nano" / "prediction.svg").stat().st_size > 5000


def test_the_figure_is_the_same_for_the_same_logs(entries):
    found = entries(result17=0.0, result12=0.4, result1=0.8)
    assert prediction_picture(paired(found)).svg() == prediction_picture(paired(found)).svg()
