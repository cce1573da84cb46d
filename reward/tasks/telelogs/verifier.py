r"""The verifier of TeleLogs responses. The answer is the label in the last complete `\boxed{…}`.

The following is tolerated around the label: doubled braces, parentheses, spaces, `$`, a full stop, \text{…}, \textit{…}
and similar commands, a lowered digit (`C_3`), and lower case. The bare number is accepted if the labels are C1 … C8,
because the published prompts ask for the number of the cause. Exactly one label must remain. Everything else is
incorrect: two labels, a label with words, digits of other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reward.tasks.telelogs.causes import LABELS

MAX_ANSWER_CHARACTERS = 64

_OPEN = "\\boxed{"
_STYLES = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|emph|bf|it|rm)(?![a-zA-Z])")
_WRAPPING = " \t\r\n$.{}()"
_LOWERED = re.compile(r"_\{?(?=[0-9]$)")
_LABEL = re.compile(r"[A-Z]?[0-9]")


@dataclass(frozen=True, slots=True)
class Verification:
    """The result for a response.

    `answer` is the label as printed in the prompt, or the text in the box if it is not a label, or None without a box.
    """

    correct: bool
    answer: str | None
    reason: str


def verify(response: str, labels: Sequence[str], expected: str) -> Verification:
    """Check if the last box of `response` contains `expected`, one of `labels`. Never raises on any text."""
    boxed = extract_boxed(response)
    if boxed is None:
        return Verification(False, None, "no \\boxed{…}")
    if len(boxed) > MAX_ANSWER_CHARACTERS:
        return Verification(False, None, f"a box of more than {MAX_ANSWER_CHARACTERS} characters")
    label = _label_in(boxed, labels)
    if label is None:
        return Verification(False, boxed.strip(), f"not exactly one of the labels {', '.join(labels)}")
    return Verification(
        label == expected, label, "correct" if label == expected else f"{label} is not the cause"
    )


def extract_boxed(response: str) -> str | None:
    r"""Return the text in the last complete `\boxed{…}`, or None. A box whose braces are not closed does not count."""
    end = len(response)
    # Each search ends before the previous match, so no character is read twice.
    while (start := response.rfind(_OPEN, 0, end)) >= 0:
        closing = _closing_brace(response, start + len(_OPEN), end)
        if closing is not None:
            return response[start + len(_OPEN) : closing]
        end = start
    return None


def _closing_brace(text: str, start: int, end: int) -> int | None:
    """Return the position before `end` of the brace that closes the one open at `start`, or None."""
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
    """Return the one label that `boxed` contains, in the spelling of the prompt, or None."""
    text = _LOWERED.sub("", _STYLES.sub("", boxed).strip(_WRAPPING))
    if not text.isascii():  # upper() would turn some letters of other scripts into ASCII
        return None
    text = text.upper()
    if text.isdigit() and set(labels) <= set(LABELS):
        text = f"C{text}"
    return text if _LABEL.fullmatch(text) and text in labels else None
