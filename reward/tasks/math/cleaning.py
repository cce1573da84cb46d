r"""Write an answer in one way: ASCII, without layout, with one LaTeX command for each meaning.

The result is still LaTeX. `**72**.`, `$72$` and `72` become the same text, and so do `x ≤ ½` and `x\leqslant\dfrac12`,
up to the braces. Nothing here changes a value.
"""

from __future__ import annotations

import re
import unicodedata

from reward.tasks.math.remarks import without_remarks

_SIGNS = {
    **dict.fromkeys("−–—‐‑‒―﹣", "-"),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("°º", r"^\circ "),
    **dict.fromkeys("…⋯", r"\ldots "),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”″", '"'),
    **dict.fromkeys("≤⩽", r"\le "),
    **dict.fromkeys("≥⩾", r"\ge "),
    **dict.fromkeys("∶：", ":"),
    "×": r"\times ",
    "∗": "*",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "→": r"\to ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
}
_SYNONYMS = (
    (r"[dtc]frac", r"\frac"),
    (r"leqslant|leqq?", r"\le"),
    (r"geqslant|geqq?", r"\ge"),
    (r"neq", r"\ne"),
    (r"c?dots[cbo]?|vdots", r"\ldots"),
    (
        r"text(?:bf|it|rm|sf|tt|normal|up)|math(?:rm|bf|it|sf|tt)|[mh]box|operatorname|emph",
        r"\text",
    ),
    (r"(?:long)?rightarrow", r"\to"),
    (r"cr", r"\\"),
    (r"degree|textdegree", r"^\circ "),
    (r"[dt]binom", r"\binom"),
    (r"bmod", r"\mod"),
    (r"varnothing", r"\emptyset"),
    (r"varepsilon", r"\epsilon"),
    (r"varphi", r"\phi"),
    (r"vartheta", r"\theta"),
    (r"lt", "<"),
    (r"gt", ">"),
    (r"div|slash", "/"),
    (r"ast", "*"),
    (r"colon", ":"),
    (r"[lr]?vert|mid", "|"),
    (r"lbrack", "["),
    (r"rbrack", "]"),
    (r"lbrace", r"\{"),
    (r"rbrace", r"\}"),
    (r"textdollar", r"\$"),
    (r"q?quad|enspace|(?:thin|med|thick|nobreak)?space|hfill|newline|[,;:> /]", " "),
    (r"[()\[\]]", " $ "),
    (
        r"boldsymbol|bm|underline|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge|left|right|middle|[bB]igg?[lr]?"
        r"|(?:display|text|script)style|(?:no)?limits|(?:math)?strut|rm|bf|it|math(?:op|bin|rel)|nonumber|notag|centering|!|",
        "",
    ),
)
"""Commands (a pattern without the backslash), and what is written in their place."""
_SYNONYM = re.compile("|".join(f"({pattern})" for pattern, _ in _SYNONYMS))
_COMMAND = re.compile(r"\\([a-zA-Z]+\*?|.|$)", re.DOTALL)
_EDGE = r"[\s*_`]"
_DECORATION = re.compile(rf"^{_EDGE}+|{_EDGE}+$")
_INTRODUCTION = re.compile(
    r"^(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|option|choice)\s*"
    r"(?:is|:|=)\s*(?:option\s+)?"
    r"|^(?:=|:|\\approx(?![a-zA-Z])|(?:about|approximately|exactly|roughly)\b)\s*",
    re.IGNORECASE,
)
_COMMA_GROUPS = re.compile(r"(?<![\d.,\w])\d{1,3}(?:,\d{3})+(?![\d,])")
_BLANK_GROUPS = re.compile(r"(?<![\d.,\w] )(?<![\d.,\w])\d{1,3}(?:[ ]\d{3})+(?![\d,]|[ ]\d)")
_NUMBER_AS_TEXT = re.compile(r"\\text\s*\{\s*((?:\\\$)?[^{}a-zA-Z]*[\d$€£¥₹][^{}a-zA-Z]*)\s*\}")
_TEXT_WITH_NUMBER = re.compile(r"^\\text\s*\{\s*(-?[\d$][^{}]*)\}$")
_FUNCTION = "(?:arc)?(?:sin|cos|tan)h?|sec|csc|cot|log|ln|exp|gcd"
_LINES = re.compile(
    r"\\begin\s*\{(aligned|align\*?|gathered|split|equation\*?|cases)\}(.*?)\\end\s*\{\1\}", re.DOTALL
)
_RIGHT_SIDE = re.compile(r"\s*(?:[-+][^=]*=|[=<>]|\\(?:l|g)eq?(?:slant|q)?(?![a-zA-Z]))")
_CASE_IN_WORDS = re.compile(
    r"\\(?:text|textrm|mathrm|mbox)\s*\{\s*,?\s*(?:if|for|when|where|otherwise|else)\b"
)
_DOTTED_DIGITS = (  # the dots and lines of repeating decimals, as characters that join with the digit before
    (re.compile(r"(\d)\u0307"), r"\\dot{\1}"),
    (re.compile(r"((?:\d[\u0304\u0305])+)"), lambda found: rf"\overline{{{re.sub('[^0-9]', '', found[1])}}}"),
)
_SENTENCE = re.compile(
    r"^(?:\\text\s*\{\s*)?(?:the|it|there)\b[^{}=\d$\\]*?\b(?:is|are|was|were|equals?)\s*(?=[-$\d\\}({])",
    re.IGNORECASE,
)
_TEXT_BEFORE_NUMBER = re.compile(
    r"^\\text\s*\{(?!\s*\(?[A-H]\)?\s*:)[^{}\d$]*:\s*\}\s*(?=[-+]?(?:\\\$|\d|\\frac|\\sqrt))"
)
_IN_TOTAL = re.compile(r",?\s+(?:altogether|in total|in all|overall)$")
_AFTER_PERCENT = re.compile(r"(?<=%)\s+(?:of|off)\b[^{}]*")
_LARGE = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?\b(thousand|million|billion|trillion)\b")
_ZEROS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_EMPTY_TEXT = re.compile(r"\\text\s*\{\s*\}")
_ALNUM_GAP = re.compile(r"(?<=[^\W_])\s+(?=[^\W_])")


