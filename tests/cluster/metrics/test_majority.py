"""maj@k against its definition: the vote of every choice of k responses, ties drawn fairly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import ScoredGroup
from cluster.metrics.majority import majority_at_k, majority_estimates, worth_a_vote
from tests.builders import make_group

RIGHT = "C3"
ANSWERS = st.lists(st.sampled_from(["C1", "C2", RIGHT, "C4", None]), min_size=1, max_size=7)


def counted(answers: Sequence[str | None], k: int) -> float:
    given_ = Counter(answer for answer in answers if answer is not None)
    return majority_at_k(given_, Counter({RIGHT: given_[RIGHT]}), answers.count(None), k)


def by_definition(answers: Sequence[str | None], k: int) -> Fraction:
    choices = list(combinations(answers, k))
    won = Fraction(0)
    for chosen in choices:
        votes = Counter(answer for answer in chosen if answer is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        won += Fraction(winners.count(RIGHT), max(len(winners), 1))
    return won / len(choices)


@given(ANSWERS, st.data())
def test_it_is_the_share_of_choices_whose_vote_is_right(
    answers: list[str | None], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    assert counted(answers, k) == pytest.approx(float(by_definition(answers, k)), abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["C3", "C3", "C1", "C2"], 1),
        (["C3", "C1", "C1", "C2"], 0),
        (["C3", "C3", "C1", "C1"], 1 / 2),
        (["C3", "C1", "C2", "C4"], 1 / 4),
        (["C3", None, None, None], 1),
        ([None, None, None, None], 0),
    ],
)
def test_a_vote_of_all_four(answers: list[str | None], expected: float) -> None:
    assert counted(answers, 4) == pytest.approx(expected)


@given(ANSWERS)
def test_one_or_two_votes_are_pass_at_1_where_all_have_an_answer(answers: list[str | None]) -> None:
    answers = [answer or "C1" for answer in answers]
    for k in range(1, min(len(answers), 2) + 1):
        assert counted(answers, k) == pytest.approx(answers.count(RIGHT) / len(answers))


@given(ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_the_responses_is_of_no_consequence(answers: list[str | None], random: object) -> None:
    shuffled = list(answers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert counted(shuffled, len(answers)) == pytest.approx(counted(answers, len(answers)), abs=1e-12)


def test_many_votes_of_a_small_majority_are_surely_right() -> None:
    assert counted(["C3"] * 40 + ["C1"] * 24, 64) == 1
    assert counted(["C3"] * 40 + ["C1"] * 24, 16) > counted(["C3"] * 40 + ["C1"] * 24, 4) > 40 / 64


@pytest.mark.parametrize("k", [0, 5])
def test_what_cannot_be_computed_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"maj@{k} cannot be computed from 4"):
        counted(["C3", "C1", None, "C2"], k)


def voted(answers: Sequence[str | None], rewards: Sequence[float | None]) -> ScoredGroup:
    group = make_group(rewards)
    verdicts = [
        replace(verdict, answer=answer) for verdict, answer in zip(group.verdicts, answers, strict=True)
    ]
    return replace(group, verdicts=tuple(verdicts))


def test_a_failed_verdict_has_no_vote() -> None:
    """Two right against one wrong; the fourth is not known, so that of this prompt there is no vote of four."""
    group = voted(["C3", "C3", "C1", None], [1.0, 1.0, 0.0, None])
    assert majority_estimates([group], 3) == [1]
    assert majority_estimates([group], 4) == []


def test_prompts_count_alike() -> None:
    groups = [voted(["C3"] * 4, [1.0] * 4), voted(["C1", "C2", "C3", "C3"], [1.0, 0.0, 0.0, 0.0])]
    assert majority_estimates(groups, 4) == [1, 0]
    assert worth_a_vote(groups) == [4]


def test_nothing_is_voted_on_where_no_response_has_an_answer() -> None:
    assert worth_a_vote([voted([None] * 4, [0.0] * 4)]) == []


@pytest.mark.parametrize(("responses", "ks"), [(2, []), (3, [3]), (6, [4, 6]), (16, [4, 8, 16])])
def test_which_votes_are_reported(responses: int, ks: list[int]) -> None:
    assert worth_a_vote([make_group([1.0] * responses)]) == ks
