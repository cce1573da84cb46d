"""The accounting of prompts between admission and learning. Pure: no Ray, no clock, no threads.

A prompt is always in exactly one place:

    admit ─▶ waiting ─lease─▶ generating ─deliver all─▶ scored ─take_batch─▶ learning ─settle─▶ trained
                 ▲                │                        │
                 └──return_leases─┘                        └─drop(reason)─▶ dropped

Responses are delivered one by one, each with its verdict. They lie with the lease, so that they go with it.

Nothing that is done for each response or each worker looks through all prompts: with thousands in flight that would
be most of what the controller does.

Invariants (tested as laws):
    1. waiting + generating + scored + learning ≤ capacity ≤ (max_staleness + 1) × prompts_per_batch.
    2. What is learned from was leased at most max_staleness versions ago. Slots alone do not see to that: a slow prompt
       may be overtaken by any number of quick ones. So a batch is ready only when what would become too old is in it:
       of the prompts leased under version v − max_staleness + k or before, no more than k further batches have room for
       may be left behind, for every k. (Of those that are scored never too many are left behind: the batches before
       saw to it. So it is those still generating that are counted.)
    3. A slot is freed by `settle`, after the weights learned from it were published, or by `drop`. Never by a
       worker's death.
    4. A prompt id is admitted once, and ends trained or dropped once.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from cluster.core.types import Group, Prompt, Response, ScoredGroup, Verdict


@dataclass(frozen=True, slots=True)
class _Lease:
    prompt: Prompt
    worker: str
    version: int
    delivered: dict[int, tuple[Response, Verdict]] = field(default_factory=dict)
    """By the response's number."""

    @property
    def group(self) -> ScoredGroup:
        responses, verdicts = zip(*(self.delivered[index] for index in sorted(self.delivered)), strict=True)
        return ScoredGroup(Group(self.prompt, responses, self.worker), verdicts)


