"""Alerts: each kind is sent when its condition begins, once while it lasts, and again when it returns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import RunConfig
from cluster.tracking.alerts import LEAST_STALL_S, Alerts, StallWatch

CONFIG = RunConfig.model_validate(
    {"learner": {"max_logprob_gap": 1.0}, "reward": {"max_error_fraction": 0.2}}
)
QUIET = {
    "reward/mean": 0.1,
    "logprob_gap/mean": 0.01,
    "reward/error_fraction": 0.0,
    "fleet/workers": 2.0,
    "fleet/restarts": 0.0,
}


def sent(*steps: dict[str, float]) -> list[list[str]]:
    alerts = Alerts(CONFIG)
    return [
        [alert.title for alert in alerts.after(step, QUIET | changes)] for step, changes in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"objective/loss": math.nan}, "Not a number"),
        ({"objective/grad_norm": math.inf}, "Not a number"),
        ({"logprob_gap/mean": 0.6}, "Log-probability gap"),
        ({"logprob_gap/probe_max": 5.1, "staleness/max": 2.0}, "Log-probability gap"),
        ({"reward/error_fraction": 0.11}, "Verifier errors"),
        ({"reward/error_fraction": 0.06, "reward/limit_fraction": 0.05}, "Verifier errors"),
    ],
)
def test_each_kind_is_sent_when_it_begins_and_again_when_it_returns(
    changes: dict[str, float], title: str
) -> None:
    assert sent({}, changes, changes, {}, changes) == [[], [title], [], [], [title]]


def test_a_gap_on_stale_samples_sends_no_alert() -> None:
    assert sent({"logprob_gap/mean": 0.9, "staleness/max": 1.0}) == [[]]


def test_a_token_of_the_probe_may_differ_more_than_the_mean() -> None:
    assert sent({"logprob_gap/probe_max": 4.9}) == [[]]


def test_churn_is_as_many_losses_in_ten_steps_as_there_are_workers() -> None:
    slow = [{"fleet/restarts": float(step // 11)} for step in range(60)]
    assert sent(*slow) == [[]] * 60
    fast = [{"fleet/restarts": float(step // 3)} for step in range(8)]
    assert sent(*fast) == [[]] * 6 + [["Worker churn"], []]
    one_of_many = [{"fleet/workers": 8.0, "fleet/restarts": float(step)} for step in range(9)]
    assert sent(*one_of_many) == [[]] * 8 + [["Worker churn"]]


def test_restarts_before_a_resumption_are_not_counted() -> None:
    assert sent({"fleet/restarts": 40.0}, {"fleet/restarts": 41.0}) == [[], []]


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=30), st.floats(0, 1e5))
def test_a_stall_is_ten_typical_steps_and_at_least_five_minutes(
    durations_s: list[float], wait_s: float
) -> None:
    watch, now_s = StallWatch(), 0.0
    for duration_s in durations_s:
        watch.heard(now_s)
        now_s += duration_s
    watch.heard(now_s)
    recent = sorted(durations_s[-20:])
    typical_s = (recent[(len(recent) - 1) // 2] + recent[len(recent) // 2]) / 2
    stalls = wait_s >= max(LEAST_STALL_S, 10 * typical_s) * (1 + 1e-9)
    if abs(wait_s - watch.allowed_s) > 1e-3:
        assert (watch.alert(now_s + wait_s) is not None) == stalls
    assert watch.alert(now_s + 1e6) is None or not stalls, "once"


def test_before_the_first_step_and_after_the_last_nothing_stalls() -> None:
    watch = StallWatch()
    assert watch.alert(1e9) is None
    watch.heard(1e9, last=True)
    assert watch.alert(2e9) is None
