"""The content of the console: the live view, the plain line of a step, and the rows of the summary. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.tracking.formats import duration, percent, short, sparkline, stacked_bar, time_legend, time_parts

SPARK_WIDTH = 20
TIME_BAR_WIDTH = 56
ETA_STEPS = 50


@dataclass(frozen=True, slots=True)
class View:
    """The state of the run that the console shows. It is immutable, so another thread may render it at any time."""

    name: str
    steps: int
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the latest step."""
    rewards: tuple[float, ...] = ()
    evaluations: tuple[tuple[int, float, float | None], ...] = ()
    """(step, pass@1, standard error), in order."""
    step_times: tuple[float, ...] = ()
    """The seconds of the last `ETA_STEPS` steps, each with its evaluation and checkpoint."""

    def after(self, step: int, metrics: Mapping[str, float]) -> View:
        """Return the view after `step` was logged."""
        rewards, evaluations, step_times = self.rewards, self.evaluations, self.step_times
        if "reward/mean" in metrics:
            rewards = (*rewards, metrics["reward/mean"])
        if "eval/pass_at_1" in metrics:
            evaluations = (
                *evaluations,
                (step, metrics["eval/pass_at_1"], metrics.get("eval/pass_at_1_stderr")),
            )
        if step > 0 and (parts_s := time_parts(metrics)):
            step_times = (*step_times, sum(parts_s.values()))[-ETA_STEPS:]
        return replace(
            self,
            step=step,
            metrics=dict(metrics),
            rewards=rewards,
            evaluations=evaluations,
            step_times=step_times,
        )

    @property
    def remaining_s(self) -> float | None:
        """The remaining seconds, estimated from the recent steps; None before the first step."""
        if not self.step_times:
            return None
        return max(0, self.steps - self.step) * sum(self.step_times) / len(self.step_times)


def live(view: View) -> RenderableType:
    """Return the live view, laid out for 80 columns."""
    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column(no_wrap=True, overflow="ellipsis", max_width=24)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    remaining = view.remaining_s
    head.add_row(
        Text(view.name, "bold"),
        f"step {view.step}/{view.steps}",
        ProgressBar(total=view.steps, completed=view.step),
        percent(view.step / view.steps) + (f"  {duration(remaining)} left" if remaining else ""),
    )
    body = Table.grid(padding=(0, 2), expand=True)
    body.add_column(style="cyan", no_wrap=True, width=9)
    body.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for label, text in _sections(view):
        body.add_row(label, text)
    return Group(head, body)


def plain_line(view: View) -> str:
    """Return the latest step as one aligned line, for logs."""
    m = view.metrics
    fields = (
        f"step {view.step:>{len(str(view.steps))}}/{view.steps}",
        _cell(m, "reward/mean", "reward {:6.3f}"),
        _cell(m, "eval/pass_at_1", "pass@1 {:5.3f}"),
        _cell(m, "objective/alpha", "α {:4.2f}"),
        _cell(m, "response_length/mean", "length {:4.0f}") + _cell(m, "response_length/std", " ±{:4.0f}"),
        _cell(m, "staleness/mean", "stale {:4.2f}"),
        _cell(m, "time/step_s", "{:6.1f} s"),
        _cell(m, "fleet/healthy_workers", "workers {:.0f}") + _field(m, "fleet/workers", "/{:.0f}"),
    )
    return "  ".join(fields).rstrip()


