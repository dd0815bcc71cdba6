import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_text import CURVE, log_text, run_text, shifted, write

from records.judge.logs import Run, Validation, read_entry
from records.judge.statistics import (
    common_steps,
    crossings,
    first_crossing,
    ms_per_step,
    step_statistics,
    summarize_entry,
    threshold,
)
from records.judge.warnings import DOUBTS, entry_warnings

LOSSES = st.lists(st.floats(0.5, 12.0), min_size=1, max_size=30)


def make_run(curve: dict[int, float], times: dict[int, float] | None = None) -> Run:
    validations = tuple(Validation(step, loss, (times or {}).get(step), None) for step, loss in curve.items())
    return Run(Path("a.txt"), 0, 0, max(curve), validations)


def test_rule_2_for_published_result_36() -> None:
    at = step_statistics(3250, [3.2787] * 10, target=3.28)
    assert at.statistic == pytest.approx(0.0013 * math.sqrt(10))
    assert at.z == pytest.approx(math.sqrt(10))
    assert at.p == pytest.approx(7.83e-4, rel=1e-3)
    assert at.significant


@pytest.mark.parametrize(
    ("losses", "significant"), [([3.276], True), ([3.27601], False), ([3.278] * 4, True)]
)
def test_the_threshold_itself_is_significant(losses: list[float], significant: bool) -> None:
    assert step_statistics(0, losses, target=3.28).significant is significant


def test_the_threshold_scales_with_sigma() -> None:
    assert threshold(0.0013) == pytest.approx(0.004)
    assert threshold(0.008) == pytest.approx(0.004 * 0.008 / 0.0013)
    assert not step_statistics(0, [1.40], target=1.41, sigma=0.008).significant
    assert step_statistics(0, [1.38], target=1.41, sigma=0.008).significant


def test_a_loss_that_is_not_finite_is_never_significant() -> None:
    at = step_statistics(0, [3.0, math.nan], target=3.28)
    assert not at.significant
    assert math.isnan(at.mean)


@given(LOSSES)
def test_mean_lies_between_min_and_max(losses: list[float]) -> None:
    at = step_statistics(0, losses, target=3.28)
    assert at.min - 1e-12 <= at.mean <= at.max + 1e-12
    assert at.n == len(losses)


@given(LOSSES, st.floats(0.001, 1.0))
def test_lower_losses_never_lose_significance(losses: list[float], less: float) -> None:
    before = step_statistics(0, losses, target=3.28)
    after = step_statistics(0, [loss - less for loss in losses], target=3.28)
    assert after.significant >= before.significant
    assert after.p <= before.p


def test_first_crossing_is_interpolated() -> None:
    crossing = first_crossing(make_run({0: 10.0, 100: 4.0, 200: 3.0, 300: 3.5}), target=3.25)
    assert crossing.step == 200
    assert crossing.interpolated == pytest.approx(175)


def test_crossing_exactly_at_the_target_and_at_the_first_step() -> None:
    assert first_crossing(make_run({0: 10.0, 100: 3.28}), target=3.28).interpolated == 100
    assert first_crossing(make_run({125: 3.0, 250: 2.0}), target=3.28).interpolated == 125


def test_a_run_that_stays_above_does_not_cross() -> None:
    assert first_crossing(make_run({0: 10.0, 100: math.nan, 200: 3.3}), target=3.28) is None


@given(st.lists(st.floats(1.0, 11.0), min_size=2, max_size=20), st.floats(1.0, 11.0))
def test_a_crossing_lies_between_its_validations(losses: list[float], target: float) -> None:
    crossing = first_crossing(make_run({25 * i: loss for i, loss in enumerate(losses)}), target)
    if crossing is None:
        assert min(losses) > target
    else:
        assert max(0, crossing.step - 25) <= crossing.interpolated <= crossing.step


