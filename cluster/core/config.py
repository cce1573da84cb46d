"""The configuration of a run, and what follows from several of its settings. Torch-free and Ray-free.

The sections, with all their settings, are in `cluster/core/config_sections.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cluster.core.config_sections import (
    ACTOR_ROLES,
    ActorRole,
    CheckpointConfig,
    ClusterConfig,
    EvaluationConfig,
    LearnerConfig,
    ModelConfig,
    ObjectiveConfig,
    OnNewWeights,
    RescueConfig,
    RewardConfig,
    RolloutConfig,
    ShapingConfig,
    TaskConfig,
    TrackingConfig,
)
from cluster.core.logprob_gap import gap_limits
from cluster.core.schema import Count, Section, Seed
from cluster.core.types import LogprobGap

__all__ = [
    "ACTOR_ROLES",
    "ActorRole",
    "CheckpointConfig",
    "ClusterConfig",
    "EvaluationConfig",
    "LearnerConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OnNewWeights",
    "RescueConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "ShapingConfig",
    "TaskConfig",
    "TrackingConfig",
]


class RunConfig(Section):
    """The configuration of one training run."""

    name: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """The name of the run directory and of the W&B run."""
    directory: Path = Path("runs")
    """The directory in which run directories are created."""
    seed: Seed = 0
    """The seed of the order of prompts, of the responses of evaluations and, with `rollout.max_staleness` 0, of those
    of training."""
    steps: Count = 100
    """The number of batches to train on."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rescue: RescueConfig = RescueConfig()
    learner: LearnerConfig = LearnerConfig()
    reward: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def run_directory(self) -> Path:
        """The absolute path of the run directory. Ray actors do not share the driver's working directory."""
        return (self.directory.expanduser() / self.name).absolute()

    @property
    def responses_per_step(self) -> int:
        """The number of responses that the prompts of one batch begin with. It is N in the papers, unless
        `rollout.adaptive_budget` adds to it."""
        return self.rollout.prompts_per_step * self.rollout.responses_per_prompt

    @property
    def max_responses_per_step(self) -> int:
        """The largest number of responses in one batch."""
        return self.rollout.adaptive_budget or self.responses_per_step

    @property
    def logprob_gap_limits(self) -> LogprobGap:
        """The limits of the gap between sampler and learner on the probe. Batches have that of the mean only, because
        the largest gap of a hundred thousand tokens grows with their number."""
        return gap_limits(self.learner.max_logprob_gap, self.model.dtype, self.rollout.gpus_per_worker > 0)

    @property
    def optimizer_steps_per_batch(self) -> int:
        """The number of optimizer steps on one batch."""
        return self.learner.mini_batches * self.learner.epochs_per_batch
