import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records.publish.pages import FIGURE, Page, escape, fenced, table
from records.publish.pictures import Picture, Result, embedded_digest, leaderboard_picture, record_results


@given(st.text())
def test_escaped_text_holds_no_markup_and_no_line_break(text):
    escaped = escape(text)
    assert "\n" not in escaped and "\r" not in escaped
    assert not re.search(r"[<>]", escaped)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*|\[\]~#$!]", escaped)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_a_reader_sees_the_text_that_was_escaped(text):
    assert html.unescape(re.sub(r"\\(.)", r"\1", escape(text))) == text


def test_escape_leaves_ordinary_names_as_they_are():
    assert escape("u_normuon-2, lr .02 (6 seeds)") == "u_normuon-2, lr .02 (6 seeds)"


def test_a_cell_cannot_add_a_column():
    lines = table(("a", "b"), [(escape("x | y"), escape("two\nlines"))], right=(1,)).splitlines()
    assert lines[1:] == ["| --- | ---: |", r"| x \| y | two lines |"]


def test_a_fence_is_longer_than_any_inside():
    assert fenced("a\n````\nb").startswith("`````\n")


def picture(value: float) -> Picture:
    return leaderboard_picture([Result("one", "2026-01-01", 100, own=True)], [], value)


def test_a_written_page_has_no_differences(tmp_path):
    page = Page(tmp_path, "text\n", {FIGURE: picture(1.0)})
    page.write()
    assert page.differences() == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", FIGURE]


def test_another_text_is_shown_as_a_diff(tmp_path):
    Page(tmp_path, "loss 1.40\n", {}).write()
    told = Page(tmp_path, "loss 1.41\n", {}).differences()
    assert "-loss 1.40" in told and "+loss 1.41" in told


def test_a_figure_of_other_data_is_named(tmp_path):
    Page(tmp_path, "text\n", {FIGURE: picture(1.0)}).write()
    (told,) = Page(tmp_path, "text\n", {FIGURE: picture(2.0)}).differences()
    assert FIGURE in told and "other data" in told


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    Page(tmp_path, "old\n", {}).write()

    def fails(figure):
        raise OSError("disk full")

    with pytest.raises(OSError):
        Page(tmp_path, "new\n", {FIGURE: Picture([], fails)}).write()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old\n"]


def test_the_same_data_gives_the_same_bytes_which_state_its_digest():
    assert picture(1.0).svg() == picture(1.0).svg()
    assert embedded_digest(picture(1.0).svg()) == picture(1.0).digest != picture(2.0).digest


def test_a_record_needs_fewer_steps_than_all_before_it():
    days = [("a", "01", 100), ("b", "02", 120), ("c", "03", 90), ("d", "03", 95)]
    results = [Result(name, f"2026-01-{day}", steps, own=True) for name, day, steps in days]
    assert [r.name for r in record_results(results)] == ["a", "c"]
