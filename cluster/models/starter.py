"""The starter models: so small that they train on two CPU cores, and so bad at their task that its rewards are sparse.

One has seen well-formed responses to training problems, most of them wrong, and no held-out problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.core.config import TaskConfig
from reward.tasks.countdown import prompts as countdown_prompts
from reward.tasks.countdown.task import CountdownOptions, CountdownTask
from reward.tasks.countdown.warmup import warmup_examples as countdown_examples
from reward.tasks.telelogs import prompts as telelogs_prompts
from reward.tasks.telelogs.task import TeleLogsOptions, TeleLogsTask
from reward.tasks.telelogs.warmup import warmup_examples as telelogs_examples


@dataclass(frozen=True, slots=True)
class StarterRecipe:
    """How the model is made (ours; `docs/demo.md` says how these numbers were found)."""

    examples: int = 64_000
    correct_fraction: float = 0.3
    max_tries: int = 0
    repeat_fraction: float = 0.5
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    max_tokens: int = 256
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0


RECIPE = StarterRecipe()
"""For Countdown."""
# Its questions are ten times as long and its answers one label: fewer steps, which learn the form and nothing else.
TELELOGS_RECIPE = StarterRecipe(examples=3_200, max_tokens=512, steps=100, batch_size=32)


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What a starter model of a task learns from."""

    examples: list[tuple[str, str]]
    characters: str
    added_tokens: tuple[str, ...]


def _countdown(options: Mapping[str, Any]) -> _Lesson:
    read = CountdownOptions(**options)
    examples = countdown_examples(
        CountdownTask(read).problems("train"),
        RECIPE.examples,
        RECIPE.seed,
        correct_fraction=RECIPE.correct_fraction,
        max_tries=RECIPE.max_tries,
        repeat_fraction=RECIPE.repeat_fraction,
        eval_fraction=read.eval_fraction,
    )
    return _Lesson(examples, countdown_prompts.COMPACT_CHARACTERS, countdown_prompts.ANSWER_TAGS)


def _telelogs(options: Mapping[str, Any]) -> _Lesson:
    recipe = TELELOGS_RECIPE
    problems = TeleLogsTask(TeleLogsOptions(**options)).problems("train")
    examples = telelogs_examples(
        problems, recipe.examples, recipe.seed, correct_fraction=recipe.correct_fraction
    )
    return _Lesson(examples, telelogs_prompts.COMPACT_CHARACTERS, telelogs_prompts.ANSWER_TAGS)


_LESSONS: Mapping[str, Callable[[Mapping[str, Any]], _Lesson]] = {
    "countdown": _countdown,
    "telelogs": _telelogs,
}


def starter_tasks() -> list[str]:
    """The tasks that there is a starter model for."""
    return sorted(_LESSONS)


def recipe_of(task_name: str) -> StarterRecipe:
    return TELELOGS_RECIPE if task_name == "telelogs" else RECIPE


def starter_recipe(task: TaskConfig) -> dict[str, Any]:
    """Everything that the starter model depends on."""
    options = TeleLogsOptions if task.name == "telelogs" else CountdownOptions
    return {"recipe": asdict(recipe_of(task.name)), "task": options(**task.options).model_dump()}


def build_starter(task: TaskConfig, directory: Path, progress: Any) -> None:
    """Train the starter model for the configured problems and save it in `directory`."""
    from learner.model.supervised import train_starter

    recipe = recipe_of(task.name)
    lesson = _LESSONS[task.name](task.options)

    def on_step(step: int, loss: float) -> None:
        if step % 25 == 0:
            progress(f"building the starter model (once): {step * 100 // recipe.steps} %, loss {loss:.2f}")

    train_starter(
        lesson.examples,
        directory,
        characters=lesson.characters,
        added_tokens=lesson.added_tokens,
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


def prompt_tokens(prompt: str | list[dict[str, str]]) -> int:
    """Tokens of a prompt: one per character.

    Raises:
        ValueError: the prompt is not of the kind that the starter model has seen.
    """
    if not isinstance(prompt, str):
        raise ValueError("the starter model knows no chat messages; set task.options.style to compact")
    return len(prompt)
