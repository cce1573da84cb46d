"""Encode the prompts of a task, and name the one that cannot be encoded. `check` and runs do the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward.task import LocatedTask, Task
from rollout.engine.tokenizer import EncodedPrompt, PromptEncoder


def encoded_problems(encoder: PromptEncoder, task: Task, problems: Sequence[Any]) -> list[EncodedPrompt]:
    """Return the text and tokens of the prompts of all `problems`.

    Raises:
        PromptError: if some prompts cannot be encoded. The message names the first one by its location in the data, or
            by its number, and counts the others.
    """

    def named(index: int) -> str:
        if isinstance(task, LocatedTask):
            return task.where(problems[index])
        return f"prompt {index + 1} of {len(problems)}"

    return encoder.encode_all([task.render(problem) for problem in problems], named)
