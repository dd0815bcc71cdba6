"""A study's page: README.md, figures and numbers.json in its folder, all made of what was found."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from records.judge.logs import read_log
from records.publish.pages import escape, table
from records.publish.pictures import Picture
from records.run.files import write_whole

FOLDER = Path(__file__).resolve().parent
HERE = "**Here:** "  # before a page's verdict
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Rows of cells below a heading; numbers are shown with four digits."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Findings:
    """What a study found. verdict: sentences on whether the claim shows here; seeds: which, in words;
    missing: what the study asks for and these findings do not have; numbers: what tables and pictures show.
    """

    verdict: str
    seeds: str
    tables: Sequence[Table]
    pictures: Mapping[str, Picture]
    numbers: object
    missing: str = ""


@dataclass(frozen=True)
class Study:
    """A claim and how it is tried: `find`(whether to run missing trainings) gives the findings."""

    name: str
    claim: str
    source: str
    find: Callable[[bool], Findings]
    command: str = ""  # further words of the command

    @property
    def folder(self) -> Path:
        return FOLDER / self.name


def write_page(study: Study, findings: Findings, minutes: float) -> Path:
    """Writes the folder's files; returns the page's path."""
    study.folder.mkdir(exist_ok=True)
    for name, picture in findings.pictures.items():
        write_whole(study.folder / name, picture.svg())
    write_whole(study.folder / "numbers.json", (json.dumps(findings.numbers, indent=1) + "\n").encode())
    page = study.folder / "README.md"
    write_whole(page, "\n".join(page_lines(study, findings, minutes)).encode())
    return page


def write_index(studies: Iterable[Study]) -> Path:
    """Writes the list of all studies: the claim, and what their pages say of it; returns its path."""
    rows = []
    for study in studies:
        page = study.folder / "README.md"
        lines = page.read_text().splitlines() if page.exists() else []
        here = [line.removeprefix(HERE) for line in lines if line.startswith(HERE)] or ["not run yet"]
        name = f"[{study.name}]({study.name}/README.md)" if lines else study.name
        rows.append([name, f"{escape(study.claim)} ({escape(study.source)})", here[0]])
    lines = [
        "# Claims of the papers, and our own, tried on nano\n",
        "`python -m records.studies NAME` makes a page anew.",
        "The paired test on simulated entries has [a page](paired/README.md) and a command of its own.\n",
        table(("study", "claim", "here"), rows),
    ]
    write_whole(FOLDER / "README.md", "\n".join(lines).encode())
    return FOLDER / "README.md"


def training_minutes(folder: Path) -> float:
    """Of all runs whose logs lie in the folder or in folders of it, until their last validation."""
    runs = [run for log in folder.glob("**/*.txt") for run in read_log(log).runs if run.validations]
    return sum(run.validations[-1].train_time or 0.0 for run in runs) / 60


def page_lines(study: Study, findings: Findings, minutes: float) -> list[str]:
    lines = [f"# {study.name}\n", f"**Claim** ({escape(study.source)}): {escape(study.claim)}\n"]
    lines += [f"{HERE}{escape(findings.verdict)}\n"]
    if findings.missing:
        lines += [f"Not tried yet: {escape(findings.missing)}\n"]
    command = f"python -m records.studies {study.name} {study.command}".rstrip()
    trained = training_minutes(study.folder)
    spent = (
        f"{trained:.0f} minutes of training in its logs"
        if trained
        else f"this page took {minutes:.1f} minutes"
    )
    lines += [f"`{command}`, {escape(findings.seeds)}; {spent}."]
    lines += ["The numbers: [numbers.json](numbers.json).\n"]
    lines += [f"![{name.removesuffix('.svg')}]({name})\n" for name in findings.pictures]
    for part in findings.tables:
        rows = [[shown(cell) for cell in row] for row in part.rows]
        numbers = [
            i for i in range(len(part.header)) if any(not isinstance(row[i], str) for row in part.rows)
        ]
        lines += [f"## {part.title}\n", table(part.header, rows, numbers)]
    return lines


def shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else escape(cell)
