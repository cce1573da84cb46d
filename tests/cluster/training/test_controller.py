"""What the loop does beside learning: it stops before anything is learned from a broken batch, and does not keep the
fleet waiting for an evaluation."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.core.types import Prompt, ScoredGroup
from cluster.metrics.batch import batch_metrics
from cluster.run_state.checkpoints import CheckpointStore
from cluster.training.controller import (
    MAX_MISSING_LOGPROBS_FRACTION,
    Controller,
    MissingLogprobsError,
    refuse_missing_logprobs,
)
from rollout.fleet.buffer import WorkBuffer
from tests.builders import make_group, make_response
from tests.cluster.training.test_resumption import ROWS, Fuse, HashingLearner, Ledger, configuration
from tests.synthetic import SyntheticFleet, synthetic_source


@pytest.mark.parametrize(("missing", "stops"), [(0, False), (1, False), (2, True), (100, True)])
def test_a_run_stops_where_log_probabilities_are_missing(missing: int, stops: bool) -> None:
    """Of 200 tokens, up to one in a hundred may be."""
    assert MAX_MISSING_LOGPROBS_FRACTION == 0.01
    logprobs = [math.nan] * 2 * missing + [-1.0] * (200 - 2 * missing)
    group = make_group([1.0], [make_response(200, logprobs)])
    metrics = batch_metrics([group], learner_version=3)
    if not stops:
        refuse_missing_logprobs(metrics, step=4)
        return
    with pytest.raises(
        MissingLogprobsError, match="in step 4 the sampler gave no log-probability"
    ) as refusal:
        refuse_missing_logprobs(metrics, step=4)
    assert f"{missing:.1f}% of the tokens" in str(refusal.value)


class Watched(SyntheticFleet):
    """Notes how many prompts of the next batch the workers could go on with when an evaluation begins."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))
        self.training: WorkBuffer | None = None
        self.waiting: list[int] = []

    def feed(self, buffer: WorkBuffer) -> None:
        self.training = buffer
        super().feed(buffer)

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        self.waiting.append(self.training.waiting_prompts if self.training else 0)
        return await super().sample(prompts)


def test_during_an_evaluation_the_workers_can_go_on_with_the_next_batch(tmp_path: Path) -> None:
    """On-policy too: under the weights that are evaluated. After the last step there is no next batch."""
    config = configuration()
    config = config.model_copy(
        update={"steps": 3, "evaluation": config.evaluation.model_copy(update={"every_steps": 1})}
    )
    fleet, source = Watched(), synthetic_source(config, ROWS)
    controller = Controller(
        config,
        source,
        [source.by_id("eval/0")],
        cast(Any, fleet),
        cast(Any, HashingLearner(Fuse(None))),
        CheckpointStore(tmp_path, 1),
        cast(Any, Ledger(Fuse(None))),
    )
    asyncio.run(controller.run())
    assert fleet.waiting == [4, 4, 4, 0]
