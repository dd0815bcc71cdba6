"""Turn text into shards of GPT-2 tokens, so that a run can train on it as on FineWeb.

    python -m data.tokenize_text [--out DIR] [--name NAME] [--shard-tokens N]
                                 [--val-fraction F | --val-tokens N] [--processes N] PATH...

PATH is a file or a folder, read recursively in name order: `.txt` (UTF-8; a file is a document), `.jsonl`
(an object a line, its `text` field is a document) and `.parquet` (the rows of its `text` column); null is
no document. Each document is preceded by <|endoftext|> (50256) and is plain text otherwise: special tokens
spelled out in it are not recognised. The tokens keep the order of the input, whatever the number of
processes. The first of them are the validation shard, the rest the train shards: sorted text should be
shuffled before.

A large text file is read in chunks, cut between a word and the space or line end after it. GPT-2's tokenizer
never joins these two, so the tokens are those of the whole file; only a stretch of over 16 million characters
without any space is cut at any character.
"""

import argparse
import codecs
import json
import os
import re
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken
from tqdm import tqdm

from data.shards import write_shard

END_OF_TEXT = 50256
CHUNK_BYTES = 1 << 20  # of a text file, and roughly of text in one task
LONGEST_WORD = 1 << 24  # characters
LAST_BORDER = re.compile(r".*\S(?=[ \n])", re.DOTALL)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED: list[int] = []  # signals that ask the command to end
DEFAULT_DATA = Path(__file__).resolve().parent


class TextError(ValueError):
    """Input that cannot be tokenised; the message names the file and the place in it."""


class Piece(NamedTuple):
    """A document or the next part of one, and how many bytes of its file it accounts for."""

    text: str
    starts_document: bool
    size: int


def read_txt(path: Path) -> Iterator[Piece]:
    """The file as one document in pieces. Raises TextError with the offset of what is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, starts_document = "", True
    with open(path, "rb") as file:
        while True:
            block = file.read(CHUNK_BYTES)
            offset = (
                file.tell() - len(block) - len(decoder.getstate()[0])
            )  # of the first byte not decoded yet
            try:
                text += decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise TextError(f"{path}: byte {offset + error.start}: not UTF-8 ({error.reason})") from error
            if starts_document:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            border = LAST_BORDER.match(text) if block else None
            cut = border.end() if border else len(text) if not block or len(text) > LONGEST_WORD else 0
            if cut:
                yield Piece(text[:cut], starts_document, len(block))
                text, starts_document = text[cut:], False
            if not block:
                return


def read_jsonl(path: Path) -> Iterator[Piece]:
    """The `text` fields of the lines, null as no text. Raises TextError with the line that has none, or is no
    JSON.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                # Of numbers only their end matters; Python refuses whole ones of thousands of digits.
                text = json.loads(line.decode("utf-8-sig"), parse_int=float)["text"]
            except UnicodeDecodeError as error:
                offset = file.tell() - len(line) + error.start
                raise TextError(
                    f"{path}: line {number}, byte {offset}: not UTF-8 ({error.reason})"
                ) from error
            except json.JSONDecodeError as error:
                raise TextError(f"{path}: line {number}: not JSON ({error})") from error
            except RecursionError as error:
                raise TextError(f"{path}: line {number}: nested too deep to be read") from error
            except (KeyError, TypeError, IndexError):
                text = 0
            if not isinstance(text, str | None):
                raise TextError(f'{path}: line {number}: expected an object with a string field "text"')
            yield Piece(text or "", True, len(line))


def read_parquet(path: Path) -> Iterator[Piece]:
    """The rows of the `text` column. Raises TextError when there is no such column of strings."""
    import pyarrow  # a large library that only this format needs
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, kinds = file.schema_arrow, pyarrow.types
            kind = schema.field("text").type if schema.names.count("text") == 1 else pyarrow.null()
            kind = kind.value_type if kinds.is_dictionary(kind) else kind
            if not (kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)):
                raise TextError(f"{path}: expected a string column text, found {', '.join(schema.names)}")
            size = path.stat().st_size / max(1, file.metadata.num_rows)
            for batch in file.iter_batches(columns=["text"], batch_size=1024):
                for text in batch.column(0).to_pylist():
                    yield Piece(text or "", True, size)
    except pyarrow.ArrowException as error:
        raise TextError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error


READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The text files that the paths are or hold, folders in name order. Raises TextError."""
    known, found = ", ".join(READERS), []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in READERS and file.is_file())
            if not inside:
                raise TextError(f"{path}: no file of a known type ({known}) in this folder")
            found += inside
        elif not path.exists():
            raise TextError(f"{path}: no such file or folder")
        elif path.suffix not in READERS:
            raise TextError(f"{path}: unknown file type {path.suffix or '(none)'}, expected one of {known}")
        else:
            found.append(path)
    return found


@cache
def gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's vocabulary, downloaded once by tiktoken. Raises TextError when it cannot be had."""
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # of the network library that tiktoken happens to use
        raise TextError(
            f"GPT-2's vocabulary could not be loaded ({str(error).splitlines()[0]}): it is downloaded once; "
            "without a network set TIKTOKEN_CACHE_DIR to a folder that has it"
        ) from error


