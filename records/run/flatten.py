"""A run as one script: what it reached of the trainer and the optimizers, and what it chose, as values.

A piece is a top-level statement with the comment directly above it. It is reached where it defines a name
that a reached piece looks up, be it in its body, its decorators, its defaults or its annotations. So a
registry that decorators fill holds what was reached. The pieces stand in the order of their modules, a module
behind those it imports from, without imports of this project and without the modules' docstrings; of the
others it has the first paragraph, and between pieces one blank line: the project has the rest. Two rules
follow: top-level names differ over all modules of a script; modules import by name (`from a.b import c`).

The optimizers check what a recipe says, and the run has passed that: their statements that only check are
left out, and of their classes without bases the methods that no code of the script names. A third rule: a
function of theirs that is named check or check_... only raises.
"""

import ast
import builtins
import symtable
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pprint import pformat
from textwrap import indent

PROJECT = ("data", "optimizers", "records", "train_gpt")
WIDTH = 110
RULE = "# " + "-" * 98
HEAD = '"""One run as one script: beside its data/ it repeats the run. What was chosen stands at the end."""'
START = 'if __name__ == "__main__":\n    replay(RECIPE, ARGUMENTS + sys.argv[1:])\n'
Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True)
class Piece:
    """A top-level statement, or a comment that stands by itself: the heading of what follows."""

    lines: tuple[tuple[int, str], ...]  # (number, text) as written, less what is left out
    blank: int  # lines above it
    methods: tuple[tuple[str, int, int], ...] = ()  # that may be left out: name, first line, line behind it
    defines: frozenset[str] = frozenset()
    always: bool = False  # it does more than define names: kept where anything of its module is
    heading: bool = False

    def code(self, attributes: Collection[str]) -> str:
        """Its text; of the methods that may be left out, those that are among the attributes."""
        unnamed = (method for method in self.methods if method[0] not in attributes)
        out = {number for _, first, end in unnamed for number in range(first, end)}
        return "\n".join(line for number, line in self.lines if number not in out)


@dataclass
class Module:
    """A module of this project, taken apart."""

    path: str  # below the project's folder
    pieces: list[Piece] = field(default_factory=list)
    # Imported names: of this project, with their module; others, with their import statements.
    project: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, set[str]] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)  # modules imported at the top
    asks: list[str] = field(default_factory=list)  # modules imported inside functions, or for types only


def flatten(root: Path, steps: Iterable[str], values: dict[str, str], arguments: list[str]) -> str:
    """The script that repeats a run: `python script.py` with the data beside it.

    root: the project's folder. steps: names of the functions that the recipe chooses by name.
    values: name -> expression that stands for what the project defines, or reads, under that name.
    arguments: the command line of the run.
    Raises ValueError where the pieces cannot stand in one file, or a line would end the script in a log.
    """
    named = {name for value in values.values() for name in names_looked_up(value)}
    reached = source(root, ["replay", *steps, *sorted(named)], values, imports=["import sys"])
    chosen = [f"{name} = {indent(value, ' ' * (len(name) + 3)).strip()}" for name, value in values.items()]
    run = "\n".join([f"{RULE}\n# The run\n", *chosen, f"ARGUMENTS = {arguments!r}"])
    script = "\n\n\n".join([f"{HEAD}\n\n{reached}", run, START])
    check_script(script)
    return script


def literal(value: object) -> str:
    """A value as the expression that gives it back, over several lines where it is long."""
    return pformat(value, width=WIDTH - len("RECIPE = "), sort_dicts=False)