class WorkBuffer:
    """Prompts in flight, in the order of their admission."""

    def __init__(
        self, prompts_per_batch: int, max_staleness: int = 0, oversampling: float | None = None
    ) -> None:
        """`oversampling` is how many batches' prompts are in flight, max_staleness + 1 if it is None.

        Raises:
            ValueError: a batch would have no prompts, or so many cannot be in flight.
        """
        if prompts_per_batch < 1:
            raise ValueError(f"a batch of {prompts_per_batch} prompts: there must be at least one")
        if oversampling is None:
            oversampling = max_staleness + 1
        if not 1 <= oversampling <= max_staleness + 1:
            raise ValueError(
                f"{oversampling:g} batches in flight: from 1 to max_staleness + 1 = {max_staleness + 1}"
            )
        self._prompts_per_batch = prompts_per_batch
        self._max_staleness = max_staleness
        self._capacity = round(oversampling * prompts_per_batch)
        self._order: dict[str, int] = {}
        """Of all in flight, the number of their admission; oldest first."""
        self.admissions = 0
        """How many prompts were ever admitted."""
        self._waiting: list[tuple[int, Prompt]] = []
        """A heap, by the number of their admission."""
        self._generating: dict[str, dict[str, _Lease]] = {}
        """By worker, and by prompt. Workers that hold nothing are not in it."""
        self._generating_under: Counter[int] = Counter()
        """How many were leased under each version."""
        self._scored: dict[str, ScoredGroup] = {}
        """In the order in which they were scored."""
        self.ever_scored = 0
        self._leased_under: dict[str, int] = {}
        """The version, of what is scored."""
        self._learning: dict[str, ScoredGroup] = {}
        self._trained_prompts = 0
        self._dropped_prompts: Counter[str] = Counter()

    @property
    def free_slots(self) -> int:
        return self._capacity - len(self._order)

    @property
    def waiting_prompts(self) -> int:
        return len(self._waiting)

    @property
    def unscored_prompts(self) -> int:
        """Waiting or generating: each will be scored."""
        return len(self._order) - len(self._scored) - len(self._learning)

    @property
    def scored_groups(self) -> int:
        return len(self._scored)

    def scored_since(self, ever_scored: int) -> list[ScoredGroup]:
        """The groups scored since `self.ever_scored` was that, oldest admission first. Ask before taking any away."""
        newest = islice(reversed(self._scored), self.ever_scored - ever_scored)
        return [self._scored[id_] for id_ in self._oldest_first(newest)]

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Ids of all prompts that hold a slot, oldest admission first. This is what a checkpoint remembers."""
        return tuple(self._order)

    def restore(self, trained_prompts: int, dropped_prompts: Mapping[str, int]) -> None:
        """Continue the counts of an earlier process, before the first prompt is admitted.

        Raises:
            ValueError: if prompts were admitted already.
        """
        if self.admissions:
            raise ValueError("counts can be restored only before the first admission")
        self._trained_prompts = trained_prompts
        self._dropped_prompts = Counter(dropped_prompts)

    @property
    def trained_prompts(self) -> int:
        """The number of prompts that were learned from."""
        return self._trained_prompts

    @property
    def dropped_prompts(self) -> Mapping[str, int]:
        """The number of prompts that were dropped, by reason."""
        return MappingProxyType(self._dropped_prompts)

    def admit(self, prompt: Prompt) -> None:
        """Take a slot for `prompt`.

        Raises:
            ValueError: no slot is free, or the prompt is in flight already.
        """
        if not self.free_slots:
            raise ValueError(f"no free slot for prompt {prompt.id}: {self._capacity} are in flight")
        if prompt.id in self._order:
            raise ValueError(f"prompt {prompt.id} is in flight already")
        self._order[prompt.id] = self.admissions
        heapq.heappush(self._waiting, (self.admissions, prompt))
        self.admissions += 1

    def lease(self, worker: str, limit: int, version: int) -> list[Prompt]:
        """Hand up to `limit` of the oldest waiting prompts to `worker`: one process, whose replacement has another
        name. It serves `version`, which is the current one."""
        prompts = [heapq.heappop(self._waiting)[1] for _ in range(min(limit, len(self._waiting)))]
        if prompts:
            leases = {prompt.id: _Lease(prompt, worker, version) for prompt in prompts}
            self._generating.setdefault(worker, {}).update(leases)
            self._generating_under[version] += len(prompts)
        return prompts

    def leases(self, worker: str) -> int:
        """How many prompts `worker` has."""
        return len(self._generating.get(worker, ()))

    def return_leases(self, worker: str) -> list[str]:
        """Take back what `worker` holds, to be leased again, and forget what it delivered of it. Returns the prompts'
        ids."""
        lost = self._generating.pop(worker, {})
        for prompt_id, lease in lost.items():
            self._generating_under[lease.version] -= 1
            heapq.heappush(self._waiting, (self._order[prompt_id], lease.prompt))
        return list(lost)

    def deliver(self, worker: str, prompt_id: str, index: int, response: Response, verdict: Verdict) -> bool:
        """Take in response `index` of a prompt. False if its lease was taken back meanwhile: then another copy is on
        its way."""
        leases = self._generating.get(worker, {})
        lease = leases.get(prompt_id)
        if lease is None:
            return False
        lease.delivered[index] = response, verdict
        if len(lease.delivered) == lease.prompt.sampling.responses:
            del leases[prompt_id]
            if not leases:
                del self._generating[worker]
            self._generating_under[lease.version] -= 1
            self._scored[prompt_id] = lease.group
            self._leased_under[prompt_id] = lease.version
            self.ever_scored += 1
        return True

    def drop(self, prompt_id: str, reason: str) -> None:
        """Give a scored group up, free its slot, and count why."""
        del self._scored[prompt_id], self._leased_under[prompt_id], self._order[prompt_id]
        self._dropped_prompts[reason] += 1

    def batch_is_ready(self, version: int) -> bool:
        """Whether a batch may be taken for the learner that is at `version`: enough groups are scored, and among them
        those that must not be left behind."""
        oldest = version - self._max_staleness
        return len(self._scored) >= self._prompts_per_batch and all(
            sum(count for leased, count in self._generating_under.items() if leased <= oldest + k)
            <= k * self._prompts_per_batch
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
        self._generating_under = +self._generating_under  # without versions that nothing is left of
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
        self._trained_prompts += len(prompt_ids)

    def _oldest_first(self, prompt_ids: Iterable[str]) -> list[str]:
        return sorted(prompt_ids, key=self._order.__getitem__)
