"""The shard format: what is written is read back, and a file that is not a whole shard says so."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.shards import (
    DIGEST_BYTES,
    ShardError,
    check_numbers,
    digest,
    fact_differences,
    foreign_shard,
    list_shards,
    plan_blocks,
    read_shard,
    shard_facts,
    write_shard,
)


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


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("gone.bin"), lambda path: path.mkdir()])
def test_what_cannot_be_read_as_a_file_is_named(tmp_path, make):
    path = tmp_path / "a_train_000001.bin"
    make(path)
    with pytest.raises(ShardError, match=f"{path}: cannot be read"):
        read_shard(path)


# -- which shards belong together


@given(first=st.sampled_from([0, 1]), count=st.integers(1, 12), data=st.data())
def test_numbers_without_gap_pass_and_one_left_out_does_not(first, count, data):
    files = [Path(f"a_train_{number:06d}.bin") for number in range(first, first + count)]
    check_numbers(files)
    if count > 2:
        del files[data.draw(st.integers(1, count - 2))]
        with pytest.raises(ShardError, match=r"expected number \d+ next in name order, found \d+"):
            check_numbers(files)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a_train_000001", "a_train_000005"], "a_train_000005.bin: expected number 2"),
        (["a_train_000001", "a_train_1"], "a_train_1.bin: expected number 2 next in name order, found 1"),
        (["a_train_1", "a_train_10", "a_train_2"], "expected number 2 next in name order, found 10"),
        (["a_train_000003"], "expected number 1 next"),
        (["a_train_000001", "b_train_000002"], "b_train_000002.bin: expected shards of one corpus"),
        (["a_train_first"], "a name that ends in a number"),
    ],
)
def test_gaps_doubles_and_mixtures_are_named(names, told):
    with pytest.raises(ShardError, match=told):
        check_numbers([Path(f"{name}.bin") for name in names])


def test_the_digest_sees_size_head_and_tail(tmp_path):
    path, tokens = tmp_path / "a_train_000001.bin", np.zeros(3 * DIGEST_BYTES // 2, np.uint16)
    seen = set()
    for place in (None, 0, -1):
        changed = tokens.copy()
        if place is not None:
            changed[place] = 1
        write_shard(path, changed)
        seen.add(digest(path))
    write_shard(path, tokens[:-1])
    assert len(seen | {digest(path)}) == 4


def test_facts_name_what_differs(tmp_path):
    for name, tokens in (("a_train_000001", [1, 2, 3]), ("a_val_000000", [4, 5])):
        write_shard(tmp_path / f"{name}.bin", tokens)
    shards = [read_shard(file) for file in sorted(tmp_path.glob("*.bin"))]
    then, now = shard_facts(shards), shard_facts(shards[:1])
    assert then["shard a_train_000001.bin"].startswith("3 tokens, digest ")
    assert fact_differences(then, then) == ""
    assert fact_differences(then, now).startswith("- shard a_val_000000.bin: 2 tokens")


def test_a_users_own_shard_is_told_from_a_datasets(tmp_path):
    write_shard(tmp_path / "a_train_000001.bin", np.zeros(100, int))
    write_shard(tmp_path / "a_train_000002.bin", np.zeros(40, int))  # the last one may be shorter
    (tmp_path / "a_val_000000.bin").write_bytes(b"cut")
    assert foreign_shard(tmp_path, "a", 2, 100) is None
    write_shard(tmp_path / "b_train_000001.bin", [1])
    assert foreign_shard(tmp_path, "a", 2, 100) == tmp_path / "b_train_000001.bin"
    write_shard(tmp_path / "a_train_000001.bin", np.zeros(30, int))
    assert foreign_shard(tmp_path, "a", 2, 100) == tmp_path / "a_train_000001.bin"


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    batch=st.integers(1, 20),
    steps=st.integers(1, 30),
)
def test_blocks_follow_the_benchmarks_order(lengths, batch, steps):
    shard, position, expected = 0, 0, []
    while len(expected) < steps and shard < len(lengths):
        if position + batch + 1 >= lengths[shard]:
            shard, position = shard + 1, 0
            continue
        expected.append((shard, position))
        position += batch
    if len(expected) < steps:
        with pytest.raises(ShardError, match=f"hold {len(expected)}"):
            plan_blocks(lengths, batch, steps)
    else:
        assert plan_blocks(lengths, batch, steps) == expected
