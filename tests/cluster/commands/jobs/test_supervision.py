"""The endings of jobs after which a run is submitted again, and the budgets that limit this."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.commands.jobs.supervision import Budgets, Ending, ending_of


@pytest.mark.parametrize(
    ("status", "exit_code", "error_type", "ending"),
    [
        ("SUCCEEDED", 0, None, Ending.DONE),
        ("STOPPED", None, None, Ending.STOPPED),
        ("FAILED", 130, "JOB_ENTRYPOINT_COMMAND_ERROR", Ending.STOPPED),
        ("FAILED", 2, "JOB_ENTRYPOINT_COMMAND_ERROR", Ending.REFUSED),
        ("FAILED", 1, "JOB_ENTRYPOINT_COMMAND_ERROR", Ending.FAILED),
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", Ending.FAILED),  # out of memory, most likely
        ("FAILED", -15, "JOB_ENTRYPOINT_COMMAND_ERROR", Ending.PREEMPTED),
        ("FAILED", 143, "JOB_ENTRYPOINT_COMMAND_ERROR", Ending.PREEMPTED),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", Ending.PREEMPTED),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", Ending.FAILED),
        (None, None, None, Ending.PREEMPTED),  # the head node was lost
    ],
)
def test_the_ending_of_a_job_is_classified(
    status: str | None, exit_code: int | None, error_type: str | None, ending: Ending
) -> None:
    assert ending_of(status, exit_code, error_type) is ending


@given(st.integers(0, 5), st.integers(0, 5), st.lists(st.sampled_from(Ending), max_size=30))
def test_each_budget_limits_its_own_kind_of_ending(
    failures: int, preemptions: int, endings: list[Ending]
) -> None:
    """A run is submitted again until it ends finally, or the budget for that kind of ending is spent."""
    budgets: Budgets | None = Budgets(failures, preemptions)
    seen = dict.fromkeys(Ending, 0)
    for ending in endings:
        assert budgets is not None
        seen[ending] += 1
        budgets = budgets.after(ending)
        wanted = ending in (Ending.FAILED, Ending.PREEMPTED)
        spent = seen[Ending.FAILED] > failures or seen[Ending.PREEMPTED] > preemptions
        assert (budgets is not None) == (wanted and not spent)
        if budgets is None:
            return
