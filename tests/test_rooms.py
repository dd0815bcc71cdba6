"""Imports run one way: publish -> judge -> run; the optimizers know nothing of the records or the data."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ("data.", "optimizers.", "records.", "tests.", "train_gpt.")
RECORDS = ("records.RecordError", "records.printable")  # what all of their rooms share
MAY_IMPORT = {  # room -> how the names that its modules import from this project may begin
    "optimizers": ("optimizers.",),
    "data": ("data.",),
    "records/run": (*RECORDS, "records.run."),
    "records/judge": (*RECORDS, "records.run.", "records.judge."),
    "records/publish": (*RECORDS, "records.run.", "records.judge.", "records.publish."),
}


def imported(module: Path) -> Iterator[str]:
    """What a module imports from this project, anywhere in it: `records.run.recipe.Recipe`."""
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [f"{alias.name}." for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.startswith((".", *PROJECT)))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_before_it(room: str) -> None:
    modules = sorted((ROOT / room).rglob("*.py"))
    assert len(modules) > 2
    beyond = {
        f"{file.stem}: {name}"
        for file in modules
        for name in imported(file)
        if not name.startswith(MAY_IMPORT[room])
    }
    assert not beyond


@pytest.mark.parametrize("room", ["run", "judge", "publish"])
def test_a_room_of_the_records_imports_no_torch(room: str) -> None:
    modules = [f"records.{room}.{file.stem}" for file in sorted((ROOT / "records" / room).glob("*.py"))]
    code = f"import {', '.join(modules)}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
