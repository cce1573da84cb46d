"""How HTML is made here: pages that need nothing but a browser, from templates in which everything is escaped.

What a model wrote is not to be trusted. Jinja escapes every value, so no markup is left; the filter `visible` writes
out what cannot be seen, or turns a line around; and each page's Content-Security-Policy forbids scripts and everything
from elsewhere, should all that fail.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from cluster.core.text import visible_text
from cluster.core.types import CategoryOf, ScoredGroup
from cluster.tracking.transcripts import MARKS, choose, record

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


def transcript_page(
    title: str, groups: Sequence[ScoredGroup], category_of: CategoryOf, responses: int
) -> str:
    """The page: per prompt what was asked, how many of its responses are right, and up to three of them, unlike ones
    first. `responses` at most in all."""
    chosen = choose(groups, responses)
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    counted = (
        f"{sum(v.outcome == outcome for v in verdicts)} {outcome}"
        for outcome in MARKS
        if any(v.outcome == outcome for v in verdicts)
    )
    shown = sum(len(pairs) for _, pairs in chosen)
    return (
        environment()
        .get_template("transcript_page.html.j2")
        .render(
            title=title,
            counts=f"{', '.join(counted)}; {shown} of {len(verdicts)} responses to {len(groups)} prompts are shown",
            groups=[record(group, pairs, category_of(group.prompt.problem)) for group, pairs in chosen],
        )
    )


def _visible(value: object) -> str:
    return visible_text(f"{value:g}" if isinstance(value, float) else value, SHOWN_CHARACTERS)


def _beginning(text: str) -> str:
    """On one line."""
    line = " ".join(text.split())
    return line if len(line) <= BEGINNING else f"{line[:BEGINNING]}…"
