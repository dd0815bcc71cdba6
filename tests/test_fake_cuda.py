"""What a GPU would refuse or compile again, found on one that is not there (tests/fake_cuda.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optimizers import STEPS

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent
pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="the shim needs a C++ compiler, g++ is not there"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA devices of its own"),
]


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path:
    """tests/fake_cuda.cpp, built."""
    library = tmp_path_factory.mktemp("shim") / "fake_cuda.so"
    link = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}"]
    command = [
        "g++",
        "-std=c++20",
        "-shared",
        "-fPIC",
        f"-I{TORCH / 'include'}",
        str(ROOT / "tests/fake_cuda.cpp"),
    ]
    subprocess.run([*command, "-o", str(library), *link], check=True)
    return library


def fake_cuda(shim: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.fake_cuda", str(shim), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "steps",
    [list(STEPS)[::12], pytest.param(list(STEPS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_every_step_function_updates_the_model(shim, steps):
    made = fake_cuda(shim, "eager", *steps)
    assert made.stdout.split() == steps, made.stderr[-2000:]


RECIPES = sorted((ROOT / "records/fineweb").glob("[0-9o]*.toml"))


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, marks=() if path.stem.startswith("44") else pytest.mark.slow, id=path.stem)
     for path in RECIPES],
)  # fmt: skip
def test_planned_numbers_go_only_where_a_gpu_takes_them(shim, recipe):
    """Six updates, but where K-FAC of the head reads how many rows it has heard; 44 plans SOAP's trust."""
    made = fake_cuda(shim, "recipes", str(recipe))
    path, updates = made.stdout.split() or ["", "0"]
    reads = "head_kfac" in recipe.read_text()
    assert path == str(recipe) and (updates == "6" or reads), made.stderr[-2000:]


@pytest.mark.slow
def test_nothing_is_compiled_after_the_second_update(shim):
    recipes = ["nora", "muon", "aurora", "17_aurora_contra_floor"]
    made = fake_cuda(shim, "compiled", *recipes)
    graphs = {
        name: (int(second), int(last)) for name, second, last in map(str.split, made.stdout.splitlines())
    }
    assert list(graphs) == recipes, made.stderr[-2000:]
    assert all(0 < second == last for second, last in graphs.values()), graphs


def test_planted_faults_are_found(shim):
    expected = {
        "angles_on_the_cpu": "at least two devices, cuda:0 and cpu",
        "a_branch_on_a_value": "Data-dependent branching",
        "weights_of_another_precision": "torch.bfloat16, torch.float32",
    }
    made = fake_cuda(shim, "faults", *expected)
    told = dict(line.split(" ", 1) for line in made.stdout.splitlines())
    assert list(told) == list(expected), made.stderr[-2000:]
    assert {name: expected[name] in told[name] for name in told} == dict.fromkeys(told, True), told


@pytest.mark.slow  # compiles twice; the other planted faults are tried in the suite
def test_a_planted_recompilation_is_found(shim):
    _, second, last = fake_cuda(shim, "faults", "a_number_that_changes").stdout.split()
    assert int(last) > int(second)
