"""Own text as shards: the tokens are GPT-2's for each document, and bad input leaves nothing."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import tokenize_text as own
from data.shards import list_shards, read_shard

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2's tokenizer from the offline vocabulary."""
    if not (SHARED / "tiktoken_cache").is_dir():
        pytest.skip("no offline GPT-2 vocabulary in ../shared/tiktoken_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
        yield own.gpt2_encoding()


def all_tokens(folder: Path) -> list[int]:
    """The stream of tokens that was cut into validation and train shards."""
    shards = list_shards(folder, "val") + list_shards(folder, "train")
    return np.concatenate([read_shard(path) for path in shards]).tolist()


def expected(gpt2, documents: list[str]) -> list[int]:
    return [token for text in documents for token in [50256, *gpt2.encode_ordinary(text)]]


DOCUMENTS = [
    "One  document.\n\nIts 2nd\tparagraph, isn't it?",
    "Naïve café 日本語 🙂",
    "<|endoftext|> is text here",
]


def write_documents(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"id": 1, "text": text}) for text in DOCUMENTS))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": DOCUMENTS}), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_each_row_is_a_document(gpt2, tmp_path, suffix):
    own.tokenize_text([write_documents(tmp_path / f"rows{suffix}")], tmp_path / "out", "a", val_tokens=5)
    assert all_tokens(tmp_path / "out") == expected(gpt2, DOCUMENTS)


def test_a_folder_is_read_recursively_in_name_order_and_other_files_are_left_out(gpt2, tmp_path):
    for name, text in {"b.txt": "second", "a/z.txt": "first", "c.txt": "third", "notes.md": "no"}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    own.tokenize_text([tmp_path / "in"], tmp_path / "out", "a", val_tokens=1)
    assert all_tokens(tmp_path / "out") == expected(gpt2, ["first", "second", "third"])


def test_an_empty_document_leaves_no_token(gpt2, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "some words"}\n')
    own.tokenize_text([tmp_path / "a.jsonl"], tmp_path / "out", "a", val_tokens=1)
    assert all_tokens(tmp_path / "out") == expected(gpt2, ["some words"])


def test_real_text_gives_the_same_shards_for_any_number_of_processes(gpt2, tmp_path, monkeypatch):
    texts = sorted((SHARED / "text").glob("*.txt"))
    if not texts:
        pytest.skip("no texts in ../shared/text")
    monkeypatch.setattr(own, "CHUNK_BYTES", 100_000)
    for processes in (1, 3):
        arguments = [*map(str, texts), "--out", str(tmp_path / str(processes)), "--shard-tokens", "300000"]
        assert own.main([*arguments, "--processes", str(processes)]) == 0
    one, three = sorted((tmp_path / "1").iterdir()), sorted((tmp_path / "3").iterdir())
    assert [path.name for path in one] == [path.name for path in three]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in three]
    assert all_tokens(tmp_path / "1") == expected(gpt2, [path.read_bytes().decode() for path in texts])


words = st.text(st.sampled_from("ab'st 12.,\n\t\r é日🙂\x1c\u3000\u00a0"), max_size=300)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=words, chunk=st.integers(1, 40))
def test_reading_in_chunks_does_not_change_the_tokens(gpt2, tmp_path, text, chunk):
    (tmp_path / "a.txt").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "CHUNK_BYTES", chunk)
        pieces = list(own.read_txt(tmp_path / "a.txt"))
    assert "".join(piece.text for piece in pieces) == text
    assert own.encode(pieces).tolist() == (expected(gpt2, [text]) if text else [])


def test_a_text_without_spaces_is_cut_at_the_longest_word(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "CHUNK_BYTES", 10)
    monkeypatch.setattr(own, "LONGEST_WORD", 25)
    (tmp_path / "a.txt").write_text("x" * 70)
    assert [len(piece.text) for piece in own.read_txt(tmp_path / "a.txt")] == [30, 30, 10]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_text("words", encoding="utf-8-sig")
    assert [piece.text for piece in own.read_txt(tmp_path / "a.txt")] == ["words"]


@pytest.mark.parametrize(
    ("option", "val", "train"), [(["--val-tokens", "10"], 10, [25, 25, 16]), ([], 4, [25, 25, 22])]
)
def test_validation_is_the_start_and_train_shards_have_the_asked_length(gpt2, tmp_path, option, val, train):
    (tmp_path / "a.txt").write_text(" word" * 75)
    out = tmp_path / "out"
    command = [str(tmp_path / "a.txt"), "--out", str(out), "--name", "mine", "--shard-tokens", "25", *option]
    assert own.main(command) == 0
    assert [len(read_shard(path)) for path in list_shards(out, "val")] == [val]
    assert [len(read_shard(path)) for path in list_shards(out, "train")] == train
    assert all_tokens(out) == expected(gpt2, [" word" * 75])
    assert sorted(path.name for path in out.iterdir())[::3] == [
        "mine_train_000001.bin",
        "mine_val_000000.bin",
    ]


