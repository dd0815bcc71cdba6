"""The shard format: what is written is read back, and a file that is not a whole shard says so."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.shards import ShardError, list_shards, read_shard, write_shard


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=arrays(np.uint16, st.integers(1, 3000)))
def test_a_shard_gives_back_its_tokens(tmp_path, tokens):
    write_shard(tmp_path / "any_train_000001.bin", tokens)
    np.testing.assert_array_equal(read_shard(tmp_path / "any_train_000001.bin"), tokens)


def test_the_file_is_the_published_layout(tmp_path):
    path = tmp_path / "a_val_000000.bin"
    write_shard(path, [7, 50256, 65535])
    raw = path.read_bytes()
    assert np.frombuffer(raw[:1024], "<i4").tolist() == [20240520, 1, 3] + [0] * 253
    assert np.frombuffer(raw[1024:], "<u2").tolist() == [7, 50256, 65535]


def test_reading_maps_the_file_read_only(tmp_path):
    write_shard(tmp_path / "a_val_000000.bin", np.arange(100))
    tokens = read_shard(tmp_path / "a_val_000000.bin")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0, 65536], r"0\.\.65535 .* got 0\.\.65536"),
        ([-1, 5], r"got -1\.\.5"),
        ([0.5], "must be integers, got float64"),
        (np.zeros(0, np.uint16), "shape (0,)"),
        (np.zeros((2, 2), np.uint16), "shape (2, 2)"),
    ],
)
def test_what_is_no_token_is_refused_and_the_old_shard_stays(tmp_path, tokens, message):
    path = tmp_path / "a_train_000001.bin"
    write_shard(path, [1, 2, 3])
    with pytest.raises(ValueError, match=message if "\\" in message else re.escape(message)):
        write_shard(path, tokens)
    assert read_shard(path).tolist() == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def damaged(header: dict[int, int], length: int) -> bytes:
    """A good shard of 100 tokens with some header fields replaced, cut or zero-padded to `length` bytes."""
    values = np.zeros(256, "<i4")
    values[:3] = 20240520, 1, 100
    for place, value in header.items():
        values[place] = value
    return (values.tobytes() + bytes(200)).ljust(length, b"\0")[:length]


@pytest.mark.parametrize(
    ("contents", "expected", "found"),
    [
        (damaged({}, 1000), "header of 1024 bytes", "1000 bytes"),
        (damaged({0: 20240521}, 1224), "magic number 20240520", "20240521"),
        (damaged({1: 2}, 1224), "version 1", "found 2"),
        (damaged({}, 1223), "1224 bytes for the 100 tokens", "1223"),
        (damaged({}, 1226), "1224 bytes for the 100 tokens", "1226"),
        (damaged({2: 0}, 1024), "for the 0 tokens", "1024"),
        (damaged({2: -5}, 1014), "bytes", "1014"),
        (b"", "header", "0 bytes"),
    ],
)
def test_a_broken_shard_is_named_with_expected_found_and_remedy(tmp_path, contents, expected, found):
    path = tmp_path / "broken_train_000001.bin"
    path.write_bytes(contents)
    with pytest.raises(ShardError) as error:
        read_shard(path)
    message = str(error.value)
    assert all(part in message for part in (str(path), expected, found, "make or fetch it again"))


def test_shards_are_listed_by_split_in_name_order(tmp_path):
    for name in ("b_train_2.bin", "b_train_1.bin", "my_train_text_val_000000.bin", "b_train_3.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_shards(tmp_path, "train")] == ["b_train_1.bin", "b_train_2.bin"]
    assert [path.name for path in list_shards(tmp_path, "val")] == ["my_train_text_val_000000.bin"]
    assert list_shards(tmp_path / "absent", "train") == []
