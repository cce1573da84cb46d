"""Where a run's numbers go: `metrics.jsonl` (the truth), W&B, the console and transcripts, as one object."""

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
from cluster.tracking.alerts import Alerts
from cluster.tracking.console import RunConsole
from cluster.tracking.evaluation_files import write_evaluation
from cluster.tracking.jsonl import MetricsFile, read_metrics
from cluster.tracking.transcripts import choose, write_transcripts
from cluster.tracking.wandb_sink import WandbSink


class MetricsSink(Protocol):
    """Something else that wants to know a run's numbers."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class Tracker:
    """The controller tells it each step once; it tells everybody else.

        with RunConsole(config.name, config.steps) as console:
            console.stage("starting Ray")
            with Tracker(config, run_directory, console, resume_step=checkpoint_step) as tracker:
                tracker.log(step, metrics)
                tracker.transcripts(step, groups)
                tracker.finish(summary)  # only when training ran to its end

    W&B may fail without the caller noticing; the files of the run directory may not.

    `resume_step` is the step of the checkpoint that the run goes on from: later steps in `metrics.jsonl` are
    moved aside, since they are done again. -1 moves all of them (a restart without a checkpoint), None none
    (a new run). `wandb_run_id` is the checkpoint's: the page to go on in, should the run directory
    not know it any more.

    Raises:
        OSError: the run directory cannot be written.
        ValueError: its `metrics.jsonl` is broken.
    """

    def __init__(
        self,
        config: RunConfig,
        run_directory: RunDirectory,
        console: RunConsole,
        *,
        resume_step: int | None = None,
        wandb_run_id: str | None = None,
    ) -> None:
        self._config = config
        self._category_of = categories_of(config)
        self._run = run_directory
        self._console = console
        self._shown_responses = config.tracking.transcripts_per_step
        self._finished = False
        self._alerts = Alerts(config)
        self._sinks: list[MetricsSink] = []
        run_directory.create()
        run_directory.remove_summary()
        files = (run_directory.metrics_file, run_directory.superseded_metrics_file)
        earlier = [
            (row["step"], row.get("fleet/restarts", 0.0)) for file in files for row in read_metrics(file)
        ]
        shown_step = max((step for step, _ in earlier), default=-1)
        self.restarts_before = max((restarts for _, restarts in earlier), default=0.0)
        """How often a worker was replaced before the run was resumed, in steps that are done again too."""
        self._metrics = MetricsFile(run_directory.metrics_file, run_directory.superseded_metrics_file)
        if resume_step is not None:
            self._metrics.truncate_after(resume_step)
        console.restore(read_metrics(run_directory.metrics_file))
        self._wandb = WandbSink(
            config, run_directory, console.event, resumed_id=wandb_run_id, shown_step=shown_step
        )

    @property
    def wandb_run_id(self) -> str | None:
        """Of the W&B page that the run goes on in when it is resumed; None if W&B is disabled."""
        return self._wandb.run_id

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        prompts: Sequence[str] = (),
        dropped: Mapping[str, Sequence[str]] | None = None,
        distributions: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Logs all there is to say about `step`; step k is after k updates. Keys may be absent.

        `prompts` are the ids of the prompts it learned from, `dropped` those it gave up, by reason; they go to
        `metrics.jsonl` alone. `distributions` are values of which W&B shows histograms.

        Raises:
            ValueError: this step, or a later one, was logged before.
            OSError: `metrics.jsonl` cannot be written (a full disk, say).
        """
        self._metrics.log(step, metrics, prompts, dropped)
        self._console.step(step, metrics)
        self._wandb.log(step, metrics, distributions or {})
        for sink in self._sinks:
            sink.log(step, metrics)
        for alert in self._alerts.after(step, metrics):
            self._console.warning(f"{alert.title}: {alert.text}")
            self._wandb.alert(alert)

    def attach(self, sink: MetricsSink) -> None:
        """`sink` is told of every step that is logged from now on."""
        self._sinks.append(sink)

    def transcripts(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Writes some of the responses out for a person to read.

        Raises:
            OSError: the file cannot be written.
        """
        if not groups or not self._shown_responses:
            return
        write_transcripts(self._run.transcript_file(step), step, groups, self._shown_responses)
        rows = [
            (step, group.prompt.text, response.text, verdict.outcome, verdict.reward, verdict.reason)
            for group, pairs in choose(groups, self._shown_responses)
            for response, verdict in pairs
        ]
        self._wandb.table(step, rows)

    def evaluation(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Writes out what an evaluation found: its numbers by category, all responses, and a page to read.

        Raises:
            OSError: a file cannot be written.
        """
        report = evaluation_report(self._config, "eval", groups, self._category_of)
        write_evaluation(self._run.evaluation_stem(step), {"step": step, **report}, groups, self._category_of)

    def checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is complete."""
        self._wandb.checkpoint(step, path)

    def event(self, text: str) -> None:
        """One line for the person at the terminal (or for the log)."""
        self._console.event(text)

    def warning(self, text: str) -> None:
        """The same for something that failed: it is shown in quiet mode too."""
        self._console.warning(text)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Training ran to its end: hands everything over, shows the summary and writes it, last, as the seal.

        Raises:
            OSError: the summary cannot be written.
        """
        self._finished = True
        self._wandb.summary(summary)
        if self._wandb.off_reason is None:
            self._console.stage("handing over to W&B")
        self.close()
        self._run.write_summary(summary)
        self._console.summary(summary)

    def close(self) -> None:
        """Ends tracking. Without `finish` the run counts as unfinished, and W&B shows it as failed."""
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
