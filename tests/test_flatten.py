"""A run as one script."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train_gpt
from optimizers import STEPS
from records.baseline import made_tokens
from records.judge.script_rules import foreign_imports
from records.run.flatten import check_script, defined, flatten, source
from records.run.track import RECORDS, read_track
from records.script import script_of
from train_gpt import load_recipe, parse_arguments

ROOT = Path(__file__).resolve().parents[1]


def project(folder: Path, trainer: str, modules: dict[str, str] | None = None) -> Path:
    """A project made of train_gpt.py and modules by path."""
    for path, code in {"train_gpt.py": trainer, **(modules or {})}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(dedent(code).lstrip("\n"))
    return folder


def nano_script(recipe: str, *options: str) -> str:
    args = parse_arguments(["--track", "nano", "--recipe", recipe, *options], ROOT)
    return script_of(load_recipe(recipe, (), read_track("nano")), args, ROOT)


# --------------------------------------------------------------------------------------------------
# The project's own runs


@pytest.mark.parametrize("recipe", ["muon", "nora", "aurora_contra_floor", "ema_nesterov"])
def test_a_script_defines_what_it_uses_and_imports_nothing_else(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(script := nano_script(recipe, "--seeds", "0-3"))
    assert "ARGUMENTS = ['--seeds', '0-3']" in script.splitlines()
    assert not list(foreign_imports(ast.parse(script)))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", "script.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout  # undefined, unused and doubly defined names


def test_all_step_functions_fit_into_one_script() -> None:
    values = {"RECIPE": "RECIPE"}
    script = source(ROOT, ["replay", *STEPS], values)
    assert set(STEPS) <= defined(script)
    check_script(script)


def test_neither_readers_nor_other_methods_are_in_a_script() -> None:
    script = nano_script("muon")
    assert not defined(script) & {"nora", "parse_recipe", "read_recipe", "list_recipes", "flatten", "main"}
    for word in ("tomllib", "get_close_matches(key", '"--recipe"', '"--set"', '"--track"', '"--plan"'):
        assert word not in script


@pytest.mark.parametrize(
    "recipe",
    [
        "fineweb/40_aurora_ema_nesterov",  # look-ahead, signs of the gains
        "fineweb/41_circuit_muon",  # coupled steps
        "fineweb/open_2580_extrapolated",  # around and readout, a float32 embedding
        "nano/muon_rownorm",  # steps of embedding and head
        "nano/muon",  # nothing of these
    ],
)
def test_a_script_trains_with_all_that_its_recipe_uses(recipe, tmp_path, monkeypatch):
    args = parse_arguments([], ROOT)
    chosen = load_recipe(RECORDS / f"{recipe}.toml", (), read_track(recipe.partition("/")[0]))
    (tmp_path / "flat_script.py").write_text(script_of(chosen, args, ROOT))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flat_script", raising=False)
    script = importlib.import_module("flat_script")
    model = script.GPT(512, 12 if "blocks.11" in chosen.toml() else 2, 64, 32)
    script.initialise(model, script.RECIPE.init, 0)
    optimizers = script.build_optimizers(model, script.RECIPE)
    alone = script.World(0, 1, torch.device("cpu"))
    for step in range(2):
        batch = tuple(made_tokens(2 * step + part, 2) for part in (0, 1))
        script.set_learning_rates(optimizers, script.RECIPE, step)
        script.compute_gradients(model, optimizers, batch, 2, alone)
        script.apply_update(optimizers)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_recipe_and_the_track_are_values(nano_data: Path) -> None:
    space: dict = {"Recipe": train_gpt.Recipe, "Track": train_gpt.Track}
    end = ast.parse(nano_script("ema_nesterov").partition("# The run\n")[2])
    exec(ast.unparse(end.body[0]), space)  # noqa: S102 (made here)
    assert space["RECIPE"] == load_recipe("ema_nesterov", (), read_track("nano"))


# --------------------------------------------------------------------------------------------------
# What is reached


REGISTRIES = {
    "optimizers/stage.py": """
        STAGES: dict = {}
        STEPS: dict = {}


        def stage(kind):
            def register(function):
                STAGES[kind, function.__name__] = function
                return function

            return register


        def method(*stages):
            def declare(declaration):
                STEPS[declaration.__name__] = stages
                return stages

            return declare
    """,
    "optimizers/stages/memory.py": """
        from optimizers.stage import stage


        @stage("memory")
        def nesterov(): ...


        @stage("memory")
        def heavy_ball(): ...


        @stage("memory")
        def kernel(): ...
    """,
    "optimizers/methods/__init__.py": "",
    "optimizers/methods/muon.py": """
        from optimizers.stage import method
        from optimizers.stages.memory import kernel, nesterov


        @method(nesterov)
        def muon(): ...


        @method(kernel)
        def other(): ...
    """,
    "optimizers/__init__.py": """
        from optimizers.methods import muon  # registers itself
        from optimizers.stage import STAGES, STEPS
    """,
}


def test_registries_hold_what_was_reached(tmp_path: Path) -> None:
    """Methods and stages register by decorator; the roots are the method and a stage that a recipe names."""
    trainer = """
        from optimizers import STAGES, STEPS


        def replay(recipe, argv):
            print(recipe, argv, *sorted(STEPS), *sorted(name for _, name in STAGES))
    """
    script = project(tmp_path, trainer, REGISTRIES) / "script.py"
    script.write_text(flatten(tmp_path, ["muon", "heavy_ball"], {"RECIPE": "'chosen'"}, ["a"]))
    command = [sys.executable, str(script), "b"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    assert told == "chosen ['a', 'b'] muon heavy_ball nesterov\n"


def test_names_are_followed_wherever_they_stand(tmp_path: Path) -> None:
    trainer = """
        from data.parts import base, decorator, default, hint, inner, member, quoted, unused

        LIMIT = later = 3


        @decorator
        class Thing(base):
            part = member

            def method(self, x: hint, y: "list[quoted]" = default, *, words: "in [0, 1)" = 0) -> None:
                def local(unused):
                    return lambda: inner(unused) + later
    """
    names = {"base", "decorator", "default", "hint", "inner", "member", "quoted"}
    parts = "\n\n\n".join(f"class {name}: ..." for name in [*sorted(names), "unused"])
    made = project(tmp_path, trainer, {"data/parts.py": parts})
    assert defined(source(made, ["Thing"])) == {"Thing", "LIMIT", "later"} | names


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.integers(0, 11), max_size=3), min_size=12, max_size=12), st.integers(0, 11))
def test_kept_is_what_calls_lead_to(
    tmp_path_factory: pytest.TempPathFactory, calls: list[set], root: int
) -> None:
    """Functions f0 to f11, the last six in a module that imports from the first's."""
    calls = [{c for c in of if c < 6} if i < 6 else of for i, of in enumerate(calls)]
    code = [
        f"def f{i}():\n    {' + '.join(f'f{c}()' for c in sorted(of)) or 0}" for i, of in enumerate(calls)
    ]
    first = f"from data.parts import {', '.join(f'f{i}' for i in range(6))}"
    parts = {"data/parts.py": "\n\n\n".join(code[:6])}
    made = project(tmp_path_factory.mktemp("made"), "\n\n\n".join([first, *code[6:]]), parts)
    reached, todo = set(), {root}
    while todo:
        reached |= todo
        todo = set().union(*(calls[i] for i in todo)) - reached
    assert defined(source(made, [f"f{root}"])) == {f"f{i}" for i in reached}


