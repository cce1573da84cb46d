"""The accounting of prompts between admission and training. Pure: no Ray, no clock, no threads.

A prompt is always in exactly one state:

    admit ─▶ waiting ─lease─▶ generating ─deliver all─▶ scored ─take_batch─▶ learning ─settle─▶ trained
                 ▲                │                      │ │
                 ├──return_leases─┘                      │ └─drop(reason)─▶ dropped
                 └──────────────extend(responses)────────┘

Responses are delivered one by one, each with its verdict. They are stored in the lease and are discarded with it. A
group that is extended waits for more responses. It keeps those that it has, whatever becomes of the leases that follow.

No operation per response or per worker iterates over all prompts: with thousands in flight, that would dominate the
controller's time.

Invariants (tested as laws):
    1. waiting + generating + scored + learning ≤ capacity ≤ (max_staleness + 1) × prompts_per_batch.
    2. A group in a batch was leased at most max_staleness versions ago. The number of slots alone does not ensure this,
       because any number of fast prompts may overtake a slow one. So a batch is ready only when it contains all groups
       that would otherwise become too stale: for every k, of the prompts leased under version v − max_staleness + k or
       earlier, at most k × prompts_per_batch may be left for the next k batches. (Only prompts that are still
       generating must be counted: earlier batches have already limited the number of scored ones.) A group that is
       extended keeps the version of the lease of its first responses, which are its oldest, and counts as generating
       under it until it is scored again, also while it waits. So it may delay a batch, but never misses its last one.
    3. A slot is freed by `settle`, after the weights trained on its prompt were published, or by `drop`. The loss of a
       worker never frees one.
    4. A prompt id is admitted once, and is trained or dropped once, however often it is extended.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType

from cluster.core.types import Group, Prompt, Response, ScoredGroup, Verdict


@dataclass(frozen=True, slots=True)
class _Lease:
    prompt: Prompt
    worker: str
    version: int
    """The version under which the prompt was leased first."""
    delivered: dict[int, tuple[Response, Verdict]] = field(default_factory=dict)
    """The delivered responses, by index in the group."""

    def completed(self, begun: ScoredGroup | None) -> ScoredGroup:
        """Return the complete group, with its responses in order. `begun` is the group that this lease extends."""
        responses, verdicts = zip(*(self.delivered[index] for index in sorted(self.delivered)), strict=True)
        if begun is None:
            return ScoredGroup(Group(self.prompt, responses, self.worker), verdicts)
        whole = replace(begun.group, responses=begun.responses + responses, worker=self.worker)
        return ScoredGroup(whole, begun.verdicts + verdicts)


def slots(prompts_per_batch: int, max_staleness: int, oversampling: float | None) -> int:
    """Return the number of prompts that may be in flight, for the arguments of `WorkBuffer`.

    Raises:
        ValueError: as `WorkBuffer` does.
    """
    if prompts_per_batch < 1:
        raise ValueError(f"prompts_per_batch: expected at least one, got {prompts_per_batch}")
    if oversampling is None:
        oversampling = max_staleness + 1
    if not 1 <= oversampling <= max_staleness + 1:
        raise ValueError(
            f"oversampling: expected from 1 to max_staleness + 1 = {max_staleness + 1}, got {oversampling:g}"
        )
    return round(oversampling * prompts_per_batch)


class WorkBuffer:
    """The prompts in flight, in the order of their admission."""

    def __init__(
        self, prompts_per_batch: int, max_staleness: int = 0, oversampling: float | None = None
    ) -> None:
        """Create an empty buffer.

        Args:
            prompts_per_batch: the number of prompts in a batch.
            max_staleness: the largest number of versions between a group's lease and its batch.
            oversampling: the number of batches whose prompts may be in flight; None means max_staleness + 1.

        Raises:
            ValueError: if a batch would have no prompts, or `oversampling` is out of range.
        """
        self._prompts_per_batch = prompts_per_batch
        self._max_staleness = max_staleness
        self._capacity = slots(prompts_per_batch, max_staleness, oversampling)
        self._order: dict[str, int] = {}
        """The admission number of each prompt in flight, oldest first."""
        self.admissions = 0
        """The number of prompts admitted so far."""
        self.offers = 0
        """The number of times that a prompt was admitted or extended so far."""
        self._waiting: list[tuple[int, Prompt]] = []
        """A heap, ordered by admission number."""
        self._generating: dict[str, dict[str, _Lease]] = {}
        """The leases by worker and prompt id. Workers without leases are not in it."""
        self._generating_under: Counter[int] = Counter()
        """The number of generating and extended prompts by the version of their first lease."""
        self._begun: dict[str, ScoredGroup] = {}
        """The groups that are being extended, with the responses that they have, by prompt id."""
        self._extra: dict[str, int] = {}
        """The number of responses that extended groups have been given so far, by prompt id, until they are taken."""
        self._scored: dict[str, ScoredGroup] = {}
        """The scored groups by prompt id, in the order of scoring."""
        self.ever_scored = 0
        """The number of groups scored so far."""
        self._leased_under: dict[str, int] = {}
        """The version of the first lease of each scored or extended group."""
        self._learning: dict[str, ScoredGroup] = {}
        self._trained_prompts = 0
        self._dropped_prompts: Counter[str] = Counter()

    @property
    def free_slots(self) -> int:
        """The number of prompts that can be admitted now."""
        return self._capacity - len(self._order)

    @property
    def waiting_prompts(self) -> int:
        """The number of prompts that can be leased now."""
        return len(self._waiting)

    @property
    def unscored_prompts(self) -> int:
        """The number of prompts that are waiting or generating."""
        return len(self._order) - len(self._scored) - len(self._learning)

    @property
    def scored_groups(self) -> int:
        """The number of scored groups that are in no batch yet."""
        return len(self._scored)

    @property
    def extra_responses(self) -> int:
        """The number of responses by which the groups that are in no batch yet were extended, sampled or not."""
        return sum(self._extra.values())

    def scored_since(self, ever_scored: int) -> list[ScoredGroup]:
        """Return the groups scored since `self.ever_scored` had the given value, oldest admission first.

        Call it before groups are dropped or taken.
        """
        newest = islice(reversed(self._scored), self.ever_scored - ever_scored)
        return [self._scored[id_] for id_ in self._oldest_first(newest)]

    @property
    def in_flight(self) -> tuple[str, ...]:
        """The ids of all prompts that hold a slot, oldest admission first. A checkpoint stores them."""
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
        """The number of prompts that were trained on."""
        return self._trained_prompts

    @property
    def dropped_prompts(self) -> Mapping[str, int]:
        """The number of prompts that were dropped, by reason."""
        return MappingProxyType(self._dropped_prompts)

    def admit(self, prompt: Prompt) -> None:
        """Take a slot for `prompt`.

        Raises:
            ValueError: if no slot is free, or the prompt is already in flight.
        """
        if not self.free_slots:
            raise ValueError(f"no free slot for prompt {prompt.id}: {self._capacity} are in flight")
        if prompt.id in self._order:
            raise ValueError(f"prompt {prompt.id} is in flight already")
        self._order[prompt.id] = self.admissions
        heapq.heappush(self._waiting, (self.admissions, prompt))
        self.admissions += 1
        self.offers += 1

    def lease(self, worker: str, limit: int, version: int) -> list[Prompt]:
        """Lease up to `limit` of the oldest waiting prompts to the process `worker`. (A replaced process has another
        name.) It serves `version`, which is the current one."""
        prompts = [heapq.heappop(self._waiting)[1] for _ in range(min(limit, len(self._waiting)))]
        if prompts:
            leases = {
                prompt.id: _Lease(prompt, worker, self._leased_under.get(prompt.id, version))
                for prompt in prompts
            }
            self._generating.setdefault(worker, {}).update(leases)
            self._generating_under[version] += sum(prompt.id not in self._begun for prompt in prompts)
        return prompts

    def leases(self, worker: str) -> int:
        """Return the number of prompts leased to `worker`."""
        return len(self._generating.get(worker, ()))

    def return_leases(self, worker: str) -> list[str]:
        """Take all leases back from `worker`, and discard the responses delivered for them. The prompts wait again.
        Return their ids."""
        lost = self._generating.pop(worker, {})
        for prompt_id, lease in lost.items():
            if prompt_id not in self._begun:
                self._generating_under[lease.version] -= 1
            heapq.heappush(self._waiting, (self._order[prompt_id], lease.prompt))
        return list(lost)

    def deliver(self, worker: str, prompt_id: str, index: int, response: Response, verdict: Verdict) -> bool:
        """Store response `index` of a prompt. Return False if the lease was taken back, or did not ask for this index:
        then the response is discarded."""
        leases = self._generating.get(worker, {})
        lease = leases.get(prompt_id)
        if lease is None or index not in lease.prompt.sampling.indexes:
            return False
        lease.delivered[index] = response, verdict
        if len(lease.delivered) == lease.prompt.sampling.responses:
            del leases[prompt_id]
            if not leases:
                del self._generating[worker]
            self._generating_under[lease.version] -= 1
            self._scored[prompt_id] = lease.completed(self._begun.pop(prompt_id, None))
            self._leased_under[prompt_id] = lease.version
            self.ever_scored += 1
        return True

    def extend(self, prompt_id: str, responses: int) -> None:
        """Let a scored group wait for `responses` more responses, which any worker may sample.

        Raises:
            ValueError: if there would be no more responses.
            KeyError: if the group is not scored.
        """
        if responses < 1:
            raise ValueError(f"a group is extended by at least one response, not by {responses}")
        group = self._scored.pop(prompt_id)
        more = replace(group.prompt.sampling, responses=responses, first=len(group.responses))
        self._begun[prompt_id] = group
        self._extra[prompt_id] = self._extra.get(prompt_id, 0) + responses
        self._generating_under[self._leased_under[prompt_id]] += 1
        heapq.heappush(self._waiting, (self._order[prompt_id], replace(group.prompt, sampling=more)))
        self.offers += 1

    def drop(self, prompt_id: str, reason: str) -> None:
        """Remove a scored group, free its slot, and count the reason."""
        del self._scored[prompt_id], self._leased_under[prompt_id], self._order[prompt_id]
        self._extra.pop(prompt_id, None)
        self._dropped_prompts[reason] += 1

    def batch_is_ready(self, version: int) -> bool:
        """Return True if a batch may be taken for the weights of `version`: enough groups are scored, and no group is
        missing that would become too stale (invariant 2)."""
        oldest = version - self._max_staleness
        return len(self._scored) >= self._prompts_per_batch and all(
            sum(count for leased, count in self._generating_under.items() if leased <= oldest + k)
            <= k * self._prompts_per_batch
            for k in range(self._max_staleness)
        )

    def next_batch(self, version: int) -> list[ScoredGroup]:
        """Return the groups that `take_batch` would take: those leased under the oldest versions first, and among these
        the oldest admissions. So a batch does not prefer fast workers.

        Raises:
            ValueError: if no batch is ready.
        """
        if not self.batch_is_ready(version):
            raise ValueError(
                f"no batch of {self._prompts_per_batch} groups is ready: {len(self._scored)} groups are scored"
            )
        by_age = sorted(self._scored, key=lambda id_: (self._leased_under[id_], self._order[id_]))
        return [self._scored[id_] for id_ in by_age[: self._prompts_per_batch]]

    def take_batch(self, version: int) -> list[ScoredGroup]:
        """Remove and return the groups of a batch, which `next_batch` describes.

        Raises:
            ValueError: if no batch is ready.
        """
        groups = self.next_batch(version)
        self._generating_under = +self._generating_under  # removes versions with a count of 0
        for group in groups:
            del self._scored[group.prompt.id], self._leased_under[group.prompt.id]
            self._extra.pop(group.prompt.id, None)
            self._learning[group.prompt.id] = group
        return groups

    def settle(self, prompt_ids: Collection[str]) -> None:
        """Count the prompts as trained and free their slots, after the weights trained on them were published."""
        for prompt_id in prompt_ids:
            del self._learning[prompt_id]
            del self._order[prompt_id]
        self._trained_prompts += len(prompt_ids)

    def _oldest_first(self, prompt_ids: Iterable[str]) -> list[str]:
        return sorted(prompt_ids, key=self._order.__getitem__)
