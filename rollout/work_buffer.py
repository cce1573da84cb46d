"""The accounting of prompts between admission and learning. Pure: no Ray, no clock, no threads.

A prompt is always in exactly one place:

    admit ─▶ waiting ─lease─▶ generating ─deliver all─▶ scored ─take_batch─▶ learning ─settle─▶ trained
                 ▲                │                        │
                 └──return_leases─┘                        └─drop(reason)─▶ dropped

Responses are delivered one by one, each with its verdict. They lie with the lease, so that they go with it.

Invariants (tested as laws):
    1. waiting + generating + scored + learning ≤ capacity. With capacity = (max_staleness + 1) × prompts_per_step
       a prompt admitted now is learned from at most max_staleness versions later.
    2. A slot is freed by `settle`, after the weights learned from it were published, or by `drop`. Never by a
    worker's death. 3. A prompt id is admitted once, and ends trained or dropped once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from cluster.contracts import Group, Prompt, Response, ScoredGroup, Verdict


@dataclass(frozen=True, slots=True)
class _Lease:
    prompt: Prompt
    worker: str
    delivered: dict[int, tuple[Response, Verdict]] = field(default_factory=dict)
    """By the response's number."""

    @property
    def group(self) -> ScoredGroup:
        responses, verdicts = zip(*(self.delivered[index] for index in sorted(self.delivered)), strict=True)
        return ScoredGroup(Group(self.prompt, responses, self.worker), verdicts)


class WorkBuffer:
    """Prompts in flight, in the order of their admission."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; at least one prompt must be able to be in flight")
        self._capacity = capacity
        self._order: dict[str, int] = {}
        self._admissions = 0
        self._waiting: dict[str, Prompt] = {}
        self._generating: dict[str, _Lease] = {}
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
    def scored_groups(self) -> int:
        return len(self._scored)

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Ids of all prompts that hold a slot, oldest admission first. This is what a checkpoint remembers."""
        return tuple(sorted(self._order, key=self._order.__getitem__))

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
        self._admissions += 1
        self._waiting[prompt.id] = prompt

    def lease(self, worker: str, limit: int) -> list[Prompt]:
        """Hand up to `limit` of the oldest waiting prompts to `worker`: one process, whose replacement has another
        name."""
        ids = sorted(self._waiting, key=self._order.__getitem__)[:limit]
        prompts = [self._waiting.pop(id_) for id_ in ids]
        self._generating.update({prompt.id: _Lease(prompt, worker) for prompt in prompts})
        return prompts

    def leases(self, worker: str) -> int:
        """How many prompts `worker` has."""
        return sum(lease.worker == worker for lease in self._generating.values())

    def return_leases(self, worker: str) -> list[str]:
        """Take back what `worker` holds, to be leased again, and forget what it delivered of it. Returns the prompts'
        ids."""
        lost = [lease.prompt for lease in self._generating.values() if lease.worker == worker]
        for prompt in lost:
            del self._generating[prompt.id]
            self._waiting[prompt.id] = prompt
        return [prompt.id for prompt in lost]

    def deliver(self, worker: str, prompt_id: str, index: int, response: Response, verdict: Verdict) -> bool:
        """Take in response `index` of a prompt. False if its lease was taken back meanwhile: then another copy is on
        its way."""
        lease = self._generating.get(prompt_id)
        if lease is None or lease.worker != worker:
            return False
        lease.delivered[index] = response, verdict
        if len(lease.delivered) == lease.prompt.sampling.responses:
            del self._generating[prompt_id]
            self._scored[prompt_id] = lease.group
        return True

    def drop(self, prompt_id: str, reason: str) -> None:
        """Give a scored group up, free its slot, and count why."""
        del self._scored[prompt_id]
        del self._order[prompt_id]
        self.dropped_prompts[reason] += 1

    def take_batch(self, prompts: int) -> list[ScoredGroup]:
        """The `prompts` oldest scored groups, by admission, so that a batch does not depend on who was fastest.

        Raises:
            ValueError: fewer are scored.
        """
        if len(self._scored) < prompts:
            raise ValueError(f"{prompts} scored groups were asked for, {len(self._scored)} are there")
        ids = sorted(self._scored, key=self._order.__getitem__)[:prompts]
        groups = [self._scored.pop(id_) for id_ in ids]
        self._learning.update({group.prompt.id: group for group in groups})
        return groups

    def settle(self, prompt_ids: Collection[str]) -> None:
        """The weights learned from these prompts are published: they are trained, and their slots free."""
        for prompt_id in prompt_ids:
            del self._learning[prompt_id]
            del self._order[prompt_id]
        self.trained_prompts += len(prompt_ids)
