"""The digest of an engine's parameters: the same for the same bits, in whatever order the processes answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.actor_options import EngineOptions
from rollout.engine.weights_digest import digest_of
from rollout.engine.worker import RolloutWorker
from rollout.weights import pull
from rollout.weights.node_files import NodeWeightFiles

OPTIONS = EngineOptions("run", "model", "float32", 64, 8, 1, 0.1, 0.9, False)
CHECKSUMS = st.text("0123456789abcdef", min_size=8, max_size=8)


@st.composite
def engines(draw: st.DrawFn) -> list[dict[str, str]]:
    """The checksums of the processes of an engine. Each name begins with the rank of its process, as vLLM's do."""
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4, unique=True))
    return [
        {f"tp{rank}:{name}": draw(CHECKSUMS) for name in names} for rank in range(draw(st.integers(1, 4)))
    ]


@given(engines(), st.randoms(use_true_random=False))
def test_the_order_of_processes_and_parameters_does_not_matter(
    processes: list[dict[str, str]], random: Any
) -> None:
    shuffled = [dict(random.sample(list(one.items()), len(one))) for one in processes]
    random.shuffle(shuffled)
    assert digest_of(shuffled) == digest_of(processes)


@given(engines(), st.data())
def test_another_checksum_or_name_or_a_missing_parameter_changes_it(
    processes: list[dict[str, str]], data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, len(processes) - 1))
    name = data.draw(st.sampled_from(sorted(processes[rank])))
    checksum = processes[rank][name]
    others = [{"other": data.draw(CHECKSUMS)}, {name: data.draw(CHECKSUMS.filter(lambda it: it != checksum))}]
    for other in (*others, {}):
        kept = {key: value for key, value in processes[rank].items() if key != name}
        changed = [*processes[:rank], kept | other, *processes[rank + 1 :]]
        assert digest_of(changed) != digest_of(processes)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutWorker:
    monkeypatch.setattr(pull, "NodeWeightFiles", lambda run_id: NodeWeightFiles(run_id, tmp_path))
    return RolloutWorker("rollout-0", OPTIONS)


async def test_an_engine_sends_heartbeats_while_it_digests_its_weights(worker: RolloutWorker) -> None:
    """The engine is not even asked for a sign of life, since it would not answer."""
    digested = asyncio.Event()

    async def compute() -> list[dict[str, str]]:
        await digested.wait()
        return [{"tp0:embedding": "ab"}]

    worker._engine = SimpleNamespace(compute_weight_checksums=compute, errored=False)
    digesting = asyncio.ensure_future(worker.weights_digest())
    await asyncio.sleep(0)
    worker._sampling.add(asyncio.ensure_future(asyncio.Event().wait()))
    for _ in range(3):
        assert await worker.collect(0.001) == []
    digested.set()
    assert await digesting == digest_of([{"tp0:embedding": "ab"}])
    assert not worker._updating


async def test_a_build_without_checksums_has_no_digest(worker: RolloutWorker) -> None:
    worker._engine = SimpleNamespace(errored=False)
    assert await worker.weights_digest() is None