def summary_rows(summary: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a name and a value per entry; the names of nested entries are `section/name`."""
    rows: list[tuple[str, str]] = []
    for key, value in summary.items():
        if isinstance(value, Mapping):
            rows += summary_rows(value, f"{prefix}{key}/")
        else:
            rows.append((f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def _sections(view: View) -> Iterable[tuple[str, Text]]:
    m = view.metrics
    if view.evaluations:
        yield "pass@1", _pass_at_1(view)
    if view.rewards:
        text = Text(_field(m, "reward/mean", "{:.3f}"), "bold green")
        text.append(f"  {sparkline(view.rewards, SPARK_WIDTH)}", "green")
        details = _joined(
            _percent(m, "reward/correct_fraction", "correct {}"),
            _percent(m, "reward/zero_variance_fraction", "σ=0 {}"),
            _percent(m, "reward/error_fraction", "errors {}"),
        )
        yield "reward", text.append(f"  {details}", "default")
    lines = (
        (
            "objective",
            _field(m, "objective/alpha", "α {:.2f}"),
            _percent(m, "objective/positive_fraction", "A>0 {}"),
            _percent(m, "objective/negative_fraction", "A<0 {}"),
            _field(m, "objective/entropy", "entropy {:.2f}"),
            _field(m, "objective/grad_norm", "|g| {:.2g}"),
            _field(m, "objective/loss", "loss {:.3g}"),
        ),
        (
            "length",
            _field(m, "response_length/mean", "{:.0f}") + _field(m, "response_length/std", " ± {:.0f}"),
            _field(m, "response_length/min", "{:.0f}")
            + _field(m, "response_length/max", " to {:.0f} tokens"),
            _percent(m, "response_length/truncated_fraction", "truncated {}"),
        ),
        (
            "staleness",
            _field(m, "staleness/mean", "{:.2f}") + _field(m, "staleness/max", ", max {:.0f}"),
            _field(m, "logprob_gap/mean", "log-prob gap {:.2g}")
            + _field(m, "logprob_gap/max", ", max {:.2g}"),
        ),
        (
            "tokens/s",
            _count(m, "throughput/rollout_tokens_per_s", "rollout {}"),
            _count(m, "throughput/learner_tokens_per_s", "learner {}"),
        ),
    )
    for label, *parts in lines:
        if text_of_line := _joined(*parts):
            yield label, Text(text_of_line)
    if parts_s := time_parts(m):
        total = f"{duration(sum(parts_s.values())):8}"
        yield "step time", Text.assemble(total, stacked_bar(parts_s, TIME_BAR_WIDTH))
        yield "", time_legend(parts_s)
    if "fleet/workers" in m:
        yield "workers", _fleet(m)


def _pass_at_1(view: View) -> Text:
    """Return the first and the latest pass@1, with a sparkline."""
    (_, first, _), (step, last, stderr) = view.evaluations[0], view.evaluations[-1]
    text = Text(f"{first:.3f} → " if len(view.evaluations) > 1 else "")
    text.append(f"{last:.3f}", "bold green")
    text.append("" if stderr is None else f" ± {stderr:.3f}")
    text.append(f"  {sparkline([value for _, value, _ in view.evaluations], SPARK_WIDTH)}", "green")
    return text.append(f"  at step {step}", "dim")


def _fleet(m: Mapping[str, float]) -> Text:
    healthy, workers = m.get("fleet/healthy_workers", 0.0), m["fleet/workers"]
    text = Text(f"{healthy:.0f}/{workers:.0f} healthy", "green" if healthy >= workers else "bold red")
    details = _joined(
        _field(m, "fleet/restarts", "restarts {:.0f}"),
        _field(m, "progress/weight_version", "weights v{:.0f}"),
        _field(m, "progress/epoch", "epoch {:.2f}"),
        _count(m, "progress/prompts_trained", "{} prompts"),
    )
    return text.append(f" · {details}" if details else "", "default")


def _field(metrics: Mapping[str, float], key: str, form: str) -> str:
    return form.format(metrics[key]) if key in metrics else ""


def _cell(metrics: Mapping[str, float], key: str, form: str) -> str:
    """Return as `_field` does, but spaces for an absent value, so that columns stay aligned."""
    return _field(metrics, key, form) or " " * len(form.format(0.0))


def _percent(metrics: Mapping[str, float], key: str, form: str) -> str:
    return form.format(percent(metrics[key])) if key in metrics else ""


def _count(metrics: Mapping[str, float], key: str, form: str) -> str:
    return form.format(short(metrics[key])) if key in metrics else ""


def _joined(*parts: str) -> str:
    """Return the non-empty parts with dots between them."""
    return " · ".join(part for part in parts if part)
