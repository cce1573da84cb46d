"""The verdicts of the `math` task: precision and recall on a corpus, and a search for answers that are always correct.

    python benchmarks/math_verdicts.py            about twenty minutes on one core
    python benchmarks/math_verdicts.py --smoke    a few answers, to check that it works

The corpus (`math_corpus/`) has pairs of a reference and a response with the correct verdict, one per line below the
names of the columns. Two of its parts were written separately and were not looked at while the comparison was written,
the later one by two authors who knew only the conventions in docs/rewards.md. All parts are also given to `math-verify`
(parse and verify, with the same extraction of answers), which earlier versions used. The canary compares random answers
of a grammar (`math_canary.py`) with references of all kinds. No answer may be correct for references that differ. The
verdicts on the corpus are computed again in processes with different hash seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import math_canary
from benchmarks.report import write_cases
from reward.tasks.math.answers import last_answer, reference_answer
from reward.tasks.math.comparison import equal

CORPUS = Path(__file__).parent / "math_corpus"
PARTS = ("seen", "unseen", "unseen_later")


@dataclass(frozen=True)
class Pair:
    """A reference and a response with the verdict that it deserves."""

    reference: str
    response: str
    correct: bool


def pairs(part: str) -> list[Pair]:
    lines = (CORPUS / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    names, *rows = map(json.loads, lines)
    found = (dict(zip(names, row, strict=True)) for row in rows)
    return [Pair(row["reference"], row["response"], row["outcome"] == "correct") for row in found]


def is_correct(pair: Pair) -> bool:
    answer = last_answer(pair.response)
    return answer is not None and equal(reference_answer(pair.reference), answer)


def by_math_verify(pair: Pair) -> bool:
    """Return the verdict of math-verify with its own time limits. An exception is not an acceptance."""
    from math_verify import parse, verify

    answer = last_answer(pair.response)
    if answer is None:
        return False
    expected, found = (parse(f"\\boxed{{{text}}}") for text in (reference_answer(pair.reference), answer))
    return bool(verify(expected, found))


def table(part: Iterable[Pair], verdict: Callable[[Pair], bool]) -> dict[str, Any]:
    """Count the verdicts on one part of the corpus."""
    slowest_s, count = 0.0, Counter[tuple[bool, bool]]()
    for pair in part:
        started = time.process_time()
        count[verdict(pair), pair.correct] += 1
        slowest_s = max(slowest_s, time.process_time() - started)
    accepted, correct = count[True, True] + count[True, False], count[True, True] + count[False, True]
    return {
        "pairs": count.total(),
        "false_accepts": count[True, False],
        "false_rejects": count[False, True],
        "precision": round(count[True, True] / accepted, 4),
        "recall": round(count[True, True] / correct, 4),
        "slowest_cpu_s": round(slowest_s, 2),
    }


def canary(answers: int, seed: int) -> dict[str, Any]:
    """Compare random answers with all references."""
    chance, distinct, slowest_s = random.Random(seed), set[str](), 0.0
    too_many: dict[str, list[str]] = {}
    correct = Counter[int]()
    while len(distinct) < answers:
        text = math_canary.answer(chance)
        if text in distinct:
            continue
        distinct.add(text)
        started = time.process_time()
        if found := math_canary.too_many(text):
            too_many[text] = found
        correct[len(math_canary.hits(text))] += 1
        slowest_s = max(slowest_s, time.process_time() - started)
        if len(distinct) % 1000 == 0:
            print(f"  {len(distinct)} answers, {len(too_many)} correct for too many", flush=True)
    return {
        "answers": len(distinct),
        "references": len(math_canary.REFERENCES),
        "correct_for_too_many": too_many,
        "answers_by_number_of_references": {str(number): correct[number] for number in sorted(correct)},
        "slowest_cpu_s": round(slowest_s, 2),
    }


def corpus_pairs(every: int = 1) -> list[Pair]:
    """Return the pairs of all parts whose numbers are multiples of `every`."""
    return [pair for part in PARTS for pair in pairs(part)][::every]


def verdicts_on_corpus(every: int = 1) -> dict[Pair, bool]:
    """Return the verdicts on these pairs, computed in an order that depends on the hash seed of the process."""
    return {
        pair: is_correct(pair) for pair in sorted(corpus_pairs(every), key=lambda pair: hash(pair.response))
    }


def digest(verdicts: Mapping[Pair, bool]) -> str:
    """Return a hash of verdicts that does not depend on their order."""
    lines = sorted(repr((pair.reference, pair.response, verdict)) for pair, verdict in verdicts.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest_in_process(hash_seed: int, every: int = 1) -> str:
    """Return the digest of the verdicts on the corpus, computed in a process with the given hash seed."""
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, __file__, "--digest", "--every", str(every)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    return run.stdout.strip()


def in_processes(count: int, every: int = 1) -> dict[str, Any]:
    """Count the different digests of processes with different hash seeds."""
    found = {digest_in_process(seed, every) for seed in range(count)}
    return {"processes": count, "different_results": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=20_000, help="random answers of the grammar")
    parser.add_argument("--processes", type=int, default=20, help="processes with different hash seeds")
    parser.add_argument(
        "--digest", action="store_true", help="print a hash of the verdicts on the corpus, and end"
    )
    parser.add_argument(
        "--every", type=int, default=1, help="take each pair whose number is a multiple of this"
    )
    parser.add_argument("--output", type=Path, help="the file of the report")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    if arguments.digest:
        print(digest(verdicts_on_corpus(arguments.every)))
        return
    every = 40 if arguments.smoke else arguments.every
    corpus = {
        f"{name}, {part}": table(pairs(part)[::every], verdict)
        for part in PARTS
        for name, verdict in (("the task", is_correct), ("math-verify", by_math_verify))
    }
    print(json.dumps(corpus, indent=1), flush=True)
    answers, processes = (8, 1) if arguments.smoke else (arguments.answers, arguments.processes)
    cases = {
        "corpus": corpus,
        "canary": canary(answers, seed=0),
        "hash_seeds": in_processes(processes, every),
    }
    write_cases("math_verdicts", cases, arguments.output)


if __name__ == "__main__":
    main()
