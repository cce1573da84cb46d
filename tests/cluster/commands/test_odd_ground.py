"""Every command on damaged and foreign ground: one line, exit code 2, and nothing is changed or left behind.

The cases are generated: each file of a run directory with each kind of damage, for each command that reads it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from cluster.commands.options import CheckedRun
from cluster.commands.report.runs import read_run
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.kept_batch import write_batch
from launch import app
from learner.state.state_files import CheckpointError
from tests.builders import make_group

DEADLINE_S = 120
NOWHERE = "127.0.0.1:9"


def config_of(place: Path, **changes: Any) -> RunConfig:
    values = {"name": "demo", "directory": str(place), "tracking": {"wandb": "disabled"}, **changes}
    return RunConfig.model_validate(values)


def made(config: RunConfig) -> RunDirectory:
    """Create the directory of a finished run."""
    run = RunDirectory(config.run_directory)
    run.create()
    run.write_config(config)
    run.write_code_version("hpo-trainer 0.1.0")
    run.write_summary({"steps": 2})
    run.write_ray_address(NOWHERE)
    run.write_wandb_run_id("abc123")
    rows = [{"step": step, "time": 100.0 + step, "reward/mean": 0.5} for step in range(3)]
    run.metrics_file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    group = {
        "prompt_id": "1",
        "prompt": "1 + 1?",
        "category": None,
        "correct": 0,
        "valid": 0,
        "responses": [],
    }
    run.transcript_file(1).with_suffix(".jsonl").write_text(json.dumps(group) + "\n")
    run.failed_batches.mkdir(exist_ok=True)
    write_batch(run.failed_batches / "step_000002-1.jsonl", [make_group()])
    return run


# --- The kinds of damage


def become_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)
    finally:
        os.chdir(here)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "directory": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "socket": become_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "broken link": lambda path: path.symlink_to("/nowhere/at/all"),
    "circle": lambda path: path.symlink_to(path),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4 + b"\n"),
    "not UTF-8": lambda path: path.write_bytes(b'{"step": "caf\xe9"}\n'),
    "truncated": lambda path: path.write_bytes(b'{"step": 1, "time": \n{"step": 2}\n'),
    "list": lambda path: path.write_bytes(b"[1, 2]\n"),
    "number": lambda path: path.write_bytes(b"7\n"),
    "other keys": lambda path: path.write_bytes(b'{"steps": [], "old_setting": {"a": null}, "time": "x"}\n'),
    "wrong types": lambda path: path.write_bytes(
        b'{"step": 1, "time": 1.0, "reward/mean": "x", "steps": {}}\n'
    ),
    "no order": lambda path: path.write_bytes(b'{"step": 5}\n{"step": 5}\n'),
    "deep": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "huge number": lambda path: path.write_bytes(b'{"step": 1, "reward/mean": 1' + b"0" * 400 + b"}\n"),
}
FILES = (
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "code_version",
    "ray_address",
    "wandb/run_id",
    "transcripts/step_000001.jsonl",
    "failed_batches/step_000002-1.jsonl",
)


def damage(run: RunDirectory, file: str, kind: str) -> None:
    (run.path / file).unlink()
    DAMAGES[kind](run.path / file)


def content(path: Path) -> dict[str, object]:
    """Return everything below a directory: types, and the contents of files."""
    found: dict[str, object] = {}
    for entry in sorted(path.rglob("*")):
        status = entry.lstat()
        regular = stat.S_ISREG(status.st_mode)
        found[str(entry.relative_to(path))] = (
            stat.S_IFMT(status.st_mode),
            status.st_mtime_ns,
            entry.read_bytes() if regular else None,
        )
    return found


# --- The commands


@contextmanager
def in_time() -> Iterator[None]:
    """Opening a named pipe would wait without end."""

    def late(*_: object) -> NoReturn:
        raise TimeoutError(f"the command still waits after {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _only_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop each command where it would start something, or connect."""
    view = ModuleType("cluster.commands.workspace.view")
    view.WorkspaceNotSavedError = CheckpointError  # type: ignore[attr-defined]
    view.save = stopped  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, view.__name__, view)
    monkeypatch.setattr("cluster.commands.train.run.CheckpointStore", stopped)
    monkeypatch.setattr("cluster.commands.replay.run.run_replay", stopped)
    monkeypatch.setattr("cluster.commands.compare.plan.preflight", lambda *_, **__: [])
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def stopped(*_: object) -> NoReturn:
    raise CheckpointError("the test stops here")


