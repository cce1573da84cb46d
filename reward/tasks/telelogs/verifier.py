r"""Decides whether a response names the right label. The answer is the last complete `\boxed{…}`.

Around the label these are tolerated: doubled braces, spaces, `$`, a full stop, \text{…} and its relatives, and lower
case. So is the bare number where the labels are C1 … C8, because the published questions ask for the cause's number.
Exactly one label must be left. Anything else is wrong: two labels, a label with words, digits of other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reward.tasks.telelogs.causes import LABELS

MAX_ANSWER_CHARACTERS = 64

_OPEN = "\\boxed{"
_STYLES = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|bf|rm)(?![a-zA-Z])")
_WRAPPING = " \t\r\n$.{}"
_LABEL = re.compile(r"[A-Z]?[0-9]")


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on a response. `answer` is the label as printed in the question where it is one, else the text in the
    box; None without a box."""

    correct: bool
    answer: str | None
    reason: str


def verify(response: str, labels: Sequence[str], right: str) -> Verification:
    """Whether the last box of `response` holds `right`, one of `labels`. Never raises on any text."""
    boxed = extract_boxed(response)
    if boxed is None:
        return Verification(False, None, "no \\boxed{…}")
    if len(boxed) > MAX_ANSWER_CHARACTERS:
        return Verification(False, None, f"a box of more than {MAX_ANSWER_CHARACTERS} characters")
    label = _label_in(boxed, labels)
    if label is None:
        return Verification(False, boxed.strip(), f"not exactly one of the labels {', '.join(labels)}")
    return Verification(label == right, label, "correct" if label == right else f"{label} is not the cause")


def extract_boxed(response: str) -> str | None:
    r"""The text in the last `\boxed{…}` whose braces are closed, or None. One that is left open does not count."""
    end = len(response)
    # Each search ends before the one found earlier, and no character is looked at twice.
    while (start := response.rfind(_OPEN, 0, end)) >= 0:
        closing = _closing_brace(response, start + len(_OPEN), end)
        if closing is not None:
            return response[start + len(_OPEN) : closing]
        end = start
    return None


def _closing_brace(text: str, start: int, end: int) -> int | None:
    """Where the brace that is open at `start` is closed, looking no further than `end`."""
    depth = 1
    for i in range(start, end):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i
    return None


def _label_in(boxed: str, labels: Sequence[str]) -> str | None:
    """The one label that `boxed` is, in the question's own spelling."""
    text = _STYLES.sub("", boxed).strip(_WRAPPING)
    if not text.isascii():  # upper() would turn some letters of other scripts into ours
        return None
    text = text.upper()
    if text.isdigit() and set(labels) <= set(LABELS):
        text = f"C{text}"
    return text if _LABEL.fullmatch(text) and text in labels else None
