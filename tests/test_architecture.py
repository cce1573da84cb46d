"""The import rules of the packages, and the modules that must load quickly."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests import PROJECT

ROOMS = ("rollout", "learner", "reward", "cluster")
OURS = (*ROOMS, "launch", "tests", "benchmarks", "requirements")


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


CORE = "cluster.core"
ROOMS_BELOW = ("rollout", "learner", "reward")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # Nothing of ours: configuration, the types that cross walls, deadlines, text, files.
    "cluster.core": (),
    # Ray: connecting, placement, capacity, actor logs, jobs from inside.
    "cluster.runtime": (CORE,),
    # What a run leaves on disk.
    "cluster.run_state": (CORE, "learner.state"),
    "cluster.models": (CORE, "learner", "reward"),
    "cluster.metrics": (CORE, "learner", "reward"),
    "cluster.configuration": (CORE, "cluster.models", *ROOMS_BELOW),
    "cluster.tracking": (CORE, "cluster.metrics", "cluster.run_state"),
    # The loop, and what it needs.
    "cluster.training": (
        CORE,
        "cluster.runtime",
        "cluster.run_state",
        "cluster.models",
        "cluster.metrics",
        "cluster.configuration",
        "cluster.tracking",
        *ROOMS_BELOW,
    ),
    "cluster.commands": ("cluster", *ROOMS_BELOW),
    "launch": (CORE, "cluster.commands"),
    # The engine's processes receive weights; the fleet looks after both.
    "rollout.weights": (CORE,),
    "rollout.engine": (CORE, "rollout.weights"),
    "rollout.fleet": (CORE, "rollout.engine", "rollout.weights"),
    "learner.objective": (CORE,),
    "learner.model": (CORE,),
    "learner.state": (CORE,),
    "learner.weights": (CORE,),
    "learner.engine": (CORE, "learner.objective", "learner.model", "learner.state", "learner.weights"),
    # The registry finds tasks by their folders: nothing outside of a task imports one.
    "reward": (CORE,),
    "reward.tasks": (CORE, "reward"),
}
"""Which folders a folder may import, beside itself. A folder's name covers those below it, unless they have a row."""


