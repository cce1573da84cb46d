"""Run the missing trainings of a comparison, show their progress, and write tables and plots."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.commands.compare.plan import Comparison, settings_changed
from cluster.commands.compare.plots import figures
from cluster.commands.compare.results import Results, as_json, as_markdown, notes, results_of, tables
from cluster.commands.compare.trials import State, Trial, last_line, run_trials, trials_of
from cluster.commands.report.figures import png
from cluster.core.files import write_atomically
from cluster.core.project import code_version
from cluster.core.text import json_text
from cluster.metrics.run_measures import PASS_AT_1, REWARD, Row, curve
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import run_lock
from cluster.tracking.formats import duration
from cluster.tracking.jsonl import read_metrics

PLAIN_PROGRESS_S = 60.0
"""The interval of progress messages where no live view is shown."""
STYLES = {State.WAITING: "dim", State.RUNNING: "cyan", State.FINISHED: "green", State.FAILED: "bold red"}


class OtherSettingsError(ValueError):
    """The runs of an earlier comparison of this name had other settings."""


def run_comparison(
    comparison: Comparison,
    command: Sequence[str],
    side_by_side: int,
    console: Console,
    *,
    only_table: bool = False,
) -> bool:
    """Run the trainings that are not finished, then write and show the results. Return True if all runs are finished.

    Raises:
        OtherSettingsError: if earlier runs had other settings. Nothing is started.
        RunInUseError: if another process runs this comparison. The table alone can be shown meanwhile.
        KeyboardInterrupt: on Ctrl-C. The same call resumes the comparison.
    """
    refuse_other_settings(comparison)
    if only_table:
        trials = trials_of(comparison)
    else:
        with run_lock(comparison.directory, lambda text: console.print(text, soft_wrap=True)):
            trials = trials_of(comparison)
            with _Progress(console, trials) as progress:
                run_trials(trials, command, side_by_side, progress.changed, progress.tick)
    results = write_results(comparison)
    for table in tables(results):
        console.print(table)
    for note in notes(results):
        console.print(note, soft_wrap=True)
    for trial in trials:
        if trial.state is State.FAILED:
            console.print(
                f"{trial.run.name} failed: {last_line(trial.log_file)} (log: {trial.log_file})",
                soft_wrap=True,
                markup=False,
            )
    console.print(f"tables and plots: {comparison.directory}", soft_wrap=True)
    return not results.missing


def refuse_other_settings(comparison: Comparison) -> None:
    """Refuse to continue a comparison whose earlier runs differ from the ones that it would start now.

    Raises:
        OtherSettingsError: if one run differs.
    """
    for run in comparison.runs:
        directory = RunDirectory(run.config.run_directory)
        if not directory.config_file.exists():
            continue
        if changed := settings_changed(directory.read_config(), run.config):
            raise OtherSettingsError(
                f"{directory.path} was trained with other settings: {'; '.join(changed)}. Restore them, move that "
                "directory away, or choose another name for the comparison"
            )


def write_results(comparison: Comparison) -> Results:
    """Write `comparison.json`, `comparison.md` and the plots of the finished runs."""
    rows = {
        run.name: list(read_metrics(directory.metrics_file, increasing=True))
        for run in comparison.runs
        if (directory := RunDirectory(run.config.run_directory)).is_finished
    }
    results = results_of(comparison, rows)
    comparison.directory.mkdir(parents=True, exist_ok=True)
    plots = []
    if rows:
        for name, figure in figures(results, rows):
            plots.append(f"{name}.png")
            write_atomically(comparison.directory / plots[-1], png(figure))
    write_atomically(comparison.directory / "comparison.json", json_text(as_json(results), indent=1) + "\n")
    write_atomically(comparison.directory / "comparison.md", as_markdown(results, code_version(), plots))
    return results


class _Progress:
    """Show the progress of the runs: a live table on a terminal, lines elsewhere."""

    def __init__(self, console: Console, trials: Sequence[Trial]) -> None:
        self._console = console
        self._trials = trials
        self._said_at = time.monotonic()
        self._live = Live(console=console, get_renderable=self._table, auto_refresh=False)

    def __enter__(self) -> _Progress:
        if self._console.is_terminal:
            self._live.start()
        finished = sum(trial.state is State.FINISHED for trial in self._trials)
        self._say(f"{len(self._trials)} runs, {finished} of them already finished")
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def changed(self, trial: Trial) -> None:
        """Report a run that has started or ended."""
        self._say(f"{trial.run.name}: {trial.state.value}" + _reached(trial))

    def tick(self) -> None:
        """Refresh the live table, or report the running trainings from time to time."""
        if self._console.is_terminal:
            self._live.refresh()
        elif time.monotonic() - self._said_at >= PLAIN_PROGRESS_S:
            for trial in self._trials:
                if trial.state is State.RUNNING:
                    self._say(f"{trial.run.name}:" + _reached(trial))

    def _say(self, text: str) -> None:
        self._said_at = time.monotonic()
        self._console.print(Text.assemble((time.strftime("%H:%M:%S  "), "dim"), text), soft_wrap=True)

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for trial in self._trials:
            table.add_row(
                Text(trial.run.name),
                Text(trial.state.value, STYLES[trial.state]),
                Text(_reached(trial).strip()),
            )
        return Group(table)


def _reached(trial: Trial) -> str:
    """Return the progress of a run, such as ` step 40/100, reward 0.312, pass@1 0.355, for 61 s`."""
    rows: list[Row] = list(read_metrics(trial.directory.metrics_file))
    if trial.state is State.WAITING or not rows:
        return ""
    parts = [f" step {rows[-1]['step']}/{trial.run.config.steps}"]
    for name, key in (("reward", REWARD), ("pass@1", PASS_AT_1)):
        if points := curve(rows, key):
            parts.append(f"{name} {points[-1][1]:.3f}")
    if trial.state is State.RUNNING:
        parts.append(f"for {duration(time.monotonic() - trial.started_at)}")
    return ", ".join(parts)
