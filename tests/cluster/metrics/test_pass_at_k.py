"""pass@k and maj@k against their definitions, by enumerating all choices of k responses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import ScoredGroup
from cluster.metrics.pass_at_k import (
    majority_at_k,
    majority_estimates,
    majority_ks,
    mean_pass_at_k,
    pass_at_k,
    powers_of_two,
)
from tests.builders import make_group

COUNTS = st.integers(1, 300).flatmap(lambda valid: st.tuples(st.just(valid), st.integers(0, valid)))


@pytest.mark.parametrize("valid", range(1, 9))
def test_pass_at_k_is_the_fraction_of_choices_with_a_correct_response(valid: int) -> None:
    for correct in range(valid + 1):
        responses = [True] * correct + [False] * (valid - correct)
        for k in range(1, valid + 1):
            passed = [any(chosen) for chosen in combinations(responses, k)]
            assert pass_at_k(valid, correct, k) == pytest.approx(sum(passed) / len(passed), abs=1e-15)


@given(COUNTS)
def test_pass_at_1_is_the_mean(counts: tuple[int, int]) -> None:
    valid, correct = counts
    assert pass_at_k(valid, correct, 1) == correct / valid


@given(COUNTS)
def test_more_tries_and_more_correct_responses_pass_more_often(counts: tuple[int, int]) -> None:
    valid, correct = counts
    by_k = [pass_at_k(valid, correct, k) for k in range(1, valid + 1)]
    assert by_k == sorted(by_k)
    assert by_k[-1] == (correct > 0)
    assert all(0 <= value <= 1 for value in by_k)
    if correct:
        assert all(pass_at_k(valid, correct - 1, k) <= value for k, value in enumerate(by_k, start=1))


@pytest.mark.parametrize(
    ("valid", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1), (0, 0, 0)]
)
def test_what_cannot_be_estimated_is_refused(valid: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from {valid}"):
        pass_at_k(valid, correct, k)


@pytest.mark.parametrize(
    ("largest", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 2, 4]), (16, [1, 2, 4, 8, 16])]
)
def test_powers_of_two_up_to_the_number_of_responses(largest: int, ks: list[int]) -> None:
    assert powers_of_two(largest) == ks


def test_a_failed_verdict_is_not_correct() -> None:
    groups = [make_group([1.0, 0.0, None, None]), make_group([1.0, 1.0, 0.0, None])]
    assert mean_pass_at_k(groups, 1) == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert mean_pass_at_k(groups, 4) == 1
    assert math.isnan(mean_pass_at_k(groups, 5))


# --- maj@k

CORRECT = "C3"
ANSWERS = st.lists(st.sampled_from(["C1", "C2", CORRECT, "C4", None]), min_size=1, max_size=7)


def counted(answers: Sequence[str | None], k: int) -> float:
    given_ = Counter(answer for answer in answers if answer is not None)
    return majority_at_k(given_, Counter({CORRECT: given_[CORRECT]}), answers.count(None), k)


def by_definition(answers: Sequence[str | None], k: int) -> Fraction:
    choices = list(combinations(answers, k))
    won = Fraction(0)
    for chosen in choices:
        votes = Counter(answer for answer in chosen if answer is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        won += Fraction(winners.count(CORRECT), max(len(winners), 1))
    return won / len(choices)


@given(ANSWERS, st.data())
def test_maj_at_k_is_the_fraction_of_choices_whose_vote_is_correct(
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
def test_one_or_two_votes_equal_pass_at_1_if_all_have_an_answer(answers: list[str | None]) -> None:
    answers = [answer or "C1" for answer in answers]
    for k in range(1, min(len(answers), 2) + 1):
        assert counted(answers, k) == pytest.approx(answers.count(CORRECT) / len(answers))


@given(ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_the_responses_does_not_matter(answers: list[str | None], random: object) -> None:
    shuffled = list(answers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert counted(shuffled, len(answers)) == pytest.approx(counted(answers, len(answers)), abs=1e-12)


def test_many_votes_of_a_small_majority_are_certainly_correct() -> None:
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
    group = voted(["C3", "C1", "C1", None], [1.0, 0.0, 0.0, None])
    assert majority_estimates([group], 4) == [0]
    assert majority_estimates([group], 3) == [pytest.approx((1 / 2 + 1 / 2 + 0 + 0) / 4)]
    assert majority_estimates([group], 5) == []


def test_prompts_have_equal_weight() -> None:
    groups = [voted(["C3"] * 4, [1.0] * 4), voted(["C1", "C2", "C3", "C3"], [1.0, 0.0, 0.0, 0.0])]
    assert majority_estimates(groups, 4) == [1, 0]
    assert majority_ks(groups) == [4]


def test_there_is_no_vote_if_no_response_has_an_answer() -> None:
    assert majority_ks([voted([None] * 4, [0.0] * 4)]) == []


@pytest.mark.parametrize(("responses", "ks"), [(2, []), (3, [3]), (6, [4, 6]), (16, [4, 8, 16])])
def test_which_votes_are_reported(responses: int, ks: list[int]) -> None:
    assert majority_ks([make_group([1.0] * responses)]) == ks
