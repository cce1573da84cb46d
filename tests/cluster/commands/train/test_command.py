"""The output and the exit codes of `launch.py train`. The training itself is replaced."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, tzinfo
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from cluster.commands.options import CheckedRun
from cluster.commands.train.run import directory_loss_first, set_aside
from cluster.configuration.chosen_defaults import Choice
from cluster.core.config import RunConfig
from cluster.run_state.checkpoints import CheckpointStore, learner_state
from cluster.run_state.lock_file import LockFile, is_held
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunDirectoryLostError, RunInUseError, lock_paths
from cluster.runtime.signals import Terminated
from cluster.tracking import Tracker
from launch import app
from learner.state.state_description import StateDescription
from learner.state.state_files import CheckpointError
from tests.builders import make_progress

cli = CliRunner()


Training = Callable[[BaseException | None], list[RunConfig]]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Replace the training by a function that succeeds, or raises `error`. It returns the started runs."""

    def stand_in(error: BaseException | None) -> list[RunConfig]:
        started: list[RunConfig] = []

        def train(config: RunConfig, _console: object) -> None:
            started.append(config)
            if error:
                raise error

        monkeypatch.setattr("cluster.commands.train.run.run_training", train)
        return started

    return stand_in


def finished(sound: Path) -> RunDirectory:
    directory = RunDirectory(sound.parent / "runs" / "sound")
    directory.create()
    directory.write_summary({"pass_at_1_before": 0.125, "pass_at_1_after": 0.875})
    return directory


def test_train_starts_the_configured_run(sound: Path, training: Training) -> None:
    started = training(None)
    result = cli.invoke(app, ["train", str(sound), "seed=3", "--address", "head:6379"])
    assert result.exit_code == 0, result.output
    (config,) = started
    assert (config.name, config.seed, config.cluster.address) == ("sound", 3, "head:6379")


