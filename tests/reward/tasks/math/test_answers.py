"""The answer is found in responses and references, and references of any type are read."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.tasks.math.answers import last_answer, reference_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{72}.", "72"),
        ("\\boxed{1} no, \\boxed{ 2 }", "2"),
        ("\\boxed{\\frac{1}{2}} of it", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{1\\right\\}} }", "\\left\\{1\\right\\}"),
        (
            "\\boxed{\\begin{pmatrix}{1}\\\\{2}\\end{pmatrix}}",
            "\\begin{pmatrix}{1}\\\\{2}\\end{pmatrix}",
        ),
        ("\\boxed {8}", "8"),
        ("\\boxed\n{8}", "8"),
        ("\\boxed 8 it is", "8"),
        ("$\\boxed8$", "8"),
        ("\\fbox{8}", "8"),
        ("\\boxedfoo{8}", None),
        ("\\boxed{7", None),
        ("\\boxed{7} and \\boxed{8", None),
        ("\\boxed", None),
        ("it is 7", None),
        ("", None),
        ("#### 7", "7"),
        ("#### 6\n#### 7\nthat is all", "7"),
        ("\\boxed{8} #### 7", "8"),
    ],
)
def test_the_last_answer_counts(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("16 - 3 - 4 = <<16-3-4=9>>9\n#### 18", "18"),
        ("2 * 3 = 6\n#### 6\n\nNote: checked twice.", "6"),
        ("Thus $x = \\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}"),
        ("\\boxed{1} #### 2", "2"),
        (" 42 ", "42"),
        (42, "42"),
        (-3.5, "-3.5"),
        (1e-05, "0.00001"),
        (1e16, "10000000000000000"),
        (100.0, "100"),
        (Decimal("0.10"), "0.1"),
        (10**28 + 1, "10000000000000000000000000001"),
        (-0.0, "-0"),
        (["2", 3], "2, 3"),
    ],
)
def test_references_of_each_kind_are_read(value: Any, answer: str) -> None:
    assert reference_answer(value) == answer


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_a_number_as_a_reference_keeps_its_value(number: float) -> None:
    text = reference_answer(number)
    assert "e" not in text.lower()
    assert Decimal(text) == Decimal(repr(number))


@pytest.mark.parametrize(
    "value",
    [None, "", "  ", "####", math.nan, math.inf, True, {"value": 5}, [], ["1", None], b"1", "\\boxed{}"],
)
def test_a_value_that_is_no_answer_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="the reference is") as refusal:
        reference_answer(value)
    assert "\n" not in str(refusal.value)
