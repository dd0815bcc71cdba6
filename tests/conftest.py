"""Material that several tests share."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import train_gpt
from data.nano import build_nano
from data.shards import write_shard
from records.run import track
from tests.made_tracks import write_small_track

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Under nohup, or behind a shell's &, these are ignored, and so they would be in every run that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def nano_data() -> Path:
    """The folder that holds the nano corpus."""
    build_nano(ROOT / "data" / "nano")
    return ROOT / "data"


@pytest.fixture
def small_track(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes nano a one-layer model on a corpus of counting bytes, trained in a second; the data folder."""
    tracks = track.shipped_tracks()
    tracks["nano"] = dataclasses.replace(
        tracks["nano"], num_layers=1, model_dim=32, batch_tokens=1024, val_tokens=2048,
        val_every=10, late_val_every=5, target=4.0,
    )  # fmt: skip
    for module in (train_gpt, track):
        monkeypatch.setattr(module, "shipped_tracks", lambda: dict(tracks))
    tokens = np.arange(60_000) % 251
    write_shard(tmp_path / "data" / "nano" / "nano_train_000001.bin", tokens[:30_000])
    write_shard(tmp_path / "data" / "nano" / "nano_train_000002.bin", tokens[30_000:])
    write_shard(tmp_path / "data" / "nano" / "nano_val_000000.bin", tokens[:4000])
    return tmp_path / "data"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler is found, whatever this machine names."""
    monkeypatch.setenv("PATH", "/nowhere")
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """A track file, data/ beside it, for runs in processes of their own: up to 5,000 steps of a few ms."""
    tokens = np.arange(5_200_000) % 251
    write_shard(tmp_path / "data" / "small" / "small_train_000001.bin", tokens)
    write_shard(tmp_path / "data" / "small" / "small_val_000000.bin", tokens[:4000])
    return write_small_track(tmp_path / "small.toml", val_every=25, late_val_every=25)


# Files whose tests share what is dear to make: all of one go to the same worker.
TOGETHER = ("test_world_and_resume", "test_matrix_optimizer", "test_submit", "test_check", "test_report")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
