"""The check of a user's verifier before a run: it must start, and score an empty response."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import Verdict
from reward.service import make_scorer, score_in_order


def verifier_problem(
    task: TaskConfig, reward: RewardConfig, search_path: Sequence[str], problem: Any
) -> str | None:
    """Return one line that says why the verifier does not work, or None if it works.

    The verifier scores one empty response to `problem`. Models give empty responses, so a verifier that fails on one
    would fail in the run.
    """
    try:
        verdict = asyncio.run(_score_empty_response(task, reward, search_path, problem))
    except (RuntimeError, ValueError) as error:  # those that `start` and `make_scorer` document
        return str(error)
    if verdict.outcome in ("error", "limit"):
        return f"the verifier gave no verdict on an empty response: {verdict.reason}"
    return None


async def _score_empty_response(
    task: TaskConfig, reward: RewardConfig, search_path: Sequence[str], problem: Any
) -> Verdict:
    scorer = make_scorer(task, reward, search_path, check=True)
    try:
        await scorer.start()
        (verdict,) = await score_in_order(scorer, [(problem, "")])
        return verdict
    finally:
        await scorer.close()
