"""The style of the whole repository: docstrings, documents, vocabulary, and the size of files and functions.

Each test reports all offenders at once, grouped by file.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import PROJECT

PRODUCT = ("rollout", "learner", "reward", "cluster")
CODE = (*PRODUCT, "tests", "benchmarks", "requirements")
TEXT_FOLDERS = (*CODE, "docs", "configs")
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".j2", ".sbatch"}
OLD_NAMES = {"cluster/core/renamed.py", "tests/cluster/core/test_renamed.py", "docs/migration.md"}
"""Files that list the former names of settings and metrics, and may use any word."""
SINGLE_FILES = (
    "README.md",
    "CHANGELOG.md",
    "Makefile",
    "pyproject.toml",
    "launch.py",
    "requirements/install.sh",
)

MAX_COLUMNS = 120
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

VAGUE_OPENING = re.compile(r"\s*(Of|What|How)\b")

REPLACEMENTS = {
    r"mend(s|ed|ing)?": "fix",
    r"anew": "again",
    r"whoever|nobody|somebody": "a noun: the caller, the worker, no process …",
    r"will not do": "what was expected and what was found",
    r"teach(es)? nothing": "zero reward variance (no gradient signal)",
    r"com(e|es|ing) to nothing": "fail",
    r"prisons?": "sandbox",
    r"for ever": "indefinitely",
    r"(a|the) whole \w+ along": "turn the whole … into",
    r"judg(e|es|ed|ing|ement|ements)": "score or verify; verdict",
    r"held[-\s]out": "eval",
    r"cut off": "truncated (a response), incomplete (a file), interrupted (a run)",
    r"passed over": "skipped",
    r"without a word": "silently",
    r"made to happen": "caused",
    r"in vain": "without effect, unnecessarily",
    r"by heart": "memorized",
    r"afar": "from a distance",
    r"there (is|was|are|were) none": "a noun: there is no checkpoint …",
    r"(right|wrong) (answer|response|verdict)s?": "correct or incorrect",
    r"shares? of": "fraction of, part of",
    r"weigh(s|ed|ing)": "build the training batch; weight",
    r"(goes|go|going|went|gone) on": "continue, resume",
    r"knock(s|ed|ing)?": "probe",
}
"""Words that do not say what is meant, as regular expressions, with the words to use in place of each."""

BRITISH = (
    r"[a-z]*(optim|normal|initial|serial|random|penal|recogn|organ|quant|minim|maxim|synchron|general|summar|visual|vector)"
    r"is(e|ed|er|ers|es|ing|ation|ations)",
    r"colours?",
    r"behaviours?",
    r"centred?",
    r"labelled|modelled|licence|artefacts?",
)
"""British spellings of words that this project uses; the documentation is in American English."""


class Offender(NamedTuple):
    file: Path
    line: int
    text: str


def files(folders: Iterable[str], suffixes: set[str]) -> list[Path]:
    """Return the files of the folders that have one of the suffixes, without this one, which names the banned words."""
    found = [
        file
        for folder in folders
        for file in sorted((PROJECT / folder).rglob("*"))
        if file.suffix in suffixes and file != Path(__file__)
    ]
    assert found, f"there are no files in {', '.join(folders)}"
    return found


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def python_files() -> list[Path]:
    return [PROJECT / "launch.py", *files(CODE, {".py"})]


def text_files() -> list[Path]:
    exempt = {PROJECT / name for name in OLD_NAMES}
    found = [*(PROJECT / name for name in SINGLE_FILES), *files(TEXT_FOLDERS, TEXT_SUFFIXES)]
    return [file for file in found if file not in exempt]


def report(offenders: Iterable[Offender]) -> str:
    """Return the offenders grouped by file, one per line."""
    by_file: dict[Path, list[Offender]] = defaultdict(list)
    for offender in offenders:
        by_file[offender.file].append(offender)
    lines = [f"{sum(map(len, by_file.values()))} in {len(by_file)} files"]
    for file, found in sorted(by_file.items()):
        lines.append(str(file.relative_to(PROJECT) if file.is_relative_to(PROJECT) else file))
        lines.extend(f"    {offender.line}: {offender.text}" for offender in found)
    return "\n".join(lines)


def fail_on(offenders: Iterable[Offender]) -> None:
    if offenders := list(offenders):
        pytest.fail(report(offenders), pytrace=False)


def docstrings(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of the docstrings of modules, classes and functions, and of the strings that follow an
    assignment and describe its target."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(module):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        if isinstance(node, documented) and body and (text := string(body[0])) is not None:
            yield body[0].lineno, text
        for before, statement in pairwise(body):
            if isinstance(before, ast.Assign | ast.AnnAssign) and (text := string(statement)) is not None:
                yield statement.lineno, text


def string(statement: ast.stmt) -> str | None:
    """Return the string that the statement consists of, None if it is another statement."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return None