def source(root: Path, roots: Iterable[str], given: Collection[str] = (), imports: Iterable[str] = ()) -> str:
    """All that the names in `roots` reach, module by module, below one block of imports (and `imports`).

    Names in `given` are not followed. Raises ValueError for a root that not exactly one module defines.
    """
    modules = read_modules(root)
    starts = [(home(modules, name), name) for name in roots]
    attributes: set[str] = set()
    while True:  # until the kept code names no further method
        kept, used = reach(modules, starts, given, attributes)
        codes = (piece.code(attributes) for pieces in kept.values() for piece in pieces)
        named = set().union(*map(attributes_named, codes))
        if named <= attributes:
            break
        attributes |= named
    texts = {name: as_written(module.pieces, kept[name], attributes) for name, module in modules.items()}
    banners = [f"{RULE}\n# {modules[name].path}\n\n{code}" for name, code in texts.items() if code]
    return "\n\n\n".join(part for part in (import_block({*used, *imports}), *banners) if part)


def reach(
    modules: dict[str, Module],
    starts: Iterable[tuple[str, str]],
    given: Collection[str],
    attributes: set[str],
) -> tuple[dict[str, set[Piece]], set[str]]:
    """The pieces by module that (module, name) pairs reach, and the import statements they need."""
    kept: dict[str, set[Piece]] = {name: set() for name in modules}
    used: set[str] = set()
    todo = list(starts)
    while todo:
        origin, name = where, _ = todo.pop()
        while name in modules[where].project:
            where = modules[where].project[name]
        module = modules[where]
        if name in given:
            continue
        found = {piece for piece in module.pieces if name in piece.defines}
        if where != origin and not found and name not in module.foreign:
            raise ValueError(f"{modules[origin].path} imports {name!r}, expected it in {module.path}")
        used |= module.foreign.get(name, set())
        if found:
            found |= {piece for piece in module.pieces if piece.always}
        for piece in found - kept[where]:
            todo += [(where, other) for other in names_looked_up(piece.code(attributes))]
        kept[where] |= found
    return kept, used


def home(modules: dict[str, Module], name: str) -> str:
    """The module that defines a name."""
    homes = [key for key, module in modules.items() if any(name in piece.defines for piece in module.pieces)]
    if len(homes) != 1:
        raise ValueError(f"expected one module that defines {name!r}, found {' and '.join(homes) or 'none'}")
    return homes[0]


@cache
def names_looked_up(code: str) -> frozenset[str]:
    """The names that code looks up at the top level of its module: neither its locals nor its parameters."""

    def within(table: symtable.SymbolTable) -> Iterator[str]:
        local, symbols = table.get_type() == "function", table.get_symbols()
        yield from (s.get_name() for s in symbols if s.is_global() or (s.is_referenced() and not local))
        for inner in table.get_children():
            yield from within(inner)

    names = frozenset(within(symtable.symtable(code, "code", "exec")))
    return names.union(*map(names_looked_up, quoted_annotations(code)))


def quoted_annotations(code: str) -> Iterator[str]:
    """What annotations say in quotes: World of `world: "World"`."""
    for node in ast.walk(ast.parse(code)):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(hint) if hint else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    with suppress(SyntaxError):  # words about a type
                        yield ast.unparse(ast.parse(part.value))


@cache
def attributes_named(code: str) -> frozenset[str]:
    """The attributes that code names, be it in a string as getattr takes it."""
    nodes = list(ast.walk(ast.parse(code)))
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return frozenset(words.union(node.attr for node in nodes if isinstance(node, ast.Attribute)))


def as_written(pieces: list[Piece], kept: set[Piece], attributes: set[str]) -> str:
    """The kept pieces under their headings, with the blank lines as they were; empty where none is kept."""
    lines: list[str] = []
    heading, blank = "", 0
    for piece in pieces:
        blank = max(blank, piece.blank)
        if piece.heading:
            heading, blank = "\n" * blank + piece.code(()) + "\n", 0
        elif piece in kept:
            lines.append(heading + "\n" * blank + piece.code(attributes))
            heading, blank = "", 0
    return "\n".join(lines).strip("\n")


