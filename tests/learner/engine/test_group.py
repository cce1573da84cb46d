"""The answers of the ranks become one."""

from __future__ import annotations

from typing import Any

import pytest

from learner.engine.group import one_answer


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("",), ""),
        ((None, None), None),  # the weights are gone
        (("", None), ""),  # a sender that works in rank 0 only
        ((("a", "version"), ""), ("a", "version")),
        (("", "", ""), ""),
        (("", "broken", ""), "broken"),
        (("late", "broken", "late"), "late; broken"),
        (("late", ""), "late"),
    ],
)
def test_a_failure_in_any_rank_is_the_answer(answers: tuple[Any, ...], expected: Any) -> None:
    answer, *others = answers
    assert one_answer(answer, others) == expected
