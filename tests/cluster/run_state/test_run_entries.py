"""The tables of a run directory's entries have everything that `RunDirectory` names, and obstacles are refused."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from cluster.core.errors import RefusedError
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_entries import DIRECTORIES, FILES, GROWING_FILES


def named_by(run: RunDirectory) -> dict[str, str]:
    """Return every path that a run directory names, relative to it, by the property or method that names it."""
    members = [name for name in vars(RunDirectory) if isinstance(vars(RunDirectory)[name], property)]
    found = {name: value for name in members if isinstance(value := getattr(run, name), Path)}
    found |= {
        "log_file": run.log_file("rollout-0"),
        "transcript_file": run.transcript_file(1),
        "transcript_lines": run.transcript_file(1).with_suffix(".jsonl"),
        "failed_batch_file": run.failed_batch_file(1),
        "export": run.export.path,
        "export logs": run.export.logs,
        "export log": run.export.console_log,
    }
    for suffix in (".json", ".jsonl", ".html"):
        found |= {
            f"evaluation {step} {suffix}": run.evaluation_stem(step).with_suffix(suffix) for step in (None, 1)
        }
    return {name: str(path.relative_to(run.path)) for name, path in found.items()}


def test_everything_that_a_run_directory_names_is_in_the_tables(tmp_path: Path) -> None:
    for name, path in named_by(RunDirectory(tmp_path)).items():
        assert path in DIRECTORIES or any(fnmatch.fnmatch(path, each) for each in (*FILES, *GROWING_FILES)), (
            name
        )


def test_the_methods_that_name_paths_are_those_of_this_test() -> None:
    """A new method needs a line in `named_by`."""
    methods = {
        name
        for name, value in vars(RunDirectory).items()
        if callable(value) and getattr(value, "__annotations__", {}).get("return") == "Path"
    }
    assert methods == {"log_file", "transcript_file", "failed_batch_file", "evaluation_stem"}


def test_an_untouched_run_directory_has_no_obstacles(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "demo")
    run.refuse_obstacles()
    run.create()
    run.refuse_obstacles()
    for name in named_by(run).values():
        path = run.path / name
        if name not in DIRECTORIES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    run.refuse_obstacles()


def test_a_file_that_grows_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    run.create()
    run.metrics_file.write_text("")
    run.readme_file.write_text("")
    for file in (run.metrics_file, run.logs):
        monkeypatch.setattr(
            "os.access", lambda path, _, denied=file: path != denied
        )  # the tests may run as root
        with pytest.raises(RefusedError, match=rf"{file.name}: this process may not read and write it; move"):
            run.refuse_obstacles()
    monkeypatch.setattr("os.access", lambda path, _: path != run.readme_file)  # it is replaced as a whole
    run.refuse_obstacles()
