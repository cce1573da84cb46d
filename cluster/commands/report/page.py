"""Write the report: one HTML page without scripts and external resources, and its plots as PNG files.

Text from a model is escaped, as in all pages (`cluster/tracking/pages.py`). Plots are images, which contain no scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from cluster.commands.report.charts import DrawnSection, drawn_sections
from cluster.commands.report.figures import COLORS, data_url, png
from cluster.commands.report.runs import Run, labels, read_run
from cluster.core.files import write_atomically
from cluster.core.project import code_version
from cluster.metrics.run_measures import late_mean
from cluster.run_state.run_directory import ABSENT, flat_settings
from cluster.tracking.formats import duration
from cluster.tracking.pages import environment


def write_report(paths: Sequence[Path], output: Path | None) -> tuple[Path, Path]:
    """Write the report about the runs in `paths`. Return the page and the directory of the PNG plots beside it.

    Args:
        output: The file of the page. The default is `report.html` in the run's directory, or, for several runs, in
            the parent directory of the first.

    Raises:
        RefusedError: if one of `paths` does not contain a run.
        OSError: if a file cannot be written.
    """
    unique = list(dict.fromkeys(path.absolute() for path in paths))
    runs = [read_run(path, label) for path, label in zip(unique, labels(unique), strict=True)]
    file = output or (unique[0] if len(unique) == 1 else unique[0].parent) / "report.html"
    sections = list(drawn_sections(runs))
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    made = f"{datetime.now():%Y-%m-%d %H:%M}, {code_version()}"
    plots = file.with_name(f"{file.stem}_plots")
    plots.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for drawn in section.charts:
            write_atomically(plots / f"{drawn.file_stem}.png", png(drawn.figure))
    write_atomically(file, page(title, runs, sections, made).encode("utf-8", errors="backslashreplace"))
    return file, plots


@dataclass(frozen=True, slots=True)
class Card:
    """The card of a run at the top of the page."""

    name: str
    color: str
    state: str
    finished: bool
    objective: str
    cells: Sequence[tuple[str, str]]
    """The rows (name, value)."""


def page(title: str, runs: Sequence[Run], sections: Sequence[DrawnSection], made: str) -> str:
    """Return the HTML text of the page.

    Args:
        made: The date and the version of the code.
    """
    return (
        environment("cluster.commands.report")
        .get_template("report.html.j2")
        .render(
            title=title,
            made=made,
            cards=[card(run, index) for index, run in enumerate(runs)],
            sections=[
                (drawn, [(one.chart, data_url(one.figure)) for one in drawn.charts], _explained(drawn))
                for drawn in sections
            ],
            runs=runs,
            differing=differing_settings(runs),
            settings=[
                (run.label, yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False))
                for run in runs
            ],
        )
    )


def card(run: Run, index: int) -> Card:
    """Return the card of the run with this index."""
    evaluations = run.curve("eval/pass_at_1")
    errors = dict(run.curve("eval/pass_at_1_stderr"))
    cells = []
    if evaluations:
        (_, first), (step, last) = evaluations[0], evaluations[-1]
        error = f" ± {100 * errors[step]:.1f}" if step in errors else ""
        cells.append(("pass@1", f"{100 * first:.1f} → {100 * last:.1f}{error} %"))
        best_step, best = max(evaluations, key=lambda point: point[1])
        cells.append(("best pass@1", f"{100 * best:.1f} %, step {best_step}"))
    if run.curve("reward/mean"):
        cells.append(("late reward", f"{late_mean(run.rows, 'reward/mean'):.3f}"))
        cells.append(("late length", f"{late_mean(run.rows, 'response_length/mean'):.1f} tokens"))
    if restarts := run.curve("fleet/restarts"):
        cells.append(("restarts", f"{restarts[-1][1]:.0f}"))
    cells += [("time", duration(run.seconds)), ("seed", str(run.config.seed))]
    finished = bool(run.summary)
    return Card(
        name=run.label,
        color=COLORS[index % len(COLORS)],
        state="finished" if finished else f"at step {run.step} of {run.config.steps}",
        finished=finished,
        objective=run.config.objective.name,
        cells=cells,
    )


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between the runs, each with the values of all runs."""
    all_settings = [flat_settings(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    rows = [(key, [settings.get(key, ABSENT) for settings in all_settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _explained(drawn: DrawnSection) -> Mapping[str, str]:
    """Return the meanings of the metrics that are drawn or listed as constant."""
    shown = {key for one in drawn.charts for key in one.chart.keys} | drawn.constant.keys()
    return {metric.key: metric.meaning for metric in drawn.section.metrics if metric.key in shown}
