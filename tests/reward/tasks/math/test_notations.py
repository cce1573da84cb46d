"""Names on the left side, points and vectors, choices, and words for yes, no and no solution."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal

AXES = (r"\mathbf{i}", r"\hat{j}", r"\vec{k}")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-9, 9), min_size=3, max_size=3), st.lists(st.integers(-9, 9), min_size=3, max_size=3)
)
def test_vectors_have_many_notations(one: list[int], other: list[int]) -> None:
    def notations(vector: list[int]) -> list[str]:
        numbers = list(map(str, vector))
        terms = [f"{number:+}{axis}".replace("1\\", "\\") if abs(number) == 1 else f"{number:+}{axis}"
                 for number, axis in zip(vector, AXES, strict=True)]  # fmt: skip
        return [
            r"\begin{pmatrix} " + r" \\ ".join(numbers) + r" \end{pmatrix}",
            rf"\langle {', '.join(numbers)} \rangle",
            f"({', '.join(numbers)})",
            f"[{', '.join(numbers)}]^T",
            rf"\mathbf{{x}} = ({', '.join(numbers)})^{{\top}}",
            "".join(terms).removeprefix("+"),
        ]

    for first in notations(one):
        assert all(equal(first, second) for second in notations(one))
        assert all(equal(first, second) == (one == other) for second in notations(other))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=9, max_size=9))
def test_determinants_are_numbers(cells: list[int]) -> None:
    (a, b, c), (d, e, f), (g, h, i) = cells[:3], cells[3:6], cells[6:]
    value = a * e * i + b * f * g + c * d * h - c * e * g - b * d * i - a * f * h
    rows = r" \\ ".join(" & ".join(map(str, row)) for row in ((a, b, c), (d, e, f), (g, h, i)))
    for text in (
        rf"\begin{{vmatrix}} {rows} \end{{vmatrix}}",
        rf"\det\begin{{pmatrix}} {rows} \end{{pmatrix}}",
    ):
        assert equal(str(value), text)
        assert not equal(str(value + 1), text)
    assert not equal(str(value), rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"), st.integers(0, 3), st.integers(0, 3))
def test_a_choice_with_a_value_is_that_choice(one: str, other: str, value: int, second: int) -> None:
    for reference in (rf"\textbf{{({one})}} {value}", f"{one}) {value}", rf"\text{{{one}:}} {value}"):
        assert equal(reference, other) == (one == other)
        assert equal(other, reference) == (one == other)
        assert equal(reference, str(second)) == (value == second)
        assert not equal(str(value), reference), "a letter and a value would be two answers"
        assert equal(reference, rf"\text{{({other})}}\ {second}") == ((one, value) == (other, second))


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.sampled_from("ABCDE"), min_size=2), st.sets(st.sampled_from("ABCDE"), min_size=2), st.randoms()
)
def test_several_choices_are_a_set(one: set[str], other: set[str], chance: object) -> None:
    letters = sorted(other)
    answers = [
        ", ".join(letters[::-1]),
        rf"\text{{{' and '.join(letters)}}}",
        f"({'), ('.join(letters)})",
        "".join(letters),
    ]
    reference = ", ".join(sorted(one))
    assert all(equal(reference, answer) == (one == other) for answer in answers)
    assert not equal(reference, " or ".join(sorted(one)))
    assert not any(equal(reference, letter) for letter in one)


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("-2", r"\det A = -2", True),
        ("2", r"\operatorname{rank}(A) = 2", True),
        ("pH = 3", r"\text{pH} = 3", True),
        (r"\{1,2,3\}", r"A \cup B = \{3,1,2\}", True),
        ("5", "x+y = 5", False),
        ("(2,5)", "P(2, 5)", True),
        ("P(2,5)", "Q(2,5)", False),
        ("P(2,5)", "(5,2)", False),
        ("(0,1)", "N(0,1)", False),
        ("A(1,2), B(3,4)", "B(3,4), A(1,2)", True),
        ("A(1,2), B(3,4)", "A(3,4), B(1,2)", False),
        (r"x_1=0, x_2=\frac73", r"x=\frac73 \text{ and } x=0", True),
        (r"\lambda=2,5", r"\lambda_1=5, \lambda_2=2", True),
        ("x_1=2, x_2=3", "x_1=3, x_2=2", False),
        ("x_1=2, x_2=3", "y=2, y=3", False),
        ("x=4, y=0 or x=0, y=4", "(0,4), (4,0)", True),
        ("x=4, y=0 or x=0, y=4", "y=4, x=0; y=0, x=4", True),
        ("x=4, y=1 or x=2, y=3", "(1,4), (3,2)", False),
        ("(3,0,0)", "3i", False),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", False),
        ("D", r"\text{D) } 5\sqrt2", True),
        ("(A, C)", "(C, A)", False),
        ("ABC", "A, B, C", False),
        ("no real solution", r"\text{There are no real solutions.}", True),
        ("no solution", r"\emptyset", True),
        ("no solution", "none", True),
        ("no solution", "no real solution", False),
        ("no real solution", "no integer solution", False),
        ("0", "none", False),
        ("No", "No, it is impossible.", True),
        ("False", "False. There are two of them.", True),
        ("No", "No, only if n is even", False),
        ("No", "No, yes", False),
        ("Yes", "Yes, it is not.", False),
        ("Yes", "Yes, Bob", False),
        ("Yes, Alice", "Yes, Bob", False),
    ],
)
def test_words_and_names(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same


@settings(max_examples=40, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9))
@example(0, 0)
def test_alternatives_are_lists_and_never_points(one: int, other: int) -> None:
    point = f"({one}, {other})"
    for text in (
        f"{one} or {other}",
        rf"{one} \lor {other}",
        rf"x = {one} \text{{ or }} x = {other}",
        f"({one} or {other})",
    ):
        assert equal(f"{other}, {one}", text)
        assert equal(rf"\{{{one}, {other}\}}", text)
        assert not equal(point, text)
        assert not equal(text, point)
        assert equal(str(one), text) == (one == other), "the same number twice is this number"
    assert equal(point, f"{one}, {other}")
    assert not equal(str(one), f"{one}, {one}"), "it may be a point"


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_plus_minus_gives_two_answers(one: int, other: int) -> None:
    numbers, points = rf"\pm {one}", rf"(\pm {one}, {other})"
    assert equal(f"-{one}, {one}", numbers)
    assert not equal(f"({one}, -{one})", numbers)
    assert equal(f"({one}, {other}), (-{one}, {other})", points)
    assert not equal(f"({one}, -{one}, {other})", points)
    assert equal(f"({one}, -{other}) or (-{one}, {other})", rf"(\pm {one}, \mp {other})")
    independent = rf"(\pm {one}, \pm {other})"
    assert not equal(f"({one}, {other}), (-{one}, -{other})", independent), "it may be four points"
    assert equal(independent, independent)
