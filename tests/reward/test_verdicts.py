"""The values that a user's verifier returns, and the verdicts that they mean. No unexpected value becomes a 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import Verdict
from reward.verdicts import number_of, verdict_of


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [
        (True, Verdict("correct", 1.0, None, "")),
        (False, Verdict("incorrect", 0.0, None, "")),
        (1, Verdict("correct", 1.0, None, "")),
        (0.7, Verdict("incorrect", 0.7, None, "")),
        (-3, Verdict("incorrect", -3.0, None, "")),
        (np.float32(0.5), Verdict("incorrect", 0.5, None, "")),
        (np.bool_(True), Verdict("correct", 1.0, None, "")),
        (np.array(1.0), Verdict("correct", 1.0, None, "")),
        ({"reward": 0.5}, Verdict("incorrect", 0.5, None, "")),
        (
            {"reward": 0.5, "outcome": "correct", "answer": "7", "reason": "r"},
            Verdict("correct", 0.5, "7", "r"),
        ),
        ({"outcome": "correct"}, Verdict("correct", 1.0, None, "")),
        ({"outcome": "incorrect"}, Verdict("incorrect", 0.0, None, "")),
        ({"outcome": "error", "reason": "no access"}, Verdict("error", 0.0, None, "no access")),
        (Verdict("correct", 2.0, "a", "b"), Verdict("correct", 2.0, "a", "b")),
    ],
)
def test_each_form_of_a_verdict_is_understood(returned: Any, verdict: Verdict) -> None:
    assert verdict_of(returned, correct_from=1.0) == verdict


def test_the_smallest_correct_reward_is_a_setting() -> None:
    assert verdict_of(0.5, correct_from=0.5).outcome == "correct"
    assert verdict_of({"reward": 0.4}, correct_from=0.5).outcome == "incorrect"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None, which is not a reward"),
        ("1.0", "returned '1.0', which is not a reward"),
        ([1.0], r"returned \[1.0\], which is not a reward"),
        (1j, "returned 1j, which is not a reward"),
        (float("nan"), "returned the reward nan"),
        (float("-inf"), "returned the reward -inf"),
        (np.float64("nan"), "returned the reward nan"),
        (np.array([1.0, 2.0]), "size 1"),
        ("x" * 10**6, "'x+…, which is not a reward"),
        ({}, "without a reward or an outcome"),
        ({"reward": None}, "without a reward or an outcome"),
        ({"reward": "1"}, "reward: "),
        ({"reward": float("nan")}, "reward: "),
        (10**400, "beyond the largest float"),
        ({"reward": 10**400}, "beyond the largest float"),
        ({"reward": 10**5000}, "cannot be shown.*beyond the largest float"),
        ({"reward": 1, "outcome": "perhaps"}, "outcome: input should be 'correct'"),
        ({"score": 1}, "score: extra inputs are not permitted"),
        ({"reward": 1, "answer": 7}, "answer: input should be a valid string"),
    ],
)
def test_other_values_are_refused(returned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verdict_of(returned, correct_from=1.0)


@pytest.mark.parametrize(("renamed", "outcome"), [("right", "correct"), ("wrong", "incorrect")])
def test_an_outcome_of_an_earlier_version_gets_its_present_name(renamed: str, outcome: str) -> None:
    full = {"reward": 1, "outcome": renamed}
    for returned in (full, {"outcome": renamed}, Verdict(renamed, 1.0, None, "")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"outcome: '{renamed}' is now '{outcome}'$"):
            verdict_of(returned, correct_from=1.0)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("reward"), inner),
    max_leaves=6,
)


@pytest.mark.parametrize("reading", [lambda value: verdict_of(value, 1.0).reward, number_of])
@given(returned=anything)
def test_any_value_gives_a_finite_reward_or_a_value_error(
    reading: Callable[[Any], float], returned: Any
) -> None:
    try:
        assert abs(reading(returned)) < float("inf")
    except ValueError:
        assert not isinstance(returned, bool)
