"""What the script of a log may not do, found in its syntax tree. The script is parsed, never run.

Found: imports beyond Python and a list of packages; code made at run time; parts of the trainer that the
rules fix and that are set anew; decisions on validation loss. Not found: a decision hidden in
what another function returns, in an attribute or behind another name. A reader has the last word.
"""

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from records.run.recipe import toml_lines

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "triton", "tiktoken", "huggingface_hub", "sympy", "pyarrow", "tqdm")
DYNAMIC = ("exec", "eval", "compile", "__import__")
LEAVING = (ast.Break, ast.Continue, ast.Return, ast.Raise)
LEAVING_CALLS = ("exit", "quit", "_exit", "abort", "kill", "step", "load_state_dict")
HYPERPARAMETERS = re.compile(r"(initial_|base_)?lr|learning_rate|weight_decay|momentum|betas?|beta[12]|eps")
VAL_LOSS = re.compile(r"(?:.*_)?val(?:idation)?_?loss(?:es)?(?:_.*)?|.*loss_val|eval_loss", re.IGNORECASE)


@lru_cache(maxsize=4)
def parse(script: str) -> ast.Module | str:
    """The syntax tree without docstrings, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes and the like, in somebody's code
            tree = ast.parse(script)
    except SyntaxError as error:
        return f"it is not Python (line {error.lineno}: {error.msg})"
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return f"it cannot be parsed ({type(error).__name__})"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    return tree


def foreign_imports(tree: ast.Module) -> Iterator[str]:
    """Imports of what is neither Python's own nor in PACKAGES, and code made at run time."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        for name in names:
            top = name.split(".")[0]
            if top not in PACKAGES and top not in sys.stdlib_module_names:
                yield f"line {line_of(node)} imports {name}"
            elif top == "importlib":
                yield f"line {line_of(node)} imports importlib: what it loads cannot be seen"
        called = getattr(node.func, "id", None) if isinstance(node, ast.Call) else None
        if called in DYNAMIC:
            yield f"line {line_of(node)} calls {called}: what it runs cannot be seen"


def line_of(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Name -> the first top-level function, class or assignment of that name."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.setdefault(node.name, node)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(name := targets[0], ast.Name):
            found.setdefault(name.id, node)
    return found


def embedded_recipe(script: str) -> str | None:
    """The effective recipe in a script, as TOML; None where there is none, "" where it cannot be read.

    It stands there as RECIPE = Recipe(key=literal, ...), in older scripts as TOML. Nothing of it is run.
    """
    tree = parse(script)
    value = None if isinstance(tree, str) else getattr(definitions(tree).get("RECIPE"), "value", None)
    try:
        recipe = value and literal(value)
        if isinstance(recipe, dict):
            facts, track = recipe.pop("facts", {}), recipe.pop("track", {})
            recipe = "\n".join(toml_lines({**facts, **recipe, "track": track["name"]}))
        return recipe
    except (ValueError, TypeError, KeyError, MemoryError, RecursionError):
        return ""


def literal(node: ast.expr) -> Any:
    """The value of an expression; of a call, its keyword arguments. Raises ValueError for no literal."""
    if isinstance(node, ast.Call) and not node.args:
        return {str(word.arg): literal(word.value) for word in node.keywords}
    return ast.literal_eval(node)


def plain_arguments(script: str) -> bool:
    """Whether a script has no line ARGUMENTS = ..., or one, with a list of strings: that line may differ."""
    lines = [line for line in script.splitlines() if line.startswith("ARGUMENTS = ")]
    try:
        values = [ast.literal_eval(line.removeprefix("ARGUMENTS = ")) for line in lines]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return len(values) < 2 and all(isinstance(v, list) and all(isinstance(a, str) for a in v) for v in values)


def rebound(tree: ast.Module, names: set[str]) -> set[tuple[int, str]]:
    """(line, name) wherever one of the names, or an attribute or item of it, is set beyond its definition."""
    first = set(map(id, definitions(tree).values()))
    found: set[tuple[int, str]] = set()

    def visit(node: ast.AST, local: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = local or isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
            )
            name = None
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not inner:
                name = child.name if id(child) not in first else None
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store | ast.Del) and not inner:
                name = child.id if id(node) not in first else None
            elif isinstance(child, ast.Attribute | ast.Subscript) and isinstance(
                child.ctx, ast.Store | ast.Del
            ):
                name = base_name(child)
            elif isinstance(child, ast.Global):
                name = next((n for n in child.names if n in names), None)
            elif isinstance(child, ast.alias):
                name = child.asname or child.name
            elif isinstance(child, ast.Call) and getattr(child.func, "id", None) in (
                "setattr",
                "delattr",
                "globals",
            ):
                name = base_name(child.args[0]) if child.args else "globals()"
            if name and (name in names or name == "globals()"):
                found.add((line_of(child), name))
            visit(child, inner)

    visit(tree, False)
    return found