def folder_of(module: str) -> str:
    """The longest row of the table that covers `module`."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in MAY_IMPORT), module)


@cache
def module_graph() -> dict[str, set[str]]:
    """Every module of ours, with those that it imports."""
    files = [PROJECT / "launch.py", *(file for room in ROOMS for file in sources(room))]
    return {
        ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): our_imports(file)
        for file in files
    }


def covers(allowed: str, module: str) -> bool:
    """Tell whether the entry `allowed` of a row covers `module`. An entry without a row of its own covers all below."""
    folder = folder_of(module)
    return folder == allowed or (allowed not in MAY_IMPORT and folder.startswith(f"{allowed}."))


def test_every_folder_has_a_row() -> None:
    """A new folder says first what it may import."""
    without = {module for module in module_graph() if folder_of(module) not in MAY_IMPORT} - {*ROOMS}
    assert not without


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_its_row_allows(folder: str) -> None:
    allowed = MAY_IMPORT[folder]
    faults = [
        f"{module} imports {imported}"
        for module, imports_of in module_graph().items()
        if folder_of(module) == folder
        for imported in sorted(imports_of)
        if folder_of(imported) != folder and not any(covers(entry, imported) for entry in allowed)
    ]
    assert not faults


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = module_graph()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for imported in graph.get(module, set()):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_arrow_between_folders_runs_back() -> None:
    """The folders have an order in which each imports only earlier ones."""
    arrows = {
        (folder_of(module), folder_of(imported))
        for module, imports_of in module_graph().items()
        for imported in imports_of
        if folder_of(module) != folder_of(imported)
    }
    assert not {(a, b) for a, b in arrows if (b, a) in arrows}


def test_the_tests_mirror_the_packages() -> None:
    for room in ROOMS:
        for file in (PROJECT / "tests" / room).rglob("*.py"):
            package = PROJECT / file.parent.relative_to(PROJECT / "tests")
            assert (package / "__init__.py").is_file(), (
                f"{file.relative_to(PROJECT)} tests no package of ours"
            )


@pytest.mark.parametrize("file", sources("cluster/core"), ids=lambda file: file.stem)
def test_core_is_light(file: Path) -> None:
    module = ".".join(file.relative_to(PROJECT).with_suffix("").parts)
    loaded = loaded_after(f"import {module}")
    assert "cluster" in loaded
    assert not loaded & {"torch", "ray", "vllm", "transformers", "deepspeed", "wandb", "datasets"}


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


@pytest.mark.parametrize(
    "module",
    [
        "rollout.fleet.buffer",
        "rollout.fleet.state",
        "learner.objective.objectives",
        "learner.engine.statistics",
        "cluster.training.batch",
        "cluster.training.selection",
        "cluster.training.rescue",
        "learner.objective.training_batch",
        "learner.model.batching",
        "learner.model.prefix_support",
        "learner.state.state_description",
        "cluster.run_state.checkpoints",
        "cluster.run_state.progress",
        "cluster.run_state.selection_state",
        "cluster.metrics.pass_at_k",
        "cluster.metrics.evaluation",
        "cluster.metrics.group_sizes",
        "cluster.metrics.pass_rates",
        "cluster.commands.export.plan",
        "cluster.commands.plan.page",
        "cluster.commands.plan.report",
        "reward.service",
        "reward.sandbox.child",
    ],
)
def test_the_pure_cores_need_neither_ray_nor_torch(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert module.partition(".")[0] in loaded
    assert not loaded & {"torch", "ray", "vllm"}


OPENERS = {
    # Named by the user, or in a run directory: never directly.
    "cluster/core/reading.py": "the functions that read",
    "cluster/core/files.py": "the functions that write",
    "cluster/core/output.py": "the null device",
    "cluster/core/shared_memory.py": "descriptors of our own processes",
    "cluster/run_state/lock_file.py": "looks at the kind of the lock first, and follows no link; /proc",
    "cluster/run_state/checkpoints.py": "marks a directory that it has just made, and flushes entries of directories",
    "cluster/tracking/jsonl.py": "flushes the entries of a directory",
    "cluster/runtime/auth.py": "the kernel's tables of sockets",
    "cluster/commands/doctor/examination.py": "a file of this project; a file with a new random name",
    "cluster/commands/docs.py": "pages of this project",
    "learner/engine/process_setup.py": "locks of torch's extensions in their own cache",
    "rollout/weights/node_files.py": "our own files in shared memory",
    "rollout/weights/shared_memory.py": "our own files in shared memory",
    "rollout/weights/pull.py": "our own files in shared memory",
    "rollout/weights/lora_update.py": "our own files in shared memory",
    "reward/sandbox/cgroup.py": "control groups and /proc",
    "reward/sandbox/directory.py": "directories of the sandbox",
    "reward/sandbox/processes.py": "/proc",
}
"""The modules that open files themselves, with what they open."""
OPENING = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "touch", "safe_open"}


def opened_in(source: str) -> set[str]:
    """Return the calls in a module that open a file by its path, such as `path.read_text` and `open`."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {
        ast.unparse(call)
        for call in calls
        if (isinstance(call, ast.Attribute) and call.attr in OPENING)
        or (isinstance(call, ast.Name) and call.id in {"open", "safe_open"})
    }


def test_the_calls_that_open_files_are_seen() -> None:
    source = (
        "open('x'); os.open('x', 0); path.read_text(); read_text(path); path.touch(); self.path.open('a')"
    )
    assert opened_in(source) == {"open", "os.open", "path.read_text", "path.touch", "self.path.open"}


def test_files_are_opened_by_the_functions_that_never_wait_for_a_pipe() -> None:
    """A file of a run directory, or one that a user names, may be anything: only `cluster/core/reading.py` and
    `cluster/core/files.py` know that."""
    found = {
        str(file.relative_to(PROJECT)): calls
        for room in ROOMS
        for file in sources(room)
        if (calls := opened_in(file.read_text(encoding="utf-8")))
    }
    assert {module: calls for module, calls in found.items() if module not in OPENERS} == {}
    assert OPENERS.keys() <= found.keys(), "a module no longer opens files: remove its row"


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
