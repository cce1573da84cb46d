"""The list "One training step, module by module" in docs/architecture.md is a path that a reader can walk."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests import PROJECT

DOCUMENT = PROJECT / "docs" / "architecture.md"
HEADING = "## One training step, module by module"
LONGEST = 25
_LINE = re.compile(
    r"^\d+\. \[`(?P<path>[^`]+)`\]\((?P<link>[^)]+)\) (?P<symbols>`[\w.]+`(?:, `[\w.]+`)*): \S"
)


@dataclass(frozen=True, slots=True)
class Stop:
    """One module on the path, and the symbols in it that the step runs through."""

    path: Path
    symbols: tuple[str, ...]


@cache
def stops() -> list[Stop]:
    text = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    text = text.replace("\n   ", " ")  # a list item that is wrapped
    lines = [line for line in text.splitlines() if re.match(r"\d+\. ", line)]
    found = []
    for line in lines:
        match = _LINE.match(line)
        assert match is not None, f"not of the form '1. [`path`](link) `symbol`: sentence': {line}"
        assert match["link"] == f"../{match['path']}", line
        found.append(Stop(PROJECT / match["path"], tuple(re.findall(r"`([\w.]+)`", match["symbols"]))))
    return found


def names_of(node: ast.AST) -> set[str]:
    """Return the names that a statement defines."""
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return {node.name}
        case ast.AnnAssign(target=ast.Name() as target):
            return {target.id}
        case ast.Assign():
            return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def definition(file: Path, symbol: str) -> ast.AST | None:
    """Return the class, function, method or variable `symbol` of a module, or None."""
    node: ast.AST = ast.parse(file.read_text(encoding="utf-8"))
    for name in symbol.split("."):
        body = [child for child in ast.iter_child_nodes(node) if name in names_of(child)]
        if not body:
            return None
        node = body[0]
    return node


def mentioned(node: ast.AST) -> set[str]:
    """Return all words in the code of `node`: identifiers, attributes, and words in strings."""
    words: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            words.add(child.id)
        elif isinstance(child, ast.Attribute):
            words.add(child.attr)
        elif isinstance(child, ast.alias):
            words.add((child.asname or child.name).rpartition(".")[2])
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            words.update(re.findall(r"\w+", child.value))
            words.update(re.findall(r"[\w.]+", child.value))  # a module that another process runs
    return words


def test_the_path_is_short_and_begins_at_the_command_line() -> None:
    assert 15 <= len(stops()) <= LONGEST
    assert stops()[0].path == PROJECT / "launch.py"
    assert len({stop.path for stop in stops()}) == len(stops()), "a module is listed twice"


def test_every_stop_is_there() -> None:
    for stop in stops():
        assert stop.path.is_file(), stop.path
        for symbol in stop.symbols:
            assert definition(stop.path, symbol) is not None, f"{stop.path.name} has no {symbol}"


def test_every_stop_is_reached_from_one_before_it() -> None:
    """The code of an earlier stop names one of its symbols: there is no step through a module that is not listed."""
    seen: set[str] = set()
    for number, stop in enumerate(stops()):
        names = {part for symbol in stop.symbols for part in symbol.split(".")}
        names.add(".".join(stop.path.relative_to(PROJECT).with_suffix("").parts))
        assert number == 0 or names & seen, f"nothing before it names {sorted(names)} of {stop.path}"
        for symbol in stop.symbols:
            node = definition(stop.path, symbol)
            assert node is not None
            seen |= mentioned(node)


def test_the_path_ends_at_the_optimizers_step() -> None:
    """It is taken in the module before those that compute the loss, which are the last."""
    calling = [
        stop.path.name
        for stop in stops()[-3:]
        for symbol in stop.symbols
        for call in ast.walk(definition(stop.path, symbol) or ast.Pass())
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "step"
    ]
    assert calling == ["update.py"]
