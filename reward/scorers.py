"""What scores the responses of a configured task: a sandbox, the task's own service, or both. Pure of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import Verdict
from reward.registry import build_task
from reward.sandbox.pool import Sandbox
from reward.sandbox.recipe import Limits, Recipe
from reward.shaping import ShapedScorer
from reward.task import RemoteTask, Scorer


def make_scorer(
    task: TaskConfig, reward: RewardConfig, search_path: Sequence[str], trial: bool = False
) -> Scorer:
    """The scorer, not started yet.

    Args:
        task: whose responses are scored.
        reward: limits of the verifier, and how many processes it has.
        search_path: where users' modules are looked for, besides `sys.path`.
        trial: it will be asked a single question, before the run.

    Raises:
        ValueError: the task's options do not say where its verdicts come from.
    """
    built = build_task(task.name, task.options)
    limits = Limits(timeout_s=reward.verifier_timeout_s, memory_mib=reward.verifier_memory_mib)

    def sandbox(judge: str, *arguments: Any) -> Sandbox:
        recipe = Recipe(judge, arguments, tuple(search_path))
        return Sandbox(recipe, limits, 1 if trial else reward.processes_per_worker)

    if not isinstance(built, RemoteTask):
        return sandbox("reward.runners:task_runner", task.name, task.options, reward.shaping)
    remote = built.scorer(trial)
    if not reward.shaping:
        return remote
    return ShapedScorer(remote, sandbox("reward.shaping:shaping_runner", reward.shaping))


async def score_in_order(scorer: Scorer, asked: Sequence[tuple[Any, str]]) -> list[Verdict]:
    """One verdict per problem and response, in their order, when all of them are there."""
    verdicts: dict[int, Verdict] = {}
    async for placed in scorer.score(asked):
        verdicts.update(placed)
    return [verdicts[place] for place in range(len(asked))]
