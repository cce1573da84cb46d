"""Something else in the place of any entry of a directory that a command writes: one line and exit code 2 before
anything starts, without waiting, and nothing is changed.

The entries come from the tables of the directories, so that none is forgotten.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import Result

from cluster.commands.compare.run import RESULTS
from cluster.core.errors import RefusedError
from cluster.core.files import open_to_append, write_atomically
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_entries import DIRECTORIES, FILES, GROWING_FILES
from tests import PROJECT
from tests.cluster.commands.test_odd_ground import (
    become_socket,
    comparison,
    config_of,
    content,
    in_time,
    made,
    refused,
    run_command,
    stopped,
    train,
)


def linked_pipe(path: Path) -> None:
    pipe = path.with_name(f"{path.name}.pipe")
    os.mkfifo(pipe)
    path.symlink_to(pipe)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": become_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": linked_pipe,
    "broken link": lambda path: path.symlink_to(path.parent / "nowhere" / "at" / "all"),
    "circle": lambda path: path.symlink_to(path),
}
"""Entries that are neither a file nor a directory."""
ODD = {
    **{name: {**SPECIAL, "directory": Path.mkdir} for name in (*FILES, *GROWING_FILES)},
    **{name: {**SPECIAL, "file": Path.touch} for name in DIRECTORIES if name != "."},
}
"""Kinds that must not be in the place of each entry."""
CASES = [(name, kind) for name, kinds in ODD.items() for kind in kinds]


@contextmanager
def odd(root: Path, name: str, kind: str) -> Iterator[Path]:
    """Put something else in the place of an entry for the block."""
    path = root / name.replace("*", "000001")
    aside = root.parent / "aside"
    path.parent.mkdir(parents=True, exist_ok=True)
    if there := path.exists():
        path.rename(aside)
    ODD[name][kind](path)
    yield path
    for made_for_it in (path, path.with_name(f"{path.name}.pipe")):
        if made_for_it.is_dir() and not made_for_it.is_symlink():
            made_for_it.rmdir()
        else:
            made_for_it.unlink(missing_ok=True)
    if there:
        aside.rename(path)


def refuses(command: Callable[[], Result], path: Path, place: Path) -> None:
    """Check that the command refuses what is at `path`, and leaves everything as it is."""
    before = content(place)
    result = command()
    assert refused(result), (path, result.output)
    assert path.name in result.stderr, result.stderr
    assert content(place) == before, path


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("train", "evaluate"):
        monkeypatch.setattr(f"cluster.commands.{module}.run.ray_started", stopped)
    monkeypatch.setattr("cluster.commands.train.run.CheckpointStore", stopped)
    monkeypatch.setattr("cluster.commands.compare.run.run_trials", stopped)
    monkeypatch.setattr("cluster.commands.compare.plan.preflight", lambda *_, **__: [])


def test_train_refuses_what_is_in_the_place_of_any_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(config_of(tmp_path))
    run.remove_summary()
    for name, kind in CASES:
        with odd(run.path, name, kind) as path:
            refuses(lambda: train(tmp_path, run, monkeypatch), path, tmp_path)


@pytest.mark.parametrize("command", ["eval", "plan"])
def test_an_evaluation_refuses_what_is_in_the_place_of_any_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    module = {"eval": "evaluate", "plan": "plan"}[command]
    config = config_of(tmp_path)
    run = RunDirectory(config.run_directory)
    directory = {"eval": run.evaluation, "plan": run.plan}[command]
    monkeypatch.setattr(f"cluster.commands.{module}.command.checked_config", lambda *_, **__: config)
    for name, kind in CASES:
        if kind != "pipe" or name == "config.yaml":
            continue  # it is the same code as for `train`; the directory of a run is refused for that reason
        with odd(directory.path, name, kind) as path:
            refuses(lambda: run_command(command, tmp_path / "any.yaml"), path, tmp_path)


def test_an_export_refuses_what_is_in_the_place_of_its_logs(tmp_path: Path) -> None:
    run = made(config_of(tmp_path))
    for name, kind in CASES:
        if name.startswith("export"):
            with odd(run.path, name, kind) as path:
                refuses(lambda: run_command("export", run.path, tmp_path / "out"), path, tmp_path)


def test_a_comparison_refuses_what_is_in_the_place_of_its_entries(tmp_path: Path) -> None:
    names = [(name, kind) for name in (*RESULTS, "logs/*.log") for kind in (*SPECIAL, "directory")]
    for number, (name, kind) in enumerate([*names, *(("logs", kind) for kind in (*SPECIAL, "file"))]):
        place = tmp_path / str(number)
        place.mkdir()
        file = comparison(place)
        path = place / "c" / name.replace("*", "000001")
        path.parent.mkdir(parents=True)
        {**SPECIAL, "directory": Path.mkdir, "file": Path.touch}[kind](path)
        refuses(lambda f=file: run_command("compare", f), path, place)
        if kind == "pipe":
            refuses(lambda f=file: run_command("compare", f, "--only-table"), path, place)


def test_a_comparison_refuses_a_run_that_could_not_start(tmp_path: Path) -> None:
    file = comparison(tmp_path)
    for name in (*FILES, *GROWING_FILES):
        if name not in ("config.yaml", "summary.json"):  # they are read
            with odd(tmp_path / "c" / "c.a.seed0", name, "pipe") as path:
                refuses(lambda: run_command("compare", file), path, tmp_path)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_run_directory_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, command: str
) -> None:
    config = config_of(tmp_path)
    run = RunDirectory(config.run_directory)
    monkeypatch.setattr("cluster.commands.evaluate.command.checked_config", lambda *_, **__: config)
    path = run.path if command == "train" else run.evaluation.path
    SPECIAL[kind](path)
    if command == "train":
        refuses(lambda: train(tmp_path, run, monkeypatch), path, tmp_path)
    else:
        refuses(lambda: run_command("eval", tmp_path / "any.yaml"), path, tmp_path)


@pytest.mark.parametrize("kind", [*SPECIAL, "directory"])
def test_writing_never_waits(tmp_path: Path, kind: str) -> None:
    """A pipe or a link that appears later is replaced, or refused if lines are to be appended."""
    whole, growing = tmp_path / "whole", tmp_path / "growing"
    for path in (whole, growing):
        {**SPECIAL, "directory": Path.mkdir}[kind](path)
    with in_time():
        if kind == "directory":
            with pytest.raises(RefusedError, match="whole: this is a directory"):
                write_atomically(whole, "x")
        else:
            write_atomically(whole, "x")
            assert whole.read_text() == "x"
            assert not whole.is_symlink()
        with pytest.raises((RefusedError, FileNotFoundError), match="growing"):
            open_to_append(growing).write("x")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"whole", "growing"}


def test_a_real_training_refuses_a_pipe_at_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "demo")
    run.create()
    os.mkfifo(run.ray_address_file)
    machine = ["rollout.cpus_per_worker=0.1", "learner.cpus_per_rank=0.1", "tracking.wandb=offline"]
    process = subprocess.run(
        [
            sys.executable,
            "launch.py",
            "train",
            "configs/demo.yaml",
            f"directory={tmp_path}",
            "name=demo",
            *machine,
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.endswith(
        "ray_address: this is a named pipe, and not a file; move it away, or choose another name=NAME"
    )