def test_the_crossing_of_curves() -> None:
    steps = [0, 100, 180, 200]
    curves = np.array(
        [[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.9, 3.8], [3.0, 2.0, 1.0, 0.5], [5.0, 4.0, 3.9, 3.9]]
    )
    assert crossings(steps, curves, 3.5).tolist()[:3] == pytest.approx([140, 260, 0])
    assert np.isnan(crossings(steps, curves, 3.5)[3])


def test_common_steps_are_those_of_all_runs() -> None:
    assert common_steps([make_run({0: 1.0, 10: 1.0, 20: 1.0}), make_run({10: 1.0, 20: 1.0, 30: 1.0})]) == [
        10,
        20,
    ]
    assert common_steps([]) == []


def test_ms_per_step_leaves_out_compilation() -> None:
    times = {0: 0.0, 100: 90.0, 200: 105.0, 300: 120.0}
    assert ms_per_step([make_run(dict.fromkeys(times, 4.0), times)]) == pytest.approx(150)
    assert ms_per_step([make_run({0: 4.0, 1: 3.0})]) is None


def entry_of(folder: Path, **texts: str):
    for name, text in texts.items():
        write(folder / f"{name}.txt", text)
    return read_entry(folder)


def test_the_first_significant_step_is_the_earliest_common_one(tmp_path: Path) -> None:
    with_more = CURVE | {350: 3.0}
    entry = entry_of(
        tmp_path,
        a=log_text(run_text(dict(sorted(with_more.items())), seed=0)),
        b=log_text(run_text(shifted(-0.001), seed=1)),
    )
    summary = summarize_entry(entry, target=3.28)
    assert [at.step for at in summary.steps] == list(CURVE)
    assert summary.first_significant_step == 375
    assert summary.mean_val_loss == pytest.approx(3.27562)
    assert summary.statistic == pytest.approx(0.00438 * math.sqrt(2))


def test_without_a_significant_step_the_last_common_one_is_judged(tmp_path: Path) -> None:
    summary = summarize_entry(entry_of(tmp_path, a=log_text(run_text(shifted(0.004)))), target=3.28)
    assert summary.first_significant_step is None
    assert summary.judged.step == 400


def test_a_run_validated_at_its_ends_does_not_say_when_it_crossed() -> None:
    found = crossings([0, 430], np.array([5.5, 1.35]), 1.39)
    assert np.isnan(found)


def test_the_mean_crossing_asks_that_all_runs_cross(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, a=log_text(run_text(), run_text(shifted(0.1))))
    assert summarize_entry(entry, target=3.28).first_crossing_step is None
    both = summarize_entry(entry, target=3.38).crossings
    assert summarize_entry(entry, target=3.38).first_crossing_step == pytest.approx(
        (both[0].interpolated + both[1].interpolated) / 2
    )


def test_an_entry_without_runs(tmp_path: Path) -> None:
    summary = summarize_entry(entry_of(tmp_path, a="nothing"), target=3.28)
    assert (summary.n, summary.judged, summary.first_crossing_step) == (0, None, None)
    assert summary.warnings


def sound(seed: int, **changes) -> str:
    """A log of one run; all of them together are free of doubts."""
    facts = changes.pop("facts", ["device: a GPU", "world_size: 8", "Using lr=0.1"])
    curve = changes.pop("curve", shifted(0.0001 * seed))
    return log_text(run_text(curve, seed=seed, **changes), facts=facts)


def test_sound_runs_raise_no_warning(tmp_path: Path) -> None:
    assert entry_warnings(entry_of(tmp_path, a=sound(0), b=sound(1), c=sound(2))) == ()


def other_argument_line(seed: int, arguments: str) -> str:
    return sound(seed).replace("print(torch)", f'print(torch)\nARGUMENTS = ["--seeds", "{arguments}"]')


def test_the_line_of_arguments_may_differ(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, a=other_argument_line(0, "0"), b=other_argument_line(1, "1"))
    assert entry_warnings(entry) == ()


