import json
from dataclasses import replace

import pytest

from records.__main__ import main
from records.publish import leaderboard
from records.publish.entry_page import EntryError, seed_ranges
from records.publish.leaderboard import track_pages
from records.run.recipe import toml_lines
from tests.made_logs import NANO, RECIPE, write_log

PUBLISHED = [
    {"number": 3, "name": "Muon | <b>tuned</b>", "steps": 3500, "record": True, "mean_val_loss": 3.2767,
     "runs": 2, "significant": True, "date": "2026-04-26", "pull_request": 12},
    {"number": 9, "name": "NorMuon", "steps": 3250, "record": True, "mean_val_loss": 3.2771,
     "runs": 8, "significant": True, "date": "2026-04-29", "pull_request": None},
]  # fmt: skip


def add_entry(records, name, offset=0.0, **changes):
    recipe = RECIPE | changes
    folder = records / "nano" / name
    write_log(folder / "a.txt", offset=offset, recipe=recipe)
    (folder / "recipe.toml").write_text("\n".join(toml_lines(recipe)))
    return folder


def readme(records):
    return track_pages(NANO, records)[-1].text


def rows(text, heading):
    """The cells of the table below a heading."""
    part = text.split(heading)[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]


@pytest.fixture
def records(tmp_path):
    (tmp_path / "nano").mkdir()
    return tmp_path


def test_a_track_without_entries_has_a_page_and_no_figure(records):
    (page,) = track_pages(NANO, records)
    assert "None yet" in page.text and not page.pictures


def test_entries_are_ranked_by_steps_and_those_that_show_nothing_come_last(records):
    add_entry(records, "slow", offset=0.8 * NANO.sigma)
    add_entry(records, "misses", offset=9 * NANO.sigma)
    add_entry(records, "fast")
    table = rows(readme(records), "## Entries")
    assert [row[:2] for row in table] == [
        ["| 1", "[fast](fast/)"],
        ["| 2", "[slow](slow/)"],
        ["| -", "[misses](misses/)"],
    ]
    assert int(table[0][2]) < int(table[1][2]) and table[2][2] == "not in 200"


def test_an_entry_of_another_track_has_no_place_here(records):
    add_entry(records, "astray", track="mars")
    with pytest.raises(EntryError, match="astray: expected logs of track nano, found mars; move the entry"):
        track_pages(NANO, records)
    assert main(["leaderboard", "--track", "mars"]) == 2


def test_equal_steps_share_a_rank(records):
    for name in ("one", "two"):
        add_entry(records, name)
    assert [row[0] for row in rows(readme(records), "## Entries")] == ["| 1", "| 1"]


def test_entries_that_cannot_be_told_apart_share_a_rank_whatever_their_steps(records):
    add_entry(records, "fast")
    write_log(add_entry(records, "later") / "a.txt", seeds=(3, 1, 0, 2), offset=0.5 * NANO.sigma)
    first, second = rows(readme(records), "## Entries")
    assert int(first[2]) < int(second[2]) and first[0] == second[0] == "| 1"


def test_the_page_says_how_many_pairs_are_decided(records):
    for name, offset in (("a", 0.0), ("b", 0.0), ("c", 0.8 * NANO.sigma), ("misses", 9 * NANO.sigma)):
        add_entry(records, name, offset=offset)
    assert "of 3 pairs 2 are decided" in readme(records)


def test_a_track_without_published_results_shows_places_in_place_of_dates(records):
    add_entry(records, "fast")
    (data,) = [
        page.pictures["figure.svg"].data for page in track_pages(NANO, records) if page.folder.name == "nano"
    ]
    assert not data[0] and [place["name"] for place in data[3]] == ["fast"]
    (records / "nano" / "published.json").write_text(json.dumps(PUBLISHED))
    results = track_pages(NANO, records)[-1].pictures["figure.svg"].data[0]
    assert [(r["name"], r["own"]) for r in results][1:] == [("NorMuon", False), ("fast", True)]


def test_numbers_are_those_of_the_logs(records):
    add_entry(records, "fast")
    (row,) = rows(readme(records), "## Entries")
    (entry,) = leaderboard.read_standings(records / "nano", NANO)
    assert row[2] == str(entry.summary.first_significant_step)
    assert row[3:5] == [f"{entry.summary.mean_val_loss:.5f}", "4"]
    assert row[8:] == ["100.0", "muon", "0-3", "2026-11-22 |"]


