"""A worker's heartbeat is that its engine moves, not that its process answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.core.actor_options import EngineOptions
from rollout.engine import worker as worker_module
from rollout.engine.worker import RolloutWorker
from rollout.weights import pull
from rollout.weights.node_files import NodeWeightFiles

OPTIONS = EngineOptions("run", "model", "float32", 64, 8, 1, 0.1, 0.9, False)


class Engine:
    """Has one request, of which so many tokens are there each time somebody looks."""

    def __init__(self, tokens: Iterator[int]) -> None:
        self.looks = 0
        self._tokens = tokens
        detokenizer = SimpleNamespace(num_output_tokens=self._look)
        states = {"r": SimpleNamespace(external_req_id="r", detokenizer=detokenizer)}
        self.output_processor = SimpleNamespace(request_states=states)
        self.errored = False

    def _look(self) -> int:
        self.looks += 1
        return next(self._tokens)

    async def is_sleeping(self) -> bool:
        return False


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutWorker:
    monkeypatch.setattr(worker_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(pull, "NodeWeightFiles", lambda run_id: NodeWeightFiles(run_id, tmp_path))
    return RolloutWorker("rollout-0", OPTIONS)


async def test_an_engine_that_stands_still_gives_no_sign_of_life_until_it_moves(
    worker: RolloutWorker,
) -> None:
    worker._engine = Engine(itertools.chain([5] * 30, itertools.count(6)))
    worker._sampling.add(asyncio.ensure_future(asyncio.Event().wait()))
    assert await worker.collect(0.001) == []  # there were none before: it moves
    assert await worker.collect(0.001) == []
    assert worker._engine.looks == 31, "it was waited for until there was one more"
    assert await worker.collect(0.001) == []
    assert worker._engine.looks == 32


async def test_what_ends_soon_after_comes_with_the_first(worker: RolloutWorker) -> None:
    """And the last one is not held back: nothing is being sampled any more."""
    worker._engine = Engine(itertools.count())
    ends = [asyncio.get_running_loop().create_future() for _ in range(3)]
    first = asyncio.Event()

    async def sample(index: int) -> None:
        worker._sampled.append(await ends[index])
        worker._news.set()
        first.set()

    for index in range(3):
        task = asyncio.ensure_future(sample(index))
        worker._sampling.add(task)
        task.add_done_callback(worker._note_end)
    ends[0].set_result("first")
    collecting = asyncio.ensure_future(worker.collect(max_wait_s=60, gather_s=60))
    await first.wait()
    ends[1].set_result("second")
    ends[2].set_result("third")
    assert await collecting == ["first", "second", "third"]

    assert worker._idle.is_set()
    worker._sampled.append("one more")
    worker._news.set()
    assert await worker.collect(max_wait_s=60, gather_s=60) == ["one more"]


async def test_an_engine_with_nothing_to_do_is_well(worker: RolloutWorker) -> None:
    worker._engine = Engine(itertools.repeat(5))
    for _ in range(3):
        assert await worker.collect(0.001) == []


async def test_nothing_is_sampled_during_an_update_and_that_is_well(worker: RolloutWorker) -> None:
    worker._engine = Engine(itertools.repeat(5))
    worker._sampling.add(asyncio.ensure_future(asyncio.Event().wait()))
    worker._updating = True
    for _ in range(3):
        assert await worker.collect(0.001) == []
