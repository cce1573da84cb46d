"""HTML pages that need nothing but a browser, made from templates that escape every value.

The text of a model is untrusted. Jinja escapes every value, so that no markup is left. The filter `visible` writes out
invisible characters and those that change the direction of text. Should both fail, each page's Content-Security-Policy
forbids scripts and external resources.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from cluster.core.text import visible_text
from cluster.core.types import CategoryOf, ScoredGroup
from cluster.tracking.transcripts import MARKS, choose, record

SHOWN_CHARACTERS = 20_000
"""The number of characters of one text that are shown; longer texts are cut, with a note."""
BEGINNING = 100
"""The number of characters of a text in a one-line summary."""


def environment(*packages: str) -> Environment:
    """Return a Jinja environment with the templates of `packages` and of this package."""
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
    """Return the page: for each prompt its text, the number of correct responses, and up to three responses with
    different outcomes first. It shows at most `responses` responses."""
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
    """Return the beginning of `text` on one line."""
    line = " ".join(text.split())
    return line if len(line) <= BEGINNING else f"{line[:BEGINNING]}…"
