"""20,000 hostile responses, scored by the verifier and by an oracle that shares no code with it.

The oracle is Python's own parser, held to numbers and the four operators, with exact fractions. Where Python's grammar
and Countdown's differ, the oracle says so itself, in `DIFFERENCES`; there is no other disagreement. The target of what
is found right is looked for once more, among all values that can be reached at all, by brute force.
"""

from __future__ import annotations

import ast
import functools
import itertools
import operator
import random
import re
from collections import Counter
from fractions import Fraction

import pytest

from reward.tasks.countdown.puzzles import Puzzle
from reward.tasks.countdown.verifier import verify

STRINGS = 20_000
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


# --- the oracle

DIFFERENCES = {
    "Python knows no × ÷ −": lambda text: text.replace("×", "*").replace("÷", "/").replace("−", "-"),
    "a line break ends Python's expressions": lambda text: re.sub(r"[\t\r\n]", " ", text),
    "Python reads 0x1, 1_0, 1e1, # and names": lambda text: (
        text if re.fullmatch(r"[-+*/() 0-9]*", text) else ""
    ),
    "Python reads 00 as 0": lambda text: "" if re.search(r"(?<![0-9])0[0-9]", text) else text,
    "an answer has at most 256 characters": lambda text: text if len(text) <= 256 else "",
    "and parentheses 32 deep": lambda text: text if depth(text) <= 32 else "",
}


def depth(text: str) -> int:
    return max(itertools.accumulate({"(": 1, ")": -1}.get(c, 0) for c in text), default=0)


def oracle(response: str, puzzle: Puzzle) -> bool:
    answers = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", response, re.DOTALL)
    text = answers[-1].strip() if answers else ""
    for difference in DIFFERENCES.values():
        text = difference(text)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        used = Counter(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return used == Counter(puzzle.numbers) and worth(tree) == puzzle.target
    except (SyntaxError, ZeroDivisionError, UnicodeEncodeError):
        return False


def worth(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](worth(left), worth(right))
    raise SyntaxError("not arithmetic")


@functools.cache
def reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """By brute force: every pair, every operator, and so on with what is left."""
    if len(numbers) == 1:
        return {numbers[0]}
    found: set[Fraction] = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for sign in OPERATORS.values():
            if sign is not operator.truediv or numbers[j]:
                found |= reachable(tuple(sorted((*rest, sign(numbers[i], numbers[j])))))
    return found


# --- the hostile

PIECES = [
    *"0123456789+-*/()=^%.,_ \n\t\r×÷−·∗∕–—²½٣３Ⅷ０（）＋",
    *[
        "**",
        "//",
        "--",
        "+-",
        "()",
        "(-1)",
        "05",
        "00",
        "0x1",
        "1e1",
        "1_0",
        "1.0",
        ".5",
        "2.",
        "= 24",
        "==",
        " or ",
    ],
    *[
        "#",
        "\\",
        '"',
        "'",
        "abs",
        "__import__('os')",
        "if",
        "lambda:0",
        "\0",
        "\u00a0",
        "\u200b",
        "\ufeff",
        "\ud800",
    ],
    *[
        "<answer>",
        "</answer>",
        "<answer",
        "</ANSWER>",
        "\\frac{1}{2}",
        "$",
        "9**9**9",
        "(" * 40,
        ")" * 40,
        " " * 300,
    ],
]


def expression(numbers: list[int], rng: random.Random) -> str:
    """Well formed, of all the numbers."""
    if len(numbers) == 1:
        return str(numbers[0])
    cut = rng.randrange(1, len(numbers))
    blank = rng.choice(["", "", " ", "\n"])
    joined = f"{expression(numbers[:cut], rng)}{blank}{rng.choice('+-*/×÷−')}{blank}{expression(numbers[cut:], rng)}"
    return f"({joined})" if rng.random() < 0.6 else joined


def spoilt(text: str, rng: random.Random) -> str:
    """With something put in, taken out, doubled or exchanged."""
    place = rng.randrange(len(text) + 1)
    end = rng.randrange(place, min(len(text), place + 4) + 1)
    return text[:place] + rng.choice(["", rng.choice(PIECES), text[place:end] * 2]) + text[end:]


def hostile(rng: random.Random) -> tuple[str, Puzzle]:
    numbers = [rng.choice([0, 1, 2, 3, 5, 7, 10, 12, 25]) for _ in range(rng.randint(1, 4))]
    text = expression(rng.sample(numbers, len(numbers)), rng)
    target = rng.randrange(-20, 100)
    normal = text.replace("×", "*").replace("÷", "/").replace("−", "-").replace("\n", " ")
    try:
        value = worth(ast.parse(normal, mode="eval").body)
    except ZeroDivisionError:
        value = Fraction(target)
    if rng.random() < 0.9 and value.denominator == 1:
        target = int(value)
    if rng.random() < 0.05:
        deep = rng.randrange(25, 40)
        text = "(" * deep + text + ")" * deep
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        text = spoilt(text, rng)
    response = f"so <answer>{text}</answer>" if rng.random() < 0.95 else text
    if rng.random() < 0.1:
        response = spoilt(response, rng)
    if rng.random() < 0.05:
        response = "".join(rng.choices(PIECES, k=rng.randint(0, 30)))
    return response, Puzzle(tuple(numbers), target)


def test_the_verifier_and_the_oracle_never_disagree() -> None:
    rng = random.Random("countdown fuzz")
    right = 0
    for _ in range(STRINGS):
        response, puzzle = hostile(rng)
        verdict = verify(response, puzzle)
        assert verdict.correct == oracle(response, puzzle), (response, puzzle, verdict.reason)
        if verdict.correct:
            right += 1
            assert puzzle.target in reachable(tuple(sorted(map(Fraction, puzzle.numbers))))
    assert 0.2 < right / STRINGS < 0.8, "both kinds are there"


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_difference_of_the_grammars_is_met(difference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the two would disagree: so none of them hides anything, and the fuzz reaches them all."""
    monkeypatch.setitem(DIFFERENCES, difference, lambda text: text)
    rng = random.Random("countdown fuzz")
    for _ in range(STRINGS):
        response, puzzle = hostile(rng)
        if verify(response, puzzle).correct != oracle(response, puzzle):
            return
    pytest.fail("the difference is never met")
