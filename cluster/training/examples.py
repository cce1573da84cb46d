"""Solved examples that fade: a prompt has them with a probability that falls to 0. Pure.

The probability falls linearly from rescue.examples_fraction at step 0 to 0 at step rescue.examples_fade_steps (CBRL,
arXiv 2603.18953). Seed, prompt and step decide which prompts have examples, and which ones, so they need no state. The
prompts of evaluations never pass through here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cluster.configuration.example_prompts import Rendered, SolvedExamples, obstacle, seeded, solver_of
from cluster.core.config import RescueConfig, RunConfig
from cluster.core.types import Prompt, row_of
from cluster.training.prompts import UnusablePromptError
from reward.registry import build_task
from rollout.engine.chat_template import PromptError
from rollout.engine.tokenizer import EncodedPrompt, PromptEncoder


def examples_probability(config: RescueConfig, step: int) -> float:
    """Return p_t, the probability that a prompt which is admitted after `step` steps has examples."""
    if config.examples == 0:
        return 0.0
    return config.examples_fraction * max(0.0, 1 - step / config.examples_fade_steps)


class ExamplePrompts:
    """Puts examples before the problems of training prompts.

    Usage:
        prompt = examples.prepared(source.next(), step=12)
    """

    def __init__(
        self, config: RunConfig, examples: SolvedExamples, encode: Callable[[Rendered], EncodedPrompt]
    ) -> None:
        self._config = config
        self._examples = examples
        self._encode = encode
        self._max_prompt_tokens = config.model.max_context_tokens - config.rollout.max_response_tokens

    def prepared(self, prompt: Prompt, step: int) -> Prompt:
        """Return the prompt with its examples. It remains as it is if it has none at this step, if it would not fit
        into the context with them, or if the chat template cannot express it with them."""
        draw = f"{prompt.id}/{step}"
        if seeded(self._config.seed, "has examples", draw).random() >= examples_probability(
            self._config.rescue, step
        ):
            return prompt
        rendered = self._examples.prompt(row_of(prompt.id), draw)
        if rendered is None:
            return prompt
        try:
            encoded = self._encode(rendered)
        except PromptError:
            return prompt
        if len(encoded.token_ids) > self._max_prompt_tokens:
            return prompt
        return replace(prompt, text=encoded.text, token_ids=encoded.token_ids, has_examples=True)

    def refuse_unusable(self) -> None:
        """Try some prompts with examples.

        Raises:
            UnusablePromptError: if none of them fits into the context, or the chat template cannot express them.
        """
        try:
            reason = obstacle(
                self._examples,
                lambda rendered: len(self._encode(rendered).token_ids),
                self._max_prompt_tokens,
            )
        except PromptError as error:
            raise UnusablePromptError(f"rescue.examples: {error}") from error
        if reason is not None:
            raise UnusablePromptError(f"rescue.examples = {self._config.rescue.examples}: {reason}")


def load_examples(config: RunConfig, model: Path) -> ExamplePrompts | None:
    """Return the examples of a run with the model in the directory `model`, or None if it has none.

    Raises:
        UnusablePromptError: if no prompt could have its examples. Preflight reports this earlier, unless the model had
            to be downloaded first.
    """
    if config.rescue.examples == 0:
        return None
    task = build_task(config.task.name, config.task.options)
    solve = solver_of(task)
    assert solve is not None, "preflight refuses examples for a task that cannot solve its problems"
    pool = SolvedExamples(task, solve, task.problems("train"), config.rescue.examples, config.seed)
    examples = ExamplePrompts(config, pool, PromptEncoder(model).encode)
    examples.refuse_unusable()
    return examples
