"""The accounting of prompts between admission and learning. Pure: no Ray, no clock, no threads.

A prompt is always in exactly one place:

    admit ─▶ waiting ─lease─▶ generating ─complete─▶ scored ─take_batch─▶ learning ─settle─▶ trained
                 ▲                │                     │
                 └──return_leases─┘                     └─drop(reason)─▶ dropped

Invariants (tested as laws):
    1. waiting + generating + scored + learning ≤ capacity. With capacity = (max_staleness + 1) × prompts_per_step
       a prompt admitted now is learned from at most max_staleness versions later, if none is overtaken too often
       (`can_spare`).
    2. A slot is freed by `settle`, after the weights learned from it were published, or by `drop`. Never by a
    worker's death. 3. A prompt id is admitted once, and ends trained or dropped once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from cluster.contracts import Prompt, ScoredGroup


class WorkBuffer:
    """Prompts in flight, in the order of their admission."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; at least one prompt must be able to be in flight")
        self._capacity = capacity
        self._order: dict[str, int] = {}
        self._batches_before: dict[str, int] = {}
        self._batches = 0
        self._admissions = 0
        self._waiting: dict[str, Prompt] = {}
        self._generating: dict[str, tuple[Prompt, str]] = {}
        self._scored: dict[str, ScoredGroup] = {}
        self._learning: dict[str, ScoredGroup] = {}
        self.trained_prompts = 0
        self.dropped_prompts: Counter[str] = Counter()

    @property
    def free_slots(self) -> int:
        return self._capacity - len(self._order)

    @property
    def waiting_prompts(self) -> int:
        return len(self._waiting)

    @property
    def unscored_prompts(self) -> int:
        """Waiting or generating: each will be scored."""
        return len(self._waiting) + len(self._generating)

    @property
    def scored_groups(self) -> int:
        return len(self._scored)

    @property
    def scored(self) -> tuple[ScoredGroup, ...]:
        """Those groups, oldest admission first."""
        return tuple(self._scored[id_] for id_ in self._oldest_first(self._scored))

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Ids of all prompts that hold a slot, oldest admission first. This is what a checkpoint remembers."""
        return tuple(self._oldest_first(self._order))

    def admit(self, prompt: Prompt) -> None:
        """Take a slot for `prompt`.

        Raises:
            ValueError: no slot is free, or the prompt is in flight already.
        """
        if not self.free_slots:
            raise ValueError(f"no free slot for prompt {prompt.id}: {self._capacity} are in flight")
        if prompt.id in self._order:
            raise ValueError(f"prompt {prompt.id} is in flight already")
        self._order[prompt.id] = self._admissions
        self._batches_before[prompt.id] = self._batches
        self._admissions += 1
        self._waiting[prompt.id] = prompt

    def lease(self, worker: str, limit: int) -> list[Prompt]:
        """Hand up to `limit` of the oldest waiting prompts to `worker`."""
        ids = self._oldest_first(self._waiting)[:limit]
        prompts = [self._waiting.pop(id_) for id_ in ids]
        self._generating.update({prompt.id: (prompt, worker) for prompt in prompts})
        return prompts

    def leases(self, worker: str) -> int:
        """How many prompts `worker` has."""
        return sum(holder == worker for _, holder in self._generating.values())

    def return_leases(self, worker: str) -> list[str]:
        """Take back what `worker` holds, to be leased again. Returns the prompts' ids."""
        lost = [prompt for prompt, holder in self._generating.values() if holder == worker]
        for prompt in lost:
            del self._generating[prompt.id]
            self._waiting[prompt.id] = prompt
        return [prompt.id for prompt in lost]

    def complete(self, group: ScoredGroup) -> bool:
        """Take in a scored group. False if its lease was taken back meanwhile: then another copy is on its way."""
        held = self._generating.get(group.prompt.id)
        if held is None or held[1] != group.group.worker:
            return False
        del self._generating[group.prompt.id]
        self._scored[group.prompt.id] = group
        return True

    def drop(self, prompt_id: str, reason: str) -> None:
        """Give a scored group up, free its slot, and count why."""
        del self._scored[prompt_id]
        self._free(prompt_id)
        self.dropped_prompts[reason] += 1

    def can_spare(self, prompts: int, max_staleness: int) -> bool:
        """Whether all others can still be learned from in time when `take_batch` has given a batch.

        Of prompts that at most k batches are left to, there is room for k × prompts. A slow response may be overtaken
        by others, but not for ever: where this is False it is waited for.
        """
        taken = set(self._oldest_first(self._scored)[:prompts])
        batches_left = [
            max_staleness - (self._batches - self._batches_before[prompt_id])
            for prompt_id in self._order
            if prompt_id not in taken
        ]
        return all(sum(left <= k for left in batches_left) <= k * prompts for k in range(max_staleness + 1))

    def take_batch(self, prompts: int) -> list[ScoredGroup]:
        """The `prompts` oldest scored groups, by admission, so that a batch does not depend on who was fastest.

        Raises:
            ValueError: fewer are scored.
        """
        if len(self._scored) < prompts:
            raise ValueError(f"{prompts} scored groups were asked for, {len(self._scored)} are there")
        ids = self._oldest_first(self._scored)[:prompts]
        groups = [self._scored.pop(id_) for id_ in ids]
        self._learning.update({group.prompt.id: group for group in groups})
        return groups

    def settle(self, prompt_ids: Collection[str]) -> None:
        """The weights learned from these prompts are published: they are trained, and their slots free."""
        for prompt_id in prompt_ids:
            del self._learning[prompt_id]
            self._free(prompt_id)
        self._batches += 1
        self.trained_prompts += len(prompt_ids)

    def _oldest_first(self, prompt_ids: Iterable[str]) -> list[str]:
        return sorted(prompt_ids, key=self._order.__getitem__)

    def _free(self, prompt_id: str) -> None:
        del self._order[prompt_id]
        del self._batches_before[prompt_id]
