"""Chooses the number of rollout workers from the time that the learner waits for samples. Pure.

The fraction of a step in which the learner waits for samples shows the bottleneck. Above `WAITS_LONG` the learner
starves, and one worker is added. Below `WAITS_LITTLE` workers are idle, and one is removed. Between the two the size
stays.

- The size changes only after `PATIENCE_STEPS` steps in a row with the same finding, so that a new size takes effect
  first.
- While a worker is still starting, for which the cluster may have no resources, none is added. If the learner does not
  wait meanwhile, that worker is removed again.
- A size with which the learner starved is not used again for `MEMORY_STEPS` steps. So the size does not oscillate where
  one worker is too few and two are too many. The memory is limited, because the length of responses changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WAITS_LONG = 0.4
"""The fraction of a step spent waiting above which the learner starves."""
WAITS_LITTLE = 0.1
"""The fraction of a step spent waiting below which workers are idle."""
PATIENCE_STEPS = 3
MEMORY_STEPS = 200


@dataclass(slots=True)
class Autoscaler:
    """Chooses a size between `min_workers` and `max_workers`.

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
            raise ValueError(
                f"min_workers and max_workers: expected 1 ≤ min ≤ max, got {self.min_workers} and {self.max_workers}"
            )

    def refuse_outside(self, workers: int) -> None:
        """Raise unless `workers` is between `min_workers` and `max_workers`.

        Raises:
            ValueError: if it is not. The message is for the user.
        """
        if not self.min_workers <= workers <= self.max_workers:
            raise ValueError(
                f"{workers} is not between rollout.min_workers = {self.min_workers} and rollout.max_workers = "
                f"{self.max_workers}, the range in which this run chooses its number of rollout workers itself"
            )

    def wanted(self, workers: int, waited_s: float, step_s: float, all_up: bool = True) -> int:
        """Return the size for the following steps.

        Args:
            workers: the size during the step.
            waited_s: the part of `step_s` in which the learner waited for samples.
            step_s: the duration of the step.
            all_up: False if some of the workers were still starting, or waiting for resources.
        """
        waited_fraction = waited_s / step_s if step_s > 0 else 0.0
        self._hungry_steps = self._hungry_steps + 1 if all_up and waited_fraction > WAITS_LONG else 0
        self._full_steps = self._full_steps + 1 if waited_fraction < WAITS_LITTLE else 0
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
