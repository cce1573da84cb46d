r"""Read a mathematical expression: from cleaned LaTeX to a tree of sympy, which nothing has evaluated.

`latex2sympy` reads LaTeX. Before it sees a text, everything is made explicit here that it would read in more than one
way: the arguments of `\frac12` and `x^10`, mixed numbers, products without a sign, decimals and e-notation. Decimals
become fractions, so that all numbers stay exact.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

MAX_CHARACTERS = 400
MAX_DEPTH = 24
"""The deepest nesting of brackets. `latex2sympy` takes exponential time for deep ones."""

_ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1}
_PLAIN = re.compile(
    r"(?<![\\a-zA-Z])(arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|sec|csc|cot|log|ln|lg|exp|sqrt|pi|theta|alpha|beta|gamma"
    r"|infinity)(?![a-zA-Z])"
)
_E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?![\w.^])")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")
_DOTS = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\dot\s*\{?\s*(\d)\s*\}?(?:(\d*)\\dot\s*\{?\s*(\d)\s*\}?)?(?!\d)")
_IN_BRACKETS = re.compile(r"(?<![\d.\w)}])(\d+)\.\((\d+)\)")
_ENDLESS = re.compile(r"(?<![\d.])(\d*)\.(\d+)\s*\\ldots(?![a-zA-Z])\s*(?!\s*[\d.,])")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_MIXED = re.compile(r"(?<![\d.}\)\w])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_MIXED_PLAIN = re.compile(r"(?<![\d.}\)\w])(\d+) (\d+)/(\d+)(?!\d)")
_FUNCTION_BEFORE = re.compile(
    r"\\(?:(?:arc)?(?:sin|cos|tan|sec|csc|cot|log|ln|exp)h?|sum|prod)\s*(?:[_^]\s*\{[^{}]*\}\s*)+$"
)
_SMALL_SUM = re.compile(r"\s*-?\s*\d{1,4}(?:\s*[+-]\s*\d{1,4}){0,4}\s*")
_TWO_NUMBERS = re.compile(r"\d\s+[\d.]")
_PRODUCT = re.compile(r"(?<=[\d)}!])\s*(?=\\frac|\\binom|\(|\\sqrt)")


_VALUES = (  # what `latex2sympy` takes for products and repeated factorials
    (re.compile(r"\\zeta\s*\(2\)"), r"(\\frac{\\pi^{2}}{6})"),
    (re.compile(r"\\zeta\s*\(4\)"), r"(\\frac{\\pi^{4}}{90})"),
    (re.compile(r"\(2([a-z])\)\s*!\s*!"), r"(2^{\1} \\cdot (\1)!)"),
    (re.compile(r"\(2([a-z])-1\)\s*!\s*!"), r"(\\frac{(2\1)!}{2^{\1} \\cdot (\1)!})"),
)


class NotReadableError(ValueError):
    """A text is no expression, or one that is too large to be read."""


def parse(text: str) -> Any:
    """Return the tree of a cleaned expression. It has no relation sign and no list.

    Raises:
        NotReadableError: if the text is not an expression.
    """
    tree = _parsed(text)
    if isinstance(tree, str):
        raise NotReadableError(tree)
    return tree


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """Return the tree, or the reason why the text has none. Reading takes milliseconds, so both are kept."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy

    if "\\int" in text:  # `latex2sympy` takes exponential time for several, and nothing evaluates them
        return "it has an integral"
    if len(text) > MAX_CHARACTERS or _depth(text) > MAX_DEPTH:
        return f"it has more than {MAX_CHARACTERS} characters, or more than {MAX_DEPTH} levels of brackets"
    try:
        written = explicit(text)
        if _has_large_binomial(written):
            return "it has a binomial coefficient of large numbers"
        tree = latex2sympy(
            written,
            convert_degrees=True,
            normalization_config=NormalizationConfig(basic_latex=True, boxed="none"),
            conversion_config=ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False),
        )
    except Exception as error:  # its parser raises Exception itself, and whatever sympy raises on odd texts
        return f"it is not an expression ({type(error).__name__})"
    return tree if isinstance(tree, sympy.Expr) else f"it is not an expression but a {type(tree).__name__}"