def test_a_whole_number_may_be_written_as_a_fraction(tmp_path: Path) -> None:
    plan = "effective recipe:", "[schedule]"
    whole, fraction = (sound(seed, facts=["world_size: 8", *plan, f"steps = [[{step}, 400]]"])
                       for seed, step in enumerate(("276", "276.0")))  # fmt: skip
    assert entry_warnings(entry_of(tmp_path, a=whole, b=fraction)) == ()
    (warning,) = entry_warnings(entry_of(tmp_path, a=whole, b=fraction.replace("276.0", "276.5")))
    assert warning.startswith("different recipes, schedule.steps: [[276, 400]] in a.txt; [[276.5, 400]]")


BROKEN = {
    "different_scripts": (
        sound(3).replace("print(torch)", "print(1)"),
        "different scripts: .* in a.txt, .*; .* in z",
    ),
    "different_recipes": (
        sound(3, facts=["device: a GPU", "world_size: 8", "Using lr=0.2"]),
        "different recipes, lr: '0.1' in a.txt, b.txt, c.txt; '0.2' in z.txt",
    ),
    "different_devices": (
        sound(3, facts=["device: a processor", "world_size: 1", "Using lr=0.1"]),
        "different devices: a GPU x 8 in a.txt.*; a processor x 1 in z.txt",
    ),
    "different_total_steps": (sound(3, total=500), "different total steps: 400 in .*; 500 in z.txt"),
    "same_curve_twice": (sound(3, curve=shifted(0.0002)), "the same curve 2 times: c.txt, z.txt"),
    "seeds_missing": (sound(5), "seeds missing from the sequence 0-2, 5: 3-4"),
    "runs_that_end_early": (
        sound(3, curve={0: 10.82584, 125: 4.0}),
        "ends early, at step 125 of 400: z.txt",
    ),
    "not_finite": (sound(3, curve=CURVE | {400: math.nan}), "not finite from step 400 on: z.txt"),
    "fewer_common_validations": (
        sound(3, curve={0: 10.82584, 125: 4.1, 375: 3.2, 400: 3.1}),
        r"only 4 validations are common to all runs; not in all: steps 250; lacking in z.txt",
    ),
    "second_loss": (sound(3, extra=" ema_val_loss:1.00000"), "a second loss, ema_val_loss, .*: z.txt"),
}


@pytest.mark.parametrize("doubt", BROKEN)
def test_each_doubt_names_the_files(tmp_path: Path, doubt: str) -> None:
    text, told = BROKEN[doubt]
    sound_entry = entry_of(tmp_path / "sound", a=sound(0), b=sound(1), c=sound(2))
    (function,) = (function for function in DOUBTS if function.__name__ == doubt)
    assert list(function(sound_entry)) == []
    entry = entry_of(tmp_path / "broken", a=sound(0), b=sound(1), c=sound(2), z=text)
    warnings = "\n".join(function(entry))
    assert re.search(told, warnings), warnings
    assert set(function(entry)) <= set(entry_warnings(entry))


def test_seeds_that_begin_late_or_were_planned_or_run_twice(tmp_path: Path) -> None:
    late = "\n".join(entry_warnings(entry_of(tmp_path / "late", a=sound(1337))))
    assert "the seeds begin at 1337, not at 0 or 1: a.txt" in late
    planned = sound(0, facts=["seeds: 0-2,7"])
    assert "planned seeds that were not run: 1-2, 7 in a.txt" in entry_warnings(
        entry_of(tmp_path / "p", a=planned)
    )
    twice = entry_of(tmp_path / "t", a=sound(0), b=sound(0, curve=shifted(0.1)))
    assert "seed 0 was run 2 times: a.txt, b.txt" in entry_warnings(twice)


def test_complaints_of_the_parser_are_warnings(tmp_path: Path) -> None:
    text = sound(0) + "step:1/400 val_loss:?\n"
    (warning,) = entry_warnings(entry_of(tmp_path, a=text))
    assert warning.startswith("a.txt: line ")


def test_every_doubt_has_a_fixture() -> None:
    assert {function.__name__ for function in DOUBTS} - {"seeds_begin_late"} == set(BROKEN)
