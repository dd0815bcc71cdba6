"""The shard format: every corpus, GPT-2 tokens or bytes, is a folder of these files.

A shard is a header of 256 little-endian int32, of which [0] = 20240520, [1] = 1 (the version) and [2] = the
number of tokens, followed by that many little-endian uint16. Its name ends in `_train_000001.bin` or
`_val_000000.bin`.
Source of the format: the llm.c / modded-nanoGPT `fineweb10B` files.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARD_MAGIC = 20240520
SHARD_VERSION = 1
SHARD_HEADER_BYTES = 256 * 4
DIGEST_BYTES = 2**21  # of the head and of the tail of a shard


class ShardError(ValueError):
    """A file is not a whole shard; the message says what was expected, what was found and what to do."""


def write_shard(path: str | Path, tokens: np.ndarray) -> None:
    """Write the tokens (1-D, integers in 0..65535) as the shard `path`, which appears whole or not at all.

    Raises ValueError when there are no tokens, they are not integers, not 1-D, or outside uint16.
    """
    path, tokens = Path(path), np.asarray(tokens)
    if tokens.ndim != 1 or not 0 < len(tokens) < 2**31:
        raise ValueError(f"{path}: expected [tokens] with 1 to 2^31 - 1 tokens, got shape {tokens.shape}")
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{path}: tokens must be integers, got {tokens.dtype}")
    if tokens.dtype != np.uint16 and (tokens.min() < 0 or tokens.max() > 65535):
        raise ValueError(f"{path}: tokens must be in 0..65535 (uint16), got {tokens.min()}..{tokens.max()}")
    header = np.zeros(256, dtype="<i4")
    header[:3] = SHARD_MAGIC, SHARD_VERSION, len(tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: the rename is atomic
    try:
        with open(temporary, "wb") as file:
            file.write(header.tobytes())
            file.write(np.ascontiguousarray(tokens, dtype="<u2").data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_shard(path: str | Path) -> np.memmap:
    """Map the shard: a read-only uint16 array [tokens], read from disk only where it is touched.

    Raises ShardError when the magic number, version or length of the file is wrong or it cannot be read, and
    FileNotFoundError when there is nothing.
    """
    path, remedy = Path(path), "Remove the file and make or fetch it again."
    try:
        with open(path, "rb") as file:
            header = np.frombuffer(file.read(SHARD_HEADER_BYTES), dtype=np.uint8)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise
        to = f" (a link to {os.readlink(path)})" if path.is_symlink() else ""
        raise ShardError(f"{path}: cannot be read{to}: {error.strerror}. {remedy}") from None
    if len(header) < SHARD_HEADER_BYTES:
        raise ShardError(
            f"{path}: cut short: expected a header of {SHARD_HEADER_BYTES} bytes, found {size} bytes. "
            f"{remedy}"
        )
    magic, version, count = (int(value) for value in header.view("<i4")[:3])
    if magic != SHARD_MAGIC:
        raise ShardError(f"{path}: not a shard: expected magic number {SHARD_MAGIC}, found {magic}. {remedy}")
    if version != SHARD_VERSION:
        raise ShardError(f"{path}: expected shard version {SHARD_VERSION}, found {version}. {remedy}")
    expected = SHARD_HEADER_BYTES + 2 * count
    if count < 1 or size != expected:
        state = "cut short" if size < expected else "wrong length"
        raise ShardError(
            f"{path}: {state}: expected {expected} bytes for the {count} tokens its header promises, "
            f"found {size}. {remedy}"
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=SHARD_HEADER_BYTES, shape=(count,))


def list_shards(folder: str | Path, split: str) -> list[Path]:
    """The shards `<name>_<split>_<number>.bin` of a split ("train" or "val"), in name order.

    A folder without any, or that does not exist, gives an empty list.
    """
    return sorted(path for path in Path(folder).glob("*.bin") if path.stem.split("_")[-2:-1] == [split])


def open_shards(folder: str | Path, split: str) -> list[np.memmap]:
    """The shards of a split in name order, mapped. Raises ShardError unless they are whole, of one corpus,
    numbered without a gap from 0 or 1, and one for validation; empty where there is none.
    """
    files = list_shards(folder, split)
    if split == "val" and len(files) > 1:
        raise ShardError(f"{folder}: expected one val shard, found {files[0].name} and {files[1].name}.")
    if split != "val":
        check_numbers(files)
    return [read_shard(file) for file in files]


def check_numbers(files: Sequence[Path]) -> None:
    """Raises ShardError unless shards have one name, and numbers without gap from 0 or 1 in name order."""
    stems = [file.stem.rpartition("_") for file in files]
    for file, (name, _, number) in zip(files, stems, strict=True):
        if not number.isdecimal():
            raise ShardError(f"{file}: expected a name that ends in a number, _000001.bin. Rename the file.")
        if name != stems[0][0]:
            raise ShardError(f"{file}: expected shards of one corpus, found {files[0].name} too. "
                             "Keep one of them in the folder.")  # fmt: skip
    numbers = [int(number) for _, _, number in stems]
    counted = itertools.count(min([1, *numbers[:1]]))
    for file, found, expected in zip(files, numbers, counted, strict=False):
        if found != expected:
            raise ShardError(f"{file}: expected number {expected} next in name order, found {found}. "
                             "Fetch or make what is missing, remove what is double.")  # fmt: skip


def digest(path: str | Path) -> str:
    """16 hex digits of the SHA-256 of a shard's first and last 2 MiB: cheap, and it tells corpora apart."""
    with open(path, "rb") as file:
        hashed = hashlib.sha256(file.read(DIGEST_BYTES))
        file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - DIGEST_BYTES))
        hashed.update(file.read())
    return hashed.hexdigest()[:16]


