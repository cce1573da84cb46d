"""Which scored groups make the next batch. Pure: the work buffer's rules, without the fleet that fills it.

Without dynamic sampling: the oldest prompts_per_step of those that are scored.

With dynamic sampling: a group that teaches nothing, because its responses are all right or all wrong, is dropped as
soon as it is scored, and the next prompt is admitted in its place. So, on-policy, a batch is the first prompts_per_step
*informative* groups of the prompts in their order, whoever was fastest. After `extra_prompts` such replacements in one
step no more are admitted, and the batch is what there is when all are scored: fewer groups, or none.

What is right is the verifier's outcome, not the reward: shaped rewards vary where outcomes do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.contracts import Prompt, ScoredGroup
from rollout.work_buffer import WorkBuffer


def uninformative(group: ScoredGroup) -> str | None:
    """Why nothing can be learned from `group`, or None."""
    if group.judged == 0:
        return "not judged"
    if group.right == group.judged:
        return "all right"
    if group.right == 0:
        return "all wrong"
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from, and what it gave up on the way."""

    groups: tuple[ScoredGroup, ...]
    dropped: dict[str, list[ScoredGroup]] = field(default_factory=dict)
    """By reason."""

    @property
    def sampled(self) -> list[ScoredGroup]:
        """All of them. Rewards and lengths are told of these: of the others alone they would be biased."""
        return [*self.groups, *itertools.chain(*self.dropped.values())]

    @property
    def dropped_share(self) -> float:
        return 1 - len(self.groups) / len(self.sampled)

    @property
    def prompt_ids(self) -> list[str]:
        return _ids(self.groups)

    @property
    def dropped_ids(self) -> dict[str, list[str]]:
        return {reason: _ids(groups) for reason, groups in self.dropped.items()}

    def cut(self, parts: int) -> list[Sequence[ScoredGroup]]:
        """In so many mini-batches, equally long to within one; in fewer where there are fewer groups, at least one."""
        parts = max(1, min(parts, len(self.groups)))
        bounds = [len(self.groups) * part // parts for part in range(parts + 1)]
        return [self.groups[start:end] for start, end in itertools.pairwise(bounds)]


class BatchCollector:
    """The making of one batch.

    Usage:
        collector = BatchCollector(buffer, source.next, prompts=32, extra_prompts=64)
        while (batch := collector.take()) is None:
            await fleet.wait_until(collector.has_news)
    """

    def __init__(
        self,
        buffer: WorkBuffer,
        next_prompt: Callable[[], Prompt],
        prompts: int,
        extra_prompts: int | None = None,
    ) -> None:
        """`extra_prompts` None: no dynamic sampling."""
        self._buffer = buffer
        self._next_prompt = next_prompt
        self._prompts = prompts
        self._sifts = extra_prompts is not None
        self._extra_prompts = extra_prompts or 0
        self._seen = 0
        self._dropped: dict[str, list[ScoredGroup]] = {}

    def take(self) -> Batch | None:
        """The batch, or None while it is not complete. May drop groups, and admit prompts for somebody to sample."""
        if self._sifts:
            self._sift()
        self._seen = self._buffer.scored_groups
        if self._seen < self._prompts and self._buffer.unscored_prompts:
            return None
        return Batch(tuple(self._buffer.take_batch(min(self._prompts, self._seen))), self._dropped)

    def has_news(self) -> bool:
        """Whether a group was scored since the last `take`."""
        return self._buffer.scored_groups != self._seen

    def _sift(self) -> None:
        for group in self._buffer.scored:
            reason = uninformative(group)
            if reason is None:
                continue
            self._buffer.drop(group.prompt.id, reason)
            self._dropped.setdefault(reason, []).append(group)
            if self._extra_prompts:
                self._extra_prompts -= 1
                self._buffer.admit(self._next_prompt())


def _ids(groups: Sequence[ScoredGroup]) -> list[str]:
    return [group.prompt.id for group in groups]
