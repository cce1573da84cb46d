"""The order in which the actors of a training run start. Fakes stand in for them; no GPU and no Ray is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.training.actors import ActorGraph
from learner.engine.group import LearnerStartError

SHARED = {
    "rollout": {"gpus_per_worker": 0.5, "sleep_while_learning": True},
    "learner": {"gpus_per_rank": 0.5},
}
FRACTIONS = {
    "rollout": {"gpus_per_worker": 0.4, "gpu_memory_utilization": 0.4},
    "learner": {"gpus_per_rank": 0.6, "ranks": 2},
}
SEPARATE = {"rollout": {"gpus_per_worker": 1}, "learner": {"gpus_per_rank": 1}}
ON_CPUS: dict[str, Any] = {}


@dataclass
class FakeLearner:
    events: list[str]
    fails: bool = False

    async def start(self) -> None:
        self.events.append("learner starts")
        await asyncio.sleep(0)
        if self.fails:
            raise LearnerStartError("a GPU is missing")
        self.events.append("learner is up")


@dataclass(frozen=True)
class FakeGraph(ActorGraph):
    events: list[str] = field(default_factory=list)
    fails: bool = False

    @asynccontextmanager
    async def learner(self, probe_tokens: Any) -> AsyncIterator[Any]:
        self.events.append("learner is placed")
        yield FakeLearner(self.events, self.fails)
        self.events.append("learner ends")

    @asynccontextmanager
    async def rewards(self) -> AsyncIterator[Any]:
        yield object()

    @asynccontextmanager
    async def fleet(self, scorer: Any, on_event: Any, learner: Any = None) -> AsyncIterator[Any]:
        assert isinstance(learner, FakeLearner)
        self.events.append("engines start")
        yield object()
        self.events.append("engines end")


def graph(sections: dict[str, Any], *, fails: bool = False) -> FakeGraph:
    config = RunConfig.model_validate(sections)
    return FakeGraph(config, RunDirectory(Path("unused")), Path("unused"), fails=fails)


async def started(graph: FakeGraph) -> list[str]:
    async with graph.training(((1, 2),), print):
        graph.events.append("training")
    return graph.events


@pytest.mark.parametrize("sections", [SHARED, FRACTIONS])
async def test_the_learner_is_up_before_an_engine_measures_the_memory_of_their_gpu(
    sections: dict[str, Any],
) -> None:
    events = await started(graph(sections))
    assert events.index("learner is up") < events.index("engines start") < events.index("training")


@pytest.mark.parametrize("sections", [SEPARATE, ON_CPUS])
async def test_otherwise_both_start_at_the_same_time(sections: dict[str, Any]) -> None:
    events = await started(graph(sections))
    assert events.index("engines start") < events.index("learner is up") < events.index("training")


@pytest.mark.parametrize("sections", [SHARED, FRACTIONS, SEPARATE, ON_CPUS])
async def test_the_learner_is_placed_first_and_ends_last(sections: dict[str, Any]) -> None:
    """Engines fill the rest of the GPUs that have a rank, and never take the place of one."""
    events = await started(graph(sections))
    assert events[0] == "learner is placed"
    assert events[-2:] == ["engines end", "learner ends"]


async def test_no_engine_starts_beside_a_learner_that_fails() -> None:
    failing = graph(SHARED, fails=True)
    with pytest.raises(LearnerStartError):
        await started(failing)
    assert "engines start" not in failing.events