def test_a_recipe_without_runs_is_listed_until_an_entry_has_run_it(records):
    (records / "nano" / "muon.toml").write_text('track = "nano"\n[matrix]\nstep = "muon"\nlr = 0.02\n')
    (records / "nano" / "later.toml").write_text('description = "a | b"\n[matrix]\nstep = "not_here"\n')
    listed = [row[0] for row in rows(readme(records), "## Recipes")]
    assert listed == ["| [later](later.toml)", "| [muon](muon.toml)"]
    add_entry(records, "run")
    (later,) = rows(readme(records), "## Recipes")
    assert later == ["| [later](later.toml)", "not_here", r"a \| b |"]


def test_published_results_stand_apart_with_the_recipes_that_are_here(records):
    (records / "nano" / "published.json").write_text(json.dumps(PUBLISHED))
    (records / "nano" / "muon.toml").write_text('published = 3\n[matrix]\nstep = "muon"\n')
    (records / "nano" / "09_normuon.toml").write_text('[matrix]\nstep = "normuon"\n')
    text = readme(records)
    first, second = rows(text, "## Published results (not ours)")
    assert first[1] == "NorMuon" and first[-1] == "[09_normuon](09_normuon.toml) |"
    assert second[1] == r"Muon \| &lt;b&gt;tuned&lt;/b&gt;" and second[-1] == "[muon](muon.toml) |"
    assert "pull/12" in second[-2] and "None yet" in text


def test_pages_written_by_hand_are_linked(records):
    (records / "nano" / "NOTES.md").write_text("What helped.")
    assert "[NOTES.md](NOTES.md)" in readme(records)


def test_an_entry_page_says_the_command_that_repeats_it(records):
    folder = add_entry(records, "fast")
    assert "`./run.sh --track nano --recipe fast --seeds 0-3`" in track_pages(NANO, records)[0].text
    write_log(folder / "a.txt", options=["--micro-batch", "4", "--compile"])
    told = track_pages(NANO, records)[0].text
    assert "`./run.sh --track nano --recipe fast --seeds 0-3 --micro-batch 4 --compile`" in told


def test_an_entry_page_shows_the_difference_from_its_base(records):
    add_entry(records, "first")
    add_entry(records, "second", base="first", matrix={**RECIPE["matrix"], "lr": 0.03})
    text = {page.folder.name: page.text for page in track_pages(NANO, records)}["second"]
    assert rows(text, "## Difference from first") == [["| matrix.lr", "0.03", "0.02 |"]]


def test_a_base_is_a_name_and_never_a_path(records):
    (records / "secret.toml").write_text("password = 1\n[matrix]\nlr = 5\n")
    add_entry(records, "first", base="../secret")
    assert "No entry and no recipe of that name" in track_pages(NANO, records)[0].text


@pytest.mark.parametrize("text", ["matrix = 3", "a" + ".a" * 1500 + " = 1", "= 1", b"\xff"])
def test_a_recipe_that_is_none_is_named(records, text):
    path = add_entry(records, "first") / "recipe.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EntryError, match="first/recipe.toml: expected"):
        track_pages(NANO, records)


def test_text_of_logs_and_recipes_is_escaped(records):
    hostile = "<script>alert(1)</script> | `x`\n# heading"
    folder = add_entry(records, "first", description=hostile, matrix={**RECIPE["matrix"], "step": "a|b<i>"})
    write_log(folder / "a.txt", device="<img src=x>|")
    for page in track_pages(NANO, records):
        outside_code = page.text.split("```")[0]
        assert "<" not in outside_code and "# heading" not in outside_code.splitlines()
    assert len(rows(readme(records), "## Entries")[0]) == 12


def test_a_wrong_number_in_a_committed_page_is_found(records, monkeypatch, capsys):
    add_entry(records, "first")
    monkeypatch.setattr(leaderboard, "track_pages", lambda track: track_pages(track, records))
    assert main(["leaderboard", "--track", "nano"]) == 0
    assert main(["leaderboard", "--track", "nano", "--check"]) == 0
    page = records / "nano" / "README.md"
    page.write_text(page.read_text().replace("| 4 |", "| 9 |"))
    assert main(["leaderboard", "--track", "nano", "--check"]) == 1
    assert "| 9 |" in capsys.readouterr().out


def test_the_pages_of_this_repository_are_what_its_logs_say():
    assert main(["leaderboard", "--check"]) == 0, "run `python -m records leaderboard`"


def test_another_target_changes_the_figure_too(records):
    add_entry(records, "first")
    for page in track_pages(NANO, records):
        page.write()
    stricter = replace(NANO, target=NANO.target - 0.001)
    told = track_pages(stricter, records)[-1].differences()
    assert any("figure.svg: drawn from other data" in line for line in told)


def test_seeds_are_told_as_ranges():
    assert seed_ranges([3, 0, 1, 2, 7]) == "0-3, 7"
    assert seed_ranges([0, None, None]) == "0, 2 unknown"
