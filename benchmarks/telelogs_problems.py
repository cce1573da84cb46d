"""Generated TeleLogs problems: the lengths of the prompts, the speed of the generator, the accuracy of the solver.

python benchmarks/telelogs_problems.py                                      # half a minute on one core
python benchmarks/telelogs_problems.py --tokenizer runs/demo/final_model    # also count the tokens of a tokenizer.json
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import write_cases
from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.generator import GeneratedProblems, GeneratorOptions, Style
from reward.tasks.telelogs.problem import Problem
from reward.tasks.telelogs.solver import solve

STYLES: tuple[Style, ...] = ("full", "compact", "compact_chat")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=2000, help="problems of each kind")
    parser.add_argument("--tokenizer", type=Path, help="a directory with a tokenizer.json")
    parser.add_argument("--smoke", action="store_true", help="few problems, to check that it works")
    parser.add_argument("--output", type=Path, help="the file of the report")
    arguments = parser.parse_args()
    count = 32 if arguments.smoke else arguments.problems
    tokenizer = (
        Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json")) if arguments.tokenizer else None
    )

    kinds = {}
    for style, randomized in itertools.product(STYLES, (False, True)):
        name = f"{style}, randomized labels" if randomized else style
        started = time.process_time()
        problems = list(GeneratedProblems(GeneratorOptions("eval", style, randomized, seed=1), count))
        per_cpu_s = count / (time.process_time() - started)
        kinds[name] = {
            "problems": count,
            "problems_per_cpu_s": round(per_cpu_s),
            **describe(problems, tokenizer),
        }
        print(name, kinds[name])
    write_cases("telelogs_problems", kinds, arguments.output)


def describe(problems: Sequence[Problem], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the accuracy of the solver and the lengths of the prompts."""
    total = Counter(problem.cause for problem in problems)
    solved = Counter(problem.cause for problem in problems if solve(problem.question) == problem.answer)
    described: dict[str, Any] = {
        "solved_share": solved.total() / len(problems),
        "solved_share_by_cause": {label: solved[label] / total[label] for label in LABELS},
        "largest_share_of_a_cause": max(total.values()) / len(problems),
        "characters": spread([len(problem.question) for problem in problems]),
    }
    if tokenizer is not None:
        described["tokens"] = spread([len(tokenizer.encode(problem.question).ids) for problem in problems])
    return described


def spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": min(values), "mean": round(statistics.fmean(values), 1), "max": max(values)}


if __name__ == "__main__":
    main()
