"""Text of logs for tests: validation lines as the trainer prints them, and ways to damage them."""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

SEPARATOR = "=" * 100
SCRIPT = (
    '"""A script. Its lines look like step:5/9 val_loss:9.99999 in here."""\nimport torch\n\nprint(torch)\n'
)
CURVE = {0: 10.82584, 125: 4.61234, 250: 3.91234, 375: 3.27612, 400: 3.27456}


def step_line(step: int, total: int, loss: float, extra: str = "") -> str:
    average = "nan" if step == 0 else "157.07"
    return (
        f"step:{step}/{total} val_loss:{loss:.5f}{extra} train_time:{step * 0.157:.3f}s step_avg:{average}ms"
    )


def run_text(
    curve: Mapping[int, float] = CURVE, total: int = 400, seed: int | None = None, extra: str = ""
) -> str:
    """The lines of one run, its seed before them."""
    lines = [] if seed is None else [f"seed: {seed}"]
    return "\n".join([*lines, *(step_line(step, total, loss, extra) for step, loss in curve.items())]) + "\n"


def shifted(offset: float, curve: Mapping[int, float] = CURVE) -> dict[int, float]:
    """A curve of its own: all losses but the first moved."""
    return {step: loss + offset if step else loss for step, loss in curve.items()}


def log_text(
    *runs: str, script: str = SCRIPT, facts: Iterable[str] = ("device: a GPU", "world_size: 8")
) -> str:
    """Script, facts and runs as in a log."""
    return (
        "\n".join([script.rstrip("\n"), SEPARATOR, *facts, SEPARATOR, *(run.rstrip("\n") for run in runs)])
        + "\n"
    )


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def damage(text: bytes, chance: random.Random) -> bytes:
    """One way in which a log can be broken: bytes, lines or whole pieces of it."""
    lines = text.splitlines(keepends=True)
    i, j = (chance.randrange(len(lines)) for _ in range(2)) if lines else (0, 0)
    at = chance.randrange(len(text) + 1)
    kind = chance.randrange(14)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[at:]
    if kind == 2:
        return text[:at] + chance.randbytes(chance.randrange(1, 20)) + text[at:]
    if kind == 3:
        return text[:at] + text[at + chance.randrange(1, 20) :]
    if kind == 4:
        return (
            text[:at]
            + chance.choice([b"-", b".", b"9", b"nan", b"inf", b"e9", b"\0", b"\r", b" ", b":", b"/"])
            + text[at:]
        )
    if kind == 5 and lines:
        return b"".join([*lines[:i], *lines[i + 1 :]])
    if kind == 6 and lines:
        return b"".join([*lines[: i + 1], lines[j], *lines[i + 1 :]])
    if kind == 7 and lines:
        lines[i], lines[j] = lines[j], lines[i]
        return b"".join(lines)
    if kind == 8:
        return text + text[at:]
    if kind == 9 and lines:
        lines[i] = lines[i].rstrip(b"\n")
        return b"".join(lines)
    if kind == 10:
        return text.replace(b"\n", b"\r\n")
    if kind == 11:
        return text[:at] + b"x" * 70_000 + text[at:]
    if kind == 12:
        return text.replace(
            chance.choice([b"step", b"val_loss", b"=", b"\n", b" ", b"3", b"/"]), b"", chance.randrange(1, 4)
        )
    return b"".join(chance.sample(lines, len(lines)))
