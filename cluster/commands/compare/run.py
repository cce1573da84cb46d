"""Run the missing trainings of a comparison, show their progress, and write tables and plots."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.commands.compare.plan import Comparison, PlannedRun, Tuning, settings_changed
from cluster.commands.compare.plots import figures
from cluster.commands.compare.results import (
    Results,
    as_json,
    as_markdown,
    notes,
    results_of,
    tables,
    tuning_table,
)
from cluster.commands.compare.trials import State, Trial, last_line, run_trials, trials_of
from cluster.commands.compare.tuning import Tuned, tuned_by, tuning_notes
from cluster.commands.report.figures import png
from cluster.core.files import refuse_obstacles, write_atomically
from cluster.core.project import code_version
from cluster.core.text import json_text
from cluster.metrics.run_measures import PASS_AT_1, REWARD, Row, curve
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunInUseError, run_lock
from cluster.tracking.formats import duration
from cluster.tracking.jsonl import read_metrics

RESULTS = ("comparison.json", "comparison.md", "*.png")
"""The files of a comparison's results in its directory."""
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
        OtherSettingsError: if earlier runs had other settings. None of the runs that would differ from them is started.
        RunInUseError: if another process runs this comparison. The table alone is shown meanwhile, and not written.
        KeyboardInterrupt: on Ctrl-C. The same call resumes the comparison.
    """
    tuning = comparison.tuning
    plans: list[Comparison | Tuning] = [comparison] if tuning is None else [tuning, comparison]
    for plan in plans:
        refuse_other_settings(plan.runs)
        _refuse_obstacles(plan, only_table)
    tuned, in_use = None, ""
    with ExitStack() as locks:
        try:
            for plan in plans:
                locks.enter_context(
                    run_lock(plan.directory, lambda text: console.print(text, soft_wrap=True))
                )
        except RunInUseError as error:
            if not only_table:
                raise
            in_use = str(error)  # that process writes the tables

        def trained(plan: Comparison | Tuning) -> list[Trial]:
            trials = trials_of(plan)
            if not only_table:
                with _Progress(console, trials, "the tuning: " if plan is tuning else "") as progress:
                    run_trials(trials, command, side_by_side, progress.changed, progress.tick)
            return trials

        if tuning is not None:
            _show_failed(trained(tuning), console)
            tuned = tuned_by(tuning, finished_rows(tuning.runs))
            console.print(tuning_table(tuned))
            if tuned.undecided:
                _show_lines([*tuning_notes(tuned), _undecided(tuned)], console)
                return False
            comparison = comparison.with_values(tuned.chosen)
            refuse_other_settings(comparison.runs)
        trials = trained(comparison)
        # Within the locks: otherwise the results of an earlier moment could replace those of another process.
        results = results_of_finished(comparison, tuned) if in_use else write_results(comparison, tuned)
    for table in tables(results):
        console.print(table)
    _show_lines(notes(results), console)
    _show_failed(trials, console)
    if in_use:
        console.print(f"nothing was written: {in_use}", soft_wrap=True, markup=False)
    else:
        console.print(f"tables and plots: {comparison.directory}", soft_wrap=True)
    return not results.missing


def _refuse_obstacles(plan: Comparison | Tuning, only_table: bool) -> None:
    """Refuse what is in the place of a file that the comparison or one of its runs will write."""
    refuse_obstacles(
        plan.directory, (".", "logs"), RESULTS, ("logs/*.log",), "move it away, or choose another name"
    )
    if not only_table:
        for run in plan.runs:
            RunDirectory(run.config.run_directory).refuse_obstacles("move it away")


def _undecided(tuned: Tuned) -> str:
    return (
        f"No value of {tuned.tuning.config.setting} has all of its runs for {', '.join(tuned.undecided)}, so the "
        "comparison has not started; without --only-table this command trains the missing runs"
    )


def _show_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _show_failed(trials: Sequence[Trial], console: Console) -> None:
    failed = [trial for trial in trials if trial.state is State.FAILED]
    _show_lines(
        [f"{t.run.name} failed: {last_line(t.log_file)} (log: {t.log_file})" for t in failed], console
    )


def refuse_other_settings(runs: Sequence[PlannedRun]) -> None:
    """Refuse to continue if an earlier run differs from the one of its name that would start now. A run of several
    planned ones with the same name, of which the tuning selects one, must equal one of them.

    Raises:
        OtherSettingsError: if one run differs.
    """
    by_directory: dict[Path, list[PlannedRun]] = {}
    for run in runs:
        by_directory.setdefault(run.config.run_directory, []).append(run)
    for path, planned in by_directory.items():
        directory = RunDirectory(path)
        if not directory.config_file.exists():
            continue
        saved = directory.read_config()
        if changed := min((settings_changed(saved, run.config) for run in planned), key=len):
            raise OtherSettingsError(
                f"{directory.path} was trained with other settings: {'; '.join(changed)}. Restore them, move that "
                "directory away, or choose another name for the comparison"
            )


def finished_rows(runs: Sequence[PlannedRun]) -> dict[str, list[Row]]:
    """Return the rows of metrics of the finished runs, by the name of the run."""
    return {
        run.name: list(read_metrics(directory.metrics_file, increasing=True))
        for run in runs
        if (directory := RunDirectory(run.config.run_directory)).is_finished
    }


def results_of_finished(comparison: Comparison, tuned: Tuned | None) -> Results:
    """Return the results of the finished runs."""
    return results_of(comparison, finished_rows(comparison.runs), tuned)


def write_results(comparison: Comparison, tuned: Tuned | None = None) -> Results:
    """Write `comparison.json`, `comparison.md` and the plots of the finished runs."""
    rows = finished_rows(comparison.runs)
    results = results_of(comparison, rows, tuned)
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

    def __init__(self, console: Console, trials: Sequence[Trial], purpose: str) -> None:
        self._console = console
        self._purpose = purpose
        self._trials = trials
        self._said_at = time.monotonic()
        self._live = Live(console=console, get_renderable=self._table, auto_refresh=False)

    def __enter__(self) -> _Progress:
        if self._console.is_terminal:
            self._live.start()
        finished = sum(trial.state is State.FINISHED for trial in self._trials)
        self._say(f"{self._purpose}{len(self._trials)} runs, {finished} of them already finished")
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
