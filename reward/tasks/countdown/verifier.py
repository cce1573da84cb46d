"""Decides whether a response solves a Countdown puzzle. Text is parsed, never evaluated as code.

The answer is the last `<answer>…</answer>`. It must be one arithmetic expression

    expression = term   { ("+" | "-") term }
    term       = factor { ("*" | "/") factor }
    factor     = number | "(" expression ")"

that uses each given number exactly once and is worth the target, in exact fractions. `×`, `÷` and `−`
(U+2212) are read as `*`, `/` and `-`. Everything else is refused: other operators, signs, decimals, leading
zeros, names, unicode digits. So is a trailing `= 24`: an equation is no expression, the prompts say so, and
the published Countdown rewards refuse it too, which keeps success rates comparable.
"""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from reward.tasks.countdown.puzzles import Puzzle
from reward.tasks.countdown.solver import apply

MAX_ANSWER_CHARACTERS = 256
MAX_DEPTH = 32

_OPEN, _CLOSE = "<answer>", "</answer>"
_SYNONYMS = str.maketrans("×÷−", "*/-")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
# [0-9] and not \d, which would let the digits of every script in.
_TOKEN = re.compile(r"[0-9]+|[-+*/()]")
_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Verification:
    """The verdict on a response. `answer` is the text between the tags, None if there are none."""

    correct: bool
    answer: str | None
    reason: str


class _Refused(Exception):
    """The answer is no well-formed expression, or has no value; the message is the reason."""


def verify(response: str, puzzle: Puzzle) -> Verification:
    """Whether the last `<answer>…</answer>` of `response` solves `puzzle`. Never raises on any text."""
    answer = extract_answer(response)
    if answer is None:
        return Verification(False, None, f"no {_OPEN}…{_CLOSE}")
    try:
        tokens = _tokenize(answer)
        # Before the arithmetic, so that no number is ever larger than the puzzle's own.
        _check_numbers(tokens, puzzle)
        value = _evaluate(tokens)
    except _Refused as refusal:
        return Verification(False, answer, str(refusal))
    if value != puzzle.target:
        return Verification(False, answer, f"is worth {value}, not {puzzle.target}")
    return Verification(True, answer, "correct")


def extract_answer(response: str) -> str | None:
    """The stripped text of the last complete `<answer>…</answer>`, or None. One left open does not count."""
    start = response.rfind(_OPEN, 0, max(response.rfind(_CLOSE), 0))
    if start < 0:
        return None
    start += len(_OPEN)
    return response[start : response.find(_CLOSE, start)].strip()


def _tokenize(answer: str) -> list[str]:
    """Numbers, operators and parentheses, in order."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        raise _Refused(f"longer than {MAX_ANSWER_CHARACTERS} characters")
    text = answer.translate(_SYNONYMS)
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Refused(f"unexpected {text[position]!r}")
        token = match.group()
        if token[0] == "0" and len(token) > 1:
            raise _Refused(f"leading zero in {token}")
        tokens.append(token)
        blanks = _BLANKS.match(text, match.end())
        position = blanks.end() if blanks else match.end()
    return tokens


def _check_numbers(tokens: list[str], puzzle: Puzzle) -> None:
    """Compared as text: no digits are converted before they are known to be given ones."""
    used = [token for token in tokens if token.isdigit()]
    if Counter(used) != Counter(map(str, puzzle.numbers)):
        given = " ".join(map(str, sorted(puzzle.numbers)))
        raise _Refused(f"uses {' '.join(sorted(used)) or 'no numbers'}, not {given}")


def _evaluate(tokens: list[str]) -> Fraction:
    """The value of a well-formed expression, by precedence climbing with explicit stacks (no recursion)."""
    values: list[Fraction] = []
    pending: list[str] = []  # operators and open parentheses that wait for their right side
    depth = 0
    operand_expected = True

    def reduce_to(precedence: int) -> None:
        while pending and pending[-1] != "(" and _PRECEDENCE[pending[-1]] >= precedence:
            right, left = values.pop(), values.pop()
            try:
                values.append(apply(pending.pop(), left, right))
            except ZeroDivisionError:
                raise _Refused("division by zero") from None

    for token in tokens:
        if operand_expected != (token.isdigit() or token == "("):
            raise _Refused(f"misplaced {token}")
        if token.isdigit():
            values.append(Fraction(int(token)))
            operand_expected = False
        elif token == "(":
            depth += 1
            if depth > MAX_DEPTH:
                raise _Refused(f"parentheses deeper than {MAX_DEPTH}")
            pending.append(token)
        elif token == ")":
            if depth == 0:
                raise _Refused("misplaced )")
            depth -= 1
            reduce_to(0)
            pending.pop()
        else:
            reduce_to(_PRECEDENCE[token])
            pending.append(token)
            operand_expected = True
    if operand_expected or depth:
        raise _Refused("ends too early")
    reduce_to(0)
    return values[0]
