"""The prompts that a run trains on have the distribution of the admitted prompts, even if durations have a long tail.

Measured in simulated time, on whole runs of the work buffer.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
import pytest

from rollout.fleet.buffer import WorkBuffer
from tests.builders import make_prompt, make_response, make_verdict

PROMPTS_PER_BATCH, BATCHES, LEARN_S = 8, 150, 1.0


def durations(tail: float, seed: int) -> np.ndarray:
    """Return the durations of many prompts in seconds, with a Pareto distribution.

    With a tail of 1.1, one prompt in a thousand takes 500 times as long as most.
    """
    return 0.5 + np.random.default_rng(seed).pareto(tail, size=4000)


class Rollouts:
    """A worker that starts prompts as soon as they are leased, and loses all its leases at the times `losses`."""

    def __init__(self, buffer: WorkBuffer, duration_s: np.ndarray, losses: Iterable[float]) -> None:
        self.buffer, self.duration_s = buffer, duration_s
        self.losses = sorted(losses)
        self.ends: list[tuple[float, int, str]] = []
        self.lives = 0
        self.now = 0.0

    def start(self, version: int) -> None:
        for prompt in self.buffer.lease(self.worker, 10**6, version):
            number = int(prompt.id.rpartition("/")[2])
            heapq.heappush(self.ends, (self.now + self.duration_s[number], number, prompt.id))

    @property
    def worker(self) -> str:
        return f"rollout-0.{self.lives}"

    def advance(self) -> None:
        """Advance the time to the next end of a prompt, or to a loss before it."""
        if self.losses and self.losses[0] <= self.ends[0][0]:
            self.now = max(self.now, self.losses.pop(0))
            self.buffer.return_leases(self.worker)
            self.ends.clear()
            self.lives += 1
            return
        end, _, prompt_id = heapq.heappop(self.ends)
        self.now = max(self.now, end)
        for index in range(make_prompt().sampling.responses):
            assert self.buffer.deliver(self.worker, prompt_id, index, make_response(), make_verdict(1.0))


def trained_steps(
    max_staleness: int, oversampling: float, duration_s: np.ndarray, losses: Iterable[float]
) -> dict[int, int]:
    """Return the step in which each prompt was trained on, by admission number."""
    buffer = WorkBuffer(PROMPTS_PER_BATCH, max_staleness, oversampling)
    rollouts, steps, admitted = Rollouts(buffer, duration_s, losses), {}, 0
    for version in range(BATCHES):
        while buffer.free_slots:
            buffer.admit(make_prompt(f"train/0/{admitted}"))
            admitted += 1
        rollouts.start(version)
        while not buffer.batch_is_ready(version):
            rollouts.advance()
            rollouts.start(version)
        batch = [group.prompt.id for group in buffer.take_batch(version)]
        steps |= {int(prompt_id.rpartition("/")[2]): version for prompt_id in batch}
        rollouts.now += LEARN_S
        buffer.settle(batch)
    return steps


def distance(sample: np.ndarray, population: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance: the largest difference between the two distribution functions."""
    at = np.sort(population)
    fractions = [
        np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (sample, population)
    ]
    return float(np.abs(fractions[0] - fractions[1]).max())


@pytest.mark.parametrize("tail", [1.1, 2.0])
@pytest.mark.parametrize(("max_staleness", "oversampling"), [(0, 1), (1, 2), (1, 1.25), (3, 4), (3, 1.5)])
@pytest.mark.parametrize("losses", [0, 20])
def test_slow_prompts_are_trained_on_as_often_as_fast_ones(
    tail: float, max_staleness: int, oversampling: float, losses: int
) -> None:
    duration_s = durations(tail, seed=max_staleness)
    lost = np.random.default_rng(0).uniform(0, 1000, size=losses)
    steps = trained_steps(max_staleness, oversampling, duration_s, lost)
    trained = np.array(sorted(steps))
    in_flight = round(PROMPTS_PER_BATCH * (oversampling - 1))
    admitted = PROMPTS_PER_BATCH * BATCHES + in_flight
    assert len(trained) == PROMPTS_PER_BATCH * BATCHES
    assert trained.max() < admitted

    assert distance(duration_s[trained], duration_s[:admitted]) <= in_flight / admitted, (
        "no more than the prompts in flight may be missing"
    )
    if not losses:  # a lost prompt starts again, and its lease may be later
        leased_under = np.maximum((trained - in_flight) // PROMPTS_PER_BATCH, 0)
        late = np.array([steps[number] for number in trained]) - (leased_under + max_staleness)
        assert late.max() <= 0, "even the slowest prompt must not be overtaken forever"
    slowest = np.argsort(duration_s[: PROMPTS_PER_BATCH * (BATCHES - 5)])[-20:]
    assert set(slowest) <= set(trained)


def test_discarding_slow_prompts_would_be_detected() -> None:
    """Without the slowest prompt of each batch, the distance is far above the bound."""
    duration_s = durations(1.1, seed=1)[: PROMPTS_PER_BATCH * (BATCHES + 1)]
    without_the_slowest = np.sort(duration_s.reshape(-1, PROMPTS_PER_BATCH), axis=1)[:, :-1].ravel()
    assert distance(without_the_slowest, duration_s) > 10 / (BATCHES + 1)
