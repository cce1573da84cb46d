"""Selects the scored groups of the next batch, and refuses batches that must not be trained on. Pure.

Without dynamic sampling a batch is the oldest `prompts_per_step` scored groups, as soon as no slower group would become
too stale by missing this batch.

With dynamic sampling (DAPO, arXiv 2503.14476) a group with zero reward variance is dropped as soon as it is scored,
because it gives no gradient signal: its responses are all correct or all incorrect. The next prompt is admitted in its
slot. So in an on-policy run a batch consists of the first `prompts_per_step` *informative* groups in the order of their
prompts, and does not depend on the speed of workers.

With an adaptive budget a batch that is ready is not taken as long as any of its groups gets more responses. Only groups
that get no more are dropped or trained on. In an on-policy run, whose batch is ready when all prompts in flight are
scored, the extensions do not depend on the speed of workers either. In an asynchronous run the budget counts all groups
that are in no batch yet, so that no batch can exceed it; a batch may wait for an extended group, as for any slow one.

A response is correct by the verifier's outcome, not by its reward: shaped rewards may vary where outcomes do not.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.core.config import RunConfig
from cluster.core.logprob_gap import MAX_MISSING_LOGPROBS_FRACTION
from cluster.core.types import PolicyVersion, Prompt, ScoredGroup, TrainingBatch
from cluster.training.budget import AdaptiveBudget, Candidate, candidates
from learner.engine.finite import NonFiniteError
from learner.objective.training_batch import build_training_batch
from rollout.fleet.buffer import WorkBuffer


class BatchNotFilledError(RuntimeError):
    """Too many groups have zero reward variance: the prompts that one batch may use do not fill it."""


class VerifierFailureError(RuntimeError):
    """The verifier failed on so many responses that the rewards of the rest do not describe the model."""


class MissingLogprobsError(RuntimeError):
    """The sampler returned too many tokens without a log-probability."""


class LogprobGapError(RuntimeError):
    """Sampler and learner compute different policies, so training would be wrong."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The groups that one step trains on, and the groups that were dropped while the batch was filled."""

    groups: tuple[ScoredGroup, ...]
    dropped: dict[str, list[ScoredGroup]] = field(default_factory=dict)
    """The dropped groups, by reason."""

    @property
    def sampled(self) -> list[ScoredGroup]:
        """All groups that were sampled for the batch. Metrics of rewards and lengths use these, because the kept groups
        alone would bias them."""
        return [*self.groups, *itertools.chain(*self.dropped.values())]

    @property
    def dropped_fraction(self) -> float:
        """The fraction of the sampled groups that were dropped."""
        return 1 - len(self.groups) / len(self.sampled)

    @property
    def prompt_ids(self) -> list[str]:
        """The ids of the prompts that the step trains on."""
        return _ids(self.groups)

    @property
    def dropped_ids(self) -> dict[str, list[str]]:
        """The ids of the dropped prompts, by reason."""
        return {reason: _ids(groups) for reason, groups in self.dropped.items()}