def base_name(node: ast.AST) -> str | None:
    """GPT of GPT.forward and of GPT["x"]."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def decisions_on_val_loss(tree: ast.Module) -> list[str]:
    """Where the run's course depends on a validation loss, one line of text each.

    A value counts as validation loss if its name says so (val_loss, val_losses, best_val_loss, ...), if
    `validate(...)` returned it, or if it was computed from such a value in the same function. Found are: a
    while or assert on it; an if or match on it that contains break, continue, return, raise, an exit or a
    step of an optimizer or scheduler; a learning rate or another hyperparameter set from it or under such an
    if; `.step(it)` and `.load_state_dict(it)`.
    Tests whether it is None or finite are no decisions: they tell whether there is a value.
    """
    found: dict[int, str] = {}
    follow(tree.body, set(), found)
    return [f"line {line}: {found[line]}" for line in sorted(found)]


def follow(body: list[ast.stmt], tainted: set[str], found: dict[int, str]) -> None:
    """Run through statements in order, keeping in `tainted` the names that hold a validation loss."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            follow(node.body, set(tainted), found)
            continue
        judge(node, tainted, found)
        for target, value in bindings(node):
            bind(target, value, tainted)
        for _ in range(
            3 if isinstance(node, ast.For | ast.AsyncFor | ast.While) else 1
        ):  # round the loop again
            branches = [set(tainted) for _ in blocks(node)]
            for block, branch in zip(blocks(node), branches, strict=True):
                follow(block, branch, found)
            tainted.update(*branches)


def blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """The bodies of a compound statement."""
    parts = [node, *getattr(node, "handlers", []), *getattr(node, "cases", [])]
    return [
        block
        for part in parts
        for name in ("body", "orelse", "finalbody")
        if (block := getattr(part, name, None))
    ]


def bindings(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of an assignment, a loop or a with."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.AugAssign):
        yield node.target, ast.BinOp(node.target, node.op, node.value)
    elif isinstance(node, ast.For | ast.AsyncFor):
        yield node.target, node.iter
    elif isinstance(node, ast.With | ast.AsyncWith):
        yield from (
            (item.optional_vars, item.context_expr) for item in node.items if item.optional_vars is not None
        )


def bind(target: ast.expr, value: ast.expr, tainted: set[str]) -> None:
    """Names of the target hold a validation loss if the value does; matching tuples go one by one."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, its in zip(target.elts, value.elts, strict=True):
            bind(one, its, tainted)
        return
    held = holds(value, tainted)
    for name in ast.walk(target):
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
            (tainted.add if held else tainted.discard)(name.id)


def holds(node: ast.AST | None, tainted: set[str]) -> bool:
    """Whether a validation loss goes into an expression, other than to ask whether it is None or finite."""
    if node is None:
        return False
    if isinstance(node, ast.Name):
        return node.id in tainted or VAL_LOSS.fullmatch(node.id) is not None
    if isinstance(node, ast.Attribute) and VAL_LOSS.fullmatch(node.attr):
        return True
    if isinstance(node, ast.Subscript) and VAL_LOSS.fullmatch(str(getattr(node.slice, "value", ""))):
        return True
    if isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if called == "validate":
            return True
        if called in ("isfinite", "isnan", "isinf"):
            return False
    if isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
        return False
    return any(holds(child, tainted) for child in ast.iter_child_nodes(node))


def judge(node: ast.stmt, tainted: set[str], found: dict[int, str]) -> None:
    """Note the decisions of one statement; what stands inside its blocks is judged by itself."""
    if isinstance(node, ast.While | ast.Assert) and holds(node.test, tainted):
        found[node.lineno] = f"{type(node).__name__.lower()} on a validation loss"
    if (isinstance(node, ast.If) and holds(node.test, tainted)) or (
        isinstance(node, ast.Match) and holds(node.subject, tainted)
    ):
        for inner in (part for block in blocks(node) for statement in block for part in ast.walk(statement)):
            if what := decides(inner):
                found[node.lineno] = f"if a validation loss: {what} in line {line_of(inner)}"
                break
    for target, value in bindings(node):
        if hyperparameter(target) and holds(value, tainted):
            found[node.lineno] = f"{hyperparameter(target)} is set from a validation loss"
    for part in ast.walk(ast.Module([node], [])) if not blocks(node) else ():
        called = getattr(part.func, "attr", None) if isinstance(part, ast.Call) else None
        if called in ("step", "load_state_dict") and any(holds(one, tainted) for one in given_to(part)):
            found[line_of(part)] = f"{called}() is given a validation loss"


def given_to(call: ast.AST) -> list[ast.AST]:
    """The arguments of a call."""
    return [*call.args, *call.keywords] if isinstance(call, ast.Call) else []


def decides(node: ast.AST) -> str | None:
    """What a statement or call changes in the course of the run."""
    if isinstance(node, LEAVING):
        return type(node).__name__.lower()
    if isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return f"{called}()" if called in LEAVING_CALLS else None
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        names = [hyperparameter(target) for target, _ in bindings(node)]
        return next((f"{name} is set" for name in names if name), None)
    return None


def hyperparameter(target: ast.expr) -> str | None:
    """The name of the hyperparameter that a target sets: lr, group["lr"], self.weight_decay."""
    name = getattr(target, "id", None) or getattr(target, "attr", None)
    if isinstance(target, ast.Subscript):
        name = getattr(target.slice, "value", None)
    return name if isinstance(name, str) and HYPERPARAMETERS.fullmatch(name) else None
