"""Text from outside (a model's words, a verifier's reason, a remote error) as a person may see it. Pure.

Escape sequences would drive the terminal, and invisible characters turn lines around; so what cannot be seen is written
out by its number. That it is no markup is another matter, and that of who makes HTML.
"""

from __future__ import annotations

import unicodedata


def visible(text: object, limit: int | None = None) -> str:
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
