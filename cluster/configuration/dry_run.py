"""`launch.py train --dry-run`: every actor, every call and every file of a run, with as little work as there can be."""

from __future__ import annotations

from cluster.core.config import RunConfig

MAX_RESPONSE_TOKENS = 16


def dry_run_of(config: RunConfig) -> RunConfig:
    """The same model, task, workers and ranks, in the same places, for one step over a few short responses. What is
    learned is worth nothing; it stays in a run directory of its own, and W&B hears nothing of it."""
    learner, rollout, objective = config.learner, config.rollout, config.objective
    return config.model_copy(
        update={
            "name": f"{config.name[:90]}.dry-run",
            "steps": 1,
            "rollout": rollout.model_copy(
                update={
                    "prompts_per_step": learner.mini_batches * learner.ranks,
                    "responses_per_prompt": 2,
                    "max_response_tokens": min(MAX_RESPONSE_TOKENS, rollout.max_response_tokens),
                    "dynamic_sampling_limit": None,  # of so few groups none may teach anything
                }
            ),
            "objective": objective.model_copy(update={"overlong_tokens": 0}),
            "learner": learner.model_copy(update={"warmup_steps": 0}),
            "evaluation": config.evaluation.model_copy(
                update={"every_steps": 1, "prompts": 1, "responses_per_prompt": 1}
            ),
            "checkpoint": config.checkpoint.model_copy(update={"every_steps": 1, "keep": 1}),
            "tracking": config.tracking.model_copy(update={"wandb": "disabled", "transcripts_per_step": 1}),
        }
    )
