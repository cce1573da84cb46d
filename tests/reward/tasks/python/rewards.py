"""Verifiers as users write them, good and bad."""

from __future__ import annotations

import asyncio
from typing import Any

Problem = dict[str, Any]


def exact(problem: Problem, response: str) -> bool:
    return response.strip() == problem["answer"]


async def patient(problem: Problem, response: str) -> bool:
    """Fifty of these take as long as one."""
    await asyncio.sleep(0.2)
    return exact(problem, response)


def many(problems: list[Problem], responses: list[str]) -> list[float]:
    return [float(exact(problem, text)) for problem, text in zip(problems, responses, strict=True)]


async def patient_with_many(problems: list[Problem], responses: list[str]) -> list[float]:
    await asyncio.sleep(0.01)
    return many(problems, responses)


def many_and_one_is_nothing(problems: list[Problem], responses: list[str]) -> list[Any]:
    return [None if text == "nothing" else 1.0 for text in responses]


def emptying(problem: Problem, response: str) -> bool:
    """Change the problem, as verifiers do that normalize it in place."""
    problem["steps"].clear()
    return bool(problem.pop("answer") == response)


async def patient_and_emptying(problem: Problem, response: str) -> bool:
    await asyncio.sleep(0.01)
    return emptying(problem, response)


def emptying_many(problems: list[Problem], responses: list[str]) -> list[float]:
    return [float(emptying(problem, text)) for problem, text in zip(problems, responses, strict=True)]


def steps_left(problem: Problem, response: str) -> int:
    """A shaping function that changes the problem as well."""
    left = len(problem["steps"])
    emptying(problem, response)
    return left


def as_set(problems: list[Problem], responses: list[str]) -> Any:
    return set(many(problems, responses))


def as_keys(problems: list[Problem], responses: list[str]) -> Any:
    return dict.fromkeys(many(problems, responses)).keys()


def as_values(problems: list[Problem], responses: list[str]) -> Any:
    return dict.fromkeys(many(problems, responses), 1.0).values()


def as_dictionary(problems: list[Problem], responses: list[str]) -> Any:
    return dict.fromkeys(many(problems, responses), 1.0)


def too_few(problems: list[Problem], responses: list[str]) -> list[float]:
    return many(problems, responses)[:-1]


def no_list(problems: list[Problem], responses: list[str]) -> Any:
    return 1.0


def careless(problem: Problem, response: str) -> float:
    return float(response.split()[0] == problem["answer"])


def forgetful(problem: Problem, response: str) -> None:
    """Computes, and does not return."""


def wordy(problem: Problem, response: str) -> str:
    return "correct"


async def raising_sometimes(problem: Problem, response: str) -> bool:
    if response == "raise":
        raise KeyError("rubric")
    return True


def one_argument(response: str) -> bool:
    return True


def length(problem: Problem, response: str) -> int:
    return len(response)


def abstain(problem: Problem, response: str) -> dict[str, str]:
    return {"outcome": "error", "reason": "no access"}


def never_a_number(problem: Problem, response: str) -> float:
    return float("nan")


not_a_function = 7


def length_or_hang(problem: dict[str, str], response: str) -> float:
    while response == "endless":
        pass
    return float("nan") if response == "no number" else len(response)
