"""From a response to its verdict: what is cut off, and what a failing verifier means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reward.countdown.puzzles import Puzzle
from reward.countdown.task import CountdownOptions, CountdownTask
from reward.scoring import Judgeable, judge

TASK = CountdownTask(CountdownOptions())
PUZZLE = Puzzle((3, 5, 7), 38)
RIGHT = Judgeable(PUZZLE, "<answer>3+5*7</answer>", "stop")
CUT_OFF = replace(RIGHT, finish_reason="length")


@pytest.mark.parametrize(
    ("response", "cut_off_is_wrong", "outcome"),
    [(RIGHT, True, "right"), (RIGHT, False, "right"), (CUT_OFF, True, "wrong"), (CUT_OFF, False, "right")],
)
def test_a_response_cut_off_is_wrong_unless_told_otherwise(
    response: Judgeable, cut_off_is_wrong: bool, outcome: str
) -> None:
    verdict = judge(TASK, response, cut_off_is_wrong)
    assert verdict.outcome == outcome
    assert verdict.reward == (outcome == "right")


def test_a_verifier_that_raises_gives_an_error_and_not_a_wrong() -> None:
    class Broken(CountdownTask):
        def verify(self, problem: Puzzle, response: str) -> Any:
            raise ZeroDivisionError("oops")

    verdict = judge(Broken(CountdownOptions()), RIGHT, cut_off_is_wrong=True)
    assert verdict.outcome == "error"
    assert "ZeroDivisionError: oops" in verdict.reason
