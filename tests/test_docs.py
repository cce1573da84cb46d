"""The documentation: links have a target, commands and configurations are valid, and generated pages are current."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.exceptions import TyperException

from cluster.commands.compare.comparison_file import ComparisonConfig
from cluster.commands.docs import pages
from cluster.configuration.loading import validate
from cluster.configuration.messages import setting_names
from cluster.core.config import RunConfig
from launch import app
from tests import PROJECT

PAGES = sorted([PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")])
COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SETTINGS = set(setting_names(RunConfig))
WRITTEN_BY_READERS = {"config.yaml", "my.yaml", "sums.yaml"}


def page_name(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates from the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands of the shell blocks, without comments, environment variables and the rest of a pipe."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            for end in ("|", ">", "2>", "&", "&&"):
                if end in words:
                    words = words[: words.index(end)]
            if words:
                yield words


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_have_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in anchors(found), f"{target}: there is no such heading"


def test_the_first_page_links_to_every_other_page() -> None:
    listed = set(re.findall(r"\(([\w]+\.md)", (PROJECT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in (PROJECT / "docs").glob("*.md")} - {"README.md"} == listed


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_are_valid(page: Path) -> None:
    for words in commands(page):
        if words[:2] == ["python", "launch.py"]:
            assert_launch_takes(words[2:])
        elif words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            known = re.findall(r"^([a-z0-9-]+):", (PROJECT / "Makefile").read_text(), flags=re.M)
            assert set(targets) <= set(known), f"make has no target {targets}"
        elif words[0] == "python":
            assert (PROJECT / words[1]).exists() or words[1] == "-m", f"there is no {words[1]}"


def assert_launch_takes(words: list[str]) -> None:
    """Assert that the command line parses and that the settings and files that it names exist. Nothing is run."""
    command = COMMANDS.get(words[0])
    assert command is not None, f"launch.py has no command {words[0]}"
    command.make_context(words[0], list(words[1:]))
    for word in words[1:]:
        key, equals, _ = word.partition("=")
        if equals and not word.startswith("-"):
            assert key in SETTINGS or key.startswith("task.options."), f"there is no setting {key}"
        elif word.endswith(".yaml") and word not in WRITTEN_BY_READERS:
            assert (PROJECT / word).exists(), f"there is no {word}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_configurations_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        values: Any = yaml.safe_load(block)
        if set(values) & {"apiVersion", "kind"}:  # the configuration of another program
            continue
        schema = ComparisonConfig if "variants" in values else RunConfig
        _, problems = validate(schema, values)
        assert problems == [], block


@pytest.mark.parametrize("path", pages(), ids=str)
def test_generated_pages_are_current(path: Path) -> None:
    assert (PROJECT / path).read_text(encoding="utf-8") == pages()[path], "run: make docs"


def test_every_setting_is_explained() -> None:
    """Every setting has a paragraph, or its section explains it."""
    page = pages()[Path("docs/configuration.md")]
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", page, flags=re.M)
    assert {name for name, _ in rows} >= SETTINGS
    assert [name for name, meaning in rows if not meaning.strip()] == []
    questions = re.compile(r"(Of|What|How|Whether|Where|Who|Which)\b")
    assert [name for name, meaning in rows if questions.match(meaning)] == []


def test_the_checks_find_mistakes(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no command"):
        assert_launch_takes(["trian"])
    with pytest.raises(AssertionError, match="no setting"):
        assert_launch_takes(["train", "configs/demo.yaml", "rolout.workers=4"])
    with pytest.raises(TyperException, match="--fersh"):
        assert_launch_takes(["train", "configs/demo.yaml", "--fersh"])
    page = tmp_path / "page.md"
    page.write_text("[a](nowhere.md)\n```bash\nX=1 python launch.py tasks | head # why\n```\n")
    with pytest.raises(AssertionError, match="no such file"):
        test_links_have_a_target(page)
    assert list(commands(page)) == [["python", "launch.py", "tasks"]]


MESSAGES_OF_OTHERS = ("No space left on device",)
"""Messages of the operating system and of libraries."""
OPERATIONS = PROJECT / "docs" / "operations.md"


def product_files() -> list[Path]:
    return [
        file
        for package in ("rollout", "learner", "reward", "cluster")
        for file in (PROJECT / package).rglob("*.py")
    ]


def literals_of(file: Path) -> list[str]:
    """Return the string literals of a file, without docstrings."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


def test_quoted_messages_are_those_of_the_code() -> None:
    """The symptoms of operations.md quote messages. Their fixed parts are in string literals of the product."""
    literals = {text for file in product_files() for text in literals_of(file)}
    rows = [
        line.split("|")[1] for line in OPERATIONS.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    quoted = [message for symptom in rows for message in re.findall(r"`([^`]+)`", symptom)]
    parts = {
        part.strip()
        for message in quoted
        for part in re.split(r"…|\b[NXY]\b|rollout-", message)
        if " " in part.strip() and message not in MESSAGES_OF_OTHERS
    }
    assert len(parts) >= 8
    assert not {part for part in parts if not any(part in literal for literal in literals)}
