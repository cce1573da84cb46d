"""Text of others, made safe to print: what a model wrote, and what a job has logged. Torch-free, Ray-free.

That it is no markup is another matter, and that of who makes HTML.
"""

from __future__ import annotations

import re
import unicodedata

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system commands: window titles, links, the clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device control strings and their like
    r"|\x1b\[[0-?]*[ -/]*[@-~]?"  # colours, cursor movements
    r"|\x1b[ -/]*[0-~]?"  # the rest
    r"|\x9b[0-?]*[ -/]*[@-~]?"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and line feed; and the marks that turn the direction of writing around."""


def plain_text(text: str) -> str:
    """`text` without terminal escapes and control characters; lines and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def visible_text(text: object, limit: int | None = None) -> str:
    r"""Control and format characters, and halves of surrogate pairs, as `\u001b`; new lines and tabs stay. More than
    `limit` characters are cut, and that is said."""
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = f"{shown[:limit]}\n[… {len(shown) - limit} more characters]"
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else f"\\u{ord(character):04x}"
        for character in shown
    )
