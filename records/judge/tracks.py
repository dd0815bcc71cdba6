"""The tracks, read out of train_gpt.py as text: one source of truth, and no torch imported."""

import ast
from dataclasses import dataclass
from pathlib import Path

from records import RecordError
from records.judge.logs import Entry

TRAINER = Path(__file__).resolve().parents[2] / "train_gpt.py"
DEFAULT = "fineweb"  # of a log that names no track: what was published before logs named one


class TrackError(RecordError):
    """A track cannot be found out."""


@dataclass(frozen=True)
class Track:
    """What judging needs of a track: losses in nats per token, distances between validations in steps."""

    name: str
    target: float
    sigma: float  # run-to-run standard deviation of the validation loss
    val_every: int
    late_val_every: int  # in the last tenth of the run


def read_tracks(trainer: Path = TRAINER) -> dict[str, Track]:
    """The tracks of `TRACKS = {"name": Track(key=literal, ...), ...}` in a trainer's source, by name.

    Raises TrackError where there is no such table of literal values.
    """
    where = f"{trainer.name}: expected TRACKS = {{'name': Track(key=literal, ...)}} at the top level"
    try:
        tree = ast.parse(trainer.read_text())
    except (OSError, SyntaxError) as error:
        raise TrackError(f"{where}; the file cannot be read: {error}") from None
    table = next(
        (node.value for node in tree.body if isinstance(node, ast.Assign) and _names(node) == ["TRACKS"]),
        None,
    )
    if not isinstance(table, ast.Dict):
        raise TrackError(f"{where}; found none")
    needed = [field for field in Track.__dataclass_fields__ if field != "name"]
    try:
        names = [ast.literal_eval(key) for key in table.keys]
        facts = [{k.arg: ast.literal_eval(k.value) for k in call.keywords} for call in table.values]
        return {
            name: Track(name, **{key: fact[key] for key in needed})
            for name, fact in zip(names, facts, strict=True)
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrackError(f"{where} with {', '.join(needed)}; found otherwise: {error}") from None


def _names(node: ast.Assign) -> list[str | None]:
    return [getattr(target, "id", None) for target in node.targets]


def entry_track(entry: Entry, tracks: dict[str, Track] | None = None) -> Track:
    """The track that an entry's logs name; FineWeb where none of them names one.

    Raises TrackError where they name several, or one that this project does not have.
    """
    tracks = read_tracks() if tracks is None else tracks
    names = {log.track or DEFAULT for log in entry.logs if log.runs} or {DEFAULT}
    if len(names) > 1:
        raise TrackError(
            f"{entry.path}: expected logs of one track, found {', '.join(sorted(names))}; part them"
        )
    (name,) = names
    if name not in tracks:
        raise TrackError(f"{entry.path}: the logs say track {name!r}; known: {', '.join(tracks)}")
    return tracks[name]
