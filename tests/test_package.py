"""The package `optimizers` as others install it: what is in the wheel, what it needs, its example."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import optimizers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds, built from the package's own files alone."""
    made = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "optimizers", made / "optimizers", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("records", "data"):
        (made / folder).mkdir()
        (made / folder / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", made)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(made), str(made)], check=True, capture_output=True)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(made / "installed")
    return made / "installed"


def test_the_wheel_holds_the_package_and_nothing_else(installed):
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"optimizers"}
    shipped = {path.relative_to(ROOT) for path in (ROOT / "optimizers").rglob("*.py")}
    assert {path.relative_to(installed) for path in installed.rglob("*.py")} == shipped


def test_it_needs_torch_alone(installed):
    """And Triton, which a torch for GPUs brings."""
    (metadata,) = installed.glob("*.dist-info/METADATA")
    told = Parser().parsestr(metadata.read_text())
    assert [re.split(r"[<>=~! ]", need)[0] for need in told.get_all("Requires-Dist")] == ["torch"]
    for file in installed.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.split(".")[0] for name in names}
            assert tops <= {"torch", "triton", "optimizers", *sys.stdlib_module_names}, file


def test_it_says_its_version_and_that_it_is_typed(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert Parser().parsestr(metadata.read_text())["Version"] == optimizers.__version__
    assert (installed / "optimizers" / "py.typed").exists()


def test_its_example_trains(installed):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "optimizers" / "README.md").read_text(), re.DOTALL)
    start = f"import sys; sys.path.insert(0, {str(installed)!r}); import torch; torch.manual_seed(0)\n"
    command = [sys.executable, "-I", "-c", start + code]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=installed).stdout
    assert float(re.fullmatch(r"loss ([\d.]+)\n", told)[1]) < 0.1
