"""Shorten a run for `launch.py train --dry-run`, which tries every actor, every call and every file of the run."""

from __future__ import annotations

from cluster.core.config import RunConfig

MAX_RESPONSE_TOKENS = 16
RESPONSES = 2
"""The number of responses per prompt."""


def dry_run_of(config: RunConfig) -> RunConfig:
    """Return a run of one step with a few short responses, and with the model, task, actors and resources of `config`.

    It has a run directory of its own and does not use W&B. The trained model has no value.
    """
    learner, rollout, objective = config.learner, config.rollout, config.objective
    prompts = learner.mini_batches * learner.ranks
    return config.model_copy(
        update={
            "name": f"{config.name[:90]}.dry-run",
            "steps": 1,
            "rollout": rollout.model_copy(
                update={
                    "prompts_per_step": prompts,
                    "responses_per_prompt": RESPONSES,
                    # One extension, if there are extensions.
                    "adaptive_budget": rollout.adaptive_budget and (prompts + 1) * RESPONSES,
                    "max_response_tokens": min(MAX_RESPONSE_TOKENS, rollout.max_response_tokens),
                    "dynamic_sampling_limit": None,  # so few groups may all have zero reward variance
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
