r"""Functions by cases are equal if they have the same values, in any order of the branches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal

VALUES = ("x", "2x", "3", "-x", "x^2")
Step = tuple[int, bool]
"""Where a function changes its branch, and whether that number belongs to the branch on the left."""


def rows(steps: Sequence[Step], values: Sequence[str], variable: str = "x") -> list[str]:
    """Return the branches of a function from left to right."""
    found = []
    for index, value in enumerate(values):
        parts = []
        if index:
            number, is_left = steps[index - 1]
            parts.append(f"{number} {'<' if is_left else chr(92) + 'le'} {variable}")
        if index < len(steps):
            number, is_left = steps[index]
            upper = f"{chr(92) + 'le' if is_left else '<'} {number}"
            parts = [f"{parts[0]} {upper}" if parts else f"{variable} {upper}"]
        found.append(f"{value.replace('x', variable)} & {parts[0]}")
    return found


def cases(branches: Sequence[str]) -> str:
    return r"\begin{cases} " + r" \\ ".join(branches) + r" \end{cases}"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_and_the_notation_of_the_branches_do_not_matter(data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(-3, 3), min_size=1, max_size=3)))
    steps = [(end, data.draw(st.booleans())) for end in ends]
    values = data.draw(st.lists(st.sampled_from(VALUES), min_size=len(steps) + 1, max_size=len(steps) + 1))
    branches = rows(steps, values)
    reference = cases(branches)
    assert equal(reference, "f(x) = " + cases(data.draw(st.permutations(branches))))
    in_words = [row.replace("&", r", & \text{if }") for row in branches[:-1]]
    assert equal(reference, cases([*in_words, rf"{values[-1]} & \text{{otherwise}}"]))
    assert equal(f"f(x)={reference}", "f(t)=" + cases(rows(steps, values, "t")))

    changed = data.draw(st.integers(0, len(values) - 1))
    others = [value if index != changed else f"{value}+1" for index, value in enumerate(values)]
    assert not equal(reference, cases(rows(steps, others)))
    assert not equal(reference, cases([*branches[:-1], branches[-1].replace("&", "& x < 9 and")]))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(VALUES), st.sampled_from(VALUES), st.integers(-3, 3))
def test_an_end_counts_if_the_branches_differ_there(low: str, high: str, end: int) -> None:
    values = [eval(value.replace("2x", "2*x").replace("^", "**"), {"x": end}) for value in (low, high)]
    left, right = (cases(rows([(end, is_left)], [low, high])) for is_left in (True, False))
    assert equal(left, right) == (values[0] == values[1])


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("|x|", r"\begin{cases} x, & x\ge 0 \\ -x, & x<0 \end{cases}", True),
        ("|x|", r"\begin{cases} x, & x>0 \\ -x, & x<0 \end{cases}", False),
        ("5", r"\begin{cases} 5, & x\ge 0 \\ 5, & x<0 \end{cases}", False),
        (
            r"\begin{cases} n/2 & n \text{ even} \\ 3n+1 & n \text{ odd} \end{cases}",
            r"\begin{cases} 3n+1 & \text{if } n \text{ is odd} \\ n/2 & \text{if } n \text{ is even} \end{cases}",
            True,
        ),
        (
            r"\begin{cases} n/2 & n \text{ even} \\ 3n+1 & n \text{ odd} \end{cases}",
            r"\begin{cases} n/2 & n \text{ odd} \\ 3n+1 & n \text{ even} \end{cases}",
            False,
        ),
        (
            r"\begin{cases} x & x<\sqrt2 \\ \sqrt2 & x\ge\sqrt2 \end{cases}",
            r"\begin{cases} x & x\le\frac{2}{\sqrt2} \\ \sqrt2 & x>\sqrt2 \end{cases}",
            True,
        ),
        ("(10, 4)", r"\begin{cases} x = 10 \\ y = 4 \end{cases}", True),
        (r"\begin{cases} x & = 10 \\ y & = 4 \end{cases}", "x=10, y=4", True),
    ],
)
def test_cases_against_other_forms(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same
    assert equal(answer, reference) == same
