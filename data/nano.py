"""The corpus of the nano track: the Python sources of sympy, read as bytes (vocabulary 256).

    python -m data.nano [--data DIR]

sympy comes with torch, and the wheel of a version holds the same bytes on every machine and for every
Python, so the corpus needs no download. Its .py files without the tests (16.6 MB) are put in a shuffled
order, every 20th goes to validation, and each side is cut into pieces of 128 bytes which are shuffled in
turn, so that a batch is as mixed as one of FineWeb. "Shuffled" means sorted by the SHA-256 of the file's path
in the wheel or of the piece's number: an order that depends on no version of Python or numpy. (Of the path
below sympy/, it would put a table of polynomial constants into validation, and double the noise over seeds.)
"""

import argparse
import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np

from data.shards import foreign_shard, read_shard, write_shard

SYMPY_VERSION = "1.14.0"
PIECE = 128  # bytes; the context of the nano track
CORPUS_SHA256 = "15c62fafc14d6d996603651a66fe55d50d600196ecc65dda3e8f0f3a288cc85d"
SHARD_SHA256 = {
    "nano_train_000001.bin": "1dcc0bfcd995d630717c1ad926ebc7dc8a2a0b04307e9c41a1a0bdc05d8360db",
    "nano_val_000000.bin": "d0047c7aaa663f051ef9781dbdecf7b46844c91f40f3f31c57c0ff102da7e9b3",
}
TRAIN_TOKENS = 16_063_360
DEFAULT_DATA = Path(__file__).resolve().parent


class CorpusError(RuntimeError):
    """sympy is missing or not the one the corpus is made of, or the folder holds another corpus."""


def find_corpus() -> list[tuple[str, bytes]]:
    """The corpus files as (path within sympy, contents), in shuffled order. Raises CorpusError."""
    remedy = f"The nano corpus is made of sympy {SYMPY_VERSION}: pip install sympy=={SYMPY_VERSION}"
    spec = importlib.util.find_spec("sympy")  # finds the folder without importing the package
    if spec is None or spec.origin is None:
        raise CorpusError(f"sympy is not installed. {remedy}")
    folder = Path(spec.origin).parent
    release = (folder / "release.py").read_text(encoding="utf-8") if (folder / "release.py").exists() else ""
    if f'__version__ = "{SYMPY_VERSION}"' not in release:
        found = release.partition('__version__ = "')[2].partition('"')[0] or "of unknown version"
        raise CorpusError(f"{folder}: found sympy {found}. {remedy}")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    names = [name for name in files if "tests" not in name.split("/")]
    names.sort(key=lambda name: hashlib.sha256(f"sympy/{name}".encode()).digest())
    corpus = [(name, files[name].read_bytes()) for name in names]
    digest = hashlib.sha256()
    for name, contents in corpus:
        digest.update(f"{name}\n{len(contents)}\n".encode() + contents)
    if digest.hexdigest() != CORPUS_SHA256:
        raise CorpusError(
            f"{folder}: the files of sympy differ from the wheel's (SHA-256 of {len(corpus)} files: expected "
            f"{CORPUS_SHA256[:16]}, found {digest.hexdigest()[:16]}). "
            f"{remedy.replace('install', 'install --force-reinstall --no-deps')}"
        )
    return corpus


def cut_into_pieces(text: bytes) -> np.ndarray:
    """The text as tokens [pieces * 128], its pieces shuffled; an incomplete last piece is left out."""
    count = len(text) // PIECE
    order = sorted(range(count), key=lambda number: hashlib.sha256(str(number).encode()).digest())
    pieces = np.frombuffer(text, dtype=np.uint8)[: count * PIECE].reshape(count, PIECE)
    return pieces[order].reshape(-1).astype(np.uint16)


def is_built(path: Path) -> bool:
    """Whether the shard is there with the bytes it must have."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHARD_SHA256[path.name]


def build_nano(folder: str | Path) -> list[Path]:
    """Write the train and the validation shard into the folder unless they are there; return their paths.

    Raises CorpusError when the installed sympy is not the corpus or the folder has shards of another, OSError
    when the folder cannot be written.
    """
    train_path, val_path = paths = [Path(folder) / name for name in SHARD_SHA256]
    if all(is_built(path) for path in paths):
        return paths
    if foreign := foreign_shard(folder, "nano", 1, TRAIN_TOKENS):
        raise CorpusError(f"{foreign} is not of the nano corpus: nothing was written. Name another --data")
    contents = [contents for _, contents in find_corpus()]
    write_shard(val_path, cut_into_pieces(b"".join(contents[19::20])))
    del contents[19::20]
    write_shard(train_path, cut_into_pieces(b"".join(contents)))
    for path in paths:
        if not is_built(path):
            raise CorpusError(f"{path}: written, but its SHA-256 is not {SHARD_SHA256[path.name][:16]}...")
    return paths


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.nano", description="Build the nano track's corpus.")
    data_help = "the folder that holds nano/ (default: data/)"
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help=data_help)
    options = parser.parse_args(arguments)
    folder = options.data / "nano"
    try:
        paths = build_nano(folder)
    except (CorpusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: " + ", ".join(f"{path.name} {len(read_shard(path)):,} tokens" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