def clean(answer: str) -> str:
    """Return an answer without its typography. The result of a second call is the same."""
    text = without_remarks(_without_layout(_in_ascii(answer)))
    previous = None
    while text != previous:
        previous = text
        text = _DECORATION.sub("", text)
        text = _without_dollars(_without_sentence(text))
        text = _INTRODUCTION.sub("", text)
        text = _without_full_stop(without_group(text.strip()))
        text = _IN_TOTAL.sub("", _AFTER_PERCENT.sub("", text))
        text = _TEXT_WITH_NUMBER.sub(r"\1", _NUMBER_AS_TEXT.sub(r"\1", text))
        text = _TEXT_BEFORE_NUMBER.sub("", text)
        text = _EMPTY_TEXT.sub("", _LARGE.sub(_with_zeros, text))
    text = re.sub(r"\s+", " ", text)
    text = _BLANK_GROUPS.sub(lambda found: found.group().replace(" ", ""), text)
    if not re.search(r"[(\[]|\\\{", text):  # in brackets a comma separates
        text = _COMMA_GROUPS.sub(lambda found: found.group().replace(",", ""), text)
    return text


def _in_one_line(lines: re.Match[str]) -> str:
    """Write an environment of several lines as one: a chain of equations, or a list. Functions by cases stay."""
    if lines[1] == "cases" and _has_conditions(lines[2]):
        return lines.group()
    separator = ", " if lines[1] == "cases" else " "
    return separator.join(line.replace("&", " ").strip() for line in re.split(r"\\\\|\\cr\b", lines[2]))


def _has_conditions(content: str) -> bool:
    """Return whether the content of a `cases` environment gives a function by cases, and no system of equations."""
    rows = [row.strip() for row in re.split(r"\\\\", content) if row.strip(" ,;")]
    columns = [row.partition("&") for row in rows]
    by_columns = all(
        mark and "=" not in value and not _RIGHT_SIDE.match(rest) for value, mark, rest in columns
    )
    return len(rows) > 1 and (by_columns or all(map(_CASE_IN_WORDS.search, rows)))


def _without_sentence(text: str) -> str:
    """Remove the beginning of a sentence that ends in the answer, as in `The profit is $35`."""
    found = _SENTENCE.match(text)
    if not found:
        return text
    rest = text[found.end() :].strip()
    if found.group().startswith("\\text"):
        rest = rest[1:] if rest.startswith("}") else rest.removesuffix("}")
    return rest.strip()


def _with_zeros(word: re.Match[str]) -> str:
    r"""Write `1.2 million` as a product. In `\text{ million dollars}` the rest of the text stays."""
    rest = r"\text{" if "{" in word.group() else ""
    return rf" \cdot 10^{{{_ZEROS[word[1]]}}} {rest}"


def without_blanks(text: str) -> str:
    """Return cleaned text without the blanks that mean nothing. Those between two letters or digits stay."""
    kept = _ALNUM_GAP.sub("\0", text)
    return re.sub(r"\s+", "", kept).replace("\0", " ")


