"""The learning rate over a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import LearnerConfig
from learner.engine.lr_schedule import lr_factor

SCHEDULES = ("constant", "linear", "cosine")


def shares(schedule: str, steps: int, warmup: int) -> list[float]:
    learner = LearnerConfig(lr_schedule=schedule, warmup_steps=warmup)
    return [lr_factor(step, steps, learner) for step in range(steps)]


@given(st.sampled_from(SCHEDULES), st.integers(1, 200), st.integers(0, 50))
def test_it_rises_to_the_whole_rate_and_never_again(schedule: str, steps: int, warmup: int) -> None:
    rates = shares(schedule, steps, warmup)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup : warmup + 1] in ([1.0], [])


@pytest.mark.parametrize(
    ("schedule", "middle", "after_the_last"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_where_it_leads(schedule: str, middle: float, after_the_last: float) -> None:
    learner = LearnerConfig(lr_schedule=schedule, warmup_steps=10)
    assert lr_factor(60, 110, learner) == pytest.approx(middle)
    assert lr_factor(110, 110, learner) == pytest.approx(after_the_last, abs=1e-12)
    assert lr_factor(500, 110, learner) == pytest.approx(after_the_last, abs=1e-12)
