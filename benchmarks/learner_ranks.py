"""Compare two learner ranks with one thread each to one rank with two: the same batch, with a run's Ray actors.

    demonstration   32 × 16 short responses, the starter model's shape
    smollm2         8 × 8 responses of up to 64 tokens, SmolLM2-135M in float32

Both learners are up at the same time and take steps in turn, so one of them always waits. A step is
`LearnerGroup.learn`: the batch is packed and sent, then forward, backward, the exchange of the gradients, and AdamW.

    python benchmarks/learner_ranks.py                       # 10 minutes on two cores
    python benchmarks/learner_ranks.py --cases smollm2 --repeats 5

The results of each case replace its earlier ones. Other cases are kept.
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cases import DEMONSTRATION, SMALL_GROUPS, Case, vocabulary_size
from benchmarks.report import Target, checked, complete, medians, ratios, seconds_in_turn, write_cases
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig, RunConfig
from cluster.core.types import TrainingBatch

if TYPE_CHECKING:
    from learner.engine.group import LearnerGroup

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
    batch = TrainingBatch(samples=tuple(case.samples(vocabulary_size(model))))
    norms: dict[str, list[float]] = {way: [] for way in RANKS_AND_THREADS}

    async def step(way: str, group: LearnerGroup) -> None:
        norms[way].append((await group.learn([batch]))["objective/grad_norm"])

    async def start_all(stack: AsyncExitStack, directory: Path) -> dict[str, Callable[[], Any]]:
        steps: dict[str, Callable[[], Any]] = {}
        for way in RANKS_AND_THREADS:
            group = await start_group(stack, case, model, zero_stage, way, directory)
            steps[way] = partial(step, way, group)
        for first in steps.values():  # one-time work: allocations, the first collective
            await first()
        return steps

    stack = AsyncExitStack()
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as directory:
        try:
            steps = runner.run(start_all(stack, Path(directory)))
            seconds = seconds_in_turn(
                {way: partial(complete, runner, step) for way, step in steps.items()}, case.repeats
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


async def start_group(
    stack: AsyncExitStack, case: Case, model: Path, zero_stage: Any, way: str, directory: Path
) -> LearnerGroup:
    """Start the ranks of one variant. Their reservation ends with the stack."""
    from cluster.runtime.placement import Reservation, bundle, cpu_environment
    from learner.engine.group import LearnerGroup
    from learner.engine.rank import LearnerRank

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
    return group


if __name__ == "__main__":
    main()
