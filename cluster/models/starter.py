"""Find and train the starter model of a task. The recipe and the examples come from the task itself (`StarterTask`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.core.config import TaskConfig
from reward.registry import build_task, task_class, task_names
from reward.task import Starter, StarterTask


def starter_tasks() -> list[str]:
    """Return the names of all tasks that have a starter model."""
    return [name for name in task_names() if find_starter(name) is not None]


def find_starter(task_name: str) -> Starter | None:
    """Return the starter model of a task, or None if the task does not exist or has none."""
    if task_name not in task_names():
        return None
    starter: Starter | None = getattr(task_class(task_name), "starter", None)
    return starter


def starter_key(task: TaskConfig) -> dict[str, Any]:
    """Return all values that the starter model depends on. The cache of built models identifies it by them.

    An option for the starter (`starter_…`) that is null leaves the recipe as it is, and is no such value.

    Raises:
        ValueError: if the task has no starter model.
    """
    options = task_class(task.name).Options(**task.options).model_dump()
    return {
        "recipe": asdict(_starter(task.name).recipe),
        "task": {
            name: value
            for name, value in options.items()
            if not (name.startswith("starter_") and value is None)
        },
    }


def build_starter(task: TaskConfig, directory: Path, progress: Any) -> None:
    """Train the starter model for the configured problems and save it in `directory`.

    Raises:
        ValueError: if the task has no starter model.
    """
    from learner.model.supervised import train_starter

    starter = _starter(task.name)
    recipe = starter.recipe
    built = build_task(task.name, task.options)
    assert isinstance(built, StarterTask), f"{task.name} has `starter`, but no method `starter_examples`"

    def on_step(step: int, loss: float) -> None:
        if step % 25 == 0:
            progress(f"building the starter model (once): {step * 100 // recipe.steps} %, loss {loss:.2f}")

    train_starter(
        built.starter_examples(),
        directory,
        characters=starter.characters,
        added_tokens=starter.added_tokens,
        hidden_size=recipe.hidden_size,
        layers=recipe.layers,
        heads=recipe.heads,
        max_tokens=recipe.max_tokens,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        on_step=on_step,
    )


def prompt_tokens(prompt: str | list[dict[str, str]], added_tokens: Sequence[str] = ()) -> int:
    """Return the number of tokens of a prompt: one per character, and one for each of the added tokens in it.

    Raises:
        ValueError: if the prompt is chat messages, which the starter model has not seen.
    """
    if not isinstance(prompt, str):
        raise ValueError("the starter model cannot read chat messages; set task.options.style to compact")
    for token in added_tokens:
        prompt = prompt.replace(token, " ")
    return len(prompt)


def _starter(task_name: str) -> Starter:
    """Return the starter model of a task.

    Raises:
        ValueError: if the task has none.
    """
    starter = find_starter(task_name)
    if starter is None:
        raise ValueError(
            f"the task {task_name} has no starter model; set model.source to a directory, a hub id or a .gguf file"
        )
    return starter
