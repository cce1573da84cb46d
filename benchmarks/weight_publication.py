"""Measure the time from trained weights to served ones, from one learner rank to two rollout workers of its node.

    publish   LearnerRank.publish: put the weights into Ray's object store (without the probe's forward pass)
    fetch     both workers bring the weights into a file on their node
    reload    vLLM loads the file (inside the engine, as the worker measures it), one engine after the other
    pause     from the request to pause the engine until it has resumed, with no responses in flight
    copy      copy the bytes of the weights once per worker, into existing memory
    copy, new copy them into newly allocated memory, as the workers do
    update    pause with 32 responses in flight, which includes the step that is being computed
    probe     the learner's log-probabilities of two prompts, which are part of every version

    python benchmarks/weight_publication.py                # 5 minutes on two cores
    python benchmarks/weight_publication.py --cases tiny

Targets: publish + fetch ≤ 3 × copy, and pause ≤ 1.2 × reload, for SmolLM2-135M in float32.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.cases import SMOLLM2, STARTER, TINY, Case
from benchmarks.report import Target, checked, medians, write_cases
from cluster.core.actor import Actor
from cluster.core.actor_options import EngineOptions, LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig, RunConfig
from cluster.core.types import PolicyVersion, Prompt, Sampling
from learner.engine.rank import LearnerRank
from rollout.engine.worker import RolloutWorker

CASES: dict[str, str | dict[str, Any]] = {"tiny": STARTER, "smollm2": SMOLLM2}
WORKERS = 2
TARGETS = [Target("copy / (publish + fetch)", 1 / 3), Target("reload / pause", 1 / 1.2)]
PROBE = tuple(tuple(3 + index % 20 for index in range(100)) for _ in range(2))


class TimedWorker(RolloutWorker):
    """Measures the parts of an update by pull."""

    def __init__(self, name: str, options: EngineOptions) -> None:
        super().__init__(name, options)
        self._seconds: dict[str, float] = {}

    async def fetch(self, version: PolicyVersion) -> None:
        started = time.perf_counter()
        async with self._receiver.arriving(version, None):
            self._seconds["fetch"] = time.perf_counter() - started

    async def timed_update(self, version: PolicyVersion) -> dict[str, float]:
        """Update without the probe. `reload` is the part of `pause` in which vLLM loads the file."""
        async with self._receiver.arriving(version, None) as route:
            rpc = self._engine.collective_rpc

            async def timed_rpc(*arguments: Any, **named: Any) -> Any:
                started = time.perf_counter()
                answer = await rpc(*arguments, **named)
                self._seconds["reload"] = time.perf_counter() - started
                return answer

            self._engine.collective_rpc = timed_rpc
            started = time.perf_counter()
            try:
                await self._swap(route, version)
            finally:
                self._engine.collective_rpc = rpc
            self._seconds["pause"] = time.perf_counter() - started
        return self._seconds


def copy_seconds(size: int) -> dict[str, float]:
    """Return the seconds of copying `size` bytes once per worker, into new memory and then into the same again."""
    source = np.ones(size, dtype=np.uint8)
    copies = [np.empty_like(source) for _ in range(WORKERS)]
    seconds = {}
    for way in ("copy, new", "copy"):
        started = time.perf_counter()
        for copy in copies:
            np.copyto(copy, source)
        seconds[way] = time.perf_counter() - started
    return seconds


async def measure(model: Path, repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = defaultdict(list)
    size = 0
    async with AsyncExitStack() as stack:
        rank, workers = await start(stack, model)
        for turn in range(repeats + 1):  # the first one is a warm-up
            size, measured = await one_publication(rank, workers, turn + 1)
            if not turn:
                continue
            for part, part_s in measured.items():
                seconds[part].append(part_s)
            print(
                f"  {turn}/{repeats} " + ", ".join(f"{k} {v:.3f} s" for k, v in measured.items()), flush=True
            )
        seconds["probe"] = await probe_seconds(rank, repeats)
        for worker in workers:
            await worker.call(TimedWorker.shut_down)
    return {"bytes": size, **summary({way: list(map(short, times)) for way, times in seconds.items()})}


async def start(stack: AsyncExitStack, model: Path) -> tuple[Actor[LearnerRank], list[Actor[TimedWorker]]]:
    """Start a learner of one rank and the workers. Their reservation ends with the stack."""
    from cluster.runtime.placement import Reservation, bundle, cpu_environment

    logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    slots = await stack.enter_async_context(Reservation("all", [bundle(0.5, 0)] * (1 + WORKERS), 60))
    options = EngineOptions(
        run_id=uuid.uuid4().hex,
        model=str(model),
        dtype="float32",
        max_context_tokens=256,
        max_sequences=32,
        tensor_parallel_size=1,
        kv_cache_gib=0.25,
        gpu_memory_utilization=0.5,
        on_gpu=False,
    )
    environment = cpu_environment(1, on_gpu=False)
    workers = [
        slots.actor(
            TimedWorker,
            f"rollout-{index}",
            options,
            bundle=1 + index,
            log_file=logs / f"rollout-{index}.log",
            env=environment,
            max_concurrency=100,
        )
        for index in range(WORKERS)
    ]
    learner = LearnerOptions(str(model), "float32", 1.0, 0, LearnerConfig(), ObjectiveConfig(), (), 1)
    rank = slots.actor(LearnerRank, 0, learner, bundle=0, log_file=logs / "learner.log", env=environment)
    await asyncio.gather(*(worker.call(TimedWorker.start) for worker in workers))
    await rank.call(LearnerRank.start, *await rank.call(LearnerRank.rendezvous))
    return rank, workers


async def one_publication(
    rank: Actor[LearnerRank], workers: list[Actor[TimedWorker]], number: int
) -> tuple[int, dict[str, float]]:
    """Publish one version, to idle workers and to a busy one. Returns its bytes and the seconds of each part."""
    began = time.perf_counter()
    version = await rank.call(LearnerRank.publish, number)
    assert version is not None, "rank 0 must return the version"
    published = time.perf_counter()
    await asyncio.gather(*(worker.call(TimedWorker.fetch, version) for worker in workers))
    fetched = time.perf_counter()
    idle = [await worker.call(TimedWorker.timed_update, version) for worker in workers]
    size = sum(map(len, await version.weights))
    return size, {
        "publish": published - began,
        "fetch": fetched - published,
        "publish + fetch": fetched - began,
        **copy_seconds(size),
        **{part: float(np.mean([one[part] for one in idle])) for part in ("pause", "reload")},
        "update": await update_under_load(workers[0], version),
    }


async def update_under_load(worker: Actor[TimedWorker], version: PolicyVersion) -> float:
    prompt = Prompt("p", "", tuple(range(3, 23)), None, Sampling(32, 1.0, 64, seed=None))
    await worker.call(TimedWorker.submit, [prompt])
    seconds = (await worker.call(TimedWorker.timed_update, version))["pause"]
    missing = prompt.sampling.responses
    while missing:
        missing -= len(await worker.call(TimedWorker.collect, 60.0))
    return seconds


async def probe_seconds(rank: Actor[LearnerRank], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        await rank.call(LearnerRank.probe_logprobs, PROBE)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def short(value: float) -> float:
    """Round to four digits. (A tiny model is copied in microseconds.)"""
    return float(f"{value:.4g}")


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    median_s = medians(seconds)
    found = {
        **{
            f"{way} / (publish + fetch)": short(median_s[way] / median_s["publish + fetch"])
            for way in ("copy", "copy, new")
        },
        "reload / pause": short(median_s["reload"] / median_s["pause"]),
    }
    return {"seconds": seconds, "median_s": median_s, "ratios": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="one tiny model, once, to check that it runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/weight_publication.json")
    arguments = parser.parse_args()

    import ray

    from cluster.runtime.connect import connect

    connect(RunConfig().cluster)
    cases = {"tiny": TINY} if arguments.smoke else {name: CASES[name] for name in arguments.cases}
    for name, model in cases.items():
        print(name, flush=True)
        with Case(model, 1, 2, (8, 8), (8, 8), 64, 1).model_directory() as directory:
            found = asyncio.run(measure(directory, 1 if arguments.smoke else arguments.repeats))
        if name == "smollm2":  # for the tiny model, the calls take most of the time
            found["targets"] = checked(found["ratios"], TARGETS)
        write_cases("weight_publication", {name: {"workers": WORKERS, **found}}, arguments.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
