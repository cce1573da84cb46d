"""The accounting of prompts between admission and learning. Pure: no Ray, no clock, no threads.

A prompt is always in exactly one place:

    admit ─▶ waiting ─lease─▶ generating ─deliver all─▶ scored ─take_batch─▶ learning ─settle─▶ trained
                 ▲                │                        │
                 └──return_leases─┘                        └─drop(reason)─▶ dropped

Responses are delivered one by one, each with its verdict. They lie with the lease, so that they go with it.

Invariants (tested as laws):
    1. waiting + generating + scored + learning ≤ capacity = (max_staleness + 1) × prompts_per_batch.
    2. What is learned from was leased at most max_staleness versions ago. Slots alone do not see to that: a slow prompt
       may be overtaken by any number of quick ones. So a batch is ready only when what would become too old is in it:
       of the prompts leased under version v − max_staleness + k or before, no more than k further batches have room for
       may be left behind, for every k.
    3. A slot is freed by `settle`, after the weights learned from it were published, or by `drop`. Never by a
       worker's death.
    4. A prompt id is admitted once, and ends trained or dropped once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
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

    def __init__(self, prompts_per_batch: int, max_staleness: int = 0) -> None:
        if prompts_per_batch < 1:
            raise ValueError(f"a batch of {prompts_per_batch} prompts: there must be at least one")
        self._prompts_per_batch = prompts_per_batch
        self._max_staleness = max_staleness
        self._capacity = (max_staleness + 1) * prompts_per_batch
        self._order: dict[str, int] = {}
        self._admissions = 0
        self._waiting: dict[str, Prompt] = {}
        self._generating: dict[str, _Lease] = {}
        self._scored: dict[str, ScoredGroup] = {}
        self._leased_under: dict[str, int] = {}
        """The version, of what is generating or scored."""
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
        self._admissions += 1
        self._waiting[prompt.id] = prompt

    def lease(self, worker: str, limit: int, version: int) -> list[Prompt]:
        """Hand up to `limit` of the oldest waiting prompts to `worker`: one process, whose replacement has another
        name. It serves `version`, which is the current one."""
        ids = self._oldest_first(self._waiting)[:limit]
        prompts = [self._waiting.pop(id_) for id_ in ids]
        self._generating.update({prompt.id: _Lease(prompt, worker) for prompt in prompts})
        self._leased_under |= dict.fromkeys(ids, version)
        return prompts

    def leases(self, worker: str) -> int:
        """How many prompts `worker` has."""
        return sum(lease.worker == worker for lease in self._generating.values())

    def return_leases(self, worker: str) -> list[str]:
        """Take back what `worker` holds, to be leased again, and forget what it delivered of it. Returns the prompts'
        ids."""
        lost = [lease.prompt for lease in self._generating.values() if lease.worker == worker]
        for prompt in lost:
            del self._generating[prompt.id], self._leased_under[prompt.id]
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
        del self._scored[prompt_id], self._leased_under[prompt_id], self._order[prompt_id]
        self.dropped_prompts[reason] += 1

    def batch_is_ready(self, version: int) -> bool:
        """Whether a batch may be taken for the learner that is at `version`: enough groups are scored, and among them
        those that must not be left behind."""
        oldest = version - self._max_staleness
        return len(self._scored) >= self._prompts_per_batch and all(
            sum(self._leased_under[id_] <= oldest + k for id_ in self._scored)
            >= sum(leased <= oldest + k for leased in self._leased_under.values())
            - k * self._prompts_per_batch
            for k in range(self._max_staleness)
        )

    def take_batch(self, version: int) -> list[ScoredGroup]:
        """The scored groups that were leased under the oldest weights, and of those the oldest admissions, so that a
        batch does not depend on who was fastest.

        Raises:
            ValueError: none is ready.
        """
        if not self.batch_is_ready(version):
            raise ValueError(
                f"no batch of {self._prompts_per_batch} is ready: {len(self._scored)} groups are scored"
            )
        by_age = sorted(self._scored, key=lambda id_: (self._leased_under[id_], self._order[id_]))
        groups = [self._scored.pop(id_) for id_ in by_age[: self._prompts_per_batch]]
        for group in groups:
            del self._leased_under[group.prompt.id]
            self._learning[group.prompt.id] = group
        return groups

    def settle(self, prompt_ids: Collection[str]) -> None:
        """The weights learned from these prompts are published: they are trained, and their slots free."""
        for prompt_id in prompt_ids:
            del self._learning[prompt_id]
            del self._order[prompt_id]
        self.trained_prompts += len(prompt_ids)

    def _oldest_first(self, prompt_ids: Iterable[str]) -> list[str]:
        return sorted(prompt_ids, key=self._order.__getitem__)
