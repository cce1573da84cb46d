"""maj@k: how often the answer that most of k responses to a prompt give is right. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cluster.core.types import ScoredGroup, Verdict

_SMALLEST_VOTE = 3  # of two that differ the one is as good as the other: maj@2 is pass@1


def majority_at_k(answers: Mapping[str, int], right: Mapping[str, int], abstained: int, k: int) -> float:
    """Probability that the vote of k responses, chosen without repetition from those to one prompt, is right.

    The answer with the most votes wins. Where several have as many, one of them is drawn, each as likely: so they count
    in expectation, and the result is no accident of the order. Responses without an answer are chosen like others but
    have no vote; if none has one, the vote is wrong. It is unbiased, as an average over all choices of k, in the way of
    pass@k (Chen et al. 2021, arXiv 2107.03374).

    Args:
        answers: how many responses gave each answer.
        right: how many of those were judged right. All or none of them, unless the verifier looks at more than the
            answer; then the answer is right by their share.
        abstained: how many responses have no answer.
        k: votes.

    Raises:
        ValueError: not 1 ≤ k ≤ responses.
    """
    responses = sum(answers.values()) + abstained
    if not 1 <= k <= responses:
        raise ValueError(f"maj@{k} cannot be computed from {responses} judged responses")
    won = math.fsum(
        right[answer] / answers[answer] * _choices_won(answer, answers, abstained, k)
        for answer in right
        if right[answer]
    )
    return won / math.comb(responses, k)


def _choices_won(answer: str, answers: Mapping[str, int], abstained: int, k: int) -> float:
    """In how many choices of k responses `answer` wins, a tie of m answers being one m-th of a win."""
    others = [count for other, count in answers.items() if other != answer]
    won = 0.0
    for votes in range(1, min(answers[answer], k) + 1):
        # ways[chosen, tied]: choices of `chosen` from the other answers, none of which gets more than `votes` votes
        # and `tied` of which get as many.
        ways = Counter({(0, 0): 1})
        for count in others:
            grown: Counter[tuple[int, int]] = Counter()
            for (chosen, tied), number in ways.items():
                for more in range(min(count, votes, k - votes - chosen) + 1):
                    grown[chosen + more, tied + (more == votes)] += number * math.comb(count, more)
            ways = grown
        for (chosen, tied), number in ways.items():
            silent = math.comb(abstained, k - votes - chosen)
            won += math.comb(answers[answer], votes) * number * silent / (1 + tied)
    return won


def majority_estimates(groups: Sequence[ScoredGroup], k: int) -> list[float]:
    """maj@k of each prompt of `groups`. A failed verdict is no response, and a prompt that is then left with fewer than
    k of them says nothing."""
    return [_of_group(group, k) for group in groups if group.valid >= k]


def worth_a_vote(groups: Sequence[ScoredGroup]) -> list[int]:
    """The k to report: the number of responses per prompt and the powers of two below it, from three on. None where no
    response has an answer: then there is nothing to vote on."""
    if not any(verdict.answer is not None for group in groups for verdict in group.verdicts):
        return []
    responses = len(groups[0].responses)
    ks = {2**exponent for exponent in range(responses.bit_length())} | {responses}
    return sorted(k for k in ks if k >= _SMALLEST_VOTE)


def _of_group(group: ScoredGroup, k: int) -> float:
    judged: list[Verdict] = [
        verdict for verdict in group.verdicts if verdict.outcome in ("correct", "incorrect")
    ]
    answers = Counter(verdict.answer for verdict in judged if verdict.answer is not None)
    right = Counter(
        verdict.answer for verdict in judged if verdict.answer is not None and verdict.outcome == "correct"
    )
    return majority_at_k(answers, right, len(judged) - answers.total(), k)
