"""Tracks of one's own for tests."""

import dataclasses
from pathlib import Path

from records.run.recipe import toml_lines
from records.run.track import shipped_tracks


def write_small_track(path: Path, **changes: object) -> Path:
    """A track of one layer that takes a few ms a step, its data not fetched; see write_track."""
    small: dict[str, object] = {"dataset": "small", "num_layers": 1, "model_dim": 32, "batch_tokens": 1024,
                                "val_tokens": 2048, "target": 4.0}  # fmt: skip
    return write_track(path, **small | {"fetch": None, "shards": None, "shard_tokens": None} | changes)


def write_track(path: Path, like: str = "nano", **changes: object) -> Path:
    """A track file: like a shipped one but for the changes (None leaves a key out), named as the file."""
    facts = dataclasses.asdict(shipped_tracks()[like]) | {"name": path.stem} | changes
    path.write_text("\n".join(toml_lines(facts)))
    return path
