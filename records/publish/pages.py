"""Markdown pages made from logs: escaping, tables, a folder's README.md and figure, written or checked."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from records.publish.pictures import Picture, embedded_digest

FIGURE = "figure.svg"
PREDICTION = "prediction.svg"


def escape(text: object) -> str:
    """Plain text for a Markdown line or table cell: no markup, no HTML, no line break comes out of it."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~#$!])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # inside a word it means nothing


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """A Markdown table of ready-made cells (strangers' text escaped before); `right` columns hold numbers."""
    marks = ["---:" if i in right else "---" for i in range(len(header))]
    lines = [header, marks, *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}\n"


@dataclass(frozen=True)
class Page:
    """A folder's README.md and the figures in it, FIGURE and PREDICTION, where there is something to draw."""

    folder: Path
    text: str
    pictures: Mapping[str, Picture]

    def write(self) -> None:
        """All files or none of them: written beside, then renamed. A figure no longer drawn is removed."""
        files = {self.folder / "README.md": self.text.encode()}
        files |= {self.folder / name: picture.svg() for name, picture in self.pictures.items()}
        temporary = {path: path.with_name(path.name + ".tmp") for path in files}
        try:
            for path, content in files.items():
                temporary[path].write_bytes(content)
            for path in files:
                temporary[path].replace(path)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)
        for name in {FIGURE, PREDICTION} - set(self.pictures):
            (self.folder / name).unlink(missing_ok=True)

    def differences(self) -> list[str]:
        """What the committed files say otherwise: a diff of the text; a line for a figure of other data."""
        readme = self.folder / "README.md"
        committed = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        told = os.path.relpath(readme)
        lines = list(
            difflib.unified_diff(
                committed.splitlines(),
                self.text.splitlines(),
                f"{told} (committed)",
                f"{told} (from the logs)",
                lineterm="",
                n=1,
            )  # fmt: skip
        )
        for figure in (self.folder / FIGURE, self.folder / PREDICTION):
            picture = self.pictures.get(figure.name)
            drawn = embedded_digest(figure.read_bytes()) if figure.is_file() else None
            if drawn != (picture.digest if picture else None):
                lines.append(
                    f"{os.path.relpath(figure)}: " + ("drawn from other data" if drawn else "missing")
                )
        return lines
