"""Where the next responses go: to the prompts with the largest chance of a first success, within a budget. Pure.

Every prompt begins with `rollout.responses_per_prompt` responses. A group without a correct response gives no gradient
signal. Of the responses that `rollout.adaptive_budget` allows beyond these, each goes to the prompt that most likely
has a first success then. A group stops as soon as it has a correct response, because then it has both kinds.

With a prior Beta(a, b) of a prompt's success probability and n incorrect responses, the posterior is Beta(a, b + n),
so the chance that m more responses contain a success is

    1 − B(a, b + n + m) / B(a, b + n)        (m / (n + 1 + m) for the uniform prior a = b = 1)

The rule to spend a budget by this chance is HORA's (arXiv 2605.07114); the posterior is ours.

Rounds (ours): responses are sampled and scored in rounds. Suppose that chunks of m responses were sampled one by one,
each for the best prompt, and that all fail. What a prompt gets then is its part of the budget. It would be sampled in
any case, up to the prompt's first success, because a success of another prompt only leaves more. A round samples the
parts of all prompts at once, but no more responses to a prompt than it has already, so that few are sampled after a
first success; the next round is planned from what this one found. So the number of rounds is logarithmic in the budget.
A plan depends on outcomes alone, and not on the order in which they arrived.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.core.config import RolloutConfig
from cluster.core.types import ScoredGroup

Prior = Callable[[str], tuple[float, float]]
"""Return the parameters (a, b) of the Beta distribution of a prompt's success probability, given the prompt's id, as it
was before the responses of its group. Both are above 0."""


def uniform(prompt_id: str) -> tuple[float, float]:
    """Return the parameters of the uniform distribution: nothing is known of the prompt."""
    return 1.0, 1.0


def chance_of_success(failures: int, more: int, a: float = 1.0, b: float = 1.0) -> float:
    """Return the probability of at least one success in `more` responses, after `failures` incorrect ones and no
    correct one, for a success probability with the prior Beta(a, b)."""
    known = a + b + failures
    # The ratio of two Beta functions as a product: differences of their logarithms would lose digits.
    log_none = math.fsum(math.log1p(-a / (known + index)) for index in range(more))
    return -math.expm1(log_none)


class Candidate(NamedTuple):
    """A prompt all of whose responses so far are incorrect."""

    prompt_id: str
    failures: int
    """The number of incorrect responses."""


def candidates(groups: Sequence[ScoredGroup]) -> list[Candidate]:
    """Return the groups that more responses may help: those with incorrect responses and no correct one. Responses
    whose verifier failed say nothing, and a group of only such responses gets no more: its verifier would fail again.
    """
    return [Candidate(group.prompt.id, group.valid) for group in groups if group.valid and not group.correct]


@dataclass(frozen=True, slots=True)
class AdaptiveBudget:
    """The responses that the groups of one batch may have beyond those that they begin with."""

    extra_responses: int
    """The largest number of these responses in one batch."""
    chunk: int
    """The number m of responses within which a first success is hoped for."""
    max_extension: int
    """The largest number of responses by which a group is extended in one round, at least `chunk`."""
    prior: Prior = uniform

    def plan(self, found: Sequence[Candidate], left: int) -> dict[str, int]:
        """Return the extensions of the next round: for some prompts a number of responses, which are at most `left`
        together. The round is empty only if nothing is left or there are no candidates.

        Args:
            found: the candidates. Among equal chances those with the smallest part so far come first, then the first.
            left: the number of responses that may still be sampled.
        """
        most = {
            candidate.prompt_id: min(max(self.chunk, candidate.failures), self.max_extension)
            for candidate in found
        }
        queue = [(-self._chance(candidate), 0, place, candidate) for place, candidate in enumerate(found)]
        heapq.heapify(queue)
        parts: Counter[str] = Counter()
        unsatisfied = len(most)
        while unsatisfied and left > 0:
            _, _, place, candidate = heapq.heappop(queue)
            prompt_id, chunk = candidate.prompt_id, min(self.chunk, left)
            left -= chunk
            unsatisfied -= parts[prompt_id] < most[prompt_id] <= parts[prompt_id] + chunk
            parts[prompt_id] += chunk
            failed = candidate._replace(failures=candidate.failures + chunk)
            heapq.heappush(queue, (-self._chance(failed), parts[prompt_id], place, failed))
        return {prompt_id: min(part, most[prompt_id]) for prompt_id, part in parts.items()}

    def _chance(self, candidate: Candidate) -> float:
        return chance_of_success(candidate.failures, self.chunk, *self.prior(candidate.prompt_id))


def adaptive_budget(rollout: RolloutConfig, prior: Prior) -> AdaptiveBudget | None:
    """Return the budget that the configuration asks for, or None if all groups have the same number of responses.

    An extension is sampled by one worker, so it has at most as many responses as an engine decodes at the same time.
    """
    if rollout.adaptive_budget is None:
        return None
    begun = rollout.prompts_per_step * rollout.responses_per_prompt
    return AdaptiveBudget(
        extra_responses=rollout.adaptive_budget - begun,
        chunk=rollout.responses_per_prompt,
        max_extension=max(rollout.responses_per_prompt, rollout.max_sequences),
        prior=prior,
    )
