"""Compare two learner ranks with one thread each to one rank with two: the same batch, with a run's Ray actors.

    demonstration   32 × 16 short responses, the starter model's shape
    smollm2         8 × 8 responses of up to 64 tokens, SmolLM2-135M in float32

Both learners are up at the same time and make steps in turn; who is not asked waits. A step is
`LearnerGroup.learn`: cutting the batch, sending it, forward, backward, the gradients' way between the ranks, and AdamW.

    python benchmarks/learner_ranks.py                       # 10 minutes on two cores
    python benchmarks/learner_ranks.py --cases smollm2 --repeats 5

Each case that is run takes its place in the results; the others stay as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cases import DEMONSTRATION, SMALL_GROUPS, Case, vocabulary_size
from benchmarks.report import Target, checked, medians, ratios, seconds_in_turn, write_cases
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig, RunConfig
from cluster.core.types import TrainingBatch

CASES = {"demonstration": DEMONSTRATION, "smollm2": SMALL_GROUPS}
ONE, TWO = "1 rank, 2 threads", "2 ranks, 1 thread"
RANKS_AND_THREADS = {ONE: (1, 2), TWO: (2, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, help="of each way; default: by case")
    parser.add_argument("--zero-stage", type=int, default=RunConfig().learner.zero_stage)
    parser.add_argument("--smoke", action="store_true", help="tiny models and lengths: does it run?")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/learner_ranks.json")
    arguments = parser.parse_args()

    from cluster.runtime.connect import connect

    connect(RunConfig().cluster)
    for name in arguments.cases:
        case = CASES[name].smoke() if arguments.smoke else CASES[name]
        if arguments.repeats:
            case = replace(case, repeats=arguments.repeats)
        print(name, flush=True)
        with case.model_directory() as model:
            found = measure(case, model, arguments.zero_stage)
        report = {"sizes": {"zero_stage": arguments.zero_stage, **asdict(case)}, **found}
        report["targets"] = checked(found["ratios"], [Target(f"{ONE} / {TWO}", 0.9)])
        write_cases("learner_ranks", {name: report}, arguments.output)


def measure(case: Case, model: Path, zero_stage: Any) -> dict[str, Any]:
    """Measure steps, after one uncounted step of each variant."""
    from cluster.runtime.placement import Reservation, bundle, cpu_environment
    from learner.engine.group import LearnerGroup
    from learner.engine.rank import LearnerRank

    batch = TrainingBatch(samples=tuple(case.samples(vocabulary_size(model))))
    norms: dict[str, list[float]] = {way: [] for way in RANKS_AND_THREADS}

    async def start(stack: AsyncExitStack, way: str, directory: Path) -> Callable[[], Any]:
        ranks, threads = RANKS_AND_THREADS[way]
        learner = LearnerConfig(
            ranks=ranks,
            threads_per_rank=threads,
            zero_stage=zero_stage,
            micro_batch_tokens=case.micro_batch_tokens,
            learning_rate=1e-12,  # so that all steps start from the same weights
        )
        options = LearnerOptions(str(model), "float32", 1.0, 0, learner, ObjectiveConfig(), (), 1000)
        place = await stack.enter_async_context(Reservation(way, [bundle(0.5, 0)] * ranks, timeout_s=60))
        actors = [
            place.actor(
                LearnerRank,
                rank,
                options,
                bundle=rank,
                log_file=directory / f"learner-{ranks}-{rank}.log",
                env=cpu_environment(threads, on_gpu=False),
            )
            for rank in range(ranks)
        ]
        group = LearnerGroup(actors, options)
        await group.start()

        async def step() -> None:
            norms[way].append((await group.learn([batch]))["objective/grad_norm"])

        return step

    async def start_all(stack: AsyncExitStack, directory: Path) -> dict[str, Callable[[], Any]]:
        steps = {way: await start(stack, way, directory) for way in RANKS_AND_THREADS}
        for step in steps.values():  # one-time work: allocations, the first collective
            await step()
        return steps

    stack = AsyncExitStack()
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as directory:
        try:
            steps = runner.run(start_all(stack, Path(directory)))
            seconds = seconds_in_turn(
                {way: lambda step=step: runner.run(step()) for way, step in steps.items()}, case.repeats
            )
        finally:
            runner.run(stack.aclose())
    same = [norm for values in norms.values() for norm in values]
    if not math.isclose(max(same), min(same), rel_tol=1e-3):
        raise AssertionError(f"the ways do not compute the same gradient: {norms}")
    return {
        "seconds": seconds,
        "median_s": medians(seconds),
        "gradient_norms": norms,
        "ratios": ratios(medians(seconds), over=[ONE]),
    }


if __name__ == "__main__":
    main()
