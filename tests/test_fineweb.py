"""Downloading shards, against a local server that speaks the hub's routes for one file."""

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants

from data import fineweb
from data.shards import read_shard, write_shard

TOKENS = 40_000
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a validation and three train shards, in `files`; `gets` lists what was downloaded."""
    hub = SimpleNamespace(files={}, gets=[], drop_after={})

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            if "/resolve/" in self.path:
                hub.gets.append((self.path.rsplit("/", 1)[1], self.headers.get("Range")))
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            folder, _, name = self.path.rpartition("/")
            versions = hub.files.get(name, [])
            if folder != f"/datasets/{fineweb.REPOSITORY}/resolve/main" or not versions:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            contents = versions.pop(0) if body and len(versions) > 1 else versions[0]
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(contents).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(contents) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(contents) - 1}/{len(contents)}")
            self.end_headers()
            if body:
                limit = hub.drop_after.pop(name, None)
                self.wfile.write(contents[start:limit])
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    rng = np.random.default_rng(0)
    for name in fineweb.shard_names(3):
        write_shard(tmp_path / "made.bin", rng.integers(0, 50257, TOKENS, dtype=np.uint16))
        hub.files[name] = [(tmp_path / "made.bin").read_bytes()]
    point_to(hub.url, monkeypatch)
    monkeypatch.setattr(fineweb, "SHARD_TOKENS", TOKENS)
    yield hub
    server.shutdown()
    server.server_close()


def point_to(url: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def fetch(data: Path, shards: int) -> int:
    return fineweb.main(["--data", str(data), "--shards", str(shards)])


def names(gets: list) -> list[str]:
    return sorted(name for name, _ in gets)


def test_the_asked_shards_arrive_as_they_were_published(hub, tmp_path, capsys):
    assert fetch(tmp_path, 2) == 0
    assert names(hub.gets) == sorted(fineweb.shard_names(2))
    for name in fineweb.shard_names(2):
        assert (tmp_path / "fineweb10B" / name).read_bytes() == hub.files[name][0]
    assert f"fineweb_val_000000.bin: {TOKENS:,} tokens" in capsys.readouterr().out


def test_more_shards_later_fetch_only_the_missing_ones(hub, tmp_path):
    assert fetch(tmp_path, 1) == 0
    hub.gets.clear()
    assert fetch(tmp_path, 3) == 0
    assert names(hub.gets) == ["fineweb_train_000002.bin", "fineweb_train_000003.bin"]


def test_nothing_missing_asks_nobody(hub, tmp_path, monkeypatch):
    assert fetch(tmp_path, 1) == 0
    point_to("http://127.0.0.1:9", monkeypatch)
    assert fetch(tmp_path, 1) == 0


@pytest.mark.parametrize("keep", [0, 700, 1024, 5001])
def test_a_shard_cut_on_disk_is_named_and_fetched_again(hub, tmp_path, capsys, keep):
    assert fetch(tmp_path, 1) == 0
    path = tmp_path / "fineweb10B" / "fineweb_train_000001.bin"
    path.write_bytes(path.read_bytes()[:keep])
    hub.gets.clear()
    assert fetch(tmp_path, 1) == 0
    assert names(hub.gets) == [path.name]
    assert path.read_bytes() == hub.files[path.name][0]
    assert f"{path}: cut short" in capsys.readouterr().out


def test_a_truncated_download_is_fetched_again(hub, tmp_path, capsys):
    name = "fineweb_train_000001.bin"
    hub.files[name].insert(0, hub.files[name][0][:3000])
    assert fetch(tmp_path, 1) == 0
    assert len(read_shard(tmp_path / "fineweb10B" / name)) == TOKENS
    assert names(hub.gets).count(name) == 2
    assert "cut short: expected 81024 bytes" in capsys.readouterr().out


def test_a_file_broken_at_its_source_is_an_error_and_not_kept(hub, tmp_path, capsys):
    write_shard(tmp_path / "short.bin", np.zeros(100, np.uint16))
    hub.files["fineweb_train_000001.bin"] = [(tmp_path / "short.bin").read_bytes()]
    assert fetch(tmp_path, 1) == 2
    output = capsys.readouterr()
    assert "expected 40,000 tokens, found 100" in output.out
    assert "error: fineweb_train_000001.bin: broken in two downloads" in output.err
    assert [path.name for path in (tmp_path / "fineweb10B").glob("*.bin")] == ["fineweb_val_000000.bin"]


def test_a_dropped_connection_is_resumed_where_it_broke(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.drop_after["fineweb_val_000000.bin"] = 30_000
    assert fetch(tmp_path, 0) == 0
    assert hub.gets == [("fineweb_val_000000.bin", None), ("fineweb_val_000000.bin", "bytes=30000-")]
    assert len(read_shard(tmp_path / "fineweb10B" / "fineweb_val_000000.bin")) == TOKENS


def test_a_file_the_hub_does_not_have_is_one_line(hub, tmp_path, capsys):
    del hub.files["fineweb_train_000002.bin"]
    assert fetch(tmp_path, 1) == 0
    assert fetch(tmp_path, 2) == 2
    error = capsys.readouterr().err
    assert "fineweb_train_000002.bin" in error and "404" in error and error.count("\n") == 1


def test_without_network_one_line_says_what_to_do_and_a_broken_shard_stays(tmp_path, capsys, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)
    broken = tmp_path / "fineweb10B" / "fineweb_val_000000.bin"
    broken.parent.mkdir()
    broken.write_bytes(b"cut")
    assert fetch(tmp_path, 20) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot reach http://127.0.0.1:9" in error and "HF_ENDPOINT" in error and "tokenize_text" in error
    assert broken.exists()


def test_more_shards_than_there_are_is_an_error(tmp_path, capsys):
    assert fetch(tmp_path, 104) == 2
    assert "has 103 train shards, asked for 104" in capsys.readouterr().err


@pytest.mark.parametrize(("offline", "message"), [("0", "does not give"), ("1", "offline mode")])
def test_the_command_honours_the_environment(hub, tmp_path, offline, message):
    hub.files.clear()
    result = subprocess.run(
        [sys.executable, "-m", "data.fineweb", "--data", tmp_path, "--shards", "1"],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": offline},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert hub.url in result.stderr and message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["own_train_000001.bin", "fineweb_train_000001.bin"])
def test_a_folder_with_another_corpus_is_left_alone(hub, tmp_path, capsys, name):
    write_shard(tmp_path / "fineweb10B" / name, np.arange(100))
    assert fetch(tmp_path, 1) == 2
    assert f"{name} is no shard of FineWeb: nothing was fetched" in capsys.readouterr().err
    assert hub.gets == [] and len(read_shard(tmp_path / "fineweb10B" / name)) == 100