def import_block(statements: Iterable[str]) -> str:
    """Import statements of one name each, as one block: Python's own first, names of one module together."""
    whole: set[str] = set()
    by_name: dict[str, set[str]] = {}
    for statement in statements:
        module, found, name = statement.partition(" import ")
        if found:
            by_name.setdefault(module, set()).add(name)
        else:
            whole.add(statement)
    lines = sorted(whole)
    for module, names in sorted(by_name.items()):
        line = f"{module} import {', '.join(sorted(names))}"
        if len(line) > WIDTH:
            line = "\n".join([f"{module} import (", *(f"    {name}," for name in sorted(names)), ")"])
        lines.append(line)
    own = [line for line in lines if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    own.sort(key=lambda line: not line.startswith("from __future__"))
    others = [line for line in lines if line not in own]
    return "\n\n".join("\n".join(block) for block in (own, others) if block)


def check_script(script: str) -> None:
    """Raises ValueError where the script would not run by itself or not stand at the head of a log."""
    if any(line.startswith("=") for line in script.splitlines()):
        raise ValueError("a line of the script begins with '=', which ends it in a log; write it another way")
    lines, seen = script.split("\n"), set[str]()
    for node in ast.parse(script).body:
        names = defined("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if twice := sorted(names & seen):
            raise ValueError(f"two modules of the script define {twice[0]!r}; rename one of them")
        if hidden := sorted(names.intersection(dir(builtins))):
            raise ValueError(f"the script's {hidden[0]!r} would hide Python's own; rename it")
        seen |= names


# ----------------------------------------------------------------------------------------------------
# Taking modules apart


def read_modules(root: Path, start: str = "train_gpt") -> dict[str, Module]:
    """`start` and the modules it imports, directly or not, by name, a module behind those it needs."""
    modules: dict[str, Module] = {}
    seen: set[str] = set()

    def add(name: str) -> None:
        if name not in seen:
            seen.add(name)
            module = read_module(root, name)
            for needed in module.needs:
                add(needed)
            modules[name] = module
            for asked in module.asks:
                add(asked)

    add(start)
    return modules


def read_module(root: Path, name: str) -> Module:
    """Raises ValueError where it imports from this project other than by `from a.b import c`."""
    return taken_apart(root, name, module_file(root, name).read_text(encoding="utf-8") + "\n")


@cache
def taken_apart(root: Path, name: str, code: str) -> Module:
    """The module of that name with that code."""
    path = module_file(root, name).relative_to(root).as_posix()
    module, checks, end = Module(path), name.startswith("optimizers"), 0
    lines, left = code.split("\n"), dict(enumerate(code.split("\n")))
    for node in ast.parse(code).body:
        note_imports(root, module, node)
        first = first_line(node, lines, end)
        above, begin, end = lines[end:first], first, node.end_lineno or first
        if isinstance(node, Import) or is_docstring(node) or is_for_types(node) or is_command_line(node):
            continue
        if heading := "\n".join(above).strip("\n"):
            module.pieces.append(Piece(((0, heading),), min(leading_blanks(above), 1), heading=True))
        leave_out(node, left, lines, checks)
        shorten_docstrings(node, left, lines)
        kept = tuple((number, left[number]) for number in range(begin, end) if number in left)
        names = defined("\n".join(line for _, line in kept))
        blank = leading_blanks(above[::-1])
        optional = tuple(methods(node, lines)) if checks else ()
        module.pieces.append(Piece(kept, min(blank, 1), optional, names, acts(node)))
    return module


def first_line(node: ast.stmt, lines: list[str], end: int) -> int:
    """Where a statement begins, with its decorators and the comment directly above, not before line `end`."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1
    while first > end and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first


def methods(node: ast.stmt, lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, first line, line behind it) of the methods of a class without bases, but for __those__."""
    if isinstance(node, ast.ClassDef) and not node.bases and not node.keywords:
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("__"):
                first = first_line(part, lines, 0)
                yield part.name, first - (not lines[first - 1].strip()), part.end_lineno or first


def module_file(root: Path, name: str) -> Path:
    place = root / name.replace(".", "/")
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def note_imports(root: Path, module: Module, statement: ast.stmt) -> None:
    """Write down what a top-level statement imports, itself or inside."""
    for node in (node for node in ast.walk(statement) if isinstance(node, Import)):
        if of_project(node):
            plain = all(not alias.asname and alias.name != "*" for alias in node.names)
            if not isinstance(node, ast.ImportFrom) or node.level or not plain:
                found = f"{module.path}, line {node.lineno}: `{ast.unparse(node)}`"
                raise ValueError(f"{found} cannot be flattened; write `from a.b import c`")
            of = str(node.module)
            module.project |= {alias.name: of for alias in node.names}
            # Of a package also modules can be imported, for what they register.
            inside = [f"{of}.{alias.name}" for alias in node.names]
            needed = [of, *(name for name in inside if module_file(root, name).exists())]
            (module.needs if node is statement else module.asks).extend(needed)
        elif node is statement or is_for_types(statement):
            begin = f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                module.foreign.setdefault(bound, set()).add(f"{begin} {ast.unparse(alias)}")


def of_project(node: ast.AST) -> bool:
    """Whether it is an import of this project's."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] in PROJECT
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] in PROJECT for alias in node.names)


def is_for_types(node: ast.stmt) -> bool:
    """`if TYPE_CHECKING:`"""
    return isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"


def is_command_line(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`"""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def leave_out(statement: ast.stmt, left: dict[int, str], lines: list[str], checks: bool) -> None:
    """Take imports of this project out of the lines that are `left` of a statement; with `checks`, also what
    `only_checks`. A block that has nothing else keeps a `pass`.
    """
    parts = [statement, *getattr(statement, "handlers", []), *getattr(statement, "cases", [])]
    for block in (getattr(part, name, []) for part in parts for name in ("body", "orelse", "finalbody")):
        out = [one for one in block if of_project(one) or (checks and only_checks(one))]
        for one in out:
            end = one.end_lineno or one.lineno
            end += one is block[0] and not lines[end].strip()  # and the blank line under the first
            for number in range(first_line(one, lines, 0), end):
                left.pop(number, None)
        if out and len(out) == len(block):
            left[out[0].lineno - 1] = " " * out[0].col_offset + "pass"
        for one in (one for one in block if one not in out):
            leave_out(one, left, lines, checks)


def shorten_docstrings(statement: ast.stmt, left: dict[int, str], lines: list[str]) -> None:
    """Take all but the first paragraph of every docstring out of the lines that are `left` of a statement."""
    definitions = (node for node in ast.walk(statement) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    for told in (node.body[0] for node in definitions if is_docstring(node.body[0])):
        last = (told.end_lineno or told.lineno) - 1
        blank = [number for number in range(told.lineno - 1, last) if not lines[number].strip()]
        if blank and blank[0] - 1 in left:
            left[blank[0] - 1] += '"""'
            for number in range(blank[0], last + 1):
                del left[number]


def only_checks(node: ast.stmt) -> bool:
    """Whether a statement does nothing but call functions named check or check_..., which only raise."""
    if isinstance(node, ast.For | ast.If) and not node.orelse:
        return all(only_checks(one) for one in node.body)
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    name = getattr(called, "attr", getattr(called, "id", ""))
    return name == "check" or name.startswith("check_")


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def defined(code: str) -> frozenset[str]:
    """The names that code defines or imports at the top level."""
    symbols = symtable.symtable(code, "code", "exec").get_symbols()
    return frozenset(s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_annotated())


def acts(node: ast.stmt) -> bool:
    """Whether a statement does more than define names, such as set a switch of a library."""
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(part, ast.Attribute | ast.Subscript) for t in targets for part in ast.walk(t))
    return not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def leading_blanks(lines: list[str]) -> int:
    """How many lines are blank before the first that is not."""
    return next((count for count, line in enumerate(lines) if line.strip()), len(lines))