def run_command(*arguments: object) -> Result:
    texts = [os.fspath(each) if isinstance(each, Path) else str(each) for each in arguments]
    with in_time():
        return CliRunner().invoke(app, texts)


def refused(result: Result, lines: int = 1) -> bool:
    """Check the form of the answer. Return whether it is a refusal."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        found = [line for line in result.stderr.splitlines() if line.strip()]
        assert 1 <= len(found) <= lines, found
    return result.exit_code == 2


def comparison(place: Path) -> Path:
    file = place / "comparison.yaml"
    base = place / "base.yaml"
    base.write_text("tracking: {wandb: disabled}\n")
    variants = {"a": ["objective.name=grpo"], "b": ["objective.name=hpo"]}
    values = {"name": "c", "base": str(base), "directory": str(place), "seeds": [0], "variants": variants}
    file.write_text(yaml.safe_dump(values))
    return file


def train(place: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Result:
    checked = CheckedRun(config_of(run.path.parent), ())
    monkeypatch.setattr("cluster.commands.train.command.checked_run", lambda *_: checked)
    return run_command("train", place / "any.yaml")


READERS: dict[str, Callable[[Path, RunDirectory, pytest.MonkeyPatch], Result]] = {
    "report": lambda place, run, _: run_command("report", run.path, "-o", place / "out" / "page.html"),
    "export": lambda place, run, _: run_command("export", run.path, place / "exported"),
    "scale": lambda place, run, _: run_command("scale", run.path, "--rollout-workers", 2),
    "workspace": lambda place, run, _: run_command("workspace", run.path),
    "replay": lambda place, run, _: run_command("replay", run.path),
    "train": train,
}
"""The commands that read a run directory which the user names."""
READS = {
    "report": {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "code_version",
        "transcripts/step_000001.jsonl",
    },
    "export": {"config.yaml"},
    "scale": {"config.yaml", "ray_address"},
    "workspace": {"config.yaml"},
    "replay": {"config.yaml", "failed_batches/step_000002-1.jsonl"},
    "train": {"config.yaml", "metrics.jsonl", "summary.json", "wandb/run_id"},
}
UNREADABLE = ("directory", "fifo", "socket", "device")
"""The damages that no file may have."""


def test_each_command_is_tested() -> None:
    """A new command needs a row in one of the tables of this file."""
    names = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert names == {*READERS, *WITH_CONFIGURATION, *WITH_ADDRESS, "compare", "tasks"}


@pytest.mark.parametrize("command", READERS)
def test_a_damaged_run_is_refused_and_stays_as_it_is(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.commands.report.page.drawn_sections", lambda _: ())
    monkeypatch.setattr("cluster.commands.report.page.code_version", lambda: "1")
    sound = made(config_of(tmp_path / "sound"))
    refusals = set()
    for number, (file, kind) in enumerate((file, kind) for file in FILES for kind in DAMAGES):
        if file not in READS[command]:
            continue
        place = tmp_path / str(number)
        run = RunDirectory(config_of(place / "runs").run_directory)
        shutil.copytree(sound.path, run.path)
        if command == "train" and file != "summary.json":
            run.remove_summary()  # otherwise the run is finished, and its summary is shown
        damage(run, file, kind)
        before = content(run.path)
        # Each setting that does not exist is a line of its own.
        if refused(READERS[command](place, run, monkeypatch), lines=4 if command == "workspace" else 1):
            refusals.add((file, kind))
            assert content(run.path) == before, (file, kind)
            assert not (place / "out").exists(), (file, kind)
            assert not (place / "exported").exists(), (file, kind)
    for file in READS[command]:
        assert {(file, kind) for kind in UNREADABLE} <= refusals
    assert ("config.yaml", "empty") in refusals or command == "scale"


@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json", "config.yaml"])
def test_a_comparison_refuses_a_damaged_run(tmp_path: Path, file: str) -> None:
    for number, kind in enumerate(UNREADABLE):
        place = tmp_path / str(number)
        place.mkdir()
        compared = comparison(place)
        runs = [
            made(config_of(place / "c", name=f"c.{variant}.seed0", objective={"name": name}))
            for variant, name in (("a", "grpo"), ("b", "hpo"))
        ]
        for run in runs:
            values = yaml.safe_load(run.config_file.read_text())
            values["tracking"]["wandb_group"] = "c"
            run.config_file.write_text(yaml.safe_dump(values))
        damage(runs[0], file, kind)
        before = content(runs[0].path)
        result = run_command("compare", compared, "--only-table")
        # Whether a run is finished is all that is read of its summary.
        assert refused(result) or file == "summary.json", result.output
        assert content(runs[0].path) == before


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    places = [tmp_path / name for name in ("nowhere", "file", "pipe", "empty", "loop", "x" * 300)]
    for path in [*places, odd, Path("~no-user-has-this-name/x")]:
        for command in ("report", "export", "scale", "replay"):
            result = READERS[command](tmp_path, RunDirectory(path), monkeypatch)
            assert refused(result), (command, path, result.output)
            assert "this is not a run directory" in result.stderr


# --- Configurations

WITH_CONFIGURATION: dict[str, tuple[str, ...]] = {
    "check": (),
    "eval": (),
    "plan": (),
    "doctor": (),
    "submit": ("--address", f"http://{NOWHERE}"),
}
"""The commands whose first argument is a configuration, beside `train` and `workspace`, with further arguments."""


@pytest.mark.parametrize("command", [*WITH_CONFIGURATION, "train", "workspace", "compare"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, command: str) -> None:
    for number, (kind, damaging) in enumerate(DAMAGES.items()):
        if kind in ("empty", "wrong types", "other keys", "no order", "huge number"):
            continue  # each mistake has a line of its own (tests/cluster/configuration)
        file = tmp_path / str(number)
        damaging(file)
        if command == "workspace" and kind == "directory":
            continue  # a run directory
        result = run_command(command, file, *WITH_CONFIGURATION.get(command, ()))
        assert refused(result) or (command == "compare" and result.exit_code == 2), (kind, result.output)


def test_an_empty_comparison_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    for text in ("", "{}\n", "# nothing\n", "variants: {}\n"):
        file.write_text(text)
        result = run_command("compare", file, "--only-table")
        assert refused(result)
        assert "variants: expected two or more, got 0" in result.stderr


WITH_ADDRESS: dict[str, tuple[str, ...]] = {
    "status": ("job",),
    "logs": ("job",),
    "stop": ("job",),
    "list": (),
}
"""The commands that connect to a job server, with their arguments."""

# --- Any content

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["step", "time", "steps", "dropped", "prompts", "responses", "prompt"]), inner
        )
    ),
    max_leaves=8,
)
CONTENT = st.binary(max_size=60) | st.lists(JSON, max_size=3).map(
    lambda values: "".join(f"{json.dumps(value)}\n" for value in values).encode()
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), data=CONTENT)
def test_any_content_is_read_or_refused(tmp_path: Path, file: str, data: bytes) -> None:
    run = made(config_of(tmp_path))
    (run.path / file).write_bytes(data)
    with suppress(RefusedError):
        run.read_ray_address()
    with suppress(RefusedError):
        found = read_run(run.path, "demo")
        assert found.step >= 0
        assert math.isfinite(found.seconds)
        assert all(math.isfinite(value) for _, value in found.curve("reward/mean"))
