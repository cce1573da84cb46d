"""Training prompts with solved examples of other problems before their own. `check` and runs do the same. Pure.

The examples are other training problems, each with a solution that the task knows. In a conversation an example is
an earlier turn: the messages of its problem, and the solution as the answer of the assistant. In plain text the
solution follows its problem, and an empty line the solution.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from reward.task import ChatMessages, GeneratedTask, SolvedTask, Task

POOL_ROWS = 256
"""The number of training problems that serve as examples. Each of them is solved at most once."""
TRIED_ROWS = 64
"""The number of training prompts that are tried with examples before a run."""

Rendered = str | ChatMessages


def solver_of(task: Task) -> Callable[[Any], str | None] | None:
    """Return the function with which a task solves its problems, or None if it cannot."""
    if isinstance(task, SolvedTask):
        return task.solution
    if isinstance(task, GeneratedTask):
        return lambda problem: task.example(problem).correct
    return None


def seeded(*parts: object) -> np.random.Generator:
    """Return a random generator that depends on the given values alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


class SolvedExamples:
    """The examples of a run.

    Usage:
        examples = SolvedExamples(task, solve, task.problems("train"), count=2, seed=0)
        rendered = examples.prompt(row, "train/0/17/4")    # the same for the same row and words
    """

    def __init__(
        self,
        task: Task,
        solve: Callable[[Any], str | None],
        problems: Sequence[Any],
        count: int,
        seed: int,
    ) -> None:
        self._task = task
        self._problems = problems
        self._count = count
        self._seed = seed
        rows = seeded(seed, "example pool").permutation(len(problems))[:POOL_ROWS]
        self._pool = [int(row) for row in rows]

        @cache
        def solved(row: int) -> tuple[Rendered, str] | None:
            solution = solve(problems[row])
            return None if solution is None else (task.render(problems[row]), solution)

        self._solved = solved

    def prompt(self, row: int, draw: str) -> Rendered | None:
        """Return the prompt of a row with examples before it, which `draw` selects from the pool. Return None if fewer
        than the wanted number of other problems have a known solution.

        A problem in other words is the problem itself: two prompts with the same words in another order are never
        shown together.
        """
        asked = self._task.render(self._problems[row])
        shown: list[tuple[Rendered, str]] = []
        for index in seeded(self._seed, "examples", draw).permutation(len(self._pool)):
            if len(shown) == self._count:
                break
            example = None if self._pool[index] == row else self._solved(self._pool[index])
            if example is None or type(example[0]) is not type(asked) or _words(example[0]) == _words(asked):
                continue
            shown.append(example)
        return joined(shown, asked) if len(shown) == self._count else None

    def tried(self) -> Iterator[Rendered]:
        """Yield some prompts with examples, as far as there are any, of rows at equal distances."""
        rows = len(self._problems)
        for row in dict.fromkeys(index * rows // TRIED_ROWS for index in range(TRIED_ROWS)):
            if (prompt := self.prompt(row, f"train/0/{row}/0")) is not None:
                yield prompt


def joined(examples: Sequence[tuple[Rendered, str]], asked: Rendered) -> Rendered:
    """Return the prompt `asked` after the examples, each a prompt with a solution. A system message stands once, at the
    beginning. If a prompt ends with a message of the assistant, the solution continues it."""
    if isinstance(asked, str):
        return "".join([*(f"{prompt}{solution}\n\n" for prompt, solution in examples), asked])
    system, own = _without_system(asked)
    turns: ChatMessages = []
    for prompt, solution in examples:
        assert not isinstance(prompt, str)
        *before, last = _without_system(prompt)[1]
        if last["role"] == "assistant":
            turns += [*before, {**last, "content": f"{last.get('content') or ''}{solution}"}]
        else:
            turns += [*before, last, {"role": "assistant", "content": solution}]
    return [*system, *turns, *own]


def obstacle(
    examples: SolvedExamples, tokens: Callable[[Rendered], int], max_prompt_tokens: int
) -> str | None:
    """Return the reason why no prompt of a run could have its examples, or None.

    Args:
        tokens: returns the number of tokens of a prompt.
        max_prompt_tokens: the largest number of tokens that leaves room for a response.
    """
    lengths = [tokens(prompt) for prompt in examples.tried()]
    if not lengths:
        return "too few training problems have a known solution"
    if min(lengths) > max_prompt_tokens:
        return (
            f"no prompt fits into the context with its examples: of {len(lengths)} that were tried, the shortest has "
            f"{min(lengths)} tokens, and {max_prompt_tokens} leave room for a response"
        )
    return None


def _without_system(messages: ChatMessages) -> tuple[ChatMessages, ChatMessages]:
    """Return the system messages at the beginning, and the other messages."""
    start = next(
        (number for number, message in enumerate(messages) if message["role"] not in ("system", "developer")),
        len(messages),
    )
    return messages[:start], messages[start:]


def _words(prompt: Rendered) -> Counter[str]:
    text = (
        prompt if isinstance(prompt, str) else "\n".join(message.get("content") or "" for message in prompt)
    )
    return Counter(re.findall(r"\w+", text))
