"""How HTML is made here: pages that need nothing but a browser, from templates in which everything is escaped.

What a model wrote is not to be trusted. Jinja escapes every value, so no markup is left; the filter `visible` writes
out what cannot be seen, or turns a line around; and each page's Content-Security-Policy forbids scripts and everything
from elsewhere, should all that fail.
"""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from cluster.core.text import visible_text
from cluster.tracking.transcripts import MARKS

SHOWN_CHARACTERS = 20_000
"""Of one text: what is longer is cut, and says so."""
BEGINNING = 100


def environment(*packages: str) -> Environment:
    """Templates of `packages`, and those here."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "cluster.tracking")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"visible": _visible, "beginning": _beginning}
    made.globals["marks"] = MARKS
    return made


def _visible(value: object) -> str:
    return visible_text(f"{value:g}" if isinstance(value, float) else value, SHOWN_CHARACTERS)


def _beginning(text: str) -> str:
    """On one line."""
    line = " ".join(text.split())
    return line if len(line) <= BEGINNING else f"{line[:BEGINNING]}…"
