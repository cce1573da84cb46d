"""The reward plane: verdicts per second through the sandbox, and what a verifier that hangs costs the others.

    python benchmarks/reward_throughput.py            about a minute
    python benchmarks/reward_throughput.py --smoke    tiny sizes, to see that it works

Throughput is measured on Countdown, with responses like a model's: a few lines of arithmetic and an answer. Hang
isolation is measured on 16 verdicts of 10 ms each that are asked for in one call, as the responses to a prompt are,
once as they are and once with one of them hanging until it is killed: what counts is how long the others take. That is
measured for verifiers that work and for `async` ones that wait, all at the same time, in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report

from cluster.core.types import Verdict
from reward.sandbox.pool import Sandbox
from reward.sandbox.spec import Limits, RunnerSpec
from reward.service import score_in_order
from reward.tasks.countdown.task import CountdownOptions, CountdownTask

RESPONSES = 16
VERDICT_S = 0.01
TIMEOUT_S = 2.0
ASKED_AT_ONCE = 16


def slow_or_hanging(problem: Any, response: str) -> bool:
    """A user's verifier that takes 10 ms, or for ever."""
    while response == "hang":
        pass
    time.sleep(VERDICT_S)
    return True


async def waiting_or_hanging(problem: Any, response: str) -> bool:
    """One that waits for somebody else so long, or for ever."""
    await asyncio.sleep(1e6 if response == "hang" else VERDICT_S)
    return True


def like_a_models(numbers: Sequence[int]) -> list[str]:
    a, b, c = numbers
    tries = f"{a}+{b}={a + b}\n{a}*{b}+{c}={a * b + c}\n"
    return [f"{tries}<answer>({a}+{b}){operator}{c}</answer>" for operator in "+-*/"] * (RESPONSES // 4)


async def scored_by(sandbox: Sandbox, problem: Any, responses: Sequence[str]) -> list[Verdict]:
    return await score_in_order(sandbox, [(problem, response) for response in responses])


async def verdicts_per_s(processes: int, groups: int, repeats: int) -> list[float]:
    """Of whole batches of `groups` × 16 responses, in turn, after one that warms up."""
    task = CountdownTask(CountdownOptions())
    puzzles = (task.problems("train") * (groups // 100 + 1))[:groups]
    recipe = RunnerSpec("reward.runners:task_runner", ("countdown", {}, ()))
    rates = []
    async with Sandbox(recipe, Limits(), processes) as sandbox:
        for _ in range(repeats + 1):
            started = time.perf_counter()
            await asyncio.gather(*(scored_by(sandbox, p, like_a_models(p.numbers)) for p in puzzles))
            rates.append(round(groups * RESPONSES / (time.perf_counter() - started)))
    return rates[1:]


async def seconds_of_others(function: str, processes: int, hanging: bool, repeats: int) -> list[float]:
    """Until the last verdict but the hanging one is there, in each repetition."""
    options = {"function": f"reward_throughput:{function}"}
    recipe = RunnerSpec("reward.runners:task_runner", ("python", options, ()), (str(Path(__file__).parent),))
    asked = [(None, "hang" if hanging and i == 0 else f"{i}") for i in range(ASKED_AT_ONCE)]
    seconds = []
    async with Sandbox(recipe, Limits(timeout_s=TIMEOUT_S), processes) as sandbox:
        await scored_by(sandbox, None, ["warm"] * 4 * processes)
        for _ in range(repeats):
            started, missing = time.perf_counter(), set(range(1, ASKED_AT_ONCE))
            async for placed in sandbox.score(asked):
                missing -= {place for place, _ in placed}
                if not missing:
                    seconds.append(round(time.perf_counter() - started, 4))
                    missing = {-1}  # there is one left, which hangs
            await scored_by(sandbox, None, ["warm"] * 4 * processes)  # the killed process has been replaced
    return seconds


async def measure(groups: int, repeats: int) -> dict[str, Any]:
    throughput = {}
    for processes in (1, 2, 4):
        rates = await verdicts_per_s(processes, groups, repeats)
        throughput[f"{processes} processes"] = {"verdicts_per_s": rates, "median": statistics.median(rates)}
        print(f"  {processes} processes: {statistics.median(rates):,.0f} verdicts/s", flush=True)
    isolation = {}
    for function, hanging in itertools.product(("slow_or_hanging", "waiting_or_hanging"), (False, True)):
        seconds = await seconds_of_others(function, 4, hanging, repeats)
        name = f"{function.partition('_')[0]}, {'one hangs' if hanging else 'none hangs'}"
        isolation[name] = {"seconds_until_the_others": seconds, "median_s": statistics.median(seconds)}
        print(f"  {name}: the others took {1000 * statistics.median(seconds):.0f} ms", flush=True)
    return {"throughput": throughput, "hang_isolation": isolation}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=2000, help="of 16 responses, in one batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where the report goes")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    groups, repeats = (20, 1) if arguments.smoke else (arguments.groups, arguments.repeats)
    results = asyncio.run(measure(groups, repeats))
    settings = {
        "groups": groups,
        "responses_per_group": RESPONSES,
        "hang": {
            "asked_at_once": ASKED_AT_ONCE,
            "processes": 4,
            "verdict_s": VERDICT_S,
            "timeout_s": TIMEOUT_S,
        },
    }
    report.write_cases(
        "reward_throughput", {"countdown": {"settings": settings, **results}}, arguments.output
    )


if __name__ == "__main__":
    main()