BAD_INPUT = {
    "a.csv": (b"x", "a.csv: unknown file type .csv, expected one of .txt, .jsonl, .parquet"),
    "utf8.txt": (b"good\n" * 7 + b"caf\xe9 noir", "utf8.txt: byte 38: not UTF-8"),
    "cut.txt": (b"caf\xc3", "cut.txt: byte 3: not UTF-8 (unexpected end of data)"),
    "utf8.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', "utf8.jsonl: line 2, byte 24: not UTF-8"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', "broken.jsonl: line 2: not JSON"),
    "field.jsonl": (
        b'\n{"body": "a"}\n',
        'field.jsonl: line 2: expected an object with a string field "text"',
    ),
    "list.jsonl": (b"[1]", 'list.jsonl: line 1: expected an object with a string field "text"'),
    "number.jsonl": (b'{"text": 5}', 'number.jsonl: line 1: expected an object with a string field "text"'),
    "bad.parquet": (b"PAR0", "bad.parquet: not a parquet file"),
    "empty.txt": (b"", "0 tokens in 1 files"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_with_the_place_and_leaves_no_shard(gpt2, tmp_path, capsys, monkeypatch, name):
    contents, message = BAD_INPUT[name]
    monkeypatch.setattr(own, "CHUNK_BYTES", 16)
    (tmp_path / "good.txt").write_text("good text " * 20)
    (tmp_path / name).write_bytes(contents)
    inputs = [name] if name == "empty.txt" else ["good.txt", name]
    assert own.main([str(tmp_path / file) for file in inputs] + ["--out", str(tmp_path / "out")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_parquet_file_without_text_names_its_columns(gpt2, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(own.TextError, match="expected a string column text, found body, id"):
        own.tokenize_text([tmp_path / "a.parquet"], tmp_path / "out", "a")


def test_a_folder_with_shards_is_refused_and_stays(gpt2, tmp_path):
    (tmp_path / "a.txt").write_text("some words of text")
    own.tokenize_text([tmp_path / "a.txt"], tmp_path / "out", "a", val_tokens=1)
    before = all_tokens(tmp_path / "out")
    with pytest.raises(own.TextError, match=r"already has shards \(a_train_000001.bin"):
        own.tokenize_text([tmp_path / "a.txt"], tmp_path / "out", "b", val_tokens=1)
    assert all_tokens(tmp_path / "out") == before


def test_without_vocabulary_and_network_the_remedy_is_told(tmp_path, monkeypatch):
    def no_network(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(own.tiktoken, "get_encoding", no_network)
    (tmp_path / "a.txt").write_text("text")
    own.gpt2_encoding.cache_clear()
    with pytest.raises(own.TextError, match="no route to host.*TIKTOKEN_CACHE_DIR"):
        own.tokenize_text([tmp_path / "a.txt"], tmp_path / "out", "a")


def test_numbers_of_any_length_beside_the_text_do_not_matter(gpt2, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "some words", "n": ' + "9" * 10_000 + "}\n")
    own.tokenize_text([tmp_path / "a.jsonl"], tmp_path / "out", "a", val_tokens=1)
    assert len(all_tokens(tmp_path / "out")) == 3


def test_null_is_left_out_of_jsonl_as_of_parquet(gpt2, tmp_path):
    rows = ["some words", None, "more"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    for kind in ("jsonl", "parquet"):
        own.tokenize_text([tmp_path / f"a.{kind}"], tmp_path / kind, "a", val_tokens=1)
    assert all_tokens(tmp_path / "jsonl") == all_tokens(tmp_path / "parquet")


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(),
             pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
)  # fmt: skip
def test_every_kind_of_string_column_is_read(gpt2, tmp_path, kind):
    texts = ["some words", "more", "some words"]
    column = pyarrow.array(texts).dictionary_encode() if pyarrow.types.is_dictionary(kind) else texts
    table = pyarrow.table({"text": pyarrow.array(column, kind) if column is texts else column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [piece.text for piece in own.read_parquet(tmp_path / "a.parquet")] == texts


@pytest.mark.parametrize("name", ["../a", "a/b", "", "a b", "\x1b[31m", "a" * 101])
def test_a_name_is_no_path(gpt2, tmp_path, name):
    (tmp_path / "a.txt").write_text("some words")
    with pytest.raises(own.TextError, match="expected letters"):
        own.tokenize_text([tmp_path / "a.txt"], tmp_path / "out", name, val_tokens=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fraction", [math.nan, 0.0, 1.0, -1.0, math.inf])
def test_validation_is_a_part(gpt2, tmp_path, fraction):
    (tmp_path / "a.txt").write_text("some words")
    with pytest.raises(own.TextError, match="between 0 and 1"):
        own.tokenize_text([tmp_path / "a.txt"], tmp_path / "out", "a", val_fraction=fraction)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_process_and_no_file(gpt2, tmp_path, number):
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("".join(f"some words of text, number {i}\n" for i in range(1_000_000)))
    command = [sys.executable, "-m", "data.tokenize_text", str(text), "--out", str(out), "--processes", "2"]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    deadline = time.time() + 60
    while len(found := workers.read_text().split()) < 2:
        assert run.poll() is None and time.time() < deadline
        time.sleep(0.02)
    run.send_signal(number)
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and "interrupted: no shard was written" in told and "Traceback" not in told
    assert not out.exists() and not any(Path(f"/proc/{worker}").exists() for worker in found)
