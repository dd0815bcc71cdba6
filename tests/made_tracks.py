"""Tracks of one's own for tests."""

import dataclasses
from pathlib import Path

from records.run.recipe import toml_lines
from records.run.track import shipped_tracks


def write_track(path: Path, like: str = "nano", **changes: object) -> Path:
    """A track file: like a shipped one but for the changes (None leaves a key out), named as the file."""
    facts = dataclasses.asdict(shipped_tracks()[like]) | {"name": path.stem} | changes
    path.write_text("\n".join(toml_lines(facts)))
    return path
