"""Tracks: what is the same for every entry, a TOML file each; shipped are `records/<track>/track.toml`."""

import difflib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened

from records import RecordError

RECORDS = Path(__file__).resolve().parents[1]
LARGEST = sys.float_info.max


class TrackError(RecordError):
    """A track cannot be found or used. The message names the key, what was expected and what was found."""


@dataclass(frozen=True)
class Track:
    """A benchmark: data, model, batch and target. Losses are in nats per token."""

    name: str
    dataset: str  # folder below data/
    token_limit: int  # every token is below
    vocab_size: int  # of the model, padded
    num_layers: int
    model_dim: int
    head_dim: int
    mlp_ratio: int  # width of the MLP's hidden layer, in model_dim
    context: int  # tokens of a row
    batch_tokens: int
    val_tokens: int
    val_every: int  # steps
    late_val_every: int  # steps, in the last tenth of the run
    gpu_dtype: str  # activations and embedding on a GPU; on a CPU all is float32
    target: float  # validation loss to reach
    sigma: float  # standard deviation of the final validation loss over seeds
    recipe: str  # the default
    aux: dict  # AdamW of embedding, head and 1-D parameters, where the recipe says nothing
    slope: float = 0.0  # loss that 100 steps are worth near the target; 0: not measured
    fetch: str = ""  # module that makes or downloads the data; "": nothing does
    shards: int = 0  # training shards it makes or downloads at most
    shard_tokens: int = 0
    start: dict = field(default_factory=dict)  # steps of [matrix] and [aux] before step 0; empty: none


Kind = tuple[Callable[[object], bool], str]  # whether a value is of it; what was expected


def is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", value) is not None


