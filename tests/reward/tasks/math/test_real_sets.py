"""Sets of real numbers are equal if they have the same elements, whatever the notation."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal

ENDS = tuple(range(-4, 5))
SAMPLES = tuple(Fraction(number, 4) for number in range(-24, 25))
"""Numbers at, between and beyond all ends."""
SIZE = 2 * len(ENDS) + 1

Cells = tuple[bool, ...]
"""For the gap below the first end, the first end, the next gap, … whether it belongs to a set."""


def has(cells: Cells, number: Fraction) -> bool:
    """Return whether a number is in a set; numbers between two ends are in the same gap."""
    below = sum(end < number for end in ENDS)
    return cells[2 * below + 1] if number in ENDS else cells[2 * below]


def elements(cells: Cells) -> frozenset[Fraction]:
    return frozenset(number for number in SAMPLES if has(cells, number))


def runs(cells: Cells) -> list[tuple[int, int]]:
    """Return the first and the last cell of each part of a set without gaps."""
    starts = [index for index in range(SIZE) if cells[index] and (index == 0 or not cells[index - 1])]
    return [(start, next((i for i in range(start, SIZE) if not cells[i]), SIZE) - 1) for start in starts]


def end(cell: int, is_low: bool) -> tuple[str, bool]:
    """Return the end of a part that begins or ends at a cell, and whether it belongs to the part."""
    if cell % 2:
        return str(ENDS[cell // 2]), True
    index = cell // 2 - is_low
    return (
        (str(ENDS[index]), False) if 0 <= index < len(ENDS) else (r"-\infty" if is_low else r"\infty", False)
    )


def as_union(cells: Cells, brackets: str) -> str:
    parts = []
    for first, last in runs(cells):
        (low, with_low), (high, with_high) = end(first, True), end(last, False)
        if first == last and first % 2:
            parts.append(rf"\{{{low}\}}")
        else:
            parts.append(
                f"{'[' if with_low else brackets[0]}{low}, {high}{']' if with_high else brackets[1]}"
            )
    return r" \cup ".join(parts)


def as_inequalities(cells: Cells) -> str:
    parts = []
    for first, last in runs(cells):
        (low, with_low), (high, with_high) = end(first, True), end(last, False)
        less, at_most = ("\\le" if with_low else "<"), ("\\le" if with_high else "<")
        if first == last and first % 2:
            parts.append(f"x = {low}")
        elif low == r"-\infty":
            parts.append(f"x {at_most} {high}")
        elif high == r"\infty":
            parts.append(f"x {'>=' if with_low else '>'} {low}")
        else:
            parts.append(f"{low} {less} x {at_most} {high}")
    return r" \text{ or } ".join(parts)


def sets() -> st.SearchStrategy[Cells]:
    """Return sets with few parts, none of which is the whole line, so that each has a notation in intervals."""
    cells = st.lists(st.tuples(st.booleans(), st.integers(1, 7)), min_size=1, max_size=7).map(
        lambda parts: tuple([value for value, length in parts for _ in range(length)] + [False] * SIZE)[:SIZE]
    )
    return cells.filter(lambda each: any(each[index] for index in range(0, SIZE, 2)) and not all(each))


@settings(max_examples=60, deadline=None)
@given(sets(), sets())
def test_two_notations_are_equal_if_and_only_if_the_sets_are(one: Cells, other: Cells) -> None:
    notations = (as_union(one, "()"), as_union(one, "]["), as_inequalities(one))
    assert all(equal(notations[0], text) and equal(text, notations[0]) for text in notations)
    assume(len(runs(one)) > 1 or len(runs(other)) > 1)  # a single pair in round brackets may be a point
    same = elements(one) == elements(other)
    for text in (as_union(other, "]["), as_inequalities(other)):
        assert equal(notations[0], text) == same, text


@settings(max_examples=25, deadline=None)
@given(st.sets(st.sampled_from(ENDS), min_size=1, max_size=3))
def test_the_line_without_points_has_many_notations(points: set[int]) -> None:
    names = sorted(map(str, points))
    line = as_union(tuple(index % 2 == 0 or ENDS[index // 2] not in points for index in range(SIZE)), "()")
    notations = (
        rf"\mathbb{{R}}\setminus\{{{', '.join(names)}\}}",
        rf"\text{{all real numbers except }} {' and '.join(names)}",
        rf"x \ne {', '.join(names)}",
        ", ".join(rf"x \neq {name}" for name in names),
        rf"\{{x \in \mathbb{{R}} : {' and '.join(f'x != {name}' for name in names)}\}}",
    )
    assert all(equal(line, text) for text in notations)
    fewer = rf"\mathbb{{R}}\setminus\{{{', '.join([*names, '9'])}\}}"
    assert not any(equal(fewer, text) for text in notations)


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        (r"(-1,1)", "|x| < 1", True),
        (r"(-\infty,-2]\cup[2,\infty)", r"|x| \ge 2", True),
        (r"(-\sqrt2,\sqrt2)", r"|m| < \sqrt{2}", True),
        (r"(-2,-1)\cup(1,2)", "1 < |x| < 2", True),
        (r"\mathbb{R}", "|x| > -1", True),
        (r"(0,1)\cup(1,\infty)", r"x > 0, x \ne 1", True),
        ("(1,3)", "x > 1 and x < 3", True),
        ("(1,3)", "x > 1, x < 3", True),
        (r"(-\infty,1)\cup(3,\infty)", "x < 1, x > 3", True),
        ("x > 3", "x > 1, x > 3", False),
        ("[1,2]", r"\{1,2\}", False),
        ("(2,7)", "(2,7]", False),
        ("]2,7[", "(2,7)", True),
        ("]2,7[", "(7,2)", False),
        (r"\emptyset", "(3,3)", False),
        (r"\emptyset", "(0,0)", False),
        ("|x| < 1", "|y| < 1", False),
        ("|x| < a", "-a < x < a", True),
        ("|x| < a", r"-a \le x < a", False),
        (r"x < a \text{ or } x > b", r"(b,\infty)\cup(-\infty,a)", True),
        ("a > 0, b < 1", "x < 1 or x > 0", False),
    ],
)
def test_conditions_mean_what_a_reader_takes_them_for(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same
    assert equal(answer, reference) == same


def test_a_pair_is_an_interval_only_beside_a_set() -> None:
    assert equal("2 < x < 7", "(2,7)")
    assert not equal("(2,7)", "(7,2)")
    assert not equal("(2,7)", "[2,7]")
    assert equal("(2,7)", "x=2, y=7")
