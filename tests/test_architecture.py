"""The import rules of the packages, and the modules that must load quickly."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests import PROJECT

ROOMS = ("rollout", "learner", "reward", "cluster")
OURS = (*ROOMS, "launch", "tests", "benchmarks")
ALL_MAY_IMPORT = {
    "cluster.core.config",
    "cluster.core.files",
    "cluster.core.types",
    "cluster.core.network",
    "cluster.core.weight_channel",
}


def sources(room: str) -> list[Path]:
    files = sorted((PROJECT / room).rglob("*.py"))
    assert files, f"{room}/ has moved, and these tests look at nothing"
    return files


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted names of all modules and packages that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            # In `from cluster.core import config` both halves are modules, in `from cluster.core.config import X` one.
            children = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [child for child in children if is_module(child)]
            yield from modules
            if len(modules) < len(children):
                yield node.module


def is_module(dotted: str) -> bool:
    path = PROJECT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def our_imports(file: Path) -> set[str]:
    return {name for name in imports(file) if name.partition(".")[0] in OURS}


def test_the_imports_are_seen(tmp_path: Path) -> None:
    """Otherwise the tests below could not fail."""
    file = tmp_path / "module.py"
    file.write_text(
        "import os, rollout.fleet.fleet\nfrom cluster.core import config\nfrom cluster.core.types import Prompt\n"
        "def late():\n    from learner.engine.rank import LearnerRank\nif True:\n    import launch as l\n"
    )
    expected = {
        "rollout.fleet.fleet",
        "cluster.core.config",
        "cluster.core.types",
        "learner.engine.rank",
        "launch",
    }
    assert our_imports(file) == expected


@pytest.mark.parametrize("room", ["rollout", "learner", "reward"])
def test_a_room_knows_itself_and_what_crosses_the_walls(room: str) -> None:
    for file in sources(room):
        foreign = {name for name in our_imports(file) if name.partition(".")[0] != room}
        assert foreign <= ALL_MAY_IMPORT, f"{file.relative_to(PROJECT)} imports {foreign - ALL_MAY_IMPORT}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_package_imports_the_command_line_or_the_tests(room: str) -> None:
    for file in sources(room):
        assert not {name for name in our_imports(file) if name.partition(".")[0] in ("launch", "tests")}


@pytest.mark.parametrize("module", sorted(ALL_MAY_IMPORT))
def test_modules_that_all_may_import_import_none_of_ours(module: str) -> None:
    assert our_imports(PROJECT.joinpath(*module.split(".")).with_suffix(".py")) == set()


@pytest.mark.parametrize("room", ROOMS)
def test_modules_of_a_room_do_not_import_in_circles(room: str) -> None:
    graph = {
        ".".join(file.relative_to(PROJECT).with_suffix("").parts): our_imports(file) for file in sources(room)
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for imported in graph.get(module, set()):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a process has loaded at the end of `code`."""
    process = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('loaded:', *sys.modules)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("loaded:")]
    return {name.partition(".")[0] for name in line.split()}


def test_checking_a_configuration_loads_none_of_the_engines() -> None:
    code = """
from launch import app
app(["check", "configs/demo.yaml", "rollout.cpus_per_worker=0.1", "learner.cpus_per_rank=0.1"], standalone_mode=False)
"""
    loaded = loaded_after(code)
    assert "reward" in loaded, "the prompts were measured"
    assert not loaded & {"torch", "ray", "vllm", "transformers", "deepspeed", "wandb", "datasets"}


@pytest.mark.parametrize("module", sorted(ALL_MAY_IMPORT))
def test_modules_that_all_may_import_are_light(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert module.partition(".")[0] in loaded
    assert not loaded & {"torch", "ray", "vllm", "transformers", "deepspeed", "wandb", "datasets"}


@pytest.mark.parametrize(
    "module",
    [
        "rollout.fleet.buffer",
        "rollout.fleet.state",
        "learner.objective.objectives",
        "learner.engine.statistics",
        "cluster.training.batch",
        "learner.objective.training_batch",
        "learner.model.batching",
        "learner.model.prefix_support",
        "learner.state.state_description",
        "cluster.run_state.checkpoints",
        "cluster.run_state.progress",
        "cluster.metrics.pass_at_k",
        "cluster.metrics.evaluation",
        "cluster.commands.export.plan",
        "cluster.training.guards",
        "reward.service",
        "reward.sandbox.child",
    ],
)
def test_the_pure_cores_need_neither_ray_nor_torch(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert module.partition(".")[0] in loaded
    assert not loaded & {"torch", "ray", "vllm"}


def project_table() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(requirement: str) -> str:
    """The name in `ray[default]==2.60.0`, as PyPI compares names."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def foreign_imports(rooms: tuple[str, ...]) -> set[str]:
    """Return the top-level names of imported modules that are neither ours nor of the standard library."""
    files = [PROJECT / "launch.py", *(file for room in rooms for file in sources(room))]
    return {name.partition(".")[0] for file in files for name in imports(file)} - {
        *OURS,
        *sys.stdlib_module_names,
    }


@pytest.mark.parametrize(
    ("rooms", "extras"),
    [
        (ROOMS, ("cpu", "gpu", "workspace")),
        ((*ROOMS, "tests"), ("cpu", "gpu", "workspace", "test")),
    ],
)
def test_what_is_imported_is_declared(rooms: tuple[str, ...], extras: tuple[str, ...]) -> None:
    """A dependency must be declared even if another package installs it."""
    project = project_table()
    requirements = [
        *project["dependencies"],
        *(r for e in extras for r in project["optional-dependencies"][e]),
    ]
    declared = {distribution(requirement) for requirement in requirements}
    provided_by = packages_distributions()
    for module in foreign_imports(rooms):
        assert declared & {distribution(name) for name in provided_by[module]}, f"{module} is not declared"


@pytest.mark.parametrize(
    ("lock", "extra"),
    [
        ("cpu", "cpu"),
        ("gpu", "gpu"),
        ("cpu", "workspace"),
        ("gpu", "workspace"),
        ("test", "test"),
    ],
)
def test_what_is_declared_is_locked(lock: str, extra: str) -> None:
    project = project_table()
    requirements = project["optional-dependencies"][extra]
    if extra != "test":  # test.txt comes on top of either of the others
        requirements = [*project["dependencies"], *requirements]
    lines = (PROJECT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8").splitlines()
    locked = {distribution(line) for line in lines if line[:1].isalnum()}
    assert {distribution(requirement) for requirement in requirements} <= locked, "run: make lock"
