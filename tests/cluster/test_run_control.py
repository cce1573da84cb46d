"""What a live run answers to who scales it. The way there and back is in tests/integration/test_fleet_drills.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cluster.run_control import _resize
from rollout.fleet_state import FleetState, Resizing


@dataclass
class Fleet:
    """Two workers, in a cluster that has room for `free_places` more."""

    free_places: int
    state: FleetState = field(default_factory=lambda: FleetState(2, 3))

    def resize(self, workers: int) -> Resizing:
        return self.state.resize(workers)


@pytest.mark.parametrize(
    ("free", "workers", "answer"),
    [
        (9, 3, "rollout workers: 2 → 3; starting rollout-2"),
        (1, 3, "rollout workers: 2 → 3; starting rollout-2"),
        (0, 1, "rollout workers: 2 → 1"),
        (0, 2, "rollout workers: 2 → 2"),
        (
            1,
            4,
            "rollout workers: 2 → 4; starting rollout-2, rollout-3 (the cluster has room for 1 of them now; a worker "
            "without room starts when there is some)",
        ),
    ],
)
def test_the_answer_says_what_is_done_and_what_has_to_wait(free: int, workers: int, answer: str) -> None:
    assert _resize(cast(Any, Fleet(free)), workers).startswith(answer)
