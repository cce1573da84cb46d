"""A worker sends a heartbeat if its engine makes progress, not if its process answers."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.actor_options import EngineOptions
from cluster.core.types import Prompt, Sampling
from rollout.engine import worker as worker_module
from rollout.engine.decoding import decoded
from rollout.engine.worker import RolloutWorker
from rollout.weights import pull
from rollout.weights.node_files import NodeWeightFiles

OPTIONS = EngineOptions("run", "model", "float32", 64, 8, 1, 0.1, 0.9, False)


class Engine:
    """An engine with one request. `tokens` yields the number of its tokens at each observation."""

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


async def test_an_engine_sends_no_heartbeat_until_it_makes_progress(
    worker: RolloutWorker,
) -> None:
    worker._engine = Engine(itertools.chain([5] * 30, itertools.count(6)))
    worker._sampling.add(asyncio.ensure_future(asyncio.Event().wait()))
    assert await worker.collect(0.001) == []  # the first tokens are progress
    assert await worker.collect(0.001) == []
    assert worker._engine.looks == 31, "the call must wait until there is another token"
    assert await worker.collect(0.001) == []
    assert worker._engine.looks == 32


@pytest.mark.parametrize("seed", [8192, None])
async def test_a_response_has_its_index_and_seed_whichever_request_asks_for_it(
    worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    """The further responses to a prompt are those that a larger group would have had from the beginning."""
    seeds: list[int | None] = []

    async def sample(token_ids: Any, sampling: Any, seed: int | None, request_id: str) -> Any:
        seeds.append(seed)
        return SimpleNamespace(finish_reason="stop", seed=seed)

    worker._engine = Engine(itertools.count())
    monkeypatch.setattr(worker, "_sample", sample)
    monkeypatch.setattr(worker, "_to_response", lambda completion, *_: completion.seed)

    async def sampled(*requests: tuple[int, int]) -> list[tuple[int, int | None]]:
        """Return the index and the seed of each response to requests for (responses, first)."""
        for responses, first in requests:
            sampling = Sampling(responses, 1.0, 16, seed, first)
            await worker.submit([Prompt("train/0/0", "", (1, 2), None, sampling)])
        await worker._idle.wait()
        return sorted((each.index, each.response) for each in await worker.collect(60))

    whole = await sampled((6, 0))
    assert await sampled((2, 0), (3, 2), (1, 5)) == whole
    assert [index for index, _ in whole] == list(range(6))
    assert seeds[:6] == ([None] * 6 if seed is None else list(range(seed, seed + 6)))


async def test_responses_that_end_soon_after_the_first_are_returned_with_it(worker: RolloutWorker) -> None:
    """The last response is returned at once, because no others are in flight."""
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


async def test_an_idle_engine_sends_heartbeats(worker: RolloutWorker) -> None:
    worker._engine = Engine(itertools.repeat(5))
    for _ in range(3):
        assert await worker.collect(0.001) == []


async def test_an_engine_sends_heartbeats_during_an_update(worker: RolloutWorker) -> None:
    """The engine is not even asked: while it loads weights, it answers nothing."""

    class Loading(Engine):
        async def is_sleeping(self) -> bool:
            raise AssertionError("it would not answer")

    worker._engine = Loading(itertools.repeat(5))
    worker._sampling.add(asyncio.ensure_future(asyncio.Event().wait()))
    worker._updating = True
    for _ in range(3):
        assert await worker.collect(0.001) == []


async def test_an_engine_sends_heartbeats_while_it_falls_asleep(worker: RolloutWorker) -> None:
    asleep = asyncio.Event()

    class FallingAsleep(Engine):
        async def is_sleeping(self) -> bool:
            await asleep.wait()
            return True

        async def sleep(self, level: int, mode: str) -> None:
            await asleep.wait()

    worker._engine = FallingAsleep(itertools.repeat(5))
    sleeping = asyncio.ensure_future(worker.sleep())
    for _ in range(3):
        assert await worker.collect(0.001) == []
    asleep.set()
    await sleeping
    assert await worker.collect(0.001) == []


class Tokenizer:
    """Knows the ids below 3, of which 1 is half of a surrogate pair. It refuses others, each in its own way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        if any(token_id > 2 for token_id in token_ids):
            raise self._error
        return "".join("a\ud83d\0"[token_id] for token_id in token_ids)


@pytest.mark.parametrize("error", [TypeError(), KeyError(7), OverflowError(), IndexError(), RuntimeError()])
@given(token_ids=st.lists(st.integers(0, 2**40)))
def test_any_sampled_tokens_have_a_text(error: Exception, token_ids: list[int]) -> None:
    text = decoded(Tokenizer(error), token_ids)
    text.encode()
    assert text == "".join({0: "a", 1: "\\ud83d", 2: "\0"}.get(token_id, "\ufffd") for token_id in token_ids)


async def test_no_process_of_the_engine_is_left_when_it_was_killed(worker: RolloutWorker) -> None:
    """VLLM kills an engine that does not end in time, and returns before its process has ended."""
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    worker._engine = SimpleNamespace(shutdown=process.kill)
    await worker.shut_down()
    assert not psutil.pid_exists(process.pid or 0), "it must have ended, and its parent must have noticed"
