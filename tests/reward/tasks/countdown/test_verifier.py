"""The verifier against a table of cases, a fuzz, and an oracle that shares no code with it."""

import ast
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reward.tasks.countdown.puzzles import Puzzle
from reward.tasks.countdown.solver import solutions
from reward.tasks.countdown.verifier import MAX_ANSWER_CHARACTERS, MAX_DEPTH, extract_answer, verify


def answered(expression: str) -> str:
    return f"<answer>{expression}</answer>"


@pytest.mark.parametrize(
    ("numbers", "target", "expression"),
    [
        ((3, 5, 7), 38, "3+5*7"),
        ((3, 5, 7), 38, " 7 * 5\n+ 3\t"),
        ((3, 5, 7), 38, "(((3)+((5*7))))"),
        ((3, 5, 7), 38, "3+5×7"),
        ((8, 2, 6), 10, "8÷2+6"),
        ((8, 2, 6), 0, "8−2−6"),
        ((8, 2, 6), -1, "(2-8)/6"),
        ((3, 3, 8, 8), 24, "8/(3-8/3)"),
        ((10, 4, 2), 3, "(10-4)/2"),
        ((2, 3, 5), 30, "2*3*5"),
        ((12, 4, 3), 1, "12/4/3"),
        ((0, 7), 7, "7+0"),
        ((5,), 5, "5"),
    ],
)
def test_a_right_expression_is_correct(numbers: tuple[int, ...], target: int, expression: str) -> None:
    assert verify(answered(expression), Puzzle(numbers, target)).reason == "correct"


