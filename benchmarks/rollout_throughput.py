"""Compare sampling through the whole rollout path with vLLM alone.

Both use the same prompts, seeds and engine options, on one thread each:

    offline      `LLM.generate` with all prompts at once
    whole path   a rollout worker that leases prompts from the work buffer, and reward actors that score each response

Both sample the same responses. The difference in time is the cost of our own work: Ray calls, verdicts, accounting.

    python benchmarks/rollout_throughput.py                  # 6 minutes on two cores
    python benchmarks/rollout_throughput.py --cases tiny

Target: offline / whole path ≥ 0.95. Both engines run at the same time; the one that is not measured is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.core.actor_options import EngineOptions

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cases import SMOLLM2, STARTER, TINY, Case
from benchmarks.report import Target, checked, complete, medians, ratios, seconds_in_turn, write_cases
from cluster.core.actor import Actor
from cluster.core.config import RunConfig
from cluster.core.types import Prompt
from rollout.engine.vllm_args import vllm_arguments

OFFLINE, WHOLE_PATH = "offline", "whole path"


@dataclass(frozen=True)
class Sizes:
    """The model, and the amount of work of one measurement."""

    model: Any
    style: str
    prompts: int
    responses: int
    max_response_tokens: int
    max_context_tokens: int
    max_sequences: int
    repeats: int


CASES = {
    "tiny": Sizes(STARTER, "compact", 128, 16, 32, 64, 256, 9),
    "smollm2": Sizes(SMOLLM2, "chat", 8, 8, 64, 384, 64, 3),
}
SMOKE = Sizes(TINY, "compact", 4, 2, 8, 64, 8, 1)


class OfflineEngine:
    """vLLM's offline engine, used directly."""

    def __init__(self, options: EngineOptions) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self._llm = LLM(**vllm_arguments(options))

    def generate(self, prompts: Sequence[Prompt]) -> int:
        """Sample all responses. Returns the number of sampled tokens."""
        from vllm import SamplingParams

        inputs = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
        parameters = [
            SamplingParams(
                n=prompt.sampling.responses,
                temperature=prompt.sampling.temperature,
                max_tokens=prompt.sampling.max_response_tokens,
                seed=prompt.sampling.seed,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for prompt in prompts
        ]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)


def configuration(sizes: Sizes, directory: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "throughput",
            "directory": str(directory),
            "model": {"max_context_tokens": sizes.max_context_tokens},
            "task": {
                "name": "countdown",
                "options": {"style": sizes.style, "eval_puzzles": sizes.prompts}
                if sizes.style == "chat"
                else {},
            },
            "rollout": {
                "workers": 1,
                "max_response_tokens": sizes.max_response_tokens,
                "max_sequences": sizes.max_sequences,
                "cpus_per_worker": 0.5,
                "kv_cache_gib": 0.5,
            },
            "reward": {"cpus_per_worker": 0.25},
            "evaluation": {"prompts": sizes.prompts, "responses_per_prompt": sizes.responses},
            "tracking": {"wandb": "disabled"},
        }
    )


def measure(sizes: Sizes, model: Path) -> dict[str, Any]:
    import ray

    from cluster.run_state.run_directory import RunDirectory
    from cluster.runtime.placement import cpu_environment
    from cluster.training.actors import ActorGraph, engine_options
    from cluster.training.prompts import evaluation_prompts, load_dataset

    tokens: dict[str, int] = {}

    async def start(stack: AsyncExitStack) -> dict[str, Callable[[], Any]]:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = configuration(sizes, directory)
        run_directory = RunDirectory(config.run_directory)
        run_directory.logs.mkdir(parents=True)
        prompts = evaluation_prompts(config, load_dataset(config, model))
        graph = ActorGraph(config, run_directory, model)
        rewards = await stack.enter_async_context(graph.rewards())
        fleet = await stack.enter_async_context(graph.fleet(rewards, print))
        fleet.serve_as_loaded()
        handle = (
            ray.remote(OfflineEngine)
            .options(num_cpus=0.5, runtime_env={"env_vars": cpu_environment(1, on_gpu=False)})
            .remote(engine_options(config, model))
        )
        engine: Actor[OfflineEngine] = Actor(handle)

        async def whole_path() -> None:
            before = fleet.sampled_tokens
            await fleet.sample(prompts)
            tokens[WHOLE_PATH] = fleet.sampled_tokens - before

        async def offline() -> None:
            tokens[OFFLINE] = await engine.call(OfflineEngine.generate, prompts)

        ways = {OFFLINE: offline, WHOLE_PATH: whole_path}
        for way in ways.values():  # the first call of each does work that is done only once
            await way()
        return ways

    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        try:
            ways = runner.run(start(stack))
            seconds = seconds_in_turn(
                {name: partial(complete, runner, way) for name, way in ways.items()}, sizes.repeats
            )
        finally:
            runner.run(stack.aclose())
    found = medians(seconds)
    return {
        "response_tokens": tokens,
        "seconds": seconds,
        "median_s": found,
        "tokens_per_s": {way: round(tokens[way] / found[way]) for way in found},
        "ratios": ratios(found, [OFFLINE]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, help="measurements of each way (default: depends on the case)")
    parser.add_argument(
        "--smoke", action="store_true", help="run tiny sizes to check that the benchmark works"
    )
    parser.add_argument(
        "--output", type=Path, help="report file (default: benchmarks/results/rollout_throughput.json)"
    )
    arguments = parser.parse_args()

    import ray

    from cluster.runtime.connect import connect

    connect(RunConfig().cluster)
    cases = {"tiny": SMOKE} if arguments.smoke else {name: CASES[name] for name in arguments.cases}
    for name, sizes in cases.items():
        if arguments.repeats:
            sizes = replace(sizes, repeats=arguments.repeats)
        print(name, flush=True)
        with Case(sizes.model, 1, 2, (8, 8), (8, 8), 64, 1).model_directory() as model:
            found = measure(sizes, model)
        found["targets"] = checked(found["ratios"], [Target(f"{OFFLINE} / {WHOLE_PATH}", 0.95)])
        described = {"model": str(sizes.model)} | {
            key: value for key, value in vars(sizes).items() if key != "model"
        }
        write_cases("rollout_throughput", {name: {"sizes": described, **found}}, arguments.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