def shard_facts(shards: Sequence[np.memmap]) -> dict[str, str]:
    """Which data this is, for a log: "shard NAME" -> its size and digest."""
    files = [(Path(str(shard.filename)), len(shard)) for shard in shards]
    return {f"shard {file.name}": f"{tokens:,} tokens, digest {digest(file)}" for file, tokens in files}


def fact_differences(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What only `then` says (-) and what only `now` does (+), in one line; empty where they agree."""
    sides = (("-", then.items() - now.items()), ("+", now.items() - then.items()))
    return "; ".join(f"{sign} {name}: {told}" for sign, side in sides for name, told in sorted(side))


def foreign_shard(folder: str | Path, name: str, train_shards: int, tokens: int) -> Path | None:
    """A shard in the folder that is not of a dataset: the user's own, never to be mixed or written over.

    The dataset's are `<name>_val_000000.bin` and `<name>_train_000001.bin` to number `train_shards`, each of
    `tokens` tokens but the last of many. What has such a name but is no whole shard counts as a broken one.
    """
    own: dict[str, int | None] = {f"{name}_train_{n:06d}.bin": tokens for n in range(1, train_shards + 1)}
    own |= {f"{name}_val_000000.bin": None}
    own |= {f"{name}_train_{train_shards:06d}.bin": None} if train_shards > 1 else {}
    for path in sorted(Path(folder).glob("*.bin")):
        try:
            found = len(read_shard(path))
        except (ShardError, FileNotFoundError):
            found = 0
        expected = own.get(path.name)
        if path.name not in own or (found and expected and found != expected):
            return path
    return None


@dataclass(frozen=True)
class Corpus:
    """What a run reads: the training shards in name order, (shard, first token) of each step's block in them,
    and the validation shard.
    """

    train: list[np.memmap]
    blocks: list[tuple[int, int]]
    val: np.memmap

    def facts(self) -> dict[str, str]:
        """Which data a run reads, see shard_facts."""
        used = sorted({shard for shard, _ in self.blocks})
        return shard_facts([*(self.train[index] for index in used), self.val])


def open_corpus(folder: Path, steps: int, batch_tokens: int, val_tokens: int, fetch: str) -> Corpus:
    """The shards of a folder, checked, for a run of so many steps; fetch: the module that makes them, if any.

    Raises ShardError where something is missing, damaged or too short for the run.
    """
    shards = {}
    for split in ("train", "val"):
        if not (found := open_shards(folder, split)):
            told = f"run `python -m {fetch}`" if fetch else "put them there, or name --data DIR"
            raise ShardError(f"no {split} shards (*_{split}_*.bin) in {folder}: {told}.")
        shards[split] = found
    val = shards["val"][0]
    if len(val) <= val_tokens:
        raise ShardError(f"{val.filename} holds {len(val):,} of the {val_tokens + 1:,} tokens needed.")
    blocks = plan_blocks([len(shard) for shard in shards["train"]], batch_tokens, steps)
    return Corpus(shards["train"], blocks, val)


def plan_blocks(lengths: list[int], batch_tokens: int, steps: int) -> list[tuple[int, int]]:
    """(shard, first token) of each step's block. A block needs one token more: the last target.

    Raises ShardError where the shards hold too few tokens for the steps.
    """
    starts = (range(0, length - batch_tokens - 1, batch_tokens) for length in lengths)
    blocks = [(shard, start) for shard, firsts in enumerate(starts) for start in firsts]
    if len(blocks) < steps:
        raise ShardError(f"{steps} steps need as many blocks of {batch_tokens:,} tokens, the shards hold "
                         f"{len(blocks)} ({sum(lengths):,} tokens of {steps * batch_tokens + 1:,}). "
                         f"Fetch more data, or train with --steps {len(blocks)}.")  # fmt: skip
    return blocks[:steps]


def shards_needed(folder: Path, steps: int, batch_tokens: int, shard_tokens: int, shards: int) -> int:
    """How many of a dataset's training shards a run takes; as many as lie there too, so that gaps are filled.

    Raises ShardError where the dataset has fewer.
    """
    needed = math.ceil(steps / ((shard_tokens - 2) // batch_tokens))
    if needed > shards:
        raise ShardError(f"{steps} steps need {needed} shards of {shards}. Train with fewer --steps.")
    return max([needed, *(int(file.stem[-6:]) for file in folder.glob("*_train_*.bin"))])
