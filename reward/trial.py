"""Tries a user's verifier before the run: can it be started, and does it take an empty response?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import Verdict
from reward.sandbox.pool import SandboxError
from reward.scorers import make_scorer, score_in_order


def try_verifier(
    task: TaskConfig, reward: RewardConfig, search_path: Sequence[str], problem: Any
) -> str | None:
    """What is wrong with the verifier, in one line, or None. It is asked once, for its verdict on no text at all:
    models give such responses, and whoever fails on them fails in the run."""
    try:
        verdict = asyncio.run(_verdict_on_nothing(task, reward, search_path, problem))
    except (SandboxError, ValueError) as error:
        return str(error)
    if verdict.outcome in ("error", "timeout"):
        return f"on an empty response it gave no verdict: {verdict.reason}"
    return None


async def _verdict_on_nothing(
    task: TaskConfig, reward: RewardConfig, search_path: Sequence[str], problem: Any
) -> Verdict:
    scorer = make_scorer(task, reward, search_path, trial=True)
    try:
        await scorer.start()
        (verdict,) = await score_in_order(scorer, [(problem, "")])
        return verdict
    finally:
        await scorer.close()
