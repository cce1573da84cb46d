"""A real learner with one rank for tests of weight publication. Its steps change the weights noticeably."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.core.actor import Actor
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import TrainingBatch, TrainingSample
from cluster.core.weight_transport import WEIGHT_TRANSPORTS
from learner.engine.group import LearnerGroup
from learner.engine.rank import LearnerRank
from tests.integration.engines import actor, random_tokens


@asynccontextmanager
async def publishing_learner(
    model: Path, dtype: str = "float32", *, transport: str = "pull", **settings: Any
) -> AsyncIterator[LearnerGroup]:
    """Yield a learner that is not started. By default one Adam step changes most weights by about their own size."""
    probes = (random_tokens(1), random_tokens(2))
    config = LearnerConfig.model_validate({"learning_rate": 0.1} | settings)
    options = LearnerOptions(
        str(model),
        dtype,
        1.0,
        0,
        config,
        ObjectiveConfig(),
        probes,
        1,
        transport=WEIGHT_TRANSPORTS[transport],
    )
    rank: Actor[LearnerRank] = Actor(actor(LearnerRank).remote(0, options))
    try:
        yield LearnerGroup([rank], options)
    finally:
        ray.kill(rank.handle)


def batch() -> TrainingBatch:
    return TrainingBatch(
        samples=tuple(
            TrainingSample(
                prompt_token_ids=np.array(random_tokens(seed)[:20]),
                response_token_ids=np.array(random_tokens(seed)[20:40]),
                sampler_logprobs=np.full(20, -3.0, dtype=np.float32),
                advantage=1.0,
                scale=1 / 80,
            )
            for seed in range(4)
        )
    )
