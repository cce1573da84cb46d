"""The verifier of Countdown responses. It parses the answer and never evaluates it as code.

The answer is the last `<answer>…</answer>`. It must be one arithmetic expression

    expression = term   { ("+" | "-") term }
    term       = factor { ("*" | "/") factor }
    factor     = number | "(" expression ")"

that uses each given number exactly once and has the value of the target, in exact fractions. `×`, `÷` and `−` (U+2212)
are read as `*`, `/` and `-`. Everything else is refused: other operators, signs, decimals, leading zeros, names,
Unicode digits. A trailing `= 24` is refused too: an equation is not an expression, and the prompts say so. The
published Countdown rewards also refuse it, so success rates are comparable.
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
# [0-9], because \d would match the digits of every script.
_TOKEN = re.compile(r"[0-9]+|[-+*/()]")
_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Verification:
    """The result for a response. `answer` is the text between the tags, or None without tags."""

    correct: bool
    answer: str | None
    reason: str


class _Refused(Exception):
    """The answer is not a well-formed expression, or has no value. The message is the reason."""


def verify(response: str, puzzle: Puzzle) -> Verification:
    """Check if the last `<answer>…</answer>` of `response` solves `puzzle`. Never raises on any text."""
    answer = extract_answer(response)
    if answer is None:
        return Verification(False, None, f"no {_OPEN}…{_CLOSE}")
    try:
        tokens = _tokenize(answer)
        # Checked before the arithmetic, so that no number is larger than those of the puzzle.
        _check_numbers(tokens, puzzle)
        value = _evaluate(tokens)
    except _Refused as refusal:
        return Verification(False, answer, str(refusal))
    if value != puzzle.target:
        return Verification(False, answer, f"has the value {value}, not {puzzle.target}")
    return Verification(True, answer, "correct")


def extract_answer(response: str) -> str | None:
    """Return the stripped text of the last complete `<answer>…</answer>`, or None. An unclosed tag does not count."""
    start = response.rfind(_OPEN, 0, max(response.rfind(_CLOSE), 0))
    if start < 0:
        return None
    start += len(_OPEN)
    return response[start : response.find(_CLOSE, start)].strip()


def _tokenize(answer: str) -> list[str]:
    """Return the numbers, operators and parentheses, in order."""
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
    """Compare the numbers as text: only digits of given numbers are ever converted."""
    used = [token for token in tokens if token.isdigit()]
    if Counter(used) != Counter(map(str, puzzle.numbers)):
        given = " ".join(map(str, sorted(puzzle.numbers)))
        raise _Refused(f"uses {' '.join(sorted(used)) or 'no numbers'}, not {given}")


def _evaluate(tokens: list[str]) -> Fraction:
    """Return the value of a well-formed expression, by precedence climbing with explicit stacks (no recursion)."""
    values: list[Fraction] = []
    pending: list[str] = []  # operators and open parentheses without their right operand
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
