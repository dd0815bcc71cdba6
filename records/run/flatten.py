"""A run as one script: the trainer, the modules it uses, the effective recipe; no import of this project.

The modules are put one behind the other, each after those it imports from, with their imports of this project
taken out. So their top-level names must differ, and they import by name only (`from a.b import c`).
"""

import ast
from pathlib import Path

PROJECT = ("data", "optimizers", "records")
RULE = "# " + "-" * 98


def flatten(root: Path, steps: list[str], recipe: str, arguments: list[str]) -> str:
    """The script that repeats a run: `python script.py` with the data beside it.

    root: the project's folder. steps: names of the step functions. recipe: the effective one, as TOML.
    arguments: the command line of the run.
    Raises ValueError where two modules define the same name or a line would end the script's part of a log.
    """
    register = step_modules(root)
    modules: list[str] = []
    needed = [register[name] for name in (*steps, "MatrixOptimizer")]
    for module in [*project_imports(root, "train_gpt"), *needed]:
        if module not in ("optimizers", "records.run.flatten"):  # a script is its own: it flattens nothing
            add_with_imports(root, module, modules)
    parts = [f"{RULE}\n# {module.replace('.', '/')}.py\n\n{bare_source(root, module)}" for module in modules]
    table = f"STEPS = {{{', '.join(f'{step!r}: {step}' for step in steps)}}}"
    trainer = f"{RULE}\n# train_gpt.py\n\n{bare_source(root, 'train_gpt')}"
    run = f"RECIPE = {recipe_literal(recipe)}\nARGUMENTS = {arguments!r}\n"
    start = 'if __name__ == "__main__":\n    import sys\n\n    main(ARGUMENTS + sys.argv[1:], RECIPE)\n'
    script = "\n\n".join([*parts, table, trainer, run, start])
    check_script(script)
    return script


def step_modules(root: Path) -> dict[str, str]:
    """Name of each step function -> module, from the imports of optimizers/__init__.py."""
    tree = ast.parse((root / "optimizers" / "__init__.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def module_file(root: Path, module: str) -> Path:
    return root / (module.replace(".", "/") + ".py")


def project_imports(root: Path, module: str) -> list[str]:
    """The modules of this project that a module imports at its top."""
    body = ast.parse(module_file(root, module).read_text()).body
    return [node.module for node in body if is_project_import(node)]


def is_project_import(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PROJECT


def add_with_imports(root: Path, module: str, modules: list[str]) -> None:
    """Append the module to the list behind what it imports."""
    if module not in modules:
        for needed in project_imports(root, module):
            add_with_imports(root, needed, modules)
        modules.append(module)


def bare_source(root: Path, module: str) -> str:
    """The module's source without imports of this project and without its part for the command line."""
    source = module_file(root, module).read_text()
    lines = source.splitlines()
    for node in ast.walk(tree := ast.parse(source)):
        main = isinstance(node, ast.If) and node in tree.body and "__name__" in ast.dump(node.test)
        if is_project_import(node) or main:
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line is not None).strip()


def recipe_literal(recipe: str) -> str:
    """The TOML as a string literal that reads like a file."""
    literal = f"'''\n{recipe.strip()}\n'''"
    return literal if "\\" not in recipe and "'''" not in recipe else repr(recipe)


def check_script(script: str) -> None:
    """Raises ValueError where the script would not run by itself or not stand at the head of a log."""
    if any(line.startswith("=") for line in script.splitlines()):
        raise ValueError(
            "a line of the script begins with '=', which ends the script in a log; write it another way"
        )
    seen: set[str] = set()
    for node in ast.parse(script).body:
        names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        for name in names:
            if name in seen:
                raise ValueError(f"two modules of the script define '{name}'; rename one of them")
            seen.add(name)