def encode(pieces: list[Piece]) -> np.ndarray:
    """The tokens of the pieces one after another, uint16 [tokens], <|endoftext|> before each document."""
    tokens = []
    for piece in pieces:
        if piece.starts_document:
            tokens.append(END_OF_TEXT)
        tokens += gpt2_encoding().encode_ordinary(piece.text)
    return np.array(tokens, dtype=np.uint16)


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """The pieces in lists of about CHUNK_BYTES characters; empty documents are left out."""
    batch, characters = [], 0
    for piece in pieces:
        if piece.text:
            batch.append(piece)
            characters += len(piece.text)
        if characters >= CHUNK_BYTES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def catch_signals() -> None:
    """Stop between two batches: a pool that is interrupted anywhere may wait for itself for ever."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: STOPPED.append(number))


def leave_signals() -> None:
    """In a worker: what stops the command reaches it through the pool."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


def encode_files(files: list[Path], processes: int) -> Iterator[np.ndarray]:
    """The tokens of all files in order, in arrays of about a quarter million, with progress on stderr.

    At most four batches a process are read ahead, so memory does not grow with the input.
    """
    gpt2_encoding()  # before the workers start: fails once, and forked ones inherit it
    work = batches(piece for path in files for piece in READERS[path.suffix](path))
    progress = tqdm(
        total=sum(path.stat().st_size for path in files),
        unit="B",
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    with progress, ProcessPoolExecutor(processes, initializer=leave_signals) as pool:
        waiting: deque[tuple[Future[np.ndarray], int]] = deque()
        try:
            while True:
                if STOPPED:
                    raise KeyboardInterrupt
                while len(waiting) < 4 * processes and (batch := next(work, None)):
                    waiting.append((pool.submit(encode, batch), sum(piece.size for piece in batch)))
                if not waiting:
                    return
                result, size = waiting.popleft()
                yield result.result()
                progress.update(round(size))
        finally:
            pool.shutdown(cancel_futures=True)


def tokenize_text(
    paths: Iterable[str | Path],
    folder: str | Path,
    name: str,
    *,
    shard_tokens: int = 10**8,
    val_fraction: float = 0.05,
    val_tokens: int | None = None,
    processes: int = 1,
) -> list[Path]:
    """Write the texts as `<name>_val_000000.bin` and `<name>_train_000001.bin`, ...; return these paths.

    The validation shard is the first `val_tokens` tokens, or `val_fraction` of all. The shards appear when
    all text has been read, so that bad input leaves none; until then the tokens wait in a temporary file.
    Raises TextError for bad input, and for a folder that has shards already.
    """
    if not NAME.fullmatch(name):
        raise TextError(f"name {name!r}: expected letters, digits, '_', '-', '.', at most 100, no path")
    if val_tokens is None and not 0 < val_fraction < 1:
        raise TextError(f"val_fraction {val_fraction}: expected a part of the text, between 0 and 1")
    folder = Path(folder)
    files = find_files(Path(path) for path in paths)
    if there := sorted(folder.glob("*.bin")):
        raise TextError(
            f"{folder}: already has shards ({there[0].name}, ...): give another --out or remove them"
        )
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    try:
        spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it has no name that could stay behind)
        for tokens in encode_files(files, processes):
            spool.write(tokens.data)
        spool.flush()
        total = spool.tell() // 2
        first_train = round(val_fraction * total) if val_tokens is None else val_tokens
        if not 0 < first_train < total:
            raise TextError(
                f"{total:,} tokens in {len(files)} files cannot give {first_train:,} to validation and the "
                "rest, at least one, to training: give more text or another --val-tokens or --val-fraction"
            )
        tokens = np.memmap(spool, dtype=np.uint16, mode="r")
        shards = {f"{name}_val_000000.bin": tokens[:first_train]}
        for number, start in enumerate(range(first_train, total, shard_tokens), 1):
            shards[f"{name}_train_{number:06d}.bin"] = tokens[start : start + shard_tokens]
        for file_name, part in shards.items():
            written.append(folder / file_name)
            write_shard(folder / file_name, part)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.tokenize_text", description="Turn text into shards of GPT-2 tokens."
    )
    option = parser.add_argument
    option("paths", nargs="+", metavar="PATH", help=".txt, .jsonl or .parquet files, or folders of them")
    option("--out", type=Path, metavar="DIR", help="folder of the shards (default: data/NAME/fineweb10B)")
    option("--name", default="text", help="first part of the shards' names (default: text)")
    option(
        "--shard-tokens", type=int, default=10**8, metavar="N", help="tokens in a train shard (default 10^8)"
    )
    validation = parser.add_mutually_exclusive_group()
    validation.add_argument("--val-fraction", type=float, default=0.05, metavar="F", help="(default 0.05)")
    validation.add_argument(
        "--val-tokens", type=int, metavar="N", help="tokens of validation, from the start"
    )
    option("--processes", type=int, default=os.cpu_count(), metavar="N", help="(default: one a core)")
    options = parser.parse_args(arguments)
    if not 1 <= options.shard_tokens < 2**31 or not 1 <= options.processes <= 1024:
        parser.error("--shard-tokens must be from 1 to 2^31 - 1, --processes from 1 to 1024")
    folder = options.out or DEFAULT_DATA / options.name / "fineweb10B"
    try:
        shards = tokenize_text(
            options.paths,
            folder,
            options.name,
            shard_tokens=options.shard_tokens,
            val_fraction=options.val_fraction,
            val_tokens=options.val_tokens,
            processes=options.processes,
        )
    except (TextError, OSError, BrokenProcessPool) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no shard was written", file=sys.stderr)
        return 130
    for path in shards:
        print(f"{path}: {(path.stat().st_size - 1024) // 2:,} tokens")
    if folder.name == "fineweb10B":
        print(f"train on it with: ./run.sh --track fineweb --data {folder.parent}")
    return 0


if __name__ == "__main__":
    catch_signals()
    sys.exit(main())
