"""Unsafe operations that the code must not contain, for any configuration and any data."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.core.config import RunConfig
from tests.test_architecture import ROOMS, sources

CALLS = [
    (file, node)
    for room in ROOMS
    for file in sources(room)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call)
]


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def arguments(node: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}


def test_the_calls_are_seen() -> None:
    """Otherwise the tests below could not fail."""
    assert {"torch.load", "subprocess.run"} <= {called(node) for _, node in CALLS}


def test_nothing_is_evaluated() -> None:
    """Text of a model or a file is never executed as code."""
    for file, node in CALLS:
        assert called(node) not in (
            "eval",
            "exec",
            "compile",
            "os.system",
            "yaml.load",
            "yaml.unsafe_load",
        ), file
        assert arguments(node).get("shell", "False") == "False", file


def test_the_code_of_a_model_repository_is_never_run() -> None:
    for file, node in CALLS:
        assert arguments(node).get("trust_remote_code", "False") == "False", file


def test_tensor_files_are_loaded_as_data() -> None:
    for file, node in CALLS:
        if called(node) == "torch.load":
            assert arguments(node).get("weights_only") == "True", file


@pytest.mark.parametrize(
    "name", ["..", ".", "", "/etc", "../x", "a/b", "a\\b", "~", ".hidden", "a\n", "a b", "-rf", "x" * 101]
)
def test_a_run_stays_in_its_directory(name: str) -> None:
    with pytest.raises(ValidationError):
        RunConfig(name=name)


@pytest.mark.parametrize("name", ["demo", "demo-1", "a.b_c-D9", "1"])
def test_ordinary_names_are_accepted(name: str, tmp_path: Path) -> None:
    assert RunConfig(name=name, directory=tmp_path).run_directory.parent == tmp_path


def test_no_server_listens_on_all_addresses() -> None:
    for file in (file for room in ROOMS for file in sources(room)):
        for constant in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                assert not re.fullmatch(r"0\.0\.0\.0|::", constant.value), file
