"""pass@k and maj@k: how often one of k responses, or their majority, is correct. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cluster.core.types import ScoredGroup, Verdict

_SMALLEST_VOTE = 3
"""The smallest k of maj@k: with two different answers the vote is a tie, so maj@2 equals pass@1."""


def pass_at_k(responses: int, correct: int, k: int) -> float:
    """Estimate pass@k from `responses` to one prompt, `correct` of which are correct: 1 − C(n − c, k) / C(n, k).

    This is the fraction, among all choices of k of the n responses, of those with at least one correct response. It is
    unbiased, while the plain 1 − (1 − c/n)^k is too low. Source: Chen et al. 2021, arXiv 2107.03374, section 2.1. For
    k = 1 it is c / n.

    Raises:
        ValueError: unless 0 ≤ correct ≤ responses and 1 ≤ k ≤ responses.
    """
    if not (0 <= correct <= responses and 1 <= k <= responses):
        raise ValueError(
            f"pass@{k} cannot be estimated from {responses} responses with {correct} correct ones"
        )
    choices = math.comb(responses, k)
    # Integers up to the division, so that no rounding errors add up.
    return (choices - math.comb(responses - correct, k)) / choices


def powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4, … up to `largest`: the k of pass@k that are reported."""
    return [2**exponent for exponent in range(largest.bit_length())]


def pass_at_k_estimates(groups: Sequence[ScoredGroup], k: int) -> list[float]:
    """Return pass@k of each prompt of `groups`. A response whose verifier failed counts as not correct: a model must
    not gain by answers that a verifier fails on. Prompts with fewer than k responses are left out."""
    return [pass_at_k(len(group.verdicts), group.correct, k) for group in groups if len(group.verdicts) >= k]


def mean_pass_at_k(groups: Sequence[ScoredGroup], k: int) -> float:
    """Return the mean pass@k over the prompts of `groups` with at least k responses; NaN without such prompts."""
    estimates = pass_at_k_estimates(groups, k)
    return math.fsum(estimates) / len(estimates) if estimates else math.nan


def majority_at_k(answers: Mapping[str, int], correct: Mapping[str, int], abstained: int, k: int) -> float:
    """Return the probability that the majority vote of k responses to one prompt is correct. The k responses are drawn
    without replacement.

    The answer with the most votes wins. Ties are broken at random, each tied answer with the same probability, and the
    result is the expectation, so it does not depend on the order of the responses. Responses without an answer may be
    drawn but do not vote; if no drawn response has an answer, the vote is incorrect. Like pass@k (Chen et al. 2021,
    arXiv 2107.03374), it is an average over all choices of k responses, and therefore unbiased.

    Args:
        answers: The number of responses that gave each answer.
        correct: The number of those responses that the verifier accepted. All or none of them, unless the verifier
            looks at more than the answer; then the answer counts as correct by the fraction of accepted responses.
        abstained: The number of responses without an answer.
        k: The number of votes.

    Raises:
        ValueError: unless 1 ≤ k ≤ responses.
    """
    responses = sum(answers.values()) + abstained
    if not 1 <= k <= responses:
        raise ValueError(f"maj@{k} cannot be computed from {responses} responses")
    won = math.fsum(
        correct[answer] / answers[answer] * _choices_won(answer, answers, abstained, k)
        for answer in correct
        if correct[answer]
    )
    return won / math.comb(responses, k)


def _choices_won(answer: str, answers: Mapping[str, int], abstained: int, k: int) -> float:
    """Return in how many choices of k responses `answer` wins. A tie of m answers counts as 1/m of a win."""
    other_counts = [count for other, count in answers.items() if other != answer]
    won = 0.0
    for votes in range(1, min(answers[answer], k) + 1):
        # ways[chosen, tied]: the number of choices of `chosen` responses with other answers, where no other answer has
        # more than `votes` votes and `tied` answers have exactly `votes`.
        ways = Counter({(0, 0): 1})
        for count in other_counts:
            extended: Counter[tuple[int, int]] = Counter()
            for (chosen, tied), number in ways.items():
                for more in range(min(count, votes, k - votes - chosen) + 1):
                    extended[chosen + more, tied + (more == votes)] += number * math.comb(count, more)
            ways = extended
        for (chosen, tied), number in ways.items():
            silent = math.comb(abstained, k - votes - chosen)
            won += math.comb(answers[answer], votes) * number * silent / (1 + tied)
    return won


def majority_estimates(groups: Sequence[ScoredGroup], k: int) -> list[float]:
    """Return maj@k of each prompt of `groups`. A response whose verifier failed does not vote, like one without an
    answer. Prompts with fewer than k responses are left out."""
    return [_group_majority(group, k) for group in groups if len(group.verdicts) >= k]


def majority_ks(groups: Sequence[ScoredGroup]) -> list[int]:
    """Return the k of maj@k that are reported: the number of responses per prompt and the powers of two below it, from
    3 on. The list is empty if no response has an answer, because then there is nothing to vote on."""
    if not any(verdict.answer is not None for group in groups for verdict in group.verdicts):
        return []
    responses = len(groups[0].responses)
    ks = {*powers_of_two(responses), responses}
    return sorted(k for k in ks if k >= _SMALLEST_VOTE)


def _group_majority(group: ScoredGroup, k: int) -> float:
    valid: list[Verdict] = [verdict for verdict in group.verdicts if verdict.is_valid]
    answers = Counter(verdict.answer for verdict in valid if verdict.answer is not None)
    correct = Counter(
        verdict.answer for verdict in valid if verdict.answer is not None and verdict.outcome == "correct"
    )
    return majority_at_k(answers, correct, len(group.verdicts) - answers.total(), k)