def _has_large_binomial(text: str) -> bool:
    r"""Return whether a `\binom` has a number that may be large: `latex2sympy` computes binomial coefficients."""
    for found in re.finditer(r"\\binom\s*(?=\{)", text):
        end = closing(text, found.end())
        for argument in (text[found.end() + 1 : end], text[end + 2 : closing(text, end + 1)]):
            is_symbolic = re.search(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", argument)
            if not is_symbolic and not _SMALL_SUM.fullmatch(argument):
                return True
    return False


def explicit(text: str) -> str:
    """Return an expression with all braces, products, fractions and names of functions written out.

    Raises:
        NotReadableError: if two numbers follow each other.
    """
    text = (
        re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text) if re.search(r"\\text\s*\{[a-zA-Z]\}", text) else text
    )
    text = re.sub(
        r"(?<![\\a-zA-Z])([A-Za-z])\(0\)", r"\1_{0}", text
    )  # a value at the start, no product with 0
    for pattern, value in _VALUES:
        text = pattern.sub(value, text)
    text = text.replace("**", "^")
    text = _PLAIN.sub(lambda found: "\\infty " if found[1] == "infinity" else f"\\{found[1]} ", text)
    text = re.sub(r"\\lg(?![a-zA-Z])", r"\\log_{10}", text)
    text = _E_NOTATION.sub(r"(\1*10^{\2})", text)
    text = _MIXED_PLAIN.sub(r"(\1+\\frac{\2}{\3})", text)
    text = _DOTS.sub(r"\1.\2\\overline{\3\4\5}", text)
    text = _IN_BRACKETS.sub(r"\1.\\overline{\2}", text)
    text = _ENDLESS.sub(_with_period, text)
    text = _REPEATING.sub(_repeating_as_fraction, text)
    text = with_braces(text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    if _TWO_NUMBERS.search(text):
        raise NotReadableError("two numbers follow each other")
    text = _PRODUCT.sub(_with_product, text)
    return _DECIMAL.sub(_as_fraction, text)


def _with_product(gap: re.Match[str]) -> str:
    r"""Write the sign of a product, unless what comes next is the argument of a function, as in `\sin^{2}(x)`."""
    return "" if _FUNCTION_BEFORE.search(gap.string, 0, gap.start()) else r" \cdot "


def _repeating_as_fraction(decimal: re.Match[str]) -> str:
    r"""Write `0.1\overline{6}` as a fraction: (16 − 1) / 90."""
    whole, fixed, repeated = decimal.groups()
    over = int(whole + fixed + repeated) - int(whole + fixed or "0")
    return rf"(\frac{{{over}}}{{{(10 ** len(repeated) - 1) * 10 ** len(fixed)}}})"


def _with_period(decimal: re.Match[str]) -> str:
    r"""Write `0.1666\ldots` with its period: a digit that comes three times, or several digits that come twice.

    Of several possible periods it is the one that most digits show: `0.0111 0111` has not the period 1.

    Raises:
        NotReadableError: if the digits do not show one.
    """
    whole, digits = decimal.groups()
    shown = {
        length: count
        for length in range(1, len(digits) // 2 + 1)
        if (count := _repeated_digits(digits, length)) >= max(3, 2 * length)
    }
    if not shown:
        raise NotReadableError("a decimal that goes further without a period")
    length = max(shown, key=lambda each: (shown[each], -each))
    return rf"{whole}.{digits[:-length]}\overline{{{digits[-length:]}}}"


def _repeated_digits(digits: str, length: int) -> int:
    """Return how many digits at the end repeat with a period of `length` digits."""
    repeated = length
    while repeated < len(digits) and digits[-repeated - 1] == digits[-repeated - 1 + length]:
        repeated += 1
    return repeated


def _as_fraction(decimal: re.Match[str]) -> str:
    whole, part = decimal.groups()
    return rf"(\frac{{{int(whole + part)}}}{{{10 ** len(part)}}})"


def with_braces(text: str) -> str:
    r"""Return LaTeX in which each argument of `\frac`, `\binom`, `\sqrt`, `^` and `_` has braces."""
    parts: list[str] = []
    position = 0
    while position < len(text):
        command = re.match(r"\\([a-zA-Z]+)", text[position:])
        if command and command[1] in _ARGUMENTS:
            position += command.end()
            parts.append(command.group())
            if command[1] == "sqrt" and (degree := re.match(r"\s*\[[^\[\]]*\]", text[position:])):
                parts.append(degree.group().strip())
                position += degree.end()
            for _ in range(_ARGUMENTS[command[1]]):
                argument, position = _argument(text, position, digits=1)
                parts.append(f"{{{with_braces(argument)}}}")
        elif text[position] in "^_":
            parts.append(text[position])
            argument, position = _argument(text, position + 1, digits=None)
            parts.append(f"{{{with_braces(argument)}}}")
        elif command:
            parts.append(command.group())
            position += command.end()
        else:
            parts.append(text[position])
            position += 1
    return "".join(parts)


def _argument(text: str, start: int, digits: int | None) -> tuple[str, int]:
    """Return the argument that begins at `start`, without its braces, and where it ends.

    Without braces it is a bracket, a command, a letter, or a number: of one digit, or of all (with `digits` None), as
    people write it who do not use LaTeX.
    """
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] in ("{", "("):
        end = closing(text, start)
        return (text[start + 1 : end], end + 1) if text[start] == "{" else (text[start : end + 1], end + 1)
    number = r"\d" if digits == 1 else r"-?\d+"
    found = re.match(rf"{number}|\\[a-zA-Z]+|[+-]?[a-zA-Z]", text[start:])
    if not found:
        raise NotReadableError("an argument is missing")
    return found.group(), start + found.end()


def closing(text: str, start: int) -> int:
    """Return the position of the bracket that closes the one at `start`.

    Raises:
        NotReadableError: if nothing closes it.
    """
    pairs = {"{": "}", "(": ")", "[": "]"}
    opened, closed = text[start], pairs[text[start]]
    depth, position = 0, start
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        depth += (text[position] == opened) - (text[position] == closed)
        if depth == 0:
            return position
        position += 1
    raise NotReadableError(f"{opened!r} is not closed")


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest + text.count("|") // 2
