"""Tracks of one's own for tests."""

import dataclasses
from pathlib import Path

from records.run.recipe import toml_lines
from records.run.track import shipped_tracks


def write_track(path: Path, **changes: object) -> Path:
    """A track's file: as nano, but for the changes (None leaves a key out); its name is the file's."""
    facts = dataclasses.asdict(shipped_tracks()["nano"]) | {"name": path.stem} | changes
    path.write_text("\n".join(toml_lines(facts)))
    return path