def is_number(value: object, low: float = -LARGEST, high: float = LARGEST) -> bool:
    """Whether it is a number from `low` to below `high`, finite; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value < high


def is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and is_number(value, low, 2**31)


NAME: Kind = (is_name, "a name: letters, digits, '_', '-', '.', at most 100")
SIZE: Kind = (lambda value: is_whole(value, 1), "a whole number above 0")
POSITIVE: Kind = (lambda value: is_number(value, 0) and value != 0, "a number above 0")
FROM_ZERO: Kind = (lambda value: is_number(value, 0), "a number, 0 or above")
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("name", "dataset"), NAME),
    **dict.fromkeys(("token_limit", "vocab_size", "num_layers", "model_dim", "head_dim", "mlp_ratio"), SIZE),
    **dict.fromkeys(("context", "batch_tokens", "val_tokens", "val_every", "late_val_every"), SIZE),
    "gpu_dtype": (lambda value: value in ("bfloat16", "float32"), "'bfloat16' or 'float32'"),
    **dict.fromkeys(("target", "sigma"), POSITIVE),
    "recipe": (lambda value: isinstance(value, str) and value != "", "the name or the file of a recipe"),
    "aux": (lambda value: isinstance(value, dict), "a table [aux]"),
}
OPTIONAL: dict[str, Kind] = {  # those with a default in Track
    "slope": FROM_ZERO,
    "fetch": (
        lambda value: value == "" or re.fullmatch(r"data\.\w+", str(value)) is not None,
        "a module such as data.nano",
    ),
    **dict.fromkeys(
        ("shards", "shard_tokens"), (lambda value: is_whole(value, 0), "a whole number, 0 or above")
    ),
    "start": (lambda value: isinstance(value, dict), "a table [start]"),
}
AUX: dict[str, Kind] = {
    **dict.fromkeys(("embed_lr", "head_lr", "scalar_lr", "weight_decay"), FROM_ZERO),
    "betas": (
        lambda value: isinstance(value, list) and [is_number(beta, 0, 1) for beta in value] == [True, True],
        "two numbers from 0 to below 1",
    ),
    "eps": POSITIVE,
}
START: dict[str, Kind] = {
    "train_steps": SIZE,
    "matrix": (lambda value: isinstance(value, dict) and "step" in value, "a table with a step function"),
    "aux": KINDS["aux"],
}


def shipped_tracks(records: Path = RECORDS) -> dict[str, Track]:
    """Name -> track of every `<name>/track.toml` in the folder `records`. Raises TrackError for a bad one."""
    tracks = {file.parent.name: read_track_file(file) for file in sorted(records.glob("*/track.toml"))}
    for folder, track in tracks.items():
        if folder != track.name:
            raise TrackError(
                f"{records / folder}/track.toml: name: expected {folder!r}, found {track.name!r}"
            )
    return tracks


def default_track(on_gpu: bool) -> str:
    """The track of a machine with or without a GPU where none is named."""
    return "fineweb" if on_gpu else "nano"


def read_track(source: str | Path) -> Track:
    """The shipped track of that name, or the track of a TOML file; such a file takes a name of its own.

    Raises TrackError where there is none, or where the file says something wrong.
    """
    shipped = shipped_tracks()
    if str(source) in shipped:
        return shipped[str(source)]
    if not Path(source).is_file():
        raise TrackError(f"no track {str(source)!r}: expected {', '.join(shipped)} or a TOML file")
    track = read_track_file(Path(source))
    if shipped.get(track.name, track) != track:
        raise TrackError(f"{source}: name: expected one of its own, found {track.name!r}, a shipped track's")
    return track


def read_track_file(path: Path) -> Track:
    """The track of a TOML file. Raises TrackError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrackError(f"{path}: expected a track, cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML
        raise TrackError(f"{path}: expected a track in TOML: {error}") from None
    return track_of(table, str(path))


def track_of(table: dict, where: str) -> Track:
    """The track that a table says, every value checked. Raises TrackError, which begins with `where`."""
    for key, expected, found in faults(table):
        raise TrackError(f"{where}: {key}: expected {expected}, found {found}")
    return Track(**table)


def faults(table: dict) -> Iterator[tuple[str, str, str]]:
    """(key, expected, found) of what keeps a table from being a track; only the first can be relied on."""
    yield from wrong_values("", table, KINDS, OPTIONAL)
    yield from wrong_values("aux.", table["aux"], AUX, {})
    if start := table.get("start"):
        yield from wrong_values("start.", start, START, {})
        yield from wrong_values("start.aux.", start["aux"], AUX, {})
    yield from contradictions(Track(**table))


def wrong_values(
    where: str, table: dict, needed: dict[str, Kind], optional: dict[str, Kind]
) -> Iterator[tuple[str, str, str]]:
    """(key, expected, found) of unknown keys, missing ones, and values of the wrong kind."""
    known = needed | optional
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            yield f"{where}{key}", f"a known key, nearest {where}{near[0]}", "one that nothing uses"
    for key, (good, expected) in known.items():
        if key in table and not good(table[key]):
            yield f"{where}{key}", expected, shortened(table[key])
        elif key in needed and key not in table:
            yield f"{where}{key}", expected, "nothing"


def contradictions(track: Track) -> Iterator[tuple[str, str, str]]:
    """(key, expected, found) of values that do not go together."""
    if track.head_dim % 4 or track.model_dim % track.head_dim:
        yield "head_dim", f"a multiple of 4 that divides model_dim = {track.model_dim}", f"{track.head_dim}"
    if track.token_limit > min(track.vocab_size, 2**16):
        expected = f"at most vocab_size = {track.vocab_size}, and 65536 (shards hold 16 bits a token)"
        yield "token_limit", expected, f"{track.token_limit}"
    if track.batch_tokens % track.context:
        yield "batch_tokens", f"a multiple of context = {track.context}", f"{track.batch_tokens}"
    if track.val_tokens % track.batch_tokens:
        yield "val_tokens", f"a multiple of batch_tokens = {track.batch_tokens}", f"{track.val_tokens}"
    if track.fetch and not track.shards:
        yield "shards", "how many training shards `fetch` makes or downloads at most", "nothing"
    if track.fetch and track.shard_tokens < track.batch_tokens + 2:
        expected = f"the length of a shard that `fetch` makes, above batch_tokens = {track.batch_tokens}"
        yield "shard_tokens", expected, f"{track.shard_tokens or 'nothing'}"
