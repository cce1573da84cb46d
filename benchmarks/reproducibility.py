"""Measure how often rounding changes seeded responses, sampled again by the same worker, by another, and by two.

Prompts, seeds and the order of batches do not depend on the number of workers. But the set of responses that an engine
computes together may differ. This changes the last bits of its logits, and occasionally the sampled token.

    python benchmarks/reproducibility.py                   # 3 minutes on two cores
    python benchmarks/reproducibility.py --cases tiny
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.cases import Case
from benchmarks.report import write_cases
from benchmarks.rollout_throughput import CASES, SMOKE, Sizes, configuration
from cluster.core.types import Response, ScoredGroup


def differing(some: Sequence[ScoredGroup], others: Sequence[ScoredGroup]) -> dict[str, Any]:
    """Count the responses with other tokens, and with other bits in log-probabilities, for the same prompts."""
    pairs = [
        pair
        for one, other in zip(some, others, strict=True)
        for pair in zip(one.responses, other.responses, strict=True)
    ]
    tokens = sum(not _same_tokens(*pair) for pair in pairs)
    bits = sum(
        not (_same_tokens(*pair) and np.array_equal(pair[0].logprobs, pair[1].logprobs)) for pair in pairs
    )
    return {"responses": len(pairs), "other_tokens": tokens, "other_bits": bits, "share": tokens / len(pairs)}


def _same_tokens(one: Response, other: Response) -> bool:
    return np.array_equal(one.token_ids, other.token_ids)


async def measure(sizes: Sizes, model: Path) -> dict[str, Any]:
    from cluster.run_state.run_directory import RunDirectory
    from cluster.training.actors import ActorGraph
    from cluster.training.prompts import evaluation_prompts, load_dataset

    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = configuration(sizes, directory)
        run_directory = RunDirectory(config.run_directory)
        run_directory.logs.mkdir(parents=True)
        prompts = evaluation_prompts(config, load_dataset(config, model))
        rewards = await stack.enter_async_context(ActorGraph(config, run_directory, model).rewards())

        async def sampled(workers: int, times: int) -> list[list[ScoredGroup]]:
            # One prompt per call, so that the prompts are distributed to both workers.
            changed = {"workers": workers, "cpus_per_worker": 0.25, "prompts_per_request": 1}
            own = config.model_copy(update={"rollout": config.rollout.model_copy(update=changed)})
            async with ActorGraph(own, run_directory, model).fleet(rewards, print) as fleet:
                fleet.serve_as_loaded()
                await fleet.wait_until(lambda: fleet.state.healthy == workers)
                return [await fleet.sample(prompts) for _ in range(times)]

        first, again = await sampled(workers=1, times=2)
        (replaced,) = await sampled(workers=1, times=1)
        (two,) = await sampled(workers=2, times=1)
        used = {group.group.worker for group in two}
    assert len(used) == 2, "one of the two workers sampled nothing"
    return {
        "the same worker again": differing(first, again),
        "another worker": differing(first, replaced),
        "two workers": differing(first, two),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to check that it runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/reproducibility.json")
    arguments = parser.parse_args()

    import ray

    from cluster.core.config import RunConfig
    from cluster.runtime.connect import connect

    connect(RunConfig().cluster)
    cases = (
        {"tiny": replace(SMOKE, prompts=16)}
        if arguments.smoke
        else {name: CASES[name] for name in arguments.cases}
    )
    for name, sizes in cases.items():
        print(name, flush=True)
        with Case(sizes.model, 1, 2, (8, 8), (8, 8), 64, 1).model_directory() as model:
            found = asyncio.run(measure(sizes, model))
        print(f"  {found}", flush=True)
        described = {"model": str(sizes.model)} | {
            key: value for key, value in vars(sizes).items() if key not in ("model", "repeats")
        }
        write_cases("reproducibility", {name: {"sizes": described, **found}}, arguments.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
