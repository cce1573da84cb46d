"""Which scored groups make the next batch. Pure: the work buffer's rules, without the fleet that fills it.

Without dynamic sampling: the oldest prompts_per_step of those that are scored, once no other has to be waited for so
that it is not learned from too late.

With it (DAPO, arXiv 2503.14476): a group that teaches nothing, because its responses are all right or all wrong, is
dropped as soon as it is scored, and the next prompt is admitted in its place. So, on-policy, a batch is the first
prompts_per_step *informative* groups of the prompts in their order, whoever was fastest.

What is right is the verifier's outcome, not the reward: shaped rewards vary where outcomes do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cluster.core.types import Prompt, ScoredGroup
from rollout.fleet.buffer import WorkBuffer


class BatchNotFilledError(RuntimeError):
    """So many groups teach nothing that the prompts one batch may take do not fill it."""


def uninformative(group: ScoredGroup) -> str | None:
    """Why nothing can be learned from `group`, or None."""
    if group.valid == 0:
        return "no verdict"
    if group.correct == group.valid:
        return "all correct"
    if group.correct == 0:
        return "all incorrect"
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from, and what it gave up on the way."""

    groups: tuple[ScoredGroup, ...]
    dropped: dict[str, list[ScoredGroup]] = field(default_factory=dict)
    """By reason."""

    @property
    def sampled(self) -> list[ScoredGroup]:
        """All of them. Rewards and lengths are told of these: of those that are kept they would be biased."""
        return [*self.groups, *itertools.chain(*self.dropped.values())]

    @property
    def dropped_fraction(self) -> float:
        return 1 - len(self.groups) / len(self.sampled)

    @property
    def prompt_ids(self) -> list[str]:
        return _ids(self.groups)

    @property
    def dropped_ids(self) -> dict[str, list[str]]:
        return {reason: _ids(groups) for reason, groups in self.dropped.items()}


class BatchCollector:
    """The making of one batch of `prompts` groups, for the learner that is at `version`.

    With a `limit` groups that teach nothing are dropped, and up to limit × prompts prompts are sampled for the batch.

    Usage:
        collector = BatchCollector(buffer, source.next, version=7, prompts=32, limit=10)
        while (batch := collector.take()) is None:
            await fleet.wait_until(collector.has_news)
    """

    def __init__(
        self,
        buffer: WorkBuffer,
        next_prompt: Callable[[], Prompt],
        version: int,
        prompts: int,
        limit: int | None = None,
    ) -> None:
        self._buffer = buffer
        self._next_prompt = next_prompt
        self._version = version
        self._prompts = prompts
        self._limit = limit
        self._replacements = (limit - 1) * prompts if limit is not None else 0
        self._sifted = buffer.ever_scored - buffer.scored_groups
        self._seen = 0
        self._dropped: dict[str, list[ScoredGroup]] = {}

    def take(self) -> Batch | None:
        """The batch, or None while it is not complete. May drop groups, and admit prompts for somebody to sample.

        Raises:
            BatchNotFilledError: as many prompts as may be were sampled for it, and it is not complete.
        """
        if self._limit is not None:
            self._sift()
        self._seen = self._buffer.scored_groups
        if self._buffer.batch_is_ready(self._version):
            return Batch(tuple(self._buffer.take_batch(self._version)), self._dropped)
        if self._buffer.unscored_prompts:
            return None
        raise BatchNotFilledError(self._what_was_found())

    def has_news(self) -> bool:
        """Whether a group was scored since the last `take`."""
        return self._buffer.scored_groups != self._seen

    def _sift(self) -> None:
        fresh, self._sifted = self._buffer.scored_since(self._sifted), self._buffer.ever_scored
        for group in fresh:
            reason = uninformative(group)
            if reason is None:
                continue
            self._buffer.drop(group.prompt.id, reason)
            self._dropped.setdefault(reason, []).append(group)
            if self._replacements:
                self._replacements -= 1
                self._buffer.admit(self._next_prompt())

    def _what_was_found(self) -> str:
        found = ", ".join(f"{len(groups)} {reason}" for reason, groups in self._dropped.items())
        return (
            f"a batch needs {self._prompts} groups with right and wrong answers, and there are {self._seen}; the "
            f"others are {found}. Choose easier (or harder) prompts, or raise rollout.dynamic_sampling_limit "
            f"(now {self._limit} × rollout.prompts_per_step prompts); null keeps groups that teach nothing."
        )


def _ids(groups: Iterable[ScoredGroup]) -> list[str]:
    return [group.prompt.id for group in groups]
