"""One object that sends a run's metrics to `metrics.jsonl`, W&B, the console and transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from cluster.core.config import RunConfig
from cluster.core.types import ScoredGroup
from cluster.metrics.evaluation import categories_of, evaluation_report
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunLock
from cluster.tracking.alerts import Alerts
from cluster.tracking.console import RunConsole
from cluster.tracking.evaluation_files import write_evaluation
from cluster.tracking.jsonl import MetricsFile, read_metrics
from cluster.tracking.kept_batch import write_batch
from cluster.tracking.transcripts import choose, write_transcripts
from cluster.tracking.wandb_sink import WandbSink


class MetricsSink(Protocol):
    """Another receiver of a run's metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of a step."""


class Tracker:
    """Receives each step once from the controller, and passes it on.

        with RunConsole(config.name, config.steps) as console:
            console.stage("starting Ray")
            with Tracker(config, run_directory, console, resume_step=checkpoint_step) as tracker:
                tracker.log(step, metrics)
                tracker.transcripts(step, groups)
                tracker.finish(summary)  # only when training ran to its end

    A failure of W&B or of the console never reaches the caller; a failure to write the run directory does. If the
    directory was deleted, or taken over by another process, every method that writes raises RunDirectoryLostError.

    Args:
        resume_step: The step of the checkpoint from which the run resumes. Later steps in `metrics.jsonl` are moved to
            another file, since they are repeated: with -1 all of them (a restart without a checkpoint), with None none
            of them (a new run).
        wandb_run_id: The W&B run that the checkpoint names, used if the run directory has lost its id.
        lock: The lock of the run directory, which is checked before each write.

    Raises:
        OSError: if the run directory cannot be written.
        ValueError: if its `metrics.jsonl` is broken.
    """

    def __init__(
        self,
        config: RunConfig,
        run_directory: RunDirectory,
        console: RunConsole,
        *,
        resume_step: int | None = None,
        wandb_run_id: str | None = None,
        lock: RunLock | None = None,
    ) -> None:
        self._lock = lock
        self._config = config
        self._category_of = categories_of(config)
        self._run = run_directory
        self._console = console
        self._shown_responses = config.tracking.transcripts_per_step
        self._finished = False
        self._alerts = Alerts(config)
        self._sinks: list[MetricsSink] = []
        run_directory.create()
        console.continue_in(run_directory.console_log)
        run_directory.remove_summary()
        files = (run_directory.metrics_file, run_directory.superseded_metrics_file)
        earlier = [
            (row["step"], row.get("fleet/restarts", 0.0)) for file in files for row in read_metrics(file)
        ]
        shown_step = max((step for step, _ in earlier), default=-1)
        self.restarts_before = max((restarts for _, restarts in earlier), default=0.0)
        """The number of worker restarts before the run was resumed, those in repeated steps included."""
        self._metrics = MetricsFile(run_directory.metrics_file, run_directory.superseded_metrics_file)
        if resume_step is not None:
            self._metrics.truncate_after(resume_step)
        console.restore(read_metrics(run_directory.metrics_file))
        self._wandb = WandbSink(
            config, run_directory, console.event, resumed_id=wandb_run_id, shown_step=shown_step
        )

    @property
    def wandb_run_id(self) -> str | None:
        """The id of the W&B run, in which a resumed run continues; None if W&B is disabled."""
        return self._wandb.run_id

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        prompts: Sequence[str] = (),
        dropped: Mapping[str, Sequence[str]] | None = None,
        distributions: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Log the metrics of `step`, which is the state after that many updates. Keys may be absent.

        Args:
            prompts: The ids of the prompts that the step trained on, for `metrics.jsonl` only.
            dropped: The ids of the prompts that the step dropped, by reason, for `metrics.jsonl` only.
            distributions: Values that W&B shows as histograms, by name.

        Raises:
            ValueError: if this step or a later one was logged before.
            OSError: if `metrics.jsonl` cannot be written (on a full disk, for example).
        """
        self.check()
        self._metrics.log(step, metrics, prompts, dropped)
        self._console.step(step, metrics)
        self._wandb.log(step, metrics, distributions or {})
        for sink in self._sinks:
            sink.log(step, metrics)
        for alert in self._alerts.after(step, metrics):
            self._console.warning(f"{alert.title}: {alert.text}")
            self._wandb.alert(alert)

    def check(self) -> None:
        """Make sure that the run directory is still there, and still this process's.

        Raises:
            RunDirectoryLostError: if it is not.
        """
        if self._lock is not None:
            self._lock.check()
        self._metrics.check()

    def sync(self) -> None:
        """Wait until all rows of `metrics.jsonl` are on the disk: a checkpoint must not be ahead of them.

        Raises:
            OSError: if they cannot be written.
        """
        self.check()
        self._metrics.sync()

    def attach(self, sink: MetricsSink) -> None:
        """Send every further step to `sink` too."""
        self._sinks.append(sink)

    def transcripts(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Write some of the step's responses to the transcripts.

        Raises:
            OSError: if a file cannot be written.
        """
        if not groups or not self._shown_responses:
            return
        self.check()
        write_transcripts(self._run.transcript_file(step), step, groups, self._shown_responses)
        rows = [
            (step, group.prompt.text, response.text, verdict.outcome, verdict.reward, verdict.reason)
            for group, pairs in choose(groups, self._shown_responses)
            for response, verdict in pairs
        ]
        self._wandb.table(step, rows)

    def failed_batch(self, step: int, groups: Sequence[ScoredGroup]) -> Path:
        """Write the whole batch of a step whose update failed. Return the file.

        Raises:
            OSError: if it cannot be written.
        """
        self.check()
        file = self._run.failed_batch_file(step)
        file.parent.mkdir(exist_ok=True)
        write_batch(file, groups)
        return file

    def evaluation(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Write the files of an evaluation: its report, all responses, and a page to read.

        Raises:
            OSError: if a file cannot be written.
        """
        self.check()
        report = evaluation_report(self._config, "eval", groups, self._category_of)
        write_evaluation(self._run.evaluation_stem(step), {"step": step, **report}, groups, self._category_of)

    def checkpoint(self, step: int, path: Path) -> None:
        """Upload a complete checkpoint to W&B, if configured."""
        self._wandb.checkpoint(step, path)

    def event(self, text: str) -> None:
        """Print a line on the console."""
        self._console.event(text)

    def warning(self, text: str) -> None:
        """Print a line about a failure, which is shown in quiet mode too."""
        self._console.warning(text)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Finish a completed run: upload the rest, then write and show the summary, which marks the run as finished.

        Raises:
            OSError: if the summary cannot be written.
        """
        self.check()
        self._finished = True
        self._wandb.summary(summary)
        if self._wandb.off_reason is None:
            self._console.stage("uploading to W&B")
        self.close()
        self._run.write_summary(summary)
        self._console.summary(summary)

    def close(self) -> None:
        """End tracking. Without `finish` the run counts as unfinished, and W&B shows it as failed."""
        try:
            self._metrics.close()  # on a full disk it raises what `log` raised
        finally:
            self._wandb.close(finished=self._finished)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