def test_a_value_stands_for_its_reader(tmp_path: Path) -> None:
    trainer = """
        def read(): ...


        TRACKS = read()


        def replay(recipe, argv):
            print(TRACKS)
    """
    script = flatten(project(tmp_path, trainer), [], {"RECIPE": "1", "TRACKS": "{'nano': 2}"}, [])
    assert "read" not in script
    assert "\nTRACKS = {'nano': 2}\n" in script


CHECKED = """
    class Range:
        \"\"\"From low to high.\"\"\"

        def __init__(self, high):
            self.high = high

        # What a value must be.
        @property
        def expected(self):
            return f"below {self.high}"

        def check(self, value):
            if not value < self.high:
                raise ValueError(self.expected)

        def doubled(self):
            return Range(2 * self.high)


    def check_all(values):
        for value in values:
            Range(1).check(value)


    def step(values, verbose):
        check_all(values)
        if verbose:
            for value in values:
                Range(3).check(value)
        checked = check_all(values)
        return Range(2).doubled(), checked


    def nothing(values):
        check_all(values)
"""


def test_what_the_optimizers_only_check_is_left_out(tmp_path: Path) -> None:
    trainer = "from optimizers.made import nothing, step"
    script = source(project(tmp_path, trainer, {"optimizers/made.py": CHECKED}), ["step", "nothing"])
    assert "def step(values, verbose):\n    checked = check_all(values)\n" in script
    assert "def nothing(values):\n    pass" in script
    assert "def check_all(values):\n    pass\n" in script
    assert not re.search(r"expected|What a value|def check\(", script)
    assert script.index("__init__") < script.index("def doubled")


def test_what_the_trainer_checks_stays(tmp_path: Path) -> None:
    whole = dedent(CHECKED).strip().replace("\n\n\n", "\n\n")
    assert source(project(tmp_path, CHECKED), ["step", "nothing"]).endswith(whole)


# --------------------------------------------------------------------------------------------------
# How it reads


WRITTEN = '''
    """What this module is for."""

    import math
    import os.path
    from collections.abc import Callable, Iterable

    import numpy as np

    # ----
    # First part

    A = 1
    B = 2  # of the second


    # What f is for,
    # in two lines.
    def f() -> Iterable:
        return math.pi + B


    # ----
    # Second part


    def g() -> Callable:
        return os.path


    if __name__ == "__main__":
        g()
'''