@pytest.mark.parametrize(
    ("numbers", "target", "expression", "reason"),
    [
        ((3, 2), 9, "3**2", "misplaced *"),
        ((7, 2), 3, "7//2", "misplaced /"),
        ((2, 3), 6, "2.*3", "unexpected '.'"),
        ((1, 5, 2), 4, "1.5+2", "unexpected '.'"),
        ((3, 5), 2, "3-.5", "unexpected '.'"),
        ((3, 5), 2, "-3+5", "misplaced -"),
        ((3, 5), 8, "3--5", "misplaced -"),
        ((3, 5), 8, "3-(-5)", "misplaced -"),
        ((3, 5), 8, "+3+5", "misplaced +"),
        ((3, 5), 8, "05+3", "leading zero in 05"),
        ((3, 2, 1), 33, "3 2+1", "misplaced 2"),
        ((3, 21), 24, "3 + 2 1", "uses 1 2 3, not 3 21"),
        ((9, 9, 9), 9, "9**9**9", "misplaced *"),
        ((4, 2, 2), 4, "4/(2-2)", "division by zero"),
        ((3, 5), 15, "3(5)", "misplaced ("),
        ((3, 5), 15, "(3)(5)", "misplaced ("),
        ((3, 5), 15, "(3)5", "misplaced 5"),
        ((3, 5), 8, "3+5)", "misplaced )"),
        ((3, 5), 8, "(3+5", "ends too early"),
        ((3, 5), 8, "3+5+", "ends too early"),
        ((3, 5), 8, "3+5()", "misplaced ("),
        ((3, 5), 8, "()3+5", "misplaced )"),
        ((3, 5), 8, "", "uses no numbers, not 3 5"),
        ((3, 5), 8, "3+5=8", "unexpected '='"),
        ((3, 5), 8, "8", "uses 8, not 3 5"),
        ((3, 5), 8, "3+5+5-5", "uses 3 5 5 5, not 3 5"),
        ((3, 5, 5), 8, "3+5", "uses 3 5, not 3 5 5"),
        ((3, 5), 8, "abs(3)+5", "unexpected 'a'"),
        ((3, 5), 8, "3 x 5", "unexpected 'x'"),
        ((3, 5), 8, "__import__('os')", "unexpected '_'"),
        ((3, 5), 8, "３+5", "unexpected '３'"),
        ((3, 5), 8, "٣+5", "unexpected '٣'"),
        ((3, 5), 9, "3²+5-5", "unexpected '²'"),
        ((3, 5), 15, "3∗5", "unexpected '∗'"),
        ((3, 5), 15, "3·5", "unexpected '·'"),
        ((3, 5), -2, "3–5", "unexpected '–'"),
        ((6, 3), 2, "6∕3", "unexpected '∕'"),
        ((3, 5), 8, "3+\u00a05", "unexpected '\\xa0'"),
        ((3, 5), 8, "3_0+5", "unexpected '_'"),
        ((3, 5), 8, "3e0+5", "unexpected 'e'"),
        ((3, 5), 7, "3+5", "has the value 8, not 7"),
        ((3, 2), 1, "3/2", "has the value 3/2, not 1"),
    ],
)
def test_everything_else_is_refused(
    numbers: tuple[int, ...], target: int, expression: str, reason: str
) -> None:
    verdict = verify(answered(expression), Puzzle(numbers, target))
    assert not verdict.correct
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("3+5", None),
        ("<answer>3+5", None),
        ("3+5</answer>", None),
        ("</answer>3+5<answer>", None),
        ("<ANSWER>3+5</ANSWER>", None),
        ("", None),
        ("<answer>1</answer> no, <answer> 3+5 </answer> yes", "3+5"),
        ("<answer>3+5</answer> or else <answer>3-", "3+5"),
        ("<answer>3+5</answer></answer>", "3+5"),
        ("<answer>1<answer>3+5</answer>", "3+5"),
        ("<answer></answer>", ""),
    ],
)
def test_the_answer_is_the_last_complete_one(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer
    assert verify(response, Puzzle((3, 5), 8)).answer == answer


def test_only_the_last_answer_counts() -> None:
    puzzle = Puzzle((3, 5), 8)
    assert not verify(answered("3+5") + answered("3*5"), puzzle).correct
    assert verify(answered("3*5") + answered("3+5"), puzzle).correct


def test_depth_and_length_are_bounded() -> None:
    puzzle = Puzzle((3, 5), 8)
    assert verify(answered("(" * MAX_DEPTH + "3" + ")" * MAX_DEPTH + "+5"), puzzle).correct
    deeper = verify(answered("(" * (MAX_DEPTH + 1) + "3" + ")" * (MAX_DEPTH + 1) + "+5"), puzzle)
    assert deeper.reason == f"parentheses deeper than {MAX_DEPTH}"
    # Blanks around an answer are not part of it, blanks inside are.
    assert verify(answered("3+5" + " " * 10_000), puzzle).correct
    assert verify(answered("3+" + " " * MAX_ANSWER_CHARACTERS + "5"), puzzle).reason.startswith("longer than")


@pytest.mark.parametrize(
    "response",
    [
        "<answer>" * 200_000,
        "</answer>" * 200_000,
        "<answer>x</answer>" * 100_000,
        answered("(" * 10_000),
        "9" * 10**6,
    ],
)
def test_a_hostile_response_costs_little(response: str) -> None:
    start = time.perf_counter()
    assert not verify(response, Puzzle((3, 5), 8)).correct
    assert time.perf_counter() - start < 0.5


@given(st.text())
def test_no_text_raises(text: str) -> None:
    verify(text, Puzzle((3, 5), 8))
    verify(answered(text), Puzzle((3, 5), 8))


# What the oracle can read: Python's own grammar, walked by hand, with only the nodes that an answer may have.
def oracle(expression: str, puzzle: Puzzle) -> bool:
    used = []

    def value(node: ast.AST) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                used.append(number)
                return Fraction(number)
            case ast.BinOp(left, ast.Add(), right):
                return value(left) + value(right)
            case ast.BinOp(left, ast.Sub(), right):
                return value(left) - value(right)
            case ast.BinOp(left, ast.Mult(), right):
                return value(left) * value(right)
            case ast.BinOp(left, ast.Div(), right):
                return value(left) / value(right)
        raise SyntaxError("not arithmetic")

    try:
        worth = value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return False
    return worth == puzzle.target and sorted(used) == sorted(puzzle.numbers)


pieces = st.lists(st.sampled_from([*"0123456789", *"+-*/()", " ", "1", "2", "3"]), max_size=12).map("".join)


@given(expression=pieces, target=st.integers(-9, 9))
@example(expression="1+2", target=3)
def test_agrees_with_the_oracle_on_noise(expression: str, target: int) -> None:
    numbers = tuple(int(c) for c in expression if c.isdigit()) or (1,)
    puzzle = Puzzle(numbers, target)
    # Python strips a leading blank only where we strip it as well.
    assert verify(answered(expression), puzzle).correct == oracle(expression.strip(), puzzle)


atoms = st.integers(0, 99).map(str)
trees = st.recursive(
    atoms,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from("+-*/"), part).map(lambda t: f"({t[0]} {t[1]}{t[2]})"),
        st.tuples(part, st.sampled_from("+-*/"), part).map("".join),
    ),
    max_leaves=6,
)


@given(expression=trees, off_by=st.sampled_from([0, 0, 1]))
def test_agrees_with_the_oracle_on_expressions(expression: str, off_by: int) -> None:
    literals = ast.walk(ast.parse(expression, mode="eval"))
    numbers = tuple(int(node.value) for node in literals if isinstance(node, ast.Constant))
    # First ask what it is worth, then pose that as the puzzle.
    reason = verify(answered(expression), Puzzle(numbers, 10**9)).reason
    if reason.startswith("has the value") and "/" not in reason:
        target = int(reason.split()[3].rstrip(",")) + off_by
        assert verify(answered(expression), Puzzle(numbers, target)).correct == (off_by == 0)
        assert oracle(expression, Puzzle(numbers, target)) == (off_by == 0)
    else:
        assert reason == "division by zero" or "/" in reason


@given(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=3).map(tuple), target=st.integers(-20, 100))
def test_every_listed_solution_is_correct(numbers: tuple[int, ...], target: int) -> None:
    for expression in solutions(numbers, target):
        assert verify(answered(expression), Puzzle(numbers, target)).correct
        assert not verify(answered(expression), Puzzle(numbers, target + 1)).correct
