"""Finds the answer in a text of mathematics. Text only: nothing is computed."""

from __future__ import annotations

_BOX = "\\boxed{"
_MARK = "####"


def last_answer(text: str) -> str | None:
    r"""What the last `\boxed{…}` holds, or, without one, what follows the last `####` on its line. None if there is
    neither, or if the box is left open."""
    if (start := text.rfind(_BOX)) >= 0:
        return _closed(text, start + len(_BOX))
    _, mark, tail = text.rpartition(_MARK)
    return tail.strip().partition("\n")[0].strip() if mark else None


def reference_answer(text: str) -> str:
    """The same for a reference, of which the mark `####` is surer than a box, and which may be nothing but the
    answer."""
    _, mark, tail = text.rpartition(_MARK)
    if mark:
        return tail.strip()
    answer = last_answer(text)
    return text.strip() if answer is None else answer


def _closed(text: str, start: int) -> str | None:
    """From `start` to the brace that closes the one before it."""
    depth = 1
    for position in range(start, len(text)):
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start:position].strip()
    return None
