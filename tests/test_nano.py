"""The nano corpus: always the same bytes, mixed, and nothing but whole pieces of the sources."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import nano
from data.shards import read_shard, write_shard

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A freshly built corpus. Building checks the SHA-256 of the sources and of the shards."""
    folder = tmp_path_factory.mktemp("data") / "nano"
    nano.build_nano(folder)
    return folder


def pieces_of(path: Path) -> list[bytes]:
    """The rows of 128 bytes that a shard holds."""
    return [row.tobytes() for row in read_shard(path).astype(np.uint8).reshape(-1, nano.PIECE)]


def test_every_byte_of_the_sources_is_there_but_the_two_incomplete_pieces(folder):
    tokens = np.concatenate([read_shard(path) for path in nano.build_nano(folder)])
    text = b"".join(contents for _, contents in nano.find_corpus())
    missing = np.bincount(np.frombuffer(text, np.uint8), minlength=256) - np.bincount(tokens, minlength=256)
    assert missing.min() >= 0
    assert missing.sum() < 2 * nano.PIECE


def test_validation_pieces_are_not_in_the_training_data(folder):
    train, val = (pieces_of(path) for path in nano.build_nano(folder))
    shared = len(set(train) & set(val))
    assert shared < 0.005 * len(val)  # a few lines occur in many files: runs of spaces, tables of zeros


def test_a_batch_mixes_many_files(folder):
    texts = [contents for _, contents in nano.find_corpus()]
    batch = pieces_of(folder / "nano_train_000001.bin")[:16]
    files = [next((i for i, text in enumerate(texts) if piece in text), None) for piece in batch]
    assert len(set(files)) >= 10


def test_building_again_touches_nothing_and_repairs_a_damaged_shard(folder):
    paths = nano.build_nano(folder)
    contents, inodes = [path.read_bytes() for path in paths], [path.stat().st_ino for path in paths]
    nano.build_nano(folder)
    assert [path.stat().st_ino for path in paths] == inodes
    paths[1].write_bytes(contents[1][:-1] + b"\1")
    nano.build_nano(folder)
    assert [path.read_bytes() for path in paths] == contents


@given(st.binary(max_size=5000))
def test_cutting_keeps_each_whole_piece_once(text):
    pieces = nano.cut_into_pieces(text).astype(np.uint8).reshape(-1, nano.PIECE)
    whole = [text[i : i + nano.PIECE] for i in range(0, len(text) - nano.PIECE + 1, nano.PIECE)]
    assert sorted(piece.tobytes() for piece in pieces) == sorted(whole)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "sympy is not installed. .*: pip install sympy==1.14.0"),
        ("1.13.3", "found sympy 1.13.3. .*: pip install sympy==1.14.0"),
        ("1.14.0", "differ from the wheel's .* pip install --force-reinstall --no-deps sympy==1.14.0"),
    ],
)
def test_another_sympy_is_told_with_the_pip_command(tmp_path, monkeypatch, version, message):
    (tmp_path / "release.py").write_text(f'__version__ = "{version}"\n')
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py")) if version else None
    monkeypatch.setattr(nano.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(nano.CorpusError, match=message):
        nano.build_nano(tmp_path / "nano")
    assert not (tmp_path / "nano").exists()


def test_the_command_imports_neither_sympy_nor_torch(folder):
    code = (
        "import sys; from data.nano import find_corpus, main; find_corpus();"
        f"print(main(['--data', {str(folder.parent)!r}]), {{'sympy', 'torch'}} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True)
    assert "nano_train_000001.bin 16,063,360 tokens" in output
    assert output.splitlines()[-1] == "0 set()"


def test_a_folder_with_another_corpus_is_left_alone(tmp_path, capsys):
    own = tmp_path / "nano" / "nano_train_000001.bin"
    write_shard(own, np.arange(100))
    assert nano.main(["--data", str(tmp_path)]) == 2
    assert "is not of the nano corpus: nothing was written" in capsys.readouterr().err
    assert len(read_shard(own)) == 100 and len(list(own.parent.iterdir())) == 1
