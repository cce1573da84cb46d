"""The tracker: one call reaches every sink, and only failures of the run directory reach the caller."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.core.config import RunConfig
from cluster.run_state.lock_file import LockFile
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunDirectoryLostError, lock_paths, run_lock
from cluster.tracking import RunConsole, Tracker, read_metrics
from cluster.tracking.wandb_sink import WandbSink
from tests.cluster.tracking.test_jsonl import FullDisk
from tests.cluster.tracking.test_transcripts import group


class Recorder:
    """A substitute for the wandb run."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.summary = self

    def log(self, row: dict[str, Any]) -> None:
        self.calls.append(row)

    def update(self, values: dict[str, Any]) -> None:
        self.calls.append(values)

    def finish(self, exit_code: int) -> None:
        self.calls.append(exit_code)


@pytest.fixture
def wandb_run(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(WandbSink, "_start", lambda self: recorder)
    monkeypatch.setattr(WandbSink, "_tear_down", lambda self: None)
    monkeypatch.setattr(WandbSink, "table", lambda self, step, rows: self._submit(lambda run: run.log(rows)))
    return recorder


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate({"directory": str(tmp_path), "tracking": {"transcripts_per_step": 2}})


@pytest.fixture
def run(config: RunConfig) -> RunDirectory:
    return RunDirectory(config.run_directory)


@pytest.fixture
def console() -> Iterator[RunConsole]:
    with RunConsole("run", 9, console=Console(file=io.StringIO())) as console:
        yield console


def test_a_finished_run(
    config: RunConfig, run: RunDirectory, console: RunConsole, wandb_run: Recorder
) -> None:
    with Tracker(config, run, console) as tracker:
        tracker.log(0, {"eval/pass_at_1": 0.125})
        tracker.transcripts(0, [group(["incorrect", "correct", "correct"])])
        assert not run.is_finished
        tracker.finish({"pass_at_1": 0.5})
    assert run.read_summary() == {"pass_at_1": 0.5}
    assert [(row["step"], row["eval/pass_at_1"]) for row in read_metrics(run.metrics_file)] == [(0, 0.125)]
    assert "✓ correct" in run.transcript_file(0).read_text(encoding="utf-8")
    logged, table, summary, exit_code = wandb_run.calls
    assert logged == {"step": 0, "eval/pass_at_1": 0.125}
    assert [(row[0], row[3], row[4]) for row in table] == [(0, "correct", 1.0), (0, "incorrect", 0.0)]
    assert summary == {"pass_at_1": 0.5}
    assert exit_code == 0


def test_a_run_that_fails_is_not_finished(
    config: RunConfig, run: RunDirectory, console: RunConsole, wandb_run: Recorder
) -> None:
    tracker = Tracker(config, run, console)
    tracker.log(1, {})
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    assert not run.is_finished
    assert wandb_run.calls[-1] == 1


@pytest.mark.parametrize(("resume_step", "kept"), [(None, [0, 1, 2, 3]), (1, [0, 1]), (-1, [])])
def test_resuming_keeps_the_steps_that_are_not_repeated(
    config: RunConfig,
    run: RunDirectory,
    console: RunConsole,
    wandb_run: Recorder,
    resume_step: int | None,
    kept: list[int],
) -> None:
    with Tracker(config, run, console) as tracker:
        for step in range(4):
            tracker.log(step, {"reward/mean": 0.1 * step})
        tracker.finish({})
    fresh = RunConsole("run", 9, quiet=True)
    with Tracker(config, run, fresh, resume_step=resume_step) as tracker:
        assert not run.is_finished
        assert len(fresh._view.rewards) == len(kept)  # the console continues from there too
        tracker.log(len(kept), {})
    assert [row["step"] for row in read_metrics(run.metrics_file)] == [*kept, len(kept)]


def test_restarts_before_a_resumption_are_counted(
    config: RunConfig, run: RunDirectory, console: RunConsole, wandb_run: Recorder
) -> None:
    """Restarts in repeated steps are included, also if the first resumption completed no step."""
    with Tracker(config, run, console) as tracker:
        assert tracker.restarts_before == 0
        tracker.log(0, {"reward/mean": 0.5})
        for step, restarts in ((1, 0.0), (2, 3.0), (3, 4.0)):
            tracker.log(step, {"fleet/restarts": restarts})
    for _ in range(2):
        with Tracker(config, run, console, resume_step=2) as tracker:
            assert tracker.restarts_before == 4


def test_wandb_receives_each_step_once(
    config: RunConfig, run: RunDirectory, console: RunConsole, wandb_run: Recorder
) -> None:
    """The second resumption starts before the last step that the first one had logged."""
    for resume_step, steps in ((None, range(5)), (1, range(2, 3)), (1, range(2, 7))):
        with Tracker(config, run, console, resume_step=resume_step) as tracker:
            for step in steps:
                tracker.log(step, {"reward/mean": 0.1 * step})
    told = [call["step"] for call in wandb_run.calls if isinstance(call, dict) and "step" in call]
    assert told == list(range(7))
    assert [row["step"] for row in read_metrics(run.metrics_file)] == list(range(7))


def test_a_full_disk_reaches_the_caller_and_wandb_is_still_closed(
    config: RunConfig, run: RunDirectory, console: RunConsole, wandb_run: Recorder
) -> None:
    tracker = Tracker(config, run, console)
    tracker._metrics._stream.close()
    tracker._metrics._stream = FullDisk()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"), tracker:
        tracker.log(0, {})
    assert wandb_run.calls == [1]


def test_a_broken_wandb_does_not_reach_the_caller(
    config: RunConfig, run: RunDirectory, console: RunConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: WandbSink) -> None:
        raise RuntimeError("wandb is broken")

    monkeypatch.setattr(WandbSink, "_start", broken)
    monkeypatch.setattr(WandbSink, "_tear_down", lambda self: None)
    with Tracker(config, run, console) as tracker:
        tracker.log(0, {})
        tracker.transcripts(0, [group(["correct"])])
        tracker.finish({})
    assert run.is_finished
    assert "W&B is off: RuntimeError: wandb is broken" in console._console.file.getvalue()  # type: ignore[attr-defined]
    assert len(run.metrics_file.read_text(encoding="utf-8").splitlines()) == 1
    assert json.loads(run.summary_file.read_text(encoding="utf-8")) == {}


def test_no_transcripts_are_written_if_switched_off(
    run: RunDirectory, console: RunConsole, wandb_run: Recorder
) -> None:
    config = RunConfig.model_validate({"tracking": {"transcripts_per_step": 0}})
    with Tracker(config, run, console) as tracker:
        tracker.transcripts(0, [group(["correct"])])
    assert list(run.transcripts.iterdir()) == []


# --- a run directory that is lost


def delete(run: RunDirectory) -> None:
    shutil.rmtree(run.path)


def move(run: RunDirectory) -> None:
    run.path.rename(run.path.with_name("elsewhere"))


def replace(run: RunDirectory) -> None:
    """Another run may have been started under this name, after a move."""
    move(run)
    run.create()
    run.metrics_file.touch()


def delete_the_record(run: RunDirectory) -> None:
    run.metrics_file.unlink()


WRITES: list[Callable[[Tracker], object]] = [
    lambda tracker: tracker.log(1, {}),
    lambda tracker: tracker.transcripts(1, [group(["correct"])]),
    lambda tracker: tracker.evaluation(1, [group(["correct"])]),
    lambda tracker: tracker.failed_batch(1, [group(["correct"])]),
    lambda tracker: tracker.sync(),
    lambda tracker: tracker.finish({}),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("lose", [delete, move, replace, delete_the_record])
def test_a_lost_run_directory_ends_the_run_at_the_next_write(
    config: RunConfig,
    run: RunDirectory,
    console: RunConsole,
    wandb_run: Recorder,
    lose: Callable[[RunDirectory], None],
    write: Callable[[Tracker], object],
) -> None:
    with (
        pytest.raises(RunDirectoryLostError, match=r"metrics\.jsonl was deleted, moved or replaced") as lost,
        Tracker(config, run, console) as tracker,
    ):
        tracker.log(0, {})
        lose(run)
        there = sorted(run.path.rglob("*"))
        write(tracker)
    assert "\n" not in str(lost.value)
    assert sorted(run.path.rglob("*")) == there, "nothing more was written"


def test_a_run_whose_lock_was_taken_over_writes_nothing_more(
    config: RunConfig, run: RunDirectory, console: RunConsole, wandb_run: Recorder
) -> None:
    with run_lock(run.path) as lock, Tracker(config, run, console, lock=lock) as tracker:
        tracker.log(0, {})
        (path,) = lock_paths(run.path)
        path.unlink()
        other = LockFile.take(path)
        for write in WRITES:
            with pytest.raises(RunDirectoryLostError, match="taken over by"):
                write(tracker)
    other.release()
    assert [row["step"] for row in read_metrics(run.metrics_file)] == [0]


def test_a_synchronized_row_is_on_the_disk(
    config: RunConfig, run: RunDirectory, console: RunConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the file is, too."""
    synced: list[tuple[str, int]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, path.stat().st_size if path.is_file() else 0))

    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": "disabled"})})
    with Tracker(config, run, console) as tracker:
        tracker.log(0, {"reward/mean": 0.5})
        size = run.metrics_file.stat().st_size
        assert size > 0
        monkeypatch.setattr(os, "fsync", fsync)
        tracker.sync()
    assert synced == [("metrics.jsonl", size), (run.path.name, 0)]