def test_comments_and_headings_stay_as_written_with_one_blank_line_between(tmp_path: Path) -> None:
    banner = "# " + "-" * 98
    assert source(project(tmp_path, WRITTEN), ["f"]) == (
        f"import math\nfrom collections.abc import Iterable\n\n\n{banner}\n# train_gpt.py\n\n"
        "# ----\n# First part\n\nB = 2  # of the second\n\n"
        "# What f is for,\n# in two lines.\ndef f() -> Iterable:\n    return math.pi + B"
    )


def test_docstrings_keep_their_first_paragraph(tmp_path: Path) -> None:
    trainer = '''
        class A:
            """What it is,
            in two lines.

            And more.
            """

            def f(self):
                """Short."""
                return """a

                b"""
    '''
    assert source(project(tmp_path, trainer), ["A"]).endswith(
        'class A:\n    """What it is,\n    in two lines."""\n\n    def f(self):\n'
        '        """Short."""\n        return """a\n\n        b"""'
    )


def test_imports_are_merged_and_python_s_own_come_first(tmp_path: Path) -> None:
    trainer = """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        import numpy as np
        from torch import Tensor, float32
        from data.parts import f
        if TYPE_CHECKING:
            from data.types import Shape
            from fractions import Fraction

        def g(x: Tensor, shape: Shape, of: Fraction) -> annotations:
            import tqdm
            return np, f
    """
    parts = "from torch import nn\nimport torch\nimport math\ndef f(): return torch, nn, True"
    made = project(tmp_path, trainer, {"data/parts.py": parts, "data/types.py": "Shape = int"})
    script = source(made, ["g"])
    assert "Shape = int" in script
    assert script.partition("\n\n\n")[0] == (
        "from __future__ import annotations\nfrom fractions import Fraction\n\n"
        "import numpy as np\nimport torch\nfrom torch import Tensor, nn"
    )


def test_imports_of_the_project_inside_functions_vanish(tmp_path: Path) -> None:
    trainer = """
        def f():
            from data.parts import late  # here, because that module imports this one

            return late


        def nothing():
            from data.parts import late
    """
    parts = "from train_gpt import f\n\ndef late(): ..."
    script = source(project(tmp_path, trainer, {"data/parts.py": parts}), ["f", "nothing"])
    assert "import" not in script
    assert "def f():\n    return late\n" in script
    assert "def nothing():\n    pass\n" in script
    assert "late" in defined(script)


def test_statements_that_do_more_than_define_stay_with_their_module(tmp_path: Path) -> None:
    parts = """
        import torch

        try:
            import triton
        except ImportError:
            triton = None
        torch.backends.switch = other()


        def other(): ...


        def f(): ...


        def g(): ...
    """
    more = "print('not reached')\n\ndef h(): ..."
    trainer = "from data.parts import f\nfrom data.more import h\n\ndef k():\n    f()"
    made = project(tmp_path, trainer, {"data/parts.py": parts, "data/more.py": more})
    script = source(made, ["k"])
    assert defined(script) == {"torch", "triton", "other", "f", "k"}
    assert script.startswith("import torch\n\n\n")
    assert "print" not in script


# --------------------------------------------------------------------------------------------------
# What is refused


def test_what_would_end_the_script_early_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with '='"):
        check_script('"""\n====\n"""')


@pytest.mark.parametrize("again", ["def muon(): ...", "muon = 1", "import numpy as muon", "class muon: ..."])
def test_two_of_a_name_are_refused(again: str) -> None:
    with pytest.raises(ValueError, match="define 'muon'"):
        check_script(f"def muon(): ...\n{again}")


def test_a_name_of_python_s_own_is_refused() -> None:
    with pytest.raises(ValueError, match="'sum' would hide Python's own"):
        check_script("def sum(): ...")


@pytest.mark.parametrize(
    "line",
    ["import data.shards", "from data import shards as s", "from .data import x", "from data.a import *"],
)
def test_imports_that_are_not_by_name_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"train_gpt.py, line 1: .* write `from a.b import c`"):
        source(project(tmp_path, line), [])


def test_what_an_import_does_not_find_is_told(tmp_path: Path) -> None:
    made = project(tmp_path, "from data.parts import f\ng = f", {"data/parts.py": ""})
    with pytest.raises(ValueError, match=r"train_gpt.py imports 'f', expected it in data/parts.py"):
        source(made, ["g"])


@pytest.mark.parametrize(("name", "found"), [("nobody", "none"), ("f", "data.parts and train_gpt")])
def test_a_root_has_one_home(tmp_path: Path, name: str, found: str) -> None:
    made = project(tmp_path, "from data.parts import g\nf = 2", {"data/parts.py": "f = 1\ng = 1"})
    with pytest.raises(ValueError, match=f"one module that defines '{name}', found {found}"):
        source(made, [name])