def vague_docstrings(file: Path) -> Iterator[Offender]:
    for line, text in docstrings(tree(file)):
        if VAGUE_OPENING.match(text):
            yield Offender(file, line, text.strip().partition("\n")[0])


def long_functions(file: Path) -> Iterator[Offender]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield Offender(
                    file, node.lineno, f"{node.name}: {lines} lines, and {MAX_FUNCTION_LINES} are allowed"
                )


def wide_lines(file: Path) -> Iterator[Offender]:
    """Yield the lines of prose that are too long. Tables and code blocks may be wider."""
    in_code = False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith("|") and len(line) > MAX_COLUMNS:
            yield Offender(file, number, f"{len(line)} columns: {line[:60]}…")


def banned_words(file: Path) -> Iterator[Offender]:
    text = file.read_text(encoding="utf-8")
    if file.name == "CHANGELOG.md":  # it names former settings
        text = re.sub(r"`[^`\n]*`", "``", text)
    for found in PATTERN.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        words = " ".join(found.group().replace("#", " ").split())
        yield Offender(file, line, f"{words!r}: write {replacement(words)}")


def words(pattern: str) -> str:
    """Return the expression for a phrase that may run over two lines of a comment."""
    return pattern.replace(" ", r"[\s#]+")


PATTERN = re.compile(rf"(?<![a-z])({words('|'.join([*REPLACEMENTS, *BRITISH]))})(?![a-z])", re.IGNORECASE)


def replacement(found: str) -> str:
    for pattern, better in REPLACEMENTS.items():
        if re.fullmatch(pattern, found, re.IGNORECASE):
            return better
    return "the American spelling"


def test_no_docstring_begins_with_a_vague_word() -> None:
    """A docstring begins with a verb (functions) or a noun phrase (attributes), not with Of, What or How."""
    offenders = [offender for file in python_files() for offender in vague_docstrings(file)]
    fail_on(offenders)


def test_markdown_fits_its_columns() -> None:
    pages = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *files(TEXT_FOLDERS, {".md"})]
    offenders = [offender for page in pages for offender in wide_lines(page)]
    fail_on(offenders)


def test_files_are_short() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in python_files()}
    offenders = [
        Offender(file, lines, f"lines, and {MAX_FILE_LINES} are allowed")
        for file, lines in lengths.items()
        if lines > MAX_FILE_LINES
    ]
    fail_on(offenders)


def test_functions_are_short() -> None:
    offenders = [offender for file in python_files() for offender in long_functions(file)]
    fail_on(offenders)


def test_words_say_what_is_meant() -> None:
    offenders = [offender for file in text_files() for offender in banned_words(file)]
    fail_on(offenders)


def test_the_checks_find_offenders(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""What it is."""\nX = 1\n"""Of Y."""\n\ndef f():\n    """Howl."""\n'
        + "    f()\n" * MAX_FUNCTION_LINES
    )
    assert [(found.line, found.text) for found in vague_docstrings(file)] == [
        (1, "What it is."),
        (3, "Of Y."),
    ]
    assert [found.line for found in long_functions(file)] == [5]

    page = tmp_path / "page.md"
    page.write_text(f"{'a' * 121}\n| {'b' * 121} |\n```\n{'c' * 121}\n```\n{'d' * 120}\n")
    assert [found.line for found in wide_lines(page)] == [1]

    assert report(wide_lines(page)).startswith("1 in 1 files\n")


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("# mend it", "fix"),
        ("# this will not\n    # do", "what was expected and what was found"),
        ("normalised_length = 1", "the American spelling"),
        ("Colours", "the American spelling"),
        ("held-out", "eval"),
        ("amend, colors, goal, noise", None),
    ],
)
def test_banned_words_are_found(text: str, better: str | None, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(text)
    found = list(banned_words(file))
    assert [offender.text.partition("write ")[2] for offender in found] == ([better] if better else [])
