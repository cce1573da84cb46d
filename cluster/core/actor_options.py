"""The options of learner ranks and rollout workers, which cross from `cluster` into `learner` and `rollout`.

Torch-free and Ray-free: Ray pickles them on the driver, which loads neither torch nor vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.core.config import LearnerConfig, ObjectiveConfig, OnNewWeights
from cluster.core.weight_transport import WEIGHT_TRANSPORTS, WeightTransport


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """The facts from which a learner rank builds its DeepSpeed engine."""

    model: str
    dtype: str
    temperature: float
    seed: int
    learner: LearnerConfig
    objective: ObjectiveConfig
    probe_tokens: tuple[tuple[int, ...], ...]
    steps: int
    """The optimizer steps of the whole run, over which the learning rate is scheduled."""
    max_context_tokens: int | None = None
    """The longest prompt and response together; None if that is not known."""
    shares_gpu: bool = False
    """True if engines need this GPU's memory after a version was published."""
    transport: WeightTransport = WEIGHT_TRANSPORTS["pull"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The facts from which a rollout worker builds its vLLM engine."""

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
    """True if the engine will be asked to sleep."""
    transport: WeightTransport = WEIGHT_TRANSPORTS["pull"]
