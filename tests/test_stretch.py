"""Stretching: a recipe for another number of steps does at each part of its run what it did there."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers import AROUND, STEPS
from records.__main__ import main
from records.run.effective import parse_recipe
from records.run.recipe import RecipeError, toml_lines
from records.run.recipe_files import read_table, shipped_recipes
from records.run.schedule import learning_rate_factor, value_at
from records.run.stretch import stretched
from records.run.track import RECORDS, shipped_tracks

TRACKS = shipped_tracks()
FILES = {file.stem: file for track in TRACKS for file in shipped_recipes(RECORDS / track).values()}


def read(table: dict):
    return parse_recipe("\n".join(toml_lines(table)), "made", TRACKS, STEPS, arounds=AROUND)


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_recipe_stretches_and_keeps_its_schedule(name):
    table = read_table(FILES[name])
    table = {"track": FILES[name].parent.name} | table
    then, now = read(table), read(stretched(table, 2 * table["train_steps"]))
    for kind in ("matrix", "aux"):
        for step in range(0, then.train_steps, max(then.train_steps // 40, 1)):
            factor = learning_rate_factor(step, then, kind)
            assert learning_rate_factor(2 * step, now, kind) == pytest.approx(factor, abs=2e-3)
    for key, knots in then.schedule["matrix"].items():
        at = then.train_steps // 3
        assert value_at(now.schedule["matrix"][key], 2 * at) == pytest.approx(value_at(knots, at), rel=1e-3)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_shipped_recipe_shrinks_to_a_short_run(name):
    table = {"track": FILES[name].parent.name} | read_table(FILES[name])
    assert read(stretched(table, 24)).train_steps == 24


@pytest.mark.parametrize("name", ["row_floor", "extrapolated", "open_2580_extrapolated", "nora"])
def test_stretching_to_its_own_length_changes_nothing(name):
    table = {"track": FILES[name].parent.name} | read_table(FILES[name])
    assert read(stretched(table, table["train_steps"])) == read(table)


def test_what_is_counted_in_steps_stretches_and_nothing_else():
    table = {
        "train_steps": 100,
        "matrix": {"step": "muon", "memory": "bimaxwell", "begin": 40, "lr": 0.02, "longest": 64.0},
        "lookahead": {"decay": 0.9, "start": 10, "stop": 80, "strength": 0.3},
        "around": {"trail": {"kind": "pulses", "start": 50, "every": 10, "stop": 90, "strength": 0.1},
                   "outer_nesterov": {"every": 30}},
        "readout": {"average": {"start": 70, "tau": 5, "mlp.*": {"blend": 0.5}}},
    }  # fmt: skip
    done = stretched(table, 300)
    assert done["matrix"] == table["matrix"] | {"begin": 120}
    assert done["lookahead"] == {"decay": pytest.approx(0.9 ** (1 / 3), abs=1e-5), "start": 30, "stop": 240,
                                 "strength": 0.3}  # fmt: skip
    assert done["around"]["trail"] == table["around"]["trail"] | {"start": 150, "every": 30, "stop": 270}
    assert done["around"]["outer_nesterov"] == {"every": 30}
    assert done["readout"]["average"] == {"start": 210, "tau": 15, "mlp.*": {"blend": 0.5}}


@given(st.integers(1, 5000))
def test_any_number_of_steps_gives_a_recipe_that_can_be_read(steps):
    table = read_table(FILES["row_floor"])
    if steps >= 20:  # below, the look-ahead's start and stop are one
        assert read(stretched(table, steps)).train_steps == steps


def test_the_command_writes_a_recipe_and_never_over_one(tmp_path, capsys):
    out = tmp_path / "new.toml"
    assert main(["stretch", str(RECORDS / "nano" / "muon.toml"), "900", "-o", str(out)]) == 0
    assert tomllib.loads(out.read_text())["train_steps"] == 900
    before = out.read_text()
    assert main(["stretch", str(RECORDS / "nano" / "muon.toml"), "100", "-o", str(out)]) == 2
    assert out.read_text() == before and "exists" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [0, -1, 10**12])
def test_a_number_of_steps_that_no_run_can_have_is_refused(steps):
    with pytest.raises(RecipeError, match="steps"):
        stretched({"train_steps": 10}, steps)
