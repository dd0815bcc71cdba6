"""Tracks: what a file says, and what is refused."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records.run.track import OPTIONAL, Track, TrackError, read_track, shipped_tracks, track_of
from tests.made_tracks import write_track

NANO = shipped_tracks()["nano"]
START = shipped_tracks()["warm"].start


def refusal(path: Path) -> str:
    """What is wrong with a file, in one line."""
    with pytest.raises(TrackError) as caught:
        read_track(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_shipped_tracks() -> None:
    tracks = shipped_tracks()
    assert list(tracks) == ["fineweb", "nano", "warm"] and read_track("nano") == tracks["nano"]
    assert (tracks["fineweb"].target, tracks["fineweb"].sigma, tracks["fineweb"].val_every) == (
        3.28,
        0.0013,
        125,
    )


def test_a_file_is_a_track_of_its_own(tmp_path: Path) -> None:
    optional = dict.fromkeys(OPTIONAL)
    track = read_track(write_track(tmp_path / "mine.toml", target=2, **optional))
    assert (track.name, track.target, track.fetch, track.slope) == ("mine", 2, "", 0.0)


def test_the_file_of_a_shipped_track_is_that_track(tmp_path: Path) -> None:
    assert read_track(write_track(tmp_path / "copy.toml", name="nano")) == NANO
    told = refusal(write_track(tmp_path / "copy.toml", name="nano", target=1.5))
    assert "name: expected one of its own, found 'nano', a shipped track's" in told


def test_a_folder_holds_the_track_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_track(tmp_path / "other" / "track.toml", name="mine")
    with pytest.raises(TrackError, match="name: expected 'other', found 'mine'"):
        shipped_tracks(tmp_path)


@pytest.mark.parametrize("field", fields(Track), ids=lambda field: field.name)
def test_a_value_of_another_kind_names_the_key(tmp_path: Path, field) -> None:
    for wrong in (True, [1, 2, 3], -1) if field.name in OPTIONAL else (True, [1, 2, 3], -1, 0, ""):
        told = refusal(write_track(tmp_path / "t.toml", **{field.name: wrong}))
        assert (
            told.startswith(f"{tmp_path / 't.toml'}: {field.name}: expected ") and f"found {wrong!r}" in told
        )


@pytest.mark.parametrize("key", [f.name for f in fields(Track) if f.name not in ("fetch", "slope", "start")])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    assert f": {key}: expected " in (told := refusal(write_track(tmp_path / "t.toml", **{key: None})))
    assert told.endswith("found nothing")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sigm": 1}, "sigm: expected a known key, nearest sigma, found one that nothing uses"),
        ({"aux.eps": 1}, "aux.eps: expected a known key"),
        ({"aux": NANO.aux | {"embed_rl": 1}}, "aux.embed_rl: expected a known key, nearest aux.embed_lr"),
        (
            {"aux": NANO.aux | {"betas": [0.9, 1]}},
            "aux.betas: expected two numbers from 0 to below 1, found [0.9, 1]",
        ),
        ({"aux": NANO.aux | {"eps": 0}}, "aux.eps: expected a number above 0, found 0"),
        ({"aux": {"eps": 1e-8}}, "aux.embed_lr: expected a number, 0 or above, found nothing"),
        ({"name": "a/b"}, "name: expected a name"),
        ({"name": ".."}, "name: expected a name"),
        ({"name": "a" * 101}, "name: expected a name"),
        ({"dataset": "../other"}, "dataset: expected a name"),
        ({"fetch": "os"}, "fetch: expected a module such as data.nano, found 'os'"),
        ({"target": 2.5e400}, "target: expected a number above 0, found inf"),
        ({"sigma": -0.1}, "sigma: expected a number above 0, found -0.1"),
        ({"num_layers": 4.0}, "num_layers: expected a whole number above 0, found 4.0"),
        ({"num_layers": 10**30}, "num_layers: expected a whole number above 0"),
        ({"gpu_dtype": "float8"}, "gpu_dtype: expected 'bfloat16' or 'float32', found 'float8'"),
        ({"head_dim": 24}, "head_dim: expected a multiple of 4 that divides model_dim = 64, found 24"),
        ({"head_dim": 2}, "head_dim: expected a multiple of 4"),
        ({"batch_tokens": 2000}, "batch_tokens: expected a multiple of context = 128, found 2000"),
        ({"val_tokens": 3000}, "val_tokens: expected a multiple of batch_tokens = 2048, found 3000"),
        ({"token_limit": 300}, "token_limit: expected at most vocab_size = 256"),
        ({"shard_tokens": 2049}, "shard_tokens: expected the length of a shard"),
        ({"start": START | {"matrix": {"lr": 1}}}, "start.matrix: expected a table with a step function"),
        ({"start": START | {"steps": 2}}, "start.steps: expected a known key, nearest start.train_steps"),
        ({"start": START | {"aux": {"eps": 1}}}, "start.aux.embed_lr: expected a number, 0 or above"),
    ],
)
def test_what_cannot_be_a_track_is_told(tmp_path: Path, changes: dict, told: str) -> None:
    path = write_track(tmp_path / "t.toml", **changes)
    path.write_text(path.read_text().replace("Infinity", "inf"))
    assert told in refusal(path)


def test_a_file_that_is_no_toml_is_told(tmp_path: Path) -> None:
    for content in (b"name = ", b"\xff\xfe", b"a = " + b"[" * 10_000):
        (tmp_path / "t.toml").write_bytes(content)
        assert "expected a track in TOML" in refusal(tmp_path / "t.toml")
    with pytest.raises(TrackError, match="no track 'nanno': expected fineweb, nano, warm or a TOML file"):
        read_track("nanno")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in fields(Track)]) | st.text(max_size=5), values, max_size=4
    )
)
def test_any_table_is_a_track_or_refused(changes: dict) -> None:
    try:
        assert track_of(asdict(NANO) | changes, "made") is not None
    except TrackError as error:
        assert str(error).startswith("made: ")
