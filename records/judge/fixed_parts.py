"""python -m records fixed_parts [--add WHY]: digests of what the rules fix, as this checkout has it.

Fixed are the data's order, the model and the validation: what FIXED reaches, short of FREE. A script
is within the rules if it has them as one of the versions in fixed_parts.json. So who rewrites them adds a
version, and says what shows that it computes the same; entries from before stay valid without a new run.
"""

import argparse
import ast
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from records import RecordError
from records.judge import script_rules
from records.run.flatten import source

FILE = Path(__file__).with_name("fixed_parts.json")
FIXED = ("open_data", "training_batches", "GPT", "warm_start", "validate", "validates", "forward_backward")
# Used by the fixed parts, and an entry's own.
FREE = ("Recipe", "initialise", "build_optimizers", "compute_gradients", "apply_update")
VALUES = {"RECIPE", "TRACKS"}  # of a script, compared as values


@dataclass(frozen=True)
class Version:
    """The fixed parts of a time: name -> digest of its definition."""

    since: str  # date
    proof: str  # what shows that they compute what the version before did
    parts: dict[str, str]

    def differing(self, parts: dict[str, str]) -> list[str]:
        """The names that `parts` has otherwise or lacks."""
        return [name for name, digest in self.parts.items() if parts.get(name) != digest]


def register(subparsers) -> None:
    """Add the subcommand `fixed_parts`."""
    parser = subparsers.add_parser("fixed_parts", description=__doc__)
    parser.add_argument(
        "--add", metavar="WHY", help="add them to the file as a new version; WHY they compute the same"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print or add this checkout's digests; 1 where no version has them."""
    parts, versions = current_parts(), read_versions()
    known = next((version for version in versions if version.parts == parts), None)
    if args.add and not known:
        known = Version(date.today().isoformat(), args.add, parts)
        write_versions([*versions, known])
    for name, digest in parts.items():
        print(f"{digest}  {name}")
    if known:
        print(f"the version of {known.since}: {known.proof}")
        return 0
    print(f"no version has them; against the newest differ {', '.join(versions[-1].differing(parts))}")
    return 1


def current_parts(root: Path = script_rules.ROOT) -> dict[str, str]:
    """Name -> digest of the fixed parts in the project at `root`, as a script of it has them."""
    fixed, whole = (
        script_rules.parse(source(root, roots, given))
        for roots, given in ((FIXED, {*FREE, *VALUES}), (["replay", *FIXED], VALUES))
    )
    assert not isinstance(fixed, str) and not isinstance(whole, str)
    of_script = digests(whole)
    return {name: of_script[name] for name in digests(fixed)}


def digests(tree: ast.Module) -> dict[str, str]:
    """Name -> digest of every top-level definition: SHA-256 of its syntax, without docstrings."""
    return {name: digest(node) for name, node in script_rules.definitions(tree).items()}


def digest(node: ast.stmt) -> str:
    """A definition nested too deeply to be looked through has a digest that no version has."""
    try:
        return hashlib.sha256(canonical(node).encode()).hexdigest()
    except RecursionError:
        return "nested too deeply"


def canonical(node: object) -> str:
    """The syntax as text that is the same for every Python: what is empty is left out, as are positions."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={canonical(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])
        ]
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(canonical, node))}]"
    return repr(node)


def read_versions(file: Path = FILE) -> list[Version]:
    """The versions, oldest first. Raises RecordError where the file is damaged."""
    try:
        return [Version(**version) for version in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise RecordError(f"{file}: expected a list of versions, cannot read it: {error}") from None


def write_versions(versions: Iterable[Version], file: Path = FILE) -> None:
    whole = file.with_name(file.name + ".tmp")
    whole.write_text(json.dumps([asdict(version) for version in versions], indent=1) + "\n")
    os.replace(whole, file)


def changed_parts(tree: ast.Module, versions: list[Version]) -> Iterator[str]:
    """How the fixed parts of a script differ from every version, told against the nearest."""
    parts = digests(tree)
    version = nearest_version(parts, versions)
    differing = version.differing(parts)
    if missing := [name for name in differing if name not in parts]:
        yield f"cannot be verified: the script does not define {', '.join(missing)} (made elsewhere?)"
    if changed := [name for name in differing if name in parts]:
        yield f"changed against this checkout and its earlier versions: {', '.join(changed)}"
    for line, name in sorted(script_rules.rebound(tree, version.parts.keys() | VALUES)):
        yield f"line {line} replaces or alters {name}"


def nearest_version(parts: dict[str, str], versions: list[Version]) -> Version:
    """The version with the fewest differences, of several the newest."""
    return min(reversed(versions), key=lambda version: len(version.differing(parts)))


def other_changes(tree: ast.Module, versions: list[Version], root: Path = script_rules.ROOT) -> list[str]:
    """Names of train_gpt.py that the rules leave free and that the script has otherwise."""
    trainer = script_rules.parse((root / "train_gpt.py").read_text())
    assert not isinstance(trainer, str), trainer
    parts, ours = digests(tree), digests(trainer)
    fixed = nearest_version(parts, versions).parts
    return [name for name in ours if name in parts and name not in fixed and parts[name] != ours[name]]
