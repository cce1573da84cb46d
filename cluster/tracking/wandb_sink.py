"""Weights & Biases, isolated from the trainer: the trainer neither waits for it nor fails with it.

    trainer ──▶ queue (bounded) ──▶ one daemon thread ──▶ wandb ──▶ its service process ──▶ network

The thread makes every call of wandb, from the import (which takes seconds) and the login on. The first error of wandb
turns the sink off, with one line that gives the reason; `metrics.jsonl` still has everything.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.config import RunConfig
from cluster.core.ending import is_hurried, wait_patiently
from cluster.core.project import code_version
from cluster.core.text import utf8_text
from cluster.metrics.catalogue import CHARTED, METRICS
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import wandb_process
from cluster.tracking.alerts import Alert, StallWatch

QUEUE_LIMIT = 1000
HISTOGRAM_BINS = 32
LARGEST_DRAWN = 1e30
"""Larger values of a distribution are shown as this one."""
LOOK_FOR_STALLS_S = 5.0
TABLE_COLUMNS = ("step", "prompt", "response", "verdict", "reward", "reason")

Job = Callable[[Any], None]
"""A function of the wandb run."""


class WandbSink:
    """Sends metrics, sample tables and the summary to W&B, in order, and never raises once it is made.

    W&B only appends. Steps that a resumed run repeats (those up to `shown_step`) are not sent again, so W&B keeps their
    first version.

    `notify` is called, mostly from the sink's thread, with the address of the run's page and with warnings.

    Raises:
        RefusedError: if the run directory's id of the W&B run cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        run_directory: RunDirectory,
        notify: Callable[[str], None],
        *,
        resumed_id: str | None = None,
        shown_step: int = -1,
        init_timeout_s: float = 20.0,
        finish_timeout_s: float = 30.0,
    ) -> None:
        self._config = config
        self._run_directory = run_directory
        self._notify = notify
        self._shown_step = shown_step
        self._init_timeout_s = init_timeout_s
        self._finish_timeout_s = finish_timeout_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._dropped = 0
        self._stalls = StallWatch()
        self._exit_code = 1
        self.off_reason: str | None = None
        """The reason why nothing is logged; None while the sink works."""
        self.run_id: str | None = None
        """The id of the W&B run: that of the run directory (for a resumed run), else `resumed_id`, else a new one."""
        self._thread: threading.Thread | None = None
        if config.tracking.wandb == "disabled":
            self.off_reason = "as configured"
        else:
            self.run_id = run_directory.read_wandb_run_id() or resumed_id or secrets.token_hex(6)
            self._thread = threading.Thread(target=self._work, name="wandb-sink", daemon=True)
            self._thread.start()

    def log(
        self, step: int, metrics: Mapping[str, float], distributions: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Log a step. W&B shows `distributions` (values by name) as histograms."""
        row, values, now_s = {"step": step, **metrics}, dict(distributions or {}), time.monotonic()

        def job(run: Any) -> None:
            self._stalls.heard(now_s, last=step >= self._config.steps)
            if step > self._shown_step:
                run.log({**row, **_histograms(values)})

        self._submit(job)

    def alert(self, alert: Alert) -> None:
        """Send an alert, which W&B forwards as the user has configured there (by mail, for example)."""
        self._submit(lambda run: run.alert(alert.title, alert.text, level="WARN"))

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Log sampled responses; each row has the values of `TABLE_COLUMNS`."""
        if step > self._shown_step:
            self._submit(lambda run: _log_table(run, step, rows))

    def checkpoint(self, step: int, path: Path) -> None:
        """Upload a complete checkpoint, if configured."""
        if self._config.tracking.wandb_checkpoints:
            self._submit(lambda run: self._log_checkpoint(run, step, path))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Log the summary of the run."""
        self._submit(lambda run: run.summary.update(dict(summary)))

    def close(self, *, finished: bool) -> None:
        """Send what is queued and end the W&B run, as failed unless `finished`.

        After about `finish_timeout_s` wandb's process is killed. Data that was not uploaded by then is in the run
        directory, for `wandb sync`.
        """
        if self._thread is None:
            return
        self._exit_code = 0 if finished else 1
        self._jobs.put(None)
        thread = self._thread
        if not wait_patiently(lambda: not thread.is_alive(), self._finish_timeout_s):
            self._turn_off(
                "the command was ended"
                if is_hurried()
                else f"it did not finish within {self._finish_timeout_s:g} s"
            )
            for _ in range(10):  # the thread may be starting wandb's process, or a second one
                wandb_process.kill()
                self._thread.join(0.5)
        self._thread = None

    def _submit(self, job: Job) -> None:
        if self.off_reason is not None or self._thread is None:
            return
        if self._jobs.qsize() < QUEUE_LIMIT:
            self._jobs.put(job)
            return
        self._dropped += 1
        if self._dropped == 1:
            self._notify(
                f"W&B does not keep up ({QUEUE_LIMIT} entries are queued): further entries are dropped"
            )

    def _turn_off(self, reason: str) -> None:
        if self.off_reason is None:
            self.off_reason = reason
            self._notify(f"W&B is off: {reason}. metrics.jsonl has all metrics.")

    def _work(self) -> None:
        try:
            run = self._start()
            if run is None:
                return
            while (job := self._next_job(run)) is not None:
                job(run)
            run.finish(exit_code=self._exit_code)
        except Exception as error:  # wandb's own errors, OSError, ValueError, ...: none may end the run
            self._turn_off(_one_line(error))
        finally:
            self._tear_down()

    def _next_job(self, run: Any) -> Job | None:
        """Return the next job; None ends the thread. While waiting, check that steps still come."""
        while True:
            try:
                return self._jobs.get(timeout=LOOK_FOR_STALLS_S)
            except queue.Empty:
                if alert := self._stalls.alert(time.monotonic()):
                    self._notify(f"{alert.title}: {alert.text}")
                    run.alert(alert.title, alert.text, level="WARN")

    def _start(self) -> Any | None:
        """Start wandb and return its run; None if W&B is switched off."""
        from cluster.tracking import wandb_process

        wanted = self._config.tracking.wandb
        assert wanted != "disabled"
        wandb_process.set_up(wanted, self._run_directory.wandb, self._init_timeout_s, self._finish_timeout_s)
        mode, why = wandb_process.choose(wanted)
        if mode == "off":
            self._turn_off(why)
            return None
        if mode == "online":
            try:
                return self._init("online", "")
            except Exception as error:
                why = _one_line(error)
                # wandb's service process keeps the id of the failed run: start a new process.
                self._tear_down()
                wandb_process.set_up(
                    "offline", self._run_directory.wandb, self._init_timeout_s, self._finish_timeout_s
                )
        return self._init("offline", why)

    def _init(self, mode: str, why: str) -> Any:
        import wandb

        if self.off_reason is not None:
            raise TimeoutError(self.off_reason)  # `close` has stopped waiting for this thread
        tracking = self._config.tracking
        assert self.run_id is not None
        self._run_directory.write_wandb_run_id(self.run_id)
        run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=self._run_directory.path,  # wandb makes `wandb/` in it
            project=tracking.wandb_project,
            group=tracking.wandb_group,
            tags=tracking.wandb_tags,
            name=self._config.name,
            id=self.run_id,
            resume="allow",
            config={**self._config.model_dump(mode="json"), "code_version": code_version()},
            allow_val_change=True,  # a resumed run may have changed settings
        )
        _define_metrics(run)
        if mode == "online":
            self._notify(f"W&B: {run.url}")
        else:
            self._notify(f"W&B is offline: {why}. Upload later with `wandb sync {run.settings.sync_dir}`")
        return run

    def _log_checkpoint(self, run: Any, step: int, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"{run.id}-checkpoint", type="checkpoint", metadata={"step": step})
        try:
            artifact.add_dir(str(path))  # copies the files
        except (OSError, ValueError) as error:
            # It may have been deleted already, after newer checkpoints.
            self._notify(f"the checkpoint of step {step} was not uploaded to W&B: {_one_line(error)}")
        else:
            run.log_artifact(artifact, aliases=[f"step-{step}"])

    def _tear_down(self) -> None:
        """End wandb's service process, so that wandb's own exit hook does not wait for it."""
        try:
            import wandb

            wandb.teardown()
        except (Exception, SystemExit) as error:  # wandb raises SystemExit if its process was killed
            self._turn_off(_one_line(error))


def _define_metrics(run: Any) -> None:
    """Define the step as x-axis, the summaries of the catalogue, and metrics without a chart as hidden."""
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    for key, metric in METRICS.items():
        run.define_metric(
            key, step_metric="step", summary=metric.summary or "none", hidden=key not in CHARTED
        )


def _histograms(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import wandb

    return {
        f"distributions/{name}": wandb.Histogram(np_histogram=np.histogram(drawn, bins=HISTOGRAM_BINS))
        for name, of in values.items()
        # The width of a histogram over rewards of ±1e308 would be infinite, and wandb would be turned off.
        if len(drawn := np.clip(of[np.isfinite(of)], -LARGEST_DRAWN, LARGEST_DRAWN))
    }


def _log_table(run: Any, step: int, rows: Sequence[Sequence[Any]]) -> None:
    import wandb

    shown = [[utf8_text(value) if isinstance(value, str) else value for value in row] for row in rows]
    run.log({"step": step, "samples": wandb.Table(columns=list(TABLE_COLUMNS), data=shown)})


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
