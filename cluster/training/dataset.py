"""Everything that a run will ask, rendered and tokenised before it starts, and how each prompt is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.types import Prompt, Sampling
from cluster.training.prompt_source import Question, ask, sampling_seed
from reward.registry import build_task
from reward.task import Split
from rollout.engine.tokenizer import NoEndTokenError, PromptEncoder


class UnusablePromptError(ValueError):
    """A prompt does not fit into the model's context, or no response to it could end."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Both splits, tokenised."""

    train: Sequence[Question]
    held_out: Sequence[Question]


def encode_questions(config: RunConfig, model: Path) -> Questions:
    """All problems of the configured task for the model in directory `model`.

    Raises:
        UnusablePromptError: one is too long, or the tokenizer has no end of sequence. (Preflight finds this earlier,
            unless the model had to be fetched first.)
    """
    task = build_task(config.task.name, config.task.options)
    try:
        encoder = PromptEncoder(model)
    except NoEndTokenError as error:
        raise UnusablePromptError(str(error)) from error
    room = config.model.max_context_tokens - config.rollout.max_response_tokens

    def encode(problems: Sequence[Any]) -> list[Question]:
        questions = [Question(problem, encoder.encode(task.render(problem))) for problem in problems]
        longest = max(len(question.encoded.token_ids) for question in questions)
        if longest > room:
            raise UnusablePromptError(
                f"the longest prompt has {longest} tokens and must leave room for rollout.max_response_tokens = "
                f"{config.rollout.max_response_tokens}; raise model.max_context_tokens to at least "
                f"{longest + config.rollout.max_response_tokens}"
            )
        return questions

    return Questions(encode(task.problems("train")), encode(task.problems("held_out")))


def training_sampling(config: RunConfig, prompt_id: str) -> Sampling:
    """How the responses to a training prompt are drawn. On-policy each has a seed of its own. Where weights change
    under what is being sampled a seed would decide nothing, and it costs a random generator per response."""
    seeded = config.rollout.max_staleness == 0
    return _sampling(config, prompt_id, config.rollout.responses_per_prompt, seeded)


def evaluation_prompts(config: RunConfig, questions: Questions, split: Split = "held_out") -> list[Prompt]:
    """What an evaluation asks: the same prompts with the same seeds every time.

    They are the first of the held-out ones. Of the training ones they are some that lie evenly apart: neighbours may
    be the same problem in other words (`orders_per_puzzle`), and then they are not independent.
    """
    held_out = split == "held_out"
    asked = questions.held_out if held_out else questions.train
    count = min(config.evaluation.prompts, len(asked))
    return [
        ask(id_, asked[row], _sampling(config, id_, config.evaluation.responses_per_prompt, seeded=True))
        for place in range(count)
        for row in [place if held_out else place * len(asked) // count]
        for id_ in [f"eval/{row}" if held_out else f"eval/train/{row}"]
    ]


def _sampling(config: RunConfig, prompt_id: str, responses: int, seeded: bool) -> Sampling:
    seed = sampling_seed(config.seed, prompt_id) if seeded else None
    return Sampling(responses, config.rollout.temperature, config.rollout.max_response_tokens, seed)
