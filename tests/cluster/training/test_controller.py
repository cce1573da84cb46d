"""The fleet's work during an evaluation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cluster.core.types import Prompt, ScoredGroup
from cluster.run_state.checkpoints import CheckpointStore
from cluster.training.controller import Controller
from rollout.fleet.buffer import WorkBuffer
from tests.cluster.training.test_resumption import ROWS, Fuse, HashingLearner, Ledger, configuration
from tests.synthetic import SyntheticFleet, synthetic_source


class Watched(SyntheticFleet):
    """Records the number of training prompts that wait for workers when an evaluation begins."""

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


def test_workers_can_start_on_the_next_batch_during_an_evaluation(tmp_path: Path) -> None:
    """This holds in on-policy runs too, because the evaluated weights are the next batch's. After the last step there
    is no next batch."""
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
