"""What the figures show: views in which every curve meets the target, labels apart, few bands."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from records.publish.pictures import BANDED, Curve, Place, draw_curves, draw_places, near_target
from records.publish.prediction import spread

TARGET = 1.39


def curve(meets: float, end: int, name: str = "one") -> Curve:
    """A straight line through the target at `meets`, with a band of 0.01 around it."""
    steps = tuple(range(0, end + 1, 5))
    mean = tuple(TARGET + 0.001 * (meets - step) for step in steps)
    return Curve(name, steps, mean, tuple(m - 0.01 for m in mean), tuple(m + 0.01 for m in mean))


@given(st.lists(st.integers(20, 300), min_size=1, max_size=8))
def test_every_curve_meets_the_target_in_the_view(places: list[int]) -> None:
    (left, right), (low, high) = near_target([curve(5 * at, 5 * at + 30) for at in places], TARGET)
    assert all(left < 5 * at < right for at in places)
    assert low < TARGET < high


def test_a_curve_that_stays_above_is_shown_to_its_end() -> None:
    (left, right), _ = near_target([curve(360, 400), curve(2000, 900)], TARGET)
    assert left < 360 and right > 900


def test_curves_that_do_not_come_to_the_target_are_in_view_where_they_end() -> None:
    short = Curve("short", (0, 30, 60), *[(5.5, 2.4, 2.1)] * 3)
    (left, right), (low, high) = near_target([short], TARGET)
    assert left <= 60 <= right and low <= TARGET and high > 2.1


@pytest.mark.parametrize("number", [BANDED, BANDED + 1])
def test_only_few_curves_have_bands(number: int) -> None:
    axes = Figure().subplots()
    draw_curves(axes, [curve(100, 200, str(i)) for i in range(number)], TARGET)
    assert len(axes.collections) == (number if number <= BANDED else 0)


def test_places_stand_best_first_and_far_ones_as_numbers() -> None:
    axes = Figure().subplots()
    draw_places(
        axes,
        [Place("b", 2, 400.0, 390.0, 410.0), Place("a", 1, 380.0, None, None), Place("c", 3, 900.0, 1, 2)],
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  1", "b  2", "c  3"]
    assert [text.get_text() for text in axes.texts] == ["900 \N{RIGHTWARDS ARROW}"]
    assert axes.get_xlim()[1] < 900


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted), st.floats(0.01, 0.2))
def test_labels_are_spread_in_their_order_and_those_apart_stay(places: list[float], gap: float) -> None:
    found = spread(np.asarray(places), gap)
    assert np.all(np.diff(found) >= gap - 1e-9)
    assert found.mean() == pytest.approx(np.mean(places), abs=1e-9)
    if np.all(np.diff(places) >= gap):
        assert found == pytest.approx(places)