def _in_ascii(text: str) -> str:
    """Replace signs by LaTeX, letters of other alphabets by ASCII where they are the same, and blanks by blanks."""
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    for pattern, written in _DOTTED_DIGITS:
        text = pattern.sub(written, text)
    parts: list[str] = []
    script = ""
    for character in text:
        kind, _, decomposed = unicodedata.decomposition(character).partition(" ")
        level = {"<super>": "^", "<sub>": "_"}.get(kind, "") if character not in _SIGNS else ""
        if script and level != script:
            parts.append("}")
        if level and level != script:
            parts.append(level + "{")
        script = level
        if level:
            parts.append("".join(_SIGNS.get(c, c) for c in unicodedata.normalize("NFKC", character)))
        elif kind == "<fraction>":
            top, bottom = "".join(chr(int(code, 16)) for code in decomposed.split()).split("\u2044")
            parts.append(rf" \frac{{{top}}}{{{bottom}}}" if top and bottom else character)
        else:
            parts.append(_one(character))
    return "".join(parts) + ("}" if script else "")


def _one(character: str) -> str:
    """Return a character that is neither raised nor lowered in ASCII, as far as it has a form in it."""
    if character in _SIGNS:
        return _SIGNS[character]
    if character.isascii():
        return " " if character.isspace() else "" if unicodedata.category(character) == "Cc" else character
    category = unicodedata.category(character)
    if category in ("Cf", "Mn", "Cc"):  # invisible characters and joiners
        return ""
    if category.startswith("Z"):
        return " "
    words = unicodedata.name(character, "").split()
    if words[:1] == ["GREEK"] and words[1] in ("SMALL", "CAPITAL") and len(words) == 4:
        name = words[3].lower().replace("lamda", "lambda")
        return f"\\{name if words[1] == 'SMALL' else name.capitalize()} "
    compatible = unicodedata.normalize("NFKC", character)
    return "".join(_one(c) for c in compatible) if compatible != character else character


def _without_layout(text: str) -> str:
    r"""Remove the commands that change nothing but the look, and give synonymous commands one name."""

    def replaced(found: re.Match[str]) -> str:
        name = found[1].rstrip("*") or found[1]
        synonym = _SYNONYM.fullmatch(name)
        return _SYNONYMS[synonym.lastindex - 1][1] if synonym and synonym.lastindex else f"\\{name}"

    text = re.sub(r"\\(?:text)?color\s*\{[^{}]*\}", "", text)
    text = re.sub(r"\\overset\s*\{[^{}]*\}\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{\\?([^{}]*)\}", r"\1\\text{ \2}", text)
    text = _LINES.sub(_in_one_line, text)
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"\\(?:hspace|vspace|tag|label|phantom)\*?\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(left|right)\s*\.", "", text)
    text = _COMMAND.sub(replaced, text).replace("~", " ")
    text = re.sub(r"\{\s*([,:.])\s*\}", r"\1", text)
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])", r"^\\circ ", text)
    text = re.sub(r"\.{3,}", r"\\ldots ", text)
    text = re.sub(r"\\text\s*(?:\{\s*([:,;]?)\s*\}|(?=[:,]))", r"\1", text)
    text = re.sub(r"\\math(?:cal|scr)\s*\{\s*([A-Za-z])\s*\}", r"\1", text)
    if "mod" not in text:
        text = re.sub(r"\\(?:equiv|sim)(?![a-zA-Z])", "=", text)
    text = re.sub(rf"\\text\s*\{{\s*({_FUNCTION})\s*\}}", r"\\\1 ", text)
    text = re.sub(r"\\text\s*\{\s*(USD|EUR|GBP|Rs\.?)\s*\}", r"\1 ", text)
    return re.sub(r"\s+", " ", text).strip()


def _without_dollars(text: str) -> str:
    r"""Remove the dollar signs that enclose mathematics. One that stands for money becomes `\$`."""
    bare = re.findall(r"(?<!\\)\$", text)
    if len(bare) == 1 and re.match(r"-?\s*\$\s*[\d.]", text):
        return text.replace("$", r"\$", 1)
    return re.sub(r"(?<!\\)\$", " ", text).strip() if bare else text


def without_group(text: str) -> str:
    """Remove braces around the whole text."""
    while text.startswith("{") and text.endswith("}") and not text.endswith(r"\}"):
        depth = 0
        for position, character in enumerate(text):
            depth += (character == "{") - (character == "}")
            if depth == 0 and position < len(text) - 1:
                return text
        text = text[1:-1].strip()
    return text


def _without_full_stop(text: str) -> str:
    r"""Remove punctuation at the end, unless it is a part of the answer, as in `\ldots`, `5!` and `\{1\}`."""
    return re.sub(r"(?<!\\)[.,;:]+$", "", text).rstrip()
