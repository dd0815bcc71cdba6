import zipfile

import pytest

from records.__main__ import main
from records.judge.logs import LogError
from records.publish import submit as module
from records.publish.leaderboard import track_pages
from records.publish.submit import EntryError, RuleError, submit
from tests.made_logs import NANO, RECIPE, write_log

SAME = 'track = "nano"\ntrain_steps = 200\n[matrix]\nstep = "muon"\nlr = 0.02\n'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(SAME)
    return path


@pytest.fixture
def records(tmp_path):
    """A track's folder with a hand-written page in it, which no failure may change."""
    home = tmp_path / "records" / "nano"
    home.mkdir(parents=True)
    (home / "README.md").write_text("as it was")
    return home.parent


def state(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(records, *arguments, error=EntryError, **more):
    """The message of a refusal, after a look that nothing was written."""
    before = state(records.parent)
    with pytest.raises(error) as caught:
        submit(*arguments, records=records, **more)
    assert state(records.parent) == before
    assert list((records / "nano").iterdir()) == [records / "nano" / "README.md"]
    return str(caught.value)


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """(folder above records, entry, logs) of two logs submitted with an archive."""
    home = tmp_path_factory.mktemp("submitted")
    (home / "r.toml").write_text(SAME)
    logs = [write_log(home / "a.txt", (0, 1)), write_log(home / "b.txt", (2, 3))]
    entry = submit("first-1", str(home / "r.toml"), logs, home / "first.zip", home / "records")
    return home, entry, logs


def test_an_entry_holds_the_logs_byte_for_byte(submitted):
    home, entry, logs = submitted
    assert entry == home / "records" / "nano" / "first-1"
    names = {file.name for file in entry.iterdir()}
    assert names == {"a.txt", "b.txt", "recipe.toml", "README.md", "figure.svg"}
    assert all((entry / log.name).read_bytes() == log.read_bytes() for log in logs)


def test_its_recipe_is_the_effective_one_of_the_script(submitted):
    text = (submitted[1] / "recipe.toml").read_text()
    assert "weight_decay = 0.05" in text and 'name = "muon"' in text


def test_its_page_has_a_row_for_each_seed(submitted):
    text = (submitted[1] / "README.md").read_text()
    rows = [line for line in text.splitlines() if ".txt, run" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| 0", "| 1", "| 2", "| 3"]
    assert "--recipe first-1 --seeds 0-3" in text


def test_all_pages_of_the_track_are_up_to_date(submitted):
    pages = track_pages(NANO, submitted[0] / "records")
    assert len(pages) == 2 and all(page.differences() == [] for page in pages)


def test_the_archive_holds_the_entry(submitted):
    home, entry, _ = submitted
    with zipfile.ZipFile(home / "first.zip") as packed:
        held = {name: packed.read(name) for name in packed.namelist()}
    assert held == {f"first-1/{file.name}": file.read_bytes() for file in entry.iterdir()}


def test_an_existing_entry_is_not_touched(submitted):
    home, entry, logs = submitted
    before = state(home)
    with pytest.raises(EntryError, match="exists"):
        submit("first-1", str(home / "r.toml"), logs, records=home / "records")
    assert state(home) == before


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp/x", "", ".hidden", "A", "a b", "a|b", "a\n", "<b>"])
def test_a_name_is_plain(name, records, recipe, tmp_path):
    assert "is no name" in refused(records, name, str(recipe), [tmp_path / "a.txt"])


def test_a_broken_rule_is_refused_and_named(records, recipe, tmp_path):
    log = write_log(tmp_path / "a.txt", offset=9 * NANO.sigma)
    told = refused(records, "a", str(recipe), [log], error=RuleError)
    assert "significance" in told and "same script" not in told


def test_a_recipe_that_was_not_run_is_refused(records, recipe, tmp_path):
    recipe.write_text(SAME.replace("0.02", "0.03"))
    told = refused(records, "a", str(recipe), [write_log(tmp_path / "a.txt")])
    assert "matrix.lr is 0.03 in the recipe, 0.02 in the logs" in told


def test_facts_that_contradict_the_script_are_refused(records, recipe, tmp_path):
    other = RECIPE | {"matrix": RECIPE["matrix"] | {"lr": 0.5}}
    log = write_log(tmp_path / "a.txt", stated=other)
    assert "recipe" in refused(records, "a", str(recipe), [log], error=RuleError)


def test_a_log_without_a_script_is_refused(records, recipe, tmp_path):
    log = write_log(tmp_path / "a.txt")
    log.write_text(log.read_text().split("=" * 100, 1)[1])
    assert "no script" in refused(records, "a", str(recipe), [log], error=RuleError)


def test_nothing_in_a_log_is_run(records, recipe, tmp_path):
    log, mark = tmp_path / "a.txt", tmp_path / "mark"
    write_log(log)
    log.write_text(f"open({str(mark)!r}, 'w').close()\n" + log.read_text())
    submit("a", str(recipe), [log], records=records)
    assert not mark.exists()


def test_a_track_that_leads_out_of_the_records_is_refused(records, recipe, tmp_path):
    log = write_log(tmp_path / "a.txt")
    log.write_text(log.read_text().replace("\ntrack: nano\n", "\ntrack: ../../out\n"))
    assert "known: " in refused(records, "a", str(recipe), [log], error=ValueError)


def test_a_file_name_of_a_log_is_plain(records, recipe, tmp_path):
    log = write_log(tmp_path / "a](x) <b>.txt")
    assert "file name" in refused(records, "a", str(recipe), [log])


def test_two_logs_of_one_name_are_refused(records, recipe, tmp_path):
    logs = [write_log(tmp_path / folder / "a.txt", (seed,)) for seed, folder in enumerate("xy")]
    assert "same name" in refused(records, "a", str(recipe), logs)


def test_missing_logs_and_recipes_are_named(records, recipe, tmp_path):
    assert "nothing.txt" in refused(records, "a", str(recipe), [tmp_path / "nothing.txt"], error=LogError)
    assert "none.toml" in refused(records, "a", "none.toml", [write_log(tmp_path / "a.txt")])


def test_an_archive_is_never_overwritten(records, recipe, tmp_path):
    (tmp_path / "a.zip").write_text("mine")
    log = write_log(tmp_path / "a.txt")
    assert "exists" in refused(records, "a", str(recipe), [log], archive=tmp_path / "a.zip")


def test_the_entry_goes_again_when_the_leaderboard_cannot_follow(records, recipe, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module, "leaderboard_page", fails)
    log = write_log(tmp_path / "a.txt")
    assert refused(records, "a", str(recipe), [log], error=OSError, archive=tmp_path / "a.zip") == "disk full"


def test_the_command_says_what_is_wrong_and_fails(tmp_path, recipe, capsys):
    log = write_log(tmp_path / "a.txt", offset=9 * NANO.sigma)
    assert main(["submit", "a", "--recipe", str(recipe), str(log)]) == 1
    assert "significance" in capsys.readouterr().err
    assert main(["submit", "../a", "--recipe", str(recipe), str(log)]) == 2
    assert "is no name" in capsys.readouterr().err


def test_a_run_counts_once(submitted, tmp_path, records):
    home, entry, logs = submitted
    twin = tmp_path / "twin.txt"
    twin.write_bytes(logs[0].read_bytes())
    told = refused(records, "a", str(home / "r.toml"), [logs[0], twin])
    assert "twin.txt and" in told and "hold the same run" in told
    with pytest.raises(EntryError, match=f"twin.txt and {entry / 'a.txt'} hold the same run"):
        submit("again", str(home / "r.toml"), [twin], records=home / "records")
