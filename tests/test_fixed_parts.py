"""The versions of what the rules fix."""

import ast
import json
import re
from pathlib import Path

import pytest

from records import RecordError
from records.__main__ import main
from records.judge.fixed_parts import (
    FIXED,
    FREE,
    Version,
    changed_parts,
    current_parts,
    digests,
    read_versions,
    write_versions,
)
from records.run.flatten import source

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def code() -> str:
    """The fixed parts as a script has them."""
    return source(ROOT, FIXED, FREE)


def parts(code: str) -> dict[str, str]:
    return digests(ast.parse(code))


def test_this_checkout_is_one_of_the_versions() -> None:
    """Where it fails: let the golden tests pass, then `python -m records fixed_parts --add WHY`."""
    assert current_parts() in [version.parts for version in read_versions()]


def test_all_that_the_fixed_parts_use_is_fixed() -> None:
    assert {*FIXED, "MLP", "rotate", "read_shard", "SHARD_MAGIC", "World", "Track"} <= current_parts().keys()
    assert not {"initialise", "Recipe", "train", "flatten"} & current_parts().keys()


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("x1 * cos + x2 * sin", "x1 * cos - x2 * sin", "rotate"),
        ("np.memmap(path", "np.fromfile(path", "read_shard"),
        ("rms_norm(x, self", "rms_norm(2 * x, self", "RMSNorm"),
        ("/ track.val_tokens", "/ track.val_tokens / 2", "validate"),
    ],
)
def test_a_change_is_found_where_it_is(code: str, old: str, new: str, name: str) -> None:
    assert old in code
    versions = [Version("", "", parts(code))]
    (told,) = changed_parts(ast.parse(code.replace(old, new)), versions)
    assert told == f"changed against this checkout and its earlier versions: {name}"
    assert not list(changed_parts(ast.parse(code), versions))


def test_layout_and_comments_are_no_change(code: str) -> None:
    assert parts(ast.unparse(ast.parse(code))) == parts(code)
    assert parts("def f(x):  # twice\n    return (2 *\n        x)") == parts("def f(x): return 2*x")


def test_what_is_nested_too_deeply_is_a_change(code: str) -> None:
    script = ast.parse(code.replace("SHARD_VERSION = 1", f"SHARD_VERSION = 1{' + 0' * 500}"))
    (told,) = changed_parts(script, [Version("", "", parts(code))])
    assert told.endswith(": SHARD_VERSION")


def test_parts_of_two_versions_are_no_version() -> None:
    early, late = "def f(): 1\ndef g(): 1", "def f(): 2\ndef g(): 2"
    versions = [Version("", "", parts(early)), Version("", "", parts(late))]
    for script in (early, late):
        assert not list(changed_parts(ast.parse(script), versions))
    (told,) = changed_parts(ast.parse("def f(): 1\ndef g(): 2"), versions)
    assert told.endswith(": f")  # against the newer


def test_setting_a_part_anew_is_told(code: str) -> None:
    script = ast.parse(code + "\nGPT.forward = None")
    (told,) = changed_parts(script, [Version("", "", parts(code))])
    assert re.fullmatch(r"line \d+ replaces or alters GPT", told)


def test_a_version_is_added_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "fixed_parts.json"
    monkeypatch.setattr(read_versions, "__defaults__", (file,))
    monkeypatch.setattr(write_versions, "__defaults__", (file,))
    write_versions([Version("2026-01-01", "first", {"GPT": "0"})])
    assert main(["fixed_parts"]) == 1
    assert "against the newest differ GPT" in capsys.readouterr().out
    for _ in range(2):
        assert main(["fixed_parts", "--add", "the golden tests pass"]) == 0
    assert [version.proof for version in read_versions(file)] == ["first", "the golden tests pass"]
    assert read_versions(file)[1].parts == current_parts()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("text", ["", "[1]", json.dumps([{"since": ""}])])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "versions.json").write_text(text)
    with pytest.raises(RecordError, match="expected a list of versions"):
        read_versions(tmp_path / "versions.json")
