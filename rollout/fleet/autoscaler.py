"""How many rollout workers a run should have, from what its steps spend their time on. Pure.

The share of a step that the learner waits for samples says who is the bottleneck. Above `WAITS_LONG` the learner
starves, and one more worker is asked for; below `WAITS_LITTLE` workers idle, and one is given back. Between the two
nothing is done, and nothing either before `PATIENCE_STEPS` steps in a row have said the same: a size that was just
reached must show itself first. While a worker is still to come, for which there may be no room, none is added; but if
the learner does not wait meanwhile, it is given back. A size with which the learner starved is not gone back to for
`MEMORY_STEPS` steps: where one worker is too few and two are too many, two it is. (Not for ever, since responses change
their length.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

WAITS_LONG = 0.4
WAITS_LITTLE = 0.1
PATIENCE_STEPS = 3
MEMORY_STEPS = 200


@dataclass(slots=True)
class Autoscaler:
    """Between `min_workers` and `max_workers`.

    Usage:
        wanted = autoscaler.wanted(workers=4, waited_s=3.1, step_s=5.0)   # after every step
    """

    min_workers: int
    max_workers: int
    _hungry_steps: int = field(default=0, init=False)
    _full_steps: int = field(default=0, init=False)
    _starved_with: int = field(default=0, init=False)
    _starved_ago: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.min_workers <= self.max_workers:
            raise ValueError(f"from {self.min_workers} to {self.max_workers} workers is no range")

    def refuse_outside(self, workers: int) -> None:
        """Let a size between the two pass.

        Raises:
            ValueError: it is not.
        """
        if not self.min_workers <= workers <= self.max_workers:
            raise ValueError(
                f"{workers} is not between rollout.min_workers = {self.min_workers} and rollout.max_workers = "
                f"{self.max_workers}, between which this run adapts its number of rollout workers itself"
            )

    def wanted(self, workers: int, waited_s: float, step_s: float, all_up: bool = True) -> int:
        """The size to have from now on.

        Args:
            workers: the size that the step was done with.
            waited_s: of `step_s`, how long the learner waited for samples.
            step_s: how long the step took.
            all_up: whether all of them worked, or some were still starting, or waiting for room.
        """
        share = waited_s / step_s if step_s > 0 else 0.0
        self._hungry_steps = self._hungry_steps + 1 if all_up and share > WAITS_LONG else 0
        self._full_steps = self._full_steps + 1 if share < WAITS_LITTLE else 0
        self._starved_ago += 1
        wanted = workers
        if self._hungry_steps >= PATIENCE_STEPS:
            self._starved_with, self._starved_ago = workers, 0
            wanted += 1
        elif self._full_steps >= PATIENCE_STEPS and not self._has_starved_with(workers - 1):
            wanted -= 1
        wanted = min(max(wanted, self.min_workers), self.max_workers)
        if wanted != workers:
            self._hungry_steps = self._full_steps = 0
        return wanted

    def _has_starved_with(self, workers: int) -> bool:
        return workers <= self._starved_with and self._starved_ago < MEMORY_STEPS
