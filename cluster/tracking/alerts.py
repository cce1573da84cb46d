"""Alerts on a step's metrics. Each alert is sent when its condition begins, and not again while it lasts. Pure."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cluster.core.config import RunConfig

MUST_BE_FINITE = (
    "reward/mean",
    "objective/loss",
    "objective/grad_norm",
    "objective/entropy",
    "eval/pass_at_1",
)
NEAR_LIMIT = 0.5
"""The fraction of a limit (at which the run stops) above which an alert is sent."""
CHURN_STEPS = 10
"""The number of steps over which lost workers are counted. Losing as many as there are workers sends an alert."""
STALL_FACTOR = 10.0
"""The number of typical step durations without a step after which the run counts as stalled."""
LEAST_STALL_S = 300.0
STALL_STEPS = 20
"""The number of recent steps whose median duration is typical."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A message to the user: `title` names the kind of alert, `text` says what happened and where to look."""

    title: str
    text: str


class Alerts:
    """Checks each step once.

    alerts = Alerts(config)
    for alert in alerts.after(step, metrics):
        ...
    """

    def __init__(self, config: RunConfig) -> None:
        self._checks: Mapping[str, Callable[[Mapping[str, float]], str | None]] = {
            "Not a number": self._not_finite,
            "Log-probability gap": self._gap,
            "Verifier errors": self._verifier_errors,
            "Worker churn": self._churn,
        }
        self._config = config
        self._lasting: set[str] = set()
        self._restarts: deque[float] = deque(maxlen=CHURN_STEPS + 1)

    def after(self, step: int, metrics: Mapping[str, float]) -> Iterator[Alert]:
        """Yield the alerts that begin with this step."""
        for title, check in self._checks.items():
            text = check(metrics)
            if text is None:
                self._lasting.discard(title)
            elif title not in self._lasting:
                self._lasting.add(title)
                yield Alert(title, f"step {step}: {text}")

    def _not_finite(self, metrics: Mapping[str, float]) -> str | None:
        broken = [key for key in MUST_BE_FINITE if not math.isfinite(metrics.get(key, 0.0))]
        return f"{', '.join(broken)}: not a finite number" if broken else None

    def _gap(self, metrics: Mapping[str, float]) -> str | None:
        limits = self._config.logprob_gap_limits
        limit_of = {"logprob_gap/probe_max": limits.largest}
        if not metrics.get("staleness/max"):  # on stale samples a gap is the policy's own movement
            limit_of["logprob_gap/mean"] = limits.mean
        wide = [
            f"{key} {metrics[key]:.3g} (limit: {limit:g})"
            for key, limit in limit_of.items()
            if metrics.get(key, 0.0) > NEAR_LIMIT * limit
        ]
        return f"{', '.join(wide)}: sampler and learner disagree" if wide else None

    def _verifier_errors(self, metrics: Mapping[str, float]) -> str | None:
        fraction = metrics.get("reward/error_fraction", 0.0) + metrics.get("reward/limit_fraction", 0.0)
        limit = self._config.reward.max_error_fraction
        if fraction <= NEAR_LIMIT * limit or not fraction:
            return None
        return f"{fraction:.1%} of the responses could not be verified (limit: {limit:.0%}); see logs/reward-*.log"

    def _churn(self, metrics: Mapping[str, float]) -> str | None:
        if "fleet/restarts" not in metrics:
            return None
        self._restarts.append(metrics["fleet/restarts"])
        lost = self._restarts[-1] - self._restarts[0]
        if lost < max(2.0, metrics.get("fleet/workers", 1.0)):
            return None
        steps = len(self._restarts) - 1
        return f"{lost:.0f} rollout workers were lost over the last {steps} steps; see logs/rollout-*.log"


class StallWatch:
    """Detects that no step comes any more: none within ten typical step durations, and at least five minutes."""

    def __init__(self) -> None:
        self._durations_s: deque[float] = deque(maxlen=STALL_STEPS)
        self._last_s: float | None = None
        self._alerted = False

    def heard(self, now_s: float, last: bool = False) -> None:
        """Record that a step was logged. After the `last` step no further one is expected."""
        if self._last_s is not None:
            self._durations_s.append(now_s - self._last_s)
        self._last_s, self._alerted = now_s, last

    def alert(self, now_s: float) -> Alert | None:
        """Return an alert if no step was logged for too long, once for each such period."""
        if self._alerted or self._last_s is None or now_s - self._last_s < self.allowed_s:
            return None
        self._alerted = True
        return Alert(
            "Stall", f"no step for {(now_s - self._last_s) / 60:.0f} min; see logs/ in the run directory"
        )

    @property
    def allowed_s(self) -> float:
        """The time without a step after which the run counts as stalled."""
        typical_s = statistics.median(self._durations_s) if self._durations_s else 0.0
        return max(LEAST_STALL_S, STALL_FACTOR * typical_s)
