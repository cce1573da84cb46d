"""The starter model: so small that it trains on two CPU cores, and so bad at Countdown that its rewards are sparse.

It has seen well-formed responses to training puzzles, most of them wrong, and no held-out puzzle.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.config import TaskConfig
from reward.countdown.prompts import ANSWER_TAGS, COMPACT_CHARACTERS
from reward.countdown.task import CountdownOptions, CountdownTask
from reward.countdown.warmup import warmup_examples


@dataclass(frozen=True, slots=True)
class StarterRecipe:
    """How the model is made (ours; `docs/demo.md` says how these numbers were found)."""

    examples: int = 64_000
    right_share: float = 0.3
    max_tries: int = 0
    repeat_share: float = 0.5
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    max_tokens: int = 256
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0


RECIPE = StarterRecipe()


def starter_recipe(task: TaskConfig) -> dict[str, Any]:
    """Everything that the starter model depends on."""
    return {"recipe": asdict(RECIPE), "task": CountdownOptions(**task.options).model_dump()}


def build_starter(task: TaskConfig, directory: Path, progress: Any) -> None:
    """Train the starter model for the configured Countdown puzzles and save it in `directory`."""
    from learner.supervised import train_starter

    options = CountdownOptions(**task.options)
    examples = warmup_examples(
        CountdownTask(options).problems("train"),
        RECIPE.examples,
        RECIPE.seed,
        right_share=RECIPE.right_share,
        max_tries=RECIPE.max_tries,
        repeat_share=RECIPE.repeat_share,
        held_out_share=options.held_out_share,
    )

    def on_step(step: int, loss: float) -> None:
        if step % 25 == 0:
            progress(f"building the starter model (once): {step * 100 // RECIPE.steps} %, loss {loss:.2f}")

    train_starter(
        examples,
        directory,
        characters=COMPACT_CHARACTERS,
        added_tokens=ANSWER_TAGS,
        hidden_size=RECIPE.hidden_size,
        layers=RECIPE.layers,
        heads=RECIPE.heads,
        max_tokens=RECIPE.max_tokens,
        steps=RECIPE.steps,
        batch_size=RECIPE.batch_size,
        learning_rate=RECIPE.learning_rate,
        seed=RECIPE.seed,
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
