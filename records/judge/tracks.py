"""The track that an entry is judged by: a shipped one, or the one that its logs' scripts hold."""

import ast
from collections.abc import Iterator
from dataclasses import asdict

from records.judge.logs import Entry
from records.judge.script_rules import definitions, parse
from records.run.track import Track, TrackError, shipped_tracks, track_of

FREE = ("fetch", "shards", "shard_tokens", "sigma", "slope", "recipe", "aux")  # not what is trained
DEFAULT = "fineweb"  # of a log that names no track: what was published before logs named one


def shipped_track(entry: Entry) -> Track:
    """The shipped track that an entry's logs name; FineWeb where none of them names one.

    Raises TrackError where they name several, or one that is not shipped.
    """
    name, tracks = track_name(entry), shipped_tracks()
    if name not in tracks:
        told = f"the logs say track {name!r}; known: {', '.join(tracks)}"
        raise TrackError(f"{entry.path}: {told}; another has its file in records/{name}/track.toml")
    return tracks[name]


def entry_track(entry: Entry) -> Track:
    """The track that an entry's logs name: the shipped one of that name, else what their scripts say of it.

    Raises TrackError where they name several tracks, or one that is neither shipped nor in every script.
    """
    name, tracks = track_name(entry), shipped_tracks()
    if name in tracks:
        return tracks[name]
    held = [embedded_track(log.script or "", name) for log in entry.logs if log.runs]
    if not all(held) or any(table != held[0] for table in held):
        found = "logs without it" if not all(held) else "several that differ"
        told = f"the logs say track {name!r}; known: {', '.join(tracks)}; expected it in all their scripts"
        raise TrackError(f"{entry.path}: {told}, found {found}")
    return track_of(held[0], f"{entry.path}, the track in the scripts")


def embedded_track(script: str, name: str) -> dict[str, object]:
    """What a script says of the track `name`; {} where nothing can be read. The script is parsed, never run.

    It stands there as RECIPE = Recipe(..., track=Track(key=literal, ...)); before tracks were files, as
    TRACKS = {"name": Track(key=literal, ...)}, of a model whose MLP was four times as wide.
    """
    tree = parse(script)
    return {} if isinstance(tree, str) else track_in(tree, name)


def track_in(tree: ast.Module, name: str) -> dict[str, object]:
    """`embedded_track` of a script's syntax tree."""
    known = definitions(tree)
    recipe, table = (getattr(known.get(key), "value", None) for key in ("RECIPE", "TRACKS"))
    facts: dict[str, object] = {}
    if isinstance(recipe, ast.Call):
        facts = next((literals(word.value) for word in recipe.keywords if word.arg == "track"), {})
    elif isinstance(table, ast.Dict):
        pairs = zip(table.keys, table.values, strict=True)
        facts = next((literals(value) for key, value in pairs if getattr(key, "value", None) == name), {})
        facts = facts and {"name": name, "mlp_ratio": 4} | facts
    return facts if facts.get("name") == name else {}


def literals(call: ast.expr) -> dict[str, object]:
    """The keyword arguments of `Track(key=literal, ...)`; {} for any other expression."""
    if not isinstance(call, ast.Call) or call.args or getattr(call.func, "id", "") != "Track":
        return {}
    try:
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (ValueError, TypeError, MemoryError, RecursionError):
        return {}


def track_name(entry: Entry) -> str:
    """Raises TrackError where the logs name several."""
    names = {log.track or DEFAULT for log in entry.logs if log.runs} or {DEFAULT}
    if len(names) > 1:
        told = f"expected logs of one track, found {', '.join(sorted(names))}; part them"
        raise TrackError(f"{entry.path}: {told}")
    return names.pop()


def changed_track(tree: ast.Module, track: Track) -> Iterator[str]:
    """What of the track a script holds otherwise than this checkout, of what the rules fix."""
    held, ours = track_in(tree, track.name), asdict(track)
    if not held:
        yield f"cannot be verified: the script holds no track {track.name} that can be read"
        return
    held = {"start": {}} | held  # which older scripts lack
    other = [key for key in ours if key not in FREE and held.get(key, "nothing") != ours[key]]
    if other:
        told = (f"{key} is {held.get(key, 'nothing')!r}, here {ours[key]!r}" for key in other)
        yield f"changed against this checkout: track {track.name}, {', '.join(told)}"