def test_a_run_begins_with_the_settings_that_were_chosen_for_its_device(
    sound: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no GPU here, so the choice is given."""
    started = training(None)
    result = cli.invoke(app, ["train", str(sound)])
    assert "chosen by default" not in result.output
    choice = Choice("model.dtype", "bfloat16", "the default on GPUs")
    monkeypatch.setattr(
        "cluster.commands.train.command.checked_run", lambda *_: CheckedRun(started[0], (choice,))
    )
    result = cli.invoke(app, ["train", str(sound)])
    assert "chosen by default: model.dtype=bfloat16 (the default on GPUs)" in " ".join(result.output.split())


def test_train_refuses_what_check_refuses(sound: Path, training: Training) -> None:
    started = training(None)
    checked = cli.invoke(app, ["check", str(sound), "steps=0", "seed=-1"])
    trained = cli.invoke(app, ["train", str(sound), "steps=0", "seed=-1"])
    assert (trained.exit_code, trained.stderr) == (checked.exit_code, checked.stderr)
    assert trained.exit_code == 2
    assert len(trained.stderr.splitlines()) == 2
    assert started == []


def test_an_interrupted_run_says_how_to_resume(sound: Path, training: Training) -> None:
    training(KeyboardInterrupt())
    result = cli.invoke(app, ["train", str(sound)])
    assert result.exit_code == 130
    assert "the same command resumes from the last checkpoint" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "error", [TimeoutError("learner rank(s) [1] did not finish"), OSError("No space left")]
)
def test_a_failed_run_prints_the_reason_and_the_logs(
    sound: Path, training: Training, error: Exception
) -> None:
    training(error)
    result = cli.invoke(app, ["train", str(sound)])
    assert result.exit_code == 1
    assert f"stopped: {error}" in result.output
    assert str(sound.parent / "runs" / "sound" / "logs") in result.output
    assert "Traceback" not in result.output


def test_quiet_does_not_hide_a_failure(sound: Path, training: Training) -> None:
    training(TimeoutError("learner rank(s) [1] did not finish"))
    result = cli.invoke(app, ["train", str(sound), "--quiet"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "stopped: learner rank(s) [1] did not finish" in result.stderr
    assert str(sound.parent / "runs" / "sound" / "logs") in result.stderr


def test_a_bug_keeps_its_traceback(sound: Path, training: Training) -> None:
    training(AssertionError("a bug"))
    result = cli.invoke(app, ["train", str(sound)])
    assert isinstance(result.exception, AssertionError)


def test_a_finished_run_prints_its_summary_and_does_not_start(sound: Path, training: Training) -> None:
    started = training(None)
    finished(sound)
    result = cli.invoke(app, ["train", str(sound)])
    assert result.exit_code == 0
    assert "this run is finished" in result.output
    assert "87.5" in result.output or "0.875" in result.output
    assert started == []


def test_fresh_moves_the_complete_earlier_run_aside(sound: Path, training: Training) -> None:
    started = training(None)
    earlier = finished(sound)
    result = cli.invoke(app, ["train", str(sound), "--fresh"])
    assert result.exit_code == 0, result.output
    assert len(started) == 1
    (aside,) = earlier.path.parent.iterdir()
    assert aside != earlier.path
    assert str(aside) in result.output
    assert RunDirectory(aside).read_summary()["pass_at_1_after"] == 0.875


def test_runs_moved_aside_within_a_second_are_all_kept(
    sound: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2030, 1, 2, 3, 4, 5)

    training(None)
    monkeypatch.setattr("cluster.commands.train.run.datetime", StoppedClock)
    for attempt in range(4):
        earlier = finished(sound)
        earlier.write_summary({"attempt": attempt})
        assert cli.invoke(app, ["train", str(sound), "--fresh"]).exit_code == 0
    kept = [RunDirectory(path).read_summary()["attempt"] for path in earlier.path.parent.iterdir()]
    assert sorted(kept) == [0, 1, 2, 3]


def test_resume_continues_an_earlier_run(sound: Path, training: Training) -> None:
    started = training(None)
    earlier = RunDirectory(sound.parent / "runs" / "sound")
    earlier.create()
    earlier.write_config(RunConfig())
    result = cli.invoke(app, ["train", str(sound), "--resume"])
    assert result.exit_code == 0, result.output
    assert len(started) == 1


def test_resume_does_not_start_a_new_run(sound: Path, training: Training) -> None:
    started = training(None)
    result = cli.invoke(app, ["train", str(sound), "--resume"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"{sound.parent / 'runs' / 'sound'}: no run to resume" in line
    assert started == []
    assert not (sound.parent / "runs").exists()


def test_resume_and_fresh_cannot_be_combined(sound: Path, training: Training) -> None:
    started = training(None)
    earlier = finished(sound)
    result = cli.invoke(app, ["train", str(sound), "--resume", "--fresh"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert started == []
    assert earlier.is_finished


def test_an_interrupted_fresh_run_advises_to_resume(sound: Path, training: Training) -> None:
    training(KeyboardInterrupt())
    result = cli.invoke(app, ["train", str(sound), "--fresh"])
    assert result.exit_code == 130
    assert "--resume in place of --fresh resumes from the last checkpoint" in result.output


@pytest.mark.parametrize(
    ("settings", "damage", "said"),
    [
        (["model.dtype=bfloat16"], None, "its weights are float32, and model.dtype is bfloat16: set it back"),
        (
            ["task.selection=informative"],
            None,
            "task.selection: uniform, and it is informative now; set it back",
        ),
        (["learner.zero_stage=3"], None, "learner.zero_stage 2 and cannot be read with 3"),
        ([], ("COMPLETE", '{"format": 3, "files": {}}'), "format 3 by another version of this program"),
        ([], ("progress.json", "{"), "no undamaged checkpoint is left"),
    ],
)
def test_an_unusable_checkpoint_is_one_line_and_stays_unchanged(
    sound: Path, settings: list[str], damage: tuple[str, str] | None, said: str
) -> None:
    """Nothing is patched here, because the run is refused before anything starts."""
    run = RunDirectory(sound.parent / "runs" / "sound")
    run.create()
    run.write_config(RunConfig())
    store = CheckpointStore(run.checkpoints, keep=2)
    path = store.begin(50)
    learner_state(path).mkdir()
    description = StateDescription("LlamaForCausalLM", "float32", 2, 2, {}).to_json()
    (learner_state(path) / "description.json").write_text(description)
    store.commit(path, make_progress(50))
    if damage:
        (path / damage[0]).write_text(damage[1])
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}

    result = cli.invoke(app, ["train", str(sound), *settings])
    assert result.exit_code == 1
    stopped = " ".join(result.output.partition("stopped: ")[2].split())
    assert str(path) in stopped.replace(" ", "")
    assert said in stopped
    assert "Traceback" not in result.output
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_quiet_prints_nothing_while_a_run_succeeds(sound: Path, training: Training) -> None:
    training(None)
    assert cli.invoke(app, ["train", str(sound), "--quiet"]).output == ""


# --- another process writes the run directory


@pytest.fixture
def other(sound: Path) -> Iterator[LockFile]:
    """The locks of another process. (They are held by this one, but not entered among its own locks.)"""
    with ExitStack() as stack:
        for name in ("sound", "sound.dry-run"):
            (path,) = lock_paths(sound.parent / "runs" / name)
            lock = LockFile.take(path)
            stack.callback(lock.release)
        yield lock


@pytest.mark.parametrize("option", [[], ["--fresh"], ["--quiet"], ["--json"], ["--dry-run"]])
def test_a_second_writer_is_refused_before_anything_is_written(
    sound: Path, training: Training, other: LockFile, option: list[str]
) -> None:
    started = training(None)
    directory = RunDirectory(sound.parent / "runs" / "sound")
    directory.create()
    directory.metrics_file.write_text('{"step": 0}\n')
    before = sorted(sound.parent.rglob("*"))
    result = cli.invoke(app, ["train", str(sound), *option])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert re.search(
        r"is in use by `.*` \(process \d+ on .*, since .*\): wait until it has ended or stop it", line
    )
    assert started == []
    assert sorted(sound.parent.rglob("*")) == before
    assert directory.metrics_file.read_text() == '{"step": 0}\n'


def test_a_finished_run_can_be_shown_while_another_process_writes_it(
    sound: Path, training: Training, other: LockFile
) -> None:
    """Showing writes nothing."""
    training(None)
    finished(sound)
    assert cli.invoke(app, ["train", str(sound)]).exit_code == 0


def test_a_run_holds_its_lock_and_leaves_none(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = lock_paths(sound.parent / "runs" / "sound")
    held = []
    monkeypatch.setattr("cluster.commands.train.run.run_training", lambda *_: held.append(is_held(path)))
    assert cli.invoke(app, ["train", str(sound)]).exit_code == 0
    assert held == [True]
    assert not path.exists()


def test_fresh_does_not_move_a_run_that_is_exported(sound: Path, training: Training) -> None:
    started = training(None)
    earlier = finished(sound)
    store = CheckpointStore(earlier.checkpoints, keep=1)
    path = store.begin(7)
    store.commit(path, make_progress(7))
    with store.held(path):
        result = cli.invoke(app, ["train", str(sound), "--fresh"])
        assert (path / "COMPLETE").exists()
    assert result.exit_code == 2
    assert "cannot be moved aside while launch.py export reads it" in result.stderr
    assert started == []
    assert cli.invoke(app, ["train", str(sound), "--fresh"]).exit_code == 0


def test_a_reader_that_comes_during_the_move_is_respected_too(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = finished(sound)
    store = CheckpointStore(earlier.checkpoints, keep=1)
    path = store.begin(7)
    store.commit(path, make_progress(7))
    real = Path.rename
    with ExitStack() as holds, monkeypatch.context() as patch:

        def late(source: Path, target: Path) -> Path:
            if source == earlier.path:
                holds.enter_context(store.held(path))
            return real(source, target)

        patch.setattr(Path, "rename", late)
        with pytest.raises(RunInUseError):
            set_aside(RunConfig(name="sound", directory=earlier.path.parent))
        assert (path / "COMPLETE").exists()


@pytest.mark.parametrize(
    "failure", [FileNotFoundError("checkpoints/step-000001"), CheckpointError("no space")]
)
@pytest.mark.parametrize("is_lost", [True, False])
def test_a_lost_directory_is_named_whatever_failed_because_of_it(failure: Exception, is_lost: bool) -> None:
    class Directory:
        def check(self) -> None:
            if is_lost:
                raise RunDirectoryLostError("runs/sound was deleted")

    expected = RunDirectoryLostError if is_lost else type(failure)
    with pytest.raises(expected), directory_loss_first(cast("Tracker", Directory())):
        raise failure


@pytest.mark.parametrize(
    ("ended_by", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(signal.SIGTERM), 143, "received SIGTERM"),
        (Terminated(signal.SIGHUP), 143, "received SIGHUP"),
        (RunDirectoryLostError("runs/sound was deleted"), 1, "stopped: runs/sound was deleted"),
    ],
)
def test_every_end_has_its_code_and_its_line(
    sound: Path, training: Training, ended_by: BaseException, code: int, said: str
) -> None:
    training(ended_by)
    result = cli.invoke(app, ["train", str(sound)])
    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output
