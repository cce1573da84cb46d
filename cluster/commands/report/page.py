"""The report as one HTML page that needs nothing but a browser: no script, nothing from elsewhere.

What a model wrote is text in it, as in all pages (`cluster/tracking/pages.py`). Plots are images: nothing
runs in them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from cluster.commands.report.charts import DrawnChart, DrawnSection
from cluster.commands.report.figures import COLOURS, svg
from cluster.commands.report.runs import Run
from cluster.metrics.run_measures import late_mean
from cluster.run_state.run_directory import ABSENT, flat_settings
from cluster.tracking.formats import duration
from cluster.tracking.pages import environment


@dataclass(frozen=True, slots=True)
class Card:
    """A run in the table at the top."""

    name: str
    colour: str
    state: str
    finished: bool
    objective: str
    cells: Sequence[tuple[str, str]]
    """(what, value)."""


def page(title: str, runs: Sequence[Run], sections: Sequence[DrawnSection], made: str) -> str:
    """The HTML text. `made` says when, and by what."""
    return (
        environment("cluster.commands.report")
        .get_template("report.html.j2")
        .render(
            title=title,
            made=made,
            cards=[card(run, index) for index, run in enumerate(runs)],
            sections=[
                (drawn, [(one.chart, _as_image(one)) for one in drawn.charts], _explained(drawn))
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
        colour=COLOURS[index % len(COLOURS)],
        state="finished" if finished else f"at step {run.step} of {run.config.steps}",
        finished=finished,
        objective=run.config.objective.name,
        cells=cells,
    )


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs: name, and each run's value."""
    all_settings = [flat_settings(run.config) for run in runs]
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    rows = [(key, [settings.get(key, ABSENT) for settings in all_settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _as_image(drawn: DrawnChart) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg(drawn.figure)).decode()


def _explained(drawn: DrawnSection) -> Mapping[str, str]:
    """The meanings of what is drawn, or said to be constant."""
    shown = {key for one in drawn.charts for key in one.chart.keys} | drawn.constant.keys()
    return {metric.key: metric.meaning for metric in drawn.section.metrics if metric.key in shown}
