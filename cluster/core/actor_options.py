"""The options that the actors of the rooms are started with. They cross from `cluster` into `learner` and `rollout`.

Torch-free and Ray-free: Ray pickles them on the driver, which loads neither torch nor vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.core.config import LearnerConfig, ObjectiveConfig, OnNewWeights


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """What a rank needs to build its engine."""

    model: str
    dtype: str
    temperature: float
    seed: int
    learner: LearnerConfig
    objective: ObjectiveConfig
    probe_tokens: tuple[tuple[int, ...], ...]
    steps: int
    """Optimizer steps of the whole run, over which the learning rate is scheduled."""
    max_context_tokens: int | None = None
    """Longest prompt and response together; None if that is not known."""
    shares_gpu: bool = False
    """Whether others need the GPU's memory when something was published."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a rollout worker needs to build its engine."""

    run_id: str
    model: str
    dtype: str
    max_context_tokens: int
    max_sequences: int
    tensor_parallel_size: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    on_gpu: bool
    on_new_weights: OnNewWeights = "continue"
    response_timeout_s: float | None = None
    sleeps: bool = False
    """Whether it will be asked to sleep."""
