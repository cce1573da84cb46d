"""Sampled responses as one HTML page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.core.types import ScoredGroup
from cluster.tracking.pages import environment
from cluster.tracking.transcripts import MARKS, choose, record
from reward.task import CategoryOf


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
