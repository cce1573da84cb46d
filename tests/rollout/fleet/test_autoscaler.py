"""The autoscaler finds the best size of simulated fleets, keeps it, and never leaves its range."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rollout.fleet.autoscaler import PATIENCE_STEPS, WAITS_LITTLE, WAITS_LONG, Autoscaler

LEARN_S = 1.0


def sizes(autoscaler: Autoscaler, workers: int, work_s: float, steps: int) -> list[int]:
    """Return the sizes over `steps` steps. Rollouts take `work_s` / workers, and overlap with the learner's work."""
    found = [workers]
    for _ in range(steps):
        waited_s = max(0.0, work_s / workers - LEARN_S)
        workers = autoscaler.wanted(workers, waited_s, LEARN_S + waited_s)
        found.append(workers)
    return found


@example(bounds=[1, 4], start=1, work_s=1.8)  # one worker is too few, two are too many
@given(
    bounds=st.tuples(st.integers(1, 8), st.integers(1, 8)).map(sorted),
    start=st.integers(1, 10),
    work_s=st.floats(0.1, 20),
)
def test_the_size_stays_in_its_range_and_converges(bounds: list[int], start: int, work_s: float) -> None:
    least, most = bounds
    found = sizes(Autoscaler(least, most), start, work_s, steps=150)
    assert all(least <= workers <= most for workers in found[1:])
    assert len(set(found[-50:])) == 1, "the size oscillates"
    waited_fraction = max(0.0, 1 - LEARN_S * found[-1] / work_s)
    assert waited_fraction <= WAITS_LONG or found[-1] == most
    assert (
        waited_fraction >= WAITS_LITTLE
        or found[-1] == least
        or 1 - LEARN_S * (found[-1] - 1) / work_s > WAITS_LONG
    )


def test_one_slow_step_changes_nothing() -> None:
    autoscaler = Autoscaler(1, 9)
    for _ in range(5):
        for waited_s in [*[9.0] * (PATIENCE_STEPS - 1), 2.0]:
            assert autoscaler.wanted(4, waited_s, 10.0) == 4
    assert [autoscaler.wanted(4, 9.0, 10.0) for _ in range(PATIENCE_STEPS)] == [4] * (PATIENCE_STEPS - 1) + [
        5
    ]


def test_a_worker_that_cannot_start_is_waited_for_or_removed() -> None:
    """The cluster has no resources for the fourth worker. If the learner starves, no fifth is added. Otherwise the
    fourth is removed."""
    autoscaler = Autoscaler(1, 9)
    assert {autoscaler.wanted(4, 9.0, 10.0, all_up=False) for _ in range(50)} == {4}
    assert [autoscaler.wanted(4, 0.5, 10.0, all_up=False) for _ in range(PATIENCE_STEPS)][-1] == 3


@pytest.mark.parametrize(("workers", "allowed"), [(1, False), (2, True), (4, True), (5, False)])
def test_a_size_outside_of_the_range_is_refused(workers: int, allowed: bool) -> None:
    autoscaler = Autoscaler(2, 4)
    if allowed:
        autoscaler.refuse_outside(workers)
        return
    with pytest.raises(
        ValueError, match=rf"^{workers} is not between rollout.min_workers = 2 and .*max_workers = 4"
    ):
        autoscaler.refuse_outside(workers)


@pytest.mark.parametrize("bounds", [(0, 3), (4, 3)])
def test_an_empty_range_is_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 ≤ min ≤ max"):
        Autoscaler(*bounds)