class BatchCollector:
    """Fills one batch of `prompts` groups from `buffer`, for a learner with the weights of `version`.

    If `limit` is given, groups with zero reward variance are dropped, and up to limit × prompts prompts are sampled for
    the batch. If `budget` is given, groups without a correct response are extended within it, before they are dropped.
    A group that `is_rescued` says will get a replay has reward variance: it is neither extended nor dropped.

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
        budget: AdaptiveBudget | None = None,
        is_rescued: Callable[[ScoredGroup], bool] = lambda _: False,
    ) -> None:
        self._is_rescued = is_rescued
        self._buffer = buffer
        self._next_prompt = next_prompt
        self._version = version
        self._prompts = prompts
        self._limit = limit
        self._budget = budget
        self._spent = 0
        """The number of responses by which the dropped groups had been extended."""
        self._replacements = (limit - 1) * prompts if limit is not None else 0
        self._sifted = buffer.ever_scored - buffer.scored_groups
        self._seen = 0
        self._dropped: dict[str, list[ScoredGroup]] = {}

    def take(self) -> Batch | None:
        """Return the batch, or None while it is not complete. May extend groups, and drop groups and admit prompts in
        their slots.

        Raises:
            BatchNotFilledError: if all prompts that this batch may use are scored and the batch is not complete.
        """
        buffer = self._buffer
        fresh, self._sifted = buffer.scored_since(self._sifted), buffer.ever_scored
        waiting = fresh if self._left > 0 else []  # dropping a group of these leaves the budget as it is
        extendable = {candidate.prompt_id for candidate in self._candidates(waiting)}
        self._drop(group for group in fresh if group.prompt.id not in extendable)
        batch = None
        while batch is None and buffer.batch_is_ready(self._version):
            groups = buffer.next_batch(self._version)
            if not self._extend(groups) and not self._drop(groups):
                batch = Batch(tuple(buffer.take_batch(self._version)), self._dropped)
        if batch is None and not buffer.unscored_prompts:
            self._drop(buffer.scored_since(buffer.ever_scored - buffer.scored_groups))
            raise BatchNotFilledError(self._not_filled_message())
        self._seen = buffer.scored_groups
        return batch

    def has_news(self) -> bool:
        """Return True if the number of scored groups has changed since the last `take`."""
        return self._buffer.scored_groups != self._seen

    @property
    def _left(self) -> int:
        """The number of responses by which groups may still be extended."""
        if self._budget is None:
            return 0
        return self._budget.extra_responses - self._buffer.extra_responses - self._spent

    def _candidates(self, groups: Iterable[ScoredGroup]) -> list[Candidate]:
        return candidates([group for group in groups if not self._is_rescued(group)])

    def _extend(self, groups: Sequence[ScoredGroup]) -> bool:
        """Let groups without a correct response wait for more. Return True if there were any."""
        plan = {} if self._budget is None else self._budget.plan(self._candidates(groups), self._left)
        for prompt_id, responses in plan.items():
            self._buffer.extend(prompt_id, responses)
        return bool(plan)

    def _drop(self, groups: Iterable[ScoredGroup]) -> bool:
        """With dynamic sampling, drop those of the groups that have zero reward variance, and admit prompts in their
        slots. Return True if there were any."""
        if self._limit is None:
            return False
        useless = [
            (group, reason)
            for group in groups
            if (reason := uninformative(group)) is not None and not self._is_rescued(group)
        ]
        for group, reason in useless:
            self._buffer.drop(group.prompt.id, reason)
            self._spent += group.extra_responses
            self._dropped.setdefault(reason, []).append(group)
            if self._replacements:
                self._replacements -= 1
                self._buffer.admit(self._next_prompt())
        return bool(useless)

    def _not_filled_message(self) -> str:
        dropped = ", ".join(f"{len(groups)} {reason}" for reason, groups in self._dropped.items())
        found = self._buffer.scored_groups
        return (
            f"a batch needs {self._prompts} groups with both correct and incorrect responses, and only {found} "
            f"were found; the dropped groups are: {dropped}. Choose easier (or harder) prompts, or raise "
            f"rollout.dynamic_sampling_limit (now {self._limit} × rollout.prompts_per_step prompts); null disables "
            "dynamic sampling and keeps groups with zero reward variance."
        )


def mini_batches(groups: Sequence[ScoredGroup], config: RunConfig) -> list[TrainingBatch]:
    """Return the batch of each optimizer step. Each is built as a whole, before it is divided among the ranks, because
    advantages and weights are global."""
    size = len(groups) // config.learner.mini_batches
    return [
        build_training_batch(
            groups[start : start + size], config.objective, config.rollout.max_response_tokens
        )
        for start in range(0, len(groups), size)
    ]


def uninformative(group: ScoredGroup) -> str | None:
    """Return the reason why `group` has zero reward variance (no gradient signal), or None if it has some."""
    if group.valid == 0:
        return "no verdict"
    if group.correct == group.valid:
        return "all correct"
    if group.correct == 0:
        return "all incorrect"
    return None


def refuse_failed_verdicts(groups: Sequence[ScoredGroup], max_error_fraction: float, where: str) -> None:
    """Raise unless the verifier scored all but a fraction `max_error_fraction` of the responses.

    Raises:
        VerifierFailureError: if it failed, or timed out, on more. The message gives the most frequent reason.
    """
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    failed = [verdict for verdict in verdicts if verdict.outcome in ("error", "limit")]
    if len(failed) <= max_error_fraction * len(verdicts):
        return
    ((outcome, reason), count), *others = Counter(
        (verdict.outcome, verdict.reason) for verdict in failed
    ).most_common()
    raise VerifierFailureError(
        f"{where}, the verifier failed on {len(failed)} of {len(verdicts)} responses (reward.max_error_fraction: "
        f"{max_error_fraction:g}); on {count} of them with the {outcome}: {reason}"
        + (f" ({len(others)} other reasons are in the transcripts and logs)" if others else "")
    )


def refuse_missing_logprobs(metrics: Mapping[str, float], step: int) -> None:
    """Raise unless nearly all tokens of a batch have a log-probability.

    Raises:
        MissingLogprobsError: if more than a fraction `MAX_MISSING_LOGPROBS_FRACTION` have none.
    """
    fraction = metrics["logprob_gap/missing_fraction"]
    if fraction > MAX_MISSING_LOGPROBS_FRACTION:
        raise MissingLogprobsError(
            f"in step {step} the sampler gave no log-probability for {fraction:.1%} of the tokens (the limit is "
            f"{MAX_MISSING_LOGPROBS_FRACTION:.0%}). Look for the cause in logs/rollout-*.log in the run directory."
        )


def refuse_logprob_gap(metrics: Mapping[str, float], limit: float, step: int) -> None:
    """Raise unless sampler and learner agree on the log-probabilities of a batch.

    They must agree if the weights are equal. On stale samples a gap is the movement of the policy itself, but even then
    it is a number: tokens for which the sampler gave none are not counted.

    Raises:
        LogprobGapError: if a batch without stale samples has a mean gap above `limit`.
        NonFiniteError: if the gap of any batch is NaN or infinite.
    """
    gap = metrics["logprob_gap/mean"]
    if not (math.isfinite(gap) and math.isfinite(metrics["logprob_gap/max"])):
        raise NonFiniteError("the learner's log-probability of a token is NaN or infinite")
    if metrics["staleness/max"] == 0 and gap > limit:
        raise LogprobGapError(
            f"in step {step} sampler and learner differ by {gap:.3g} in the log-probability of a token, on average "
            f"(learner.max_logprob_gap: {limit:g}). Check model.dtype and rollout.temperature."
        )


def refuse_non_finite_update(metrics: Mapping[str, float]) -> None:
    """Raise unless the loss and the gradient norm of an update are finite. The ranks check theirs before they answer;
    here it does not matter who has computed the metrics.

    Raises:
        NonFiniteError: naming what is NaN or infinite.
    """
    for key, text in {"objective/loss": "the loss", "objective/grad_norm": "the gradient norm"}.items():
        if key in metrics and not math.isfinite(metrics[key]):
            raise NonFiniteError(f"{text} of the batch is {metrics[key]}")


def refuse_broken_probe(version: PolicyVersion) -> None:
    """Raise if the learner's own log-probabilities on the probe of `version` are not numbers. No worker could agree.

    Raises:
        NonFiniteError: if any of them is NaN or infinite.
    """
    for logprobs in version.probe_logprobs:
        if not all(map(math.isfinite, logprobs.tolist())):
            raise NonFiniteError("the learner's log-probability of a token of the probe is NaN or infinite")


def _ids(groups: Iterable[ScoredGroup]) -> list[str]:
    return [group.prompt.id for group in groups]
