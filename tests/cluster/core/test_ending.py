"""Waits of the clean-up: patient, until the command is hurried."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import ending


@pytest.fixture(autouse=True)
def unhurried() -> Iterator[None]:
    yield
    ending.take_time()


@given(
    ends_s=st.floats(0, 40),
    timeout_s=st.floats(0, 40),
    hurried_s=st.floats(0, 10),
    hurried_at_s=st.floats(0, 40) | st.none(),
)
def test_a_wait_ends_in_time(
    ends_s: float, timeout_s: float, hurried_s: float, hurried_at_s: float | None
) -> None:
    """The wait ends at the event, at its limit, or at the shorter limit after the command was hurried."""
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds
        if hurried_at_s is not None and now_s[0] >= hurried_at_s:
            ending.hurry()

    with pytest.MonkeyPatch.context() as patch:
        ending.take_time()
        patch.setattr(ending.time, "monotonic", lambda: now_s[0])
        patch.setattr(ending.time, "sleep", sleep)
        ended = ending.wait_patiently(lambda: now_s[0] >= ends_s, timeout_s, hurried_s)
    limit_s = min(timeout_s, (hurried_at_s if hurried_at_s is not None else 1e9) + hurried_s)
    assert now_s[0] <= min(ends_s, limit_s) + 0.4
    if ends_s < limit_s - 0.4:
        assert ended
    if ended:
        assert now_s[0] >= ends_s


def test_the_last_acts_are_done_newest_first_even_if_one_fails() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError

    acts = [lambda: done.append(1), fail, lambda: done.append(3), lambda: done.append(4)]
    for act in acts:
        ending.at_forced_end(act)
    ending.not_at_forced_end(acts.pop())
    ending.do_last_acts()
    assert done == [3, 1]
    for act in acts:
        ending.not_at_forced_end(act)
