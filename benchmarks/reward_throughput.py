"""Reward throughput: verdicts per second through the sandbox, and the delay that one hanging verifier causes.

    python benchmarks/reward_throughput.py            about one minute
    python benchmarks/reward_throughput.py --smoke    tiny sizes, to check that it works

Throughput is measured on Countdown with typical responses: a few lines of arithmetic and an answer. Hang isolation is
measured on 16 verdicts of 10 ms each, requested in one call like the responses to a prompt, with and without one that
hangs until it is killed. The result is the time of the other verdicts. Both are measured for verifiers that compute,
and for `async` verifiers that wait, all at the same time in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from cluster.core.types import Verdict
from reward.sandbox.pool import Sandbox
from reward.sandbox.spec import Limits, RunnerSpec
from reward.service import score_in_order
from reward.tasks.countdown.task import CountdownOptions, CountdownTask

RESPONSES = 16
VERDICT_S = 0.01
TIMEOUT_S = 2.0
REQUESTS_PER_CALL = 16


def slow_or_hanging(problem: Any, response: str) -> bool:
    """A user's verifier that takes 10 ms, or hangs."""
    while response == "hang":
        pass
    time.sleep(VERDICT_S)
    return True


async def waiting_or_hanging(problem: Any, response: str) -> bool:
    """A user's verifier that waits for 10 ms, as for a service, or hangs."""
    await asyncio.sleep(1e6 if response == "hang" else VERDICT_S)
    return True


def typical_responses(numbers: Sequence[int]) -> list[str]:
    """Return responses as a model writes them: two attempts and an answer."""
    a, b, c = numbers
    tries = f"{a}+{b}={a + b}\n{a}*{b}+{c}={a * b + c}\n"
    return [f"{tries}<answer>({a}+{b}){operator}{c}</answer>" for operator in "+-*/"] * (RESPONSES // 4)


async def scored_by(sandbox: Sandbox, problem: Any, responses: Sequence[str]) -> list[Verdict]:
    return await score_in_order(sandbox, [(problem, response) for response in responses])


async def verdicts_per_s(processes: int, groups: int, repeats: int) -> list[float]:
    """Return the rates of `repeats` batches of `groups` × 16 responses, after one warm-up batch."""
    task = CountdownTask(CountdownOptions())
    puzzles = list(itertools.islice(itertools.cycle(task.problems("train")), groups))
    spec = RunnerSpec("reward.runners:task_runner", ("countdown", {}, ()))
    rates: list[float] = []
    async with Sandbox(spec, Limits(), processes) as sandbox:
        for _ in range(repeats + 1):
            started = time.perf_counter()
            await asyncio.gather(*(scored_by(sandbox, p, typical_responses(p.numbers)) for p in puzzles))
            rates.append(round(groups * RESPONSES / (time.perf_counter() - started)))
    return rates[1:]


async def seconds_of_others(function: str, processes: int, hanging: bool, repeats: int) -> list[float]:
    """Return the seconds until all verdicts except the hanging one are ready, for each repetition."""
    options = {"function": f"reward_throughput:{function}"}
    spec = RunnerSpec("reward.runners:task_runner", ("python", options, ()), (str(Path(__file__).parent),))
    requests = [(None, "hang" if hanging and i == 0 else f"{i}") for i in range(REQUESTS_PER_CALL)]
    seconds = []
    async with Sandbox(spec, Limits(timeout_s=TIMEOUT_S), processes) as sandbox:
        await scored_by(sandbox, None, ["warm"] * 4 * processes)
        for _ in range(repeats):
            started, missing = time.perf_counter(), set(range(1, REQUESTS_PER_CALL))
            async for verdicts in sandbox.score(requests):
                missing -= {index for index, _ in verdicts}
                if not missing:
                    seconds.append(round(time.perf_counter() - started, 4))
                    missing = {-1}  # one verdict is left, which hangs
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
        print(f"  {name}: the other verdicts took {1000 * statistics.median(seconds):.0f} ms", flush=True)
    return {"throughput": throughput, "hang_isolation": isolation}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=2000, help="groups of 16 responses in one batch")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each case")
    parser.add_argument("--output", type=Path, help="the file of the report")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    groups, repeats = (20, 1) if arguments.smoke else (arguments.groups, arguments.repeats)
    results = asyncio.run(measure(groups, repeats))
    settings = {
        "groups": groups,
        "responses_per_group": RESPONSES,
        "hang": {
            "asked_at_once": REQUESTS_PER_CALL,
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
